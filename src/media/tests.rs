use std::io;

use image::{
    ExtendedColorType, ImageEncoder, RgbImage,
    codecs::{jpeg::JpegEncoder, png::PngEncoder},
};

use super::*;

/// Files as ComfyUI's own nodes write them, the prompt embedded.
pub const ASSETS: [(&str, &[u8]); 5] = [
    ("clip.mp4", include_bytes!("../../tests/fake_comfyui/assets/clip.mp4")),
    ("clip.webm", include_bytes!("../../tests/fake_comfyui/assets/clip.webm")),
    ("sound.flac", include_bytes!("../../tests/fake_comfyui/assets/sound.flac")),
    ("sound.mp3", include_bytes!("../../tests/fake_comfyui/assets/sound.mp3")),
    ("sound.opus", include_bytes!("../../tests/fake_comfyui/assets/sound.opus")),
];
/// What all of them would give away.
pub const SECRET: &[u8] = b"EmptyImage";

pub fn contains(file: &[u8], part: &[u8]) -> bool {
    file.windows(part.len()).any(|window| window == part)
}

/// The checksum of PNG's chunks.
pub fn crc(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |sum, byte| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| if sum & 1 == 1 { sum >> 1 ^ 0xedb8_8320 } else { sum >> 1 })
    })
}

fn chunk(kind: &[u8; 4], data: &[u8]) -> Vec<u8> {
    let length = u32::try_from(data.len()).unwrap().to_be_bytes();
    let sum = crc(&[kind, data].concat()).to_be_bytes();
    [&length[..], kind, data, &sum].concat()
}

/// A number's lowest byte.
pub fn low(number: u32) -> u8 {
    number.to_le_bytes()[0]
}

fn picture(width: u32, height: u32) -> RgbImage {
    RgbImage::from_fn(width, height, |x, y| image::Rgb([x * 7, y * 5, x + y].map(low)))
}

/// A PNG with all that ComfyUI and its packs put into one.
pub fn png(width: u32, height: u32) -> Vec<u8> {
    let mut plain = Vec::new();
    let encoder = PngEncoder::new(&mut plain);
    encoder.write_image(picture(width, height).as_raw(), width, height, ExtendedColorType::Rgb8).unwrap();
    // Behind the signature and the header.
    let (head, rest) = plain.split_at(8 + 25);
    let texts = [
        chunk(b"tEXt", &[b"prompt\0", SECRET].concat()),
        chunk(b"iTXt", &[b"workflow\0\0\0\0\0", SECRET].concat()),
        chunk(b"eXIf", SECRET),
        chunk(b"tRNS", b"\0\x01\0\x02\0\x03"),
    ];
    [head, &texts.concat(), rest].concat()
}

/// As `SaveAnimatedPNG` writes them: the prompt in `comf` chunks behind the first picture.
pub fn animated_png(width: u32, height: u32, frames: u32, (delay, per_second): (u16, u16)) -> Vec<u8> {
    let still = png(width, height);
    let (head, rest) = still.split_at(8 + 25);
    let end = rest.len() - 12;
    let control = |number: u32| {
        let places = [number.to_be_bytes(), width.to_be_bytes(), height.to_be_bytes(), [0; 4], [0; 4]].concat();
        chunk(b"fcTL", &[&places[..], &delay.to_be_bytes(), &per_second.to_be_bytes(), &[0, 0]].concat())
    };
    let mut file =
        [head, &chunk(b"acTL", &[frames.to_be_bytes(), [0; 4]].concat()), &control(0), &rest[..end]].concat();
    for number in 1..frames {
        file.extend_from_slice(&control(number * 2 - 1));
        file.extend_from_slice(&chunk(b"fdAT", &[&(number * 2).to_be_bytes()[..], b"data"].concat()));
    }
    [&file[..], &chunk(b"comf", &[b"prompt\0", SECRET].concat()), &rest[end..]].concat()
}

pub fn jpeg(width: u32, height: u32) -> Vec<u8> {
    let mut plain = Vec::new();
    let encoder = JpegEncoder::new(&mut plain);
    encoder.write_image(picture(width, height).as_raw(), width, height, ExtendedColorType::Rgb8).unwrap();
    let segment = |kind: u8| [&[0xff, kind, 0, u8::try_from(SECRET.len() + 2).unwrap()][..], SECRET].concat();
    [&plain[..2], &segment(0xe1), &segment(0xfe), &plain[2..]].concat()
}

/// A body that comes in small parts, and that panics when it is asked for more after its end.
fn incoming(filename: &str, file: &[u8]) -> Incoming {
    let parts: Vec<Bytes> = file.chunks(100).map(Bytes::copy_from_slice).collect();
    let next = |mut parts: std::vec::IntoIter<Bytes>| async { parts.next().map(|part| (Ok(part), parts)) };
    let body = stream::unfold(parts.into_iter(), next).boxed();
    Incoming { filename: filename.into(), bytes: Some(file.len() as u64), body }
}

async fn treat(filename: &str, file: &[u8], options: OutputOptions) -> (Prepared, Vec<u8>, Facts) {
    let mut prepared = Studio::default().prepare(incoming(filename, file), &options).await.unwrap();
    let body = std::mem::replace(&mut prepared.body, stream::empty().boxed());
    let parts: Vec<io::Result<Bytes>> = body.collect().await;
    let left: Vec<u8> = parts.into_iter().flat_map(|part| part.unwrap()).collect();
    let facts = prepared.facts.get().unwrap().clone();
    assert!(prepared.bytes.is_none_or(|bytes| bytes == left.len() as u64), "{filename}");
    (prepared, left, facts)
}

fn to(format: ImageFormat) -> OutputOptions {
    OutputOptions { format: Some(format), ..OutputOptions::default() }
}

