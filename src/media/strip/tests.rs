use proptest::prelude::*;

use super::*;
use crate::media::{
    probe::look,
    tests::{ASSETS, SECRET, animated_png, contains, jpeg, png},
};

fn strip(file: &[u8], sizes: &[usize]) -> Vec<u8> {
    let mut strip = Strip::new(Format::of(file)).unwrap();
    let (mut rest, mut out) = (file, Vec::new());
    let mut sizes = sizes.iter().cycle();
    while !rest.is_empty() {
        let (chunk, behind) = rest.split_at(sizes.next().map_or(rest.len(), |size| *size).min(rest.len()));
        out.extend_from_slice(&strip.feed(Bytes::copy_from_slice(chunk)));
        rest = behind;
    }
    out.extend_from_slice(&strip.finish());
    out
}

/// Files that can be stripped as they stream by, all with something to hide.
fn files() -> Vec<(&'static str, Vec<u8>)> {
    let clips = ASSETS.iter().filter(|(name, _)| *name != "sound.opus").map(|(name, file)| (*name, file.to_vec()));
    let pictures = [("png", png(8, 8)), ("apng", animated_png(8, 8, 3, (1, 10))), ("jpeg", jpeg(8, 8))];
    clips.chain(pictures).collect()
}

#[test]
fn the_prompt_is_gone_and_the_rest_is_there() {
    for (name, file) in files() {
        assert!(contains(&file, SECRET), "{name} hides nothing");
        let left = strip(&file, &[]);
        assert!(!contains(&left, SECRET), "{name}");
        assert_eq!(look(&left), look(&file), "{name}");
        if matches!(name, "clip.mp4" | "clip.webm" | "sound.flac") {
            assert_eq!(left.len(), file.len(), "{name}");
        } else {
            assert!(left.len() < file.len(), "{name}");
        }
    }
}

#[test]
fn pictures_stay_the_same() {
    for (name, file) in [("png", png(40, 30)), ("jpeg", jpeg(40, 30))] {
        let pixels = |file: &[u8]| image::load_from_memory(file).unwrap().into_rgb8();
        assert_eq!(pixels(&strip(&file, &[])), pixels(&file), "{name}");
    }
}

#[test]
fn what_hides_behind_the_end_of_a_picture_goes_too() {
    let file = [png(8, 8), SECRET.to_vec()].concat();
    let left = strip(&file, &[]);
    assert!(left.ends_with(b"IEND\xae\x42\x60\x82"), "{left:?}");
}

#[test]
fn a_webp_is_written_anew() {
    let picture = b"VP8L\x05\0\0\0\x2f\x3f\xc0\x0f\0\0";
    let extended = |flags: u8| [&b"VP8X\x0a\0\0\0"[..], &[flags], b"\0\0\0\x3f\0\0\x3f\0\0"].concat();
    let riff = |chunks: &[&[u8]]| {
        let body = chunks.concat();
        [&b"RIFF"[..], &u32::try_from(body.len() + 4).unwrap().to_le_bytes(), b"WEBP", &body].concat()
    };
    let file = riff(&[&extended(0x1c), picture, b"EXIF\x03\0\0\0abc\0", b"XMP \x02\0\0\0xy"]);
    assert_eq!(webp(&file), riff(&[&extended(0x10), picture]));
    for cut in 0..file.len() {
        let _ = webp(&file[..cut]);
    }
}

proptest! {
    #[test]
    fn it_does_not_matter_how_a_file_is_cut(file in 0..7_usize, sizes in prop::collection::vec(1_usize..300, 1..30)) {
        let (_, file) = files().swap_remove(file);
        prop_assert_eq!(strip(&file, &sizes), strip(&file, &[]));
    }

    #[test]
    fn damage_is_survived(file in 0..7_usize, at in any::<prop::sample::Index>(), with in prop::collection::vec(any::<u8>(), 0..24)) {
        let (_, mut file) = files().swap_remove(file);
        let head = file[..12].to_vec();
        let at = at.index(file.len());
        let end = (at + with.len()).min(file.len());
        file.splice(at..end, with);
        file.splice(..12, head);
        let left = strip(&file, &[]);
        prop_assert!(left.len() <= file.len() + 16);
    }
}
