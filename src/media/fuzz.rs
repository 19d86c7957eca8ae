//! What nodes wrote into files.

use bytes::Bytes;
use comfyd_actors::domain::options::{ImageFormat, OutputOptions};

use super::{
    convert,
    probe::{Format, Probe, look},
    strip::{self, Strip},
};
use crate::fuzz::Target;

pub const TARGETS: &[Target] = &[
    Target { name: "media_probe", run: probe, seeds: FILES },
    Target { name: "media_strip", run: strip, seeds: FILES },
    Target { name: "media_convert", run: convert, seeds: FILES },
];

/// The beginnings of files, as far as they say what comes next.
const FILES: &[&[u8]] = &[
    b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\x10\0\0\0\x10\x08\x02\0\0\0\x90\x91\x68\x36\0\0\0\x04tEXtab\0c\xaa\xbb\xcc\xdd\0\0\0\0IEND\xae\x42\x60\x82",
    b"\xff\xd8\xff\xe0\0\x10JFIF\0\x01\x01\0\0\x01\0\x01\0\0\xff\xe1\0\x08Exif\0\0\xff\xc0\0\x11\x08\0\x10\0\x10\x03\x01\x22\0\x02\x11\x01\x03\x11\x01\xff\xda\0\x02\xff\xd9",
    b"RIFF\x24\0\0\0WEBPVP8X\x0a\0\0\0\x0c\0\0\0\x0f\0\0\x0f\0\0EXIF\x02\0\0\0ab",
    b"GIF89a\x10\0\x10\0\x80\0\0\0\0\0\xff\xff\xff!\xff\x0bNETSCAPE2.0\x03\x01\0\0\0!\xf9\x04\0\x0a\0\0\0,\0\0\0\0\x10\0\x10\0\0\x02\x02\x44\x01\0;",
    b"BM\x46\0\0\0\0\0\0\0\x36\0\0\0\x28\0\0\0\x10\0\0\0\xf0\xff\xff\xff\x01\0\x18\0",
    b"\0\0\0\x10ftypisom\0\0\0\0\0\0\0\x40moov\0\0\0\x20mvhd\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x03\xe8\0\0\x07\xd0\0\0\0\x0cudta\0\0\0\x01",
    b"\x1a\x45\xdf\xa3\x80\x18\x53\x80\x67\x01\xff\xff\xff\xff\xff\xff\xff\x15\x49\xa9\x66\x8e\x2a\xd7\xb1\x83\x0f\x42\x40\x44\x89\x84\x44\x7a\0\0\x12\x54\xc3\x67\x82ab",
    b"fLaC\0\0\0\x22\x10\0\x10\0\0\0\0\0\0\0\x0a\xc4\x42\xf0\0\0\xac\x44\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x84\0\0\x04abcd",
    b"RIFF\x24\0\0\0WAVEfmt \x10\0\0\0\x01\0\x01\0\x44\xac\0\0\x88\x58\x01\0\x02\0\x10\0data\0\0\0\0",
    b"OggS\0\x02\0\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\0\0\0\0\x01\x13OpusHead\x01\x02\x38\x01\x80\xbb\0\0\0\0\0",
    b"ID3\x04\0\0\0\0\0\x02ab\xff\xfb\x90\0\0\0\0\0",
];

/// However a file comes in, what is known of it is the same.
fn probe(data: &[u8]) {
    let whole = look(data);
    let mut probe = Probe::new(Format::of(data));
    data.chunks(3).for_each(|piece| probe.feed(piece));
    assert_eq!(probe.facts(), whole);
}

/// And what is left of it is too, and is no longer than it was.
fn strip(data: &[u8]) {
    let stripped = |size: usize| {
        let mut strip = Strip::new(Format::of(data))?;
        let mut left: Vec<u8> = Vec::new();
        for piece in data.chunks(size) {
            left.extend_from_slice(&strip.feed(Bytes::copy_from_slice(piece)));
        }
        left.extend_from_slice(&strip.finish());
        Some(left)
    };
    let whole = stripped(data.len().max(1));
    assert_eq!(whole, stripped(5));
    assert!(whole.is_none_or(|left| left.len() <= data.len()));
    assert!(strip::webp(data).len() <= data.len());
}

/// Small pictures only: what a large one may cost is a matter of its size alone, and not of this.
fn convert(data: &[u8]) {
    const SMALL: u32 = 256;
    let facts = look(data);
    let small = |side: Option<u32>| side.is_some_and(|side| side <= SMALL);
    if !small(facts.width) || !small(facts.height) {
        return;
    }
    for target in [ImageFormat::Png, ImageFormat::Jpeg, ImageFormat::Webp] {
        if let Ok(made) = convert::convert(data, target, &OutputOptions::default()) {
            assert_eq!(convert::readable(Format::of(&made)), Some(target));
        }
    }
}
