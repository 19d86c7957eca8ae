//! The nodes of the lab pack: progress, failure, hanging, and another pack's way to report files.

use image::{Rgb, RgbImage};
use serde_json::{Value as Json, json};

use super::image::{Target, is_cheap, png};
use super::sampling::{jpeg, shrink};
use super::{Failure, Product, Stop, Value, compute, seconds, values};
use crate::files::Folder;
use crate::frames::{Preview, PreviewFormat};
use crate::worker::step::Step;

pub(super) async fn slow_progress(step: &mut Step<'_>) -> Result<Product, Stop> {
    let images = step.images("image")?;
    let steps = u64::from(step.size("steps", 5, 10_000));
    let pause = seconds(step.float("seconds_per_step", 0.2));
    let wants_preview = step.flag("preview", true);
    let format = if step.text("preview_format") == "PNG" { PreviewFormat::Png } else { PreviewFormat::Jpeg };
    let cheap = is_cheap(&images);
    for number in 1..=steps {
        step.wait(pause).await?;
        let preview = match images.first().filter(|_| wants_preview && step.is_watched()) {
            Some(image) => {
                let mut image = shrink(image);
                Some(compute(cheap, move || marked(&mut image, number, steps, format)).await?)
            }
            None => None,
        };
        step.report(number, steps, preview.as_ref());
    }
    Ok(values([Value::Images(images)]))
}

/// A preview with a bar that grows from step to step, so that previews can be told apart.
fn marked(image: &mut RgbImage, number: u64, steps: u64, format: PreviewFormat) -> Result<Preview, Failure> {
    let width = (u64::from(image.width()) * number / steps.max(1)).max(1) as u32;
    let height = (image.height() / 8).max(1);
    for y in 0..height.min(image.height()) {
        for x in 0..width.min(image.width()) {
            image.put_pixel(x, y, Rgb([255, 255, 0]));
        }
    }
    match format {
        PreviewFormat::Jpeg => jpeg(image),
        PreviewFormat::Png => Ok(Preview { format, bytes: png(image)? }),
    }
}

pub(super) fn fail(step: &mut Step<'_>) -> Result<Product, Stop> {
    Err(Failure::new(&step.text("kind"), step.text("message")).into())
}

/// Ends when its time is over and not before, interrupt or no interrupt.
pub(super) async fn hang(step: &mut Step<'_>) -> Result<Product, Stop> {
    let images = step.images("image")?;
    tokio::time::sleep(seconds(step.float("seconds", 5.0))).await;
    Ok(values([Value::Images(images)]))
}

pub(super) async fn gifs(step: &mut Step<'_>) -> Result<Product, Stop> {
    let images = step.images("images")?;
    let target = Target::new(step, Folder::Output, "lab/gif")?;
    let filename = target.next_name(step, "_.gif");
    let bytes = compute(is_cheap(&images), move || Ok(gif(&images))).await?;
    let mut shown = target.describe(&filename);
    shown["format"] = Json::from("image/gif");
    shown["frame_rate"] = Json::from(10.0);
    step.server.files.write(target.place(filename), bytes.into());
    Ok(Product { ui: Some(json!({"gifs": [shown]})), ..Product::default() })
}

/// Pixels between two clear codes, so that the code width never grows.
const GIF_RUN: usize = 126;

/// An animated GIF in 125 fixed colours, without compression: every pixel is one 8-bit code.
fn gif(images: &[RgbImage]) -> Vec<u8> {
    let (width, height) = images.first().map_or((1, 1), RgbImage::dimensions);
    let side = |side: u32| u16::try_from(side).unwrap_or(u16::MAX).to_le_bytes();
    let size = [side(width), side(height)].concat();
    let mut bytes = b"GIF89a".to_vec();
    bytes.extend_from_slice(&size);
    // A global table of 128 colours.
    bytes.extend_from_slice(&[0xF6, 0, 0]);
    for color in 0..128u8 {
        bytes.extend([color / 25 % 5, color / 5 % 5, color % 5].map(|level| level * 63));
    }
    for image in images.iter().filter(|image| image.dimensions() == (width, height)) {
        // Shown for a tenth of a second.
        bytes.extend_from_slice(&[0x21, 0xF9, 4, 0, 10, 0, 0, 0, 0x2C, 0, 0, 0, 0]);
        bytes.extend_from_slice(&size);
        bytes.extend_from_slice(&[0, 7]);
        let colors: Vec<u8> =
            image.pixels().map(|pixel| pixel.0.iter().fold(0, |code, channel| code * 5 + channel / 52)).collect();
        let mut codes = Vec::with_capacity(colors.len() + colors.len() / GIF_RUN + 2);
        for run in colors.chunks(GIF_RUN) {
            codes.push(128);
            codes.extend_from_slice(run);
        }
        codes.push(129);
        for block in codes.chunks(255) {
            bytes.push(block.len() as u8);
            bytes.extend_from_slice(block);
        }
        bytes.push(0);
    }
    bytes.push(0x3B);
    bytes
}