fn stripped() -> OutputOptions {
    OutputOptions { strip_metadata: true, ..OutputOptions::default() }
}

#[tokio::test]
async fn without_options_a_file_passes_as_it_is() {
    let files = ASSETS.iter().map(|(name, file)| (*name, file.to_vec()));
    for (name, file) in files.chain([
        ("a.png", png(9, 9)),
        ("a.latent", vec![7; 300]),
        ("a.bin", Vec::new()),
        ("short.bin", vec![7; 9]),
    ]) {
        let (prepared, left, facts) = treat(name, &file, OutputOptions::default()).await;
        assert_eq!((left, facts.stripped), (file, None), "{name}");
        assert_eq!(prepared.extension.as_deref(), name.split('.').nth(1));
    }
}

#[tokio::test]
async fn a_still_picture_becomes_what_was_asked_for() {
    let file = png(20, 10);
    let (prepared, left, facts) =
        treat("a.png", &file, OutputOptions { quality: Some(50), ..to(ImageFormat::Jpeg) }).await;
    assert_eq!((prepared.extension.as_deref(), prepared.content_type.as_str()), (Some("jpg"), "image/jpeg"));
    assert_eq!((Format::of(&left), facts.width, facts.height), (Format::Jpeg, Some(20), Some(10)));
    assert!(!contains(&left, SECRET));
    // It is that already.
    assert_eq!(treat("a.png", &file, to(ImageFormat::Png)).await.1, file);
}

#[tokio::test]
async fn what_is_no_still_picture_is_not_converted() {
    let moving = animated_png(20, 10, 3, (1, 10));
    let (prepared, left, facts) = treat("a.png", &moving, to(ImageFormat::Webp)).await;
    assert_eq!((left, prepared.content_type.as_str(), facts.frames), (moving, "image/png", Some(3)));
    for (name, file) in ASSETS {
        assert_eq!(treat(name, file, to(ImageFormat::Jpeg)).await.1, file, "{name}");
    }
}

#[tokio::test]
async fn metadata_goes_where_it_can_and_it_is_told_where_not() {
    for (name, file) in [("a.png", png(9, 9)), ("clip.mp4", ASSETS[0].1.to_vec()), ("a.jpg", jpeg(9, 9))] {
        let (_, left, facts) = treat(name, &file, stripped()).await;
        assert_eq!((contains(&left, SECRET), facts.stripped), (false, Some(true)), "{name}");
        assert!(facts.width.is_some());
    }
    let (_, left, facts) = treat("sound.opus", ASSETS[4].1, stripped()).await;
    assert_eq!((contains(&left, SECRET), facts.stripped), (true, Some(false)));
    // An animation is not converted, and loses its metadata all the same.
    let moving = animated_png(20, 10, 3, (1, 10));
    let (_, left, facts) =
        treat("a.png", &moving, OutputOptions { strip_metadata: true, ..to(ImageFormat::Webp) }).await;
    assert_eq!((contains(&left, SECRET), facts.stripped, facts.frames), (false, Some(true), Some(3)));
}

#[tokio::test]
async fn a_short_text_comes_along() {
    let short = "é".repeat(SHORT_TEXT / 2);
    let (_, _, facts) = treat("a.txt", short.as_bytes(), OutputOptions::default()).await;
    assert_eq!(facts.text, Some(short.clone()));
    for (name, file) in
        [("long.txt", format!("{short}.").into_bytes()), ("odd.txt", b"\xff\xfe".to_vec()), ("a.png", b"text".to_vec())]
    {
        assert_eq!(treat(name, &file, OutputOptions::default()).await.2.text, None, "{name}");
    }
    assert_eq!(treat("empty.txt", b"", OutputOptions::default()).await.2.text.as_deref(), Some(""));
}

#[tokio::test]
async fn what_cannot_be_made_is_said() {
    let studio = Studio::default();
    let unfit = async |incoming: Incoming| match studio.prepare(incoming, &to(ImageFormat::Webp)).await {
        Err(MediaError::Unfit(why)) => why,
        Err(MediaError::Source(why)) => panic!("a fault of the source: {why}"),
        Ok(_) => panic!("it was made"),
    };
    let broken = png(9, 9)[..60].to_vec();
    assert!(unfit(incoming("a.png", &broken)).await.contains("cannot be read as a picture"));
    let large = Incoming { bytes: Some(convert::MAX_BYTES + 1), ..incoming("a.png", &png(9, 9)) };
    assert!(unfit(large).await.contains("128 MiB"));
    // One that does not say how long it is and never ends.
    let endless = stream::repeat_with(|| Ok(Bytes::from_static(&[0; 1 << 20]))).boxed();
    let head = stream::once(future::ready(Ok(Bytes::from(png(9, 9))))).chain(endless).boxed();
    assert!(unfit(Incoming { filename: "a.png".into(), bytes: None, body: head }).await.contains("128 MiB"));
}

#[tokio::test]
async fn a_body_that_fails_is_the_sources_fault() {
    let failing =
        || stream::iter([Ok(Bytes::from_static(b"\x89PNG\r\n\x1a\n0000")), Err(io::Error::other("cut"))]).boxed();
    let incoming = || Incoming { filename: "a.png".into(), bytes: None, body: failing() };
    let studio = Studio::default();
    let refused = studio.prepare(incoming(), &to(ImageFormat::Webp)).await.err();
    assert_eq!(refused, Some(MediaError::Source("cut".into())));
    let prepared = studio.prepare(incoming(), &stripped()).await.unwrap();
    assert!(prepared.body.collect::<Vec<_>>().await.iter().any(Result::is_err));
    assert_eq!(prepared.facts.get(), None);
}
