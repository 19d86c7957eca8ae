//! Sounds, videos and animations. Pictures are animated for real; sounds and videos are always the same tiny clips, made by the
//! encoders that ComfyUI uses.

use image::RgbImage;
use image::codecs::webp::WebPEncoder;
use image::{ExtendedColorType, ImageEncoder};
use serde_json::json;

use super::image::{Target, chunk, is_cheap, metadata, png};
use super::{Failure, Product, Stop, Value, compute, values};
use crate::files::Folder;
use crate::worker::step::Step;

/// Half a second of silence, eight frames of 128 x 128, four of them.
const FLAC: &[u8] = include_bytes!("../../assets/sound.flac");
const MP3: &[u8] = include_bytes!("../../assets/sound.mp3");
const OPUS: &[u8] = include_bytes!("../../assets/sound.opus");
const MP4: &[u8] = include_bytes!("../../assets/clip.mp4");
const WEBM: &[u8] = include_bytes!("../../assets/clip.webm");

pub(super) fn empty_audio() -> Product {
    values([Value::Audio])
}

/// A video is its pictures until it is saved.
pub(super) fn create_video(step: &Step<'_>) -> Result<Product, Stop> {
    step.images("images")?;
    Ok(values([Value::Video]))
}

/// `SaveAudio` and its kin, by the ending of what they write.
pub(super) fn save_audio(step: &Step<'_>, ending: &str) -> Result<Product, Stop> {
    let target = Target::new(step, Folder::Output, &step.text("filename_prefix"))?;
    keep_audio(step, &target, ending)
}

pub(super) fn preview_audio(step: &Step<'_>) -> Result<Product, Stop> {
    let target = Target::temporary(step)?;
    keep_audio(step, &target, "flac")
}

fn keep_audio(step: &Step<'_>, target: &Target, ending: &str) -> Result<Product, Stop> {
    let bytes = match ending {
        "flac" => FLAC,
        "mp3" => MP3,
        _ => OPUS,
    };
    let gap = if step.server.generation().has_jobs_api() { "" } else { "_" };
    let filename = target.next_name(step, &format!("{gap}.{ending}"));
    let shown = target.describe(&filename);
    step.server.files.write(target.place(filename), bytes.into());
    Ok(Product { ui: Some(json!({"audio": [shown]})), ..Product::default() })
}

/// Videos are reported as animated images.
pub(super) fn save_video(step: &Step<'_>, ending: &str) -> Result<Product, Stop> {
    let target = Target::new(step, Folder::Output, &step.text("filename_prefix"))?;
    Ok(keep_animation(step, &target, ending, if ending == "mp4" { MP4 } else { WEBM }.to_vec()))
}

pub(super) async fn save_animated_webp(step: &mut Step<'_>) -> Result<Product, Stop> {
    let images = step.images("images")?;
    let target = Target::new(step, Folder::Output, &step.text("filename_prefix"))?;
    let fps = step.float("fps", 6.0);
    let bytes = compute(is_cheap(&images), move || animated_webp(&images, fps)).await?;
    Ok(keep_animation(step, &target, "webp", bytes))
}

pub(super) async fn save_animated_png(step: &mut Step<'_>) -> Result<Product, Stop> {
    let images = step.images("images")?;
    let target = Target::new(step, Folder::Output, &step.text("filename_prefix"))?;
    let (fps, prompt) = (step.float("fps", 6.0), metadata(step));
    let bytes = compute(is_cheap(&images), move || animated_png(&images, fps, &prompt)).await?;
    Ok(keep_animation(step, &target, "png", bytes))
}

fn keep_animation(step: &Step<'_>, target: &Target, ending: &str, bytes: Vec<u8>) -> Product {
    let filename = target.next_name(step, &format!("_.{ending}"));
    let shown = target.describe(&filename);
    step.server.files.write(target.place(filename), bytes.into());
    Product { ui: Some(json!({"images": [shown], "animated": [true]})), ..Product::default() }
}

/// Milliseconds one picture is shown.
fn pace(fps: f64) -> u16 {
    (1_000.0 / fps.max(0.01)).round() as u16
}

/// Frames in the extended form: each is a lossless WebP of its own without its file header.
fn animated_webp(images: &[RgbImage], fps: f64) -> Result<Vec<u8>, Failure> {
    let (width, height) = images.first().map_or((1, 1), RgbImage::dimensions);
    let side = |side: u32| (side - 1).to_le_bytes()[..3].to_vec();
    let size = [side(width), side(height)].concat();
    let part = |kind: &[u8; 4], data: &[u8]| [&kind[..], &(data.len() as u32).to_le_bytes(), data].concat();
    let mut body = part(b"VP8X", &[&[2, 0, 0, 0][..], &size].concat());
    body.extend_from_slice(&part(b"ANIM", &[0; 6]));
    for image in images {
        let mut file = Vec::new();
        WebPEncoder::new_lossless(&mut file)
            .write_image(image.as_raw(), image.width(), image.height(), ExtendedColorType::Rgb8)
            .map_err(|error| Failure::new("OSError", error.to_string()))?;
        let head = [&[0; 6][..], &size, &pace(fps).to_le_bytes(), &[0, 0]].concat();
        body.extend_from_slice(&part(b"ANMF", &[&head[..], file.get(12..).unwrap_or_default()].concat()));
    }
    Ok([&b"RIFF"[..], &(body.len() as u32 + 4).to_le_bytes(), b"WEBP", &body].concat())
}

/// A still PNG whose later frames ride along in chunks of their own, the prompt behind the first picture.
fn animated_png(images: &[RgbImage], fps: f64, prompt: &[u8]) -> Result<Vec<u8>, Failure> {
    let mut file = Vec::new();
    let mut sequence = 0_u32;
    for (number, image) in images.iter().enumerate() {
        let still = png(image)?;
        // Signature and header are 33 bytes, the end is 12; what lies between are the picture's chunks.
        let (head, rest) = still.split_at(33);
        let data = &rest[..rest.len() - 12];
        if number == 0 {
            file.extend_from_slice(head);
            file.extend_from_slice(&chunk(*b"acTL", &[(images.len() as u32).to_be_bytes(), [0; 4]].concat()));
        }
        let places =
            [sequence.to_be_bytes(), image.width().to_be_bytes(), image.height().to_be_bytes(), [0; 4], [0; 4]];
        let control = [&places.concat()[..], &pace(fps).to_be_bytes(), &1_000_u16.to_be_bytes(), &[0, 0]].concat();
        file.extend_from_slice(&chunk(*b"fcTL", &control));
        sequence += 1;
        if number == 0 {
            file.extend_from_slice(data);
            file.extend_from_slice(&chunk(*b"comf", prompt));
        } else {
            for piece in pictures(data) {
                file.extend_from_slice(&chunk(*b"fdAT", &[&sequence.to_be_bytes(), piece].concat()));
                sequence += 1;
            }
        }
    }
    file.extend_from_slice(&chunk(*b"IEND", &[]));
    Ok(file)
}

/// The data of the `IDAT` chunks in a row of chunks.
fn pictures(mut chunks: &[u8]) -> Vec<&[u8]> {
    let mut found = Vec::new();
    while let Some((length, rest)) = chunks.split_first_chunk::<4>() {
        let end = 4 + u32::from_be_bytes(*length) as usize;
        if rest.starts_with(b"IDAT") {
            found.push(&rest[4..end]);
        }
        // The checksum is four bytes.
        chunks = &rest[end + 4..];
    }
    found
}
