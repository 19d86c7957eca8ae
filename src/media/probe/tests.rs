use proptest::prelude::*;

use super::*;
use crate::media::tests::{ASSETS, animated_png, png};

fn sides(facts: &Facts) -> Option<(u32, u32)> {
    facts.width.zip(facts.height)
}

#[test]
fn real_files_tell_what_they_are() {
    for (name, size, duration, frames) in [
        ("clip.mp4", Some((128, 128)), Some(1_000), Some(8)),
        ("clip.webm", Some((128, 128)), Some(500), Some(4)),
        ("sound.flac", None, Some(500), None),
        ("sound.mp3", None, None, None),
        ("sound.opus", None, Some(500), None),
    ] {
        let (_, file) = ASSETS.iter().find(|(known, _)| *known == name).unwrap();
        let facts = look(file);
        assert_eq!((sides(&facts), facts.frames), (size, frames), "{name}");
        if name == "sound.mp3" {
            // Whole frames, silence before the first included.
            assert!(facts.duration_ms.is_some_and(|found| (500..600).contains(&found)), "{facts:?}");
        } else {
            assert_eq!(facts.duration_ms, duration, "{name}");
        }
    }
}

#[test]
fn pictures_tell_their_size_and_animations_their_frames() {
    let still = look(&png(31, 7));
    assert_eq!((sides(&still), still.frames, still.duration_ms), (Some((31, 7)), Some(1), None));
    let moving = look(&animated_png(31, 7, 3, (1, 6)));
    assert_eq!((sides(&moving), moving.frames, moving.duration_ms), (Some((31, 7)), Some(3), Some(498)));
    for (file, expected) in [
        (&b"RIFF\x1e\0\0\0WEBPVP8L\x11\0\0\0\x2f\x3f\xc0\x0f\0"[..], (64, 64)),
        (b"RIFF\x1e\0\0\0WEBPVP8 \x12\0\0\0\0\0\0\x9d\x01\x2a\x40\0\x20\0", (64, 32)),
        (b"\xff\xd8\xff\xe0\0\x04ab\xff\xc0\0\x11\x08\0\x20\0\x40\x03", (64, 32)),
        (b"BM\0\0\0\0\0\0\0\0\x36\0\0\0\x28\0\0\0\x40\0\0\0\xe0\xff\xff\xff", (64, 32)),
    ] {
        let facts = look(file);
        assert_eq!((sides(&facts), facts.frames), (Some(expected), Some(1)), "{file:?}");
    }
    // Two pictures of two by one, a fifth of a second each, the first with colours of its own.
    let gif = [
        &b"GIF89a\x02\0\x01\0\x80\0\0\0\0\0\xff\xff\xff"[..],
        b"!\xff\x0bNETSCAPE2.0\x03\x01\0\0\0",
        b"!\xf9\x04\0\x14\0\0\0,\0\0\0\0\x02\0\x01\0\x80\0\0\0\0\0\0\x02\x02\x04\n\0",
        b"!\xf9\x04\0\x14\0\0\0,\0\0\0\0\x02\0\x01\0\0\x02\x02\x04\n\0;",
    ]
    .concat();
    let facts = look(&gif);
    assert_eq!((sides(&facts), facts.frames, facts.duration_ms), (Some((2, 1)), Some(2), Some(400)));
    // Two frames of 150 ms on a canvas of 64 by 64.
    let frame = b"ANMF\x10\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x96\0\0\0";
    let webp = [&b"RIFF\x4e\0\0\0WEBPVP8X\x0a\0\0\0\x02\0\0\0\x3f\0\0\x3f\0\0"[..], frame, frame].concat();
    let facts = look(&webp);
    assert_eq!((sides(&facts), facts.frames, facts.duration_ms), (Some((64, 64)), Some(2), Some(300)));
}

#[test]
fn a_sound_tells_how_long_it_is() {
    let wav =
        b"RIFF\0\0\0\0WAVEfmt \x10\0\0\0\x01\0\x01\0\x40\x1f\0\0\x80\x3e\0\0\x02\0\x10\0LIST\x02\0\0\0abdata\0\x7d\0\0";
    assert_eq!(look(wav).duration_ms, Some(2_000));
    let endless = b"RIFF\0\0\0\0WAVEfmt \x10\0\0\0\x01\0\x01\0\x40\x1f\0\0\x80\x3e\0\0\x02\0\x10\0data\xff\xff\xff\xff";
    assert_eq!(look(endless).duration_ms, None);
}

#[test]
fn an_index_behind_the_media_is_found() {
    // The way most encoders write: the media's length in 64 bits, then what it is.
    let clip = ASSETS.iter().find(|(name, _)| *name == "clip.mp4").unwrap().1;
    let place = clip.windows(4).position(|window| window == b"moov").unwrap() - 4;
    let (before, index) = clip.split_at(place);
    assert!(before.windows(4).any(|window| window == b"mdat"), "the clip's index stands first: this shows nothing");
    let mut large = before[..32].to_vec();
    large.extend_from_slice(&[&b"\0\0\0\x01mdat"[..], &2_016_u64.to_be_bytes(), &[7; 2_000]].concat());
    large.extend_from_slice(index);
    assert_eq!(look(&large), look(clip));
}

proptest! {
    #[test]
    fn it_does_not_matter_how_a_file_is_cut(asset in 0..ASSETS.len(), sizes in prop::collection::vec(1_usize..700, 1..40)) {
        let file = ASSETS[asset].1;
        let mut probe = Probe::new(Format::of(file));
        let (mut rest, mut sizes) = (file, sizes.iter().cycle());
        while !rest.is_empty() {
            let (chunk, behind) = rest.split_at((*sizes.next().unwrap()).min(rest.len()));
            probe.feed(chunk);
            rest = behind;
        }
        prop_assert_eq!(probe.facts(), look(file));
    }

    #[test]
    fn damage_is_survived(asset in 0..ASSETS.len(), at in any::<prop::sample::Index>(), with in prop::collection::vec(any::<u8>(), 0..24)) {
        let mut file = ASSETS[asset].1.to_vec();
        let at = at.index(file.len());
        let end = (at + with.len()).min(file.len());
        file.splice(at..end, with);
        let _ = look(&file);
        let _ = look(&file[..at]);
    }

    #[test]
    fn nonsense_is_survived(magic in 0..ASSETS.len(), rest in prop::collection::vec(any::<u8>(), 0..300)) {
        let head = &ASSETS[magic].1[..MAGIC];
        let _ = look(&[head, &rest].concat());
    }
}
