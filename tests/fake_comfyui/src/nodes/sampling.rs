//! The nodes of the text-to-image graph. No model runs: the sampler keeps time and sends previews, the decoder draws a landscape
//! that follows from the prompt text and the seed.

use std::io::Cursor;
use std::sync::Arc;

use image::codecs::jpeg::JpegEncoder;
use image::{GrayImage, RgbImage, imageops};
use serde_json::json;

use super::image::{MAX_SIDE, Target, pixels};
use super::{Failure, Images, Product, Stop, Value, compute, mask, values};
use crate::files::Folder;
use crate::frames::{Preview, PreviewFormat};
use crate::picture;
use crate::worker::step::Step;

/// The longer side of a preview, in pixels. ComfyUI allows 512; fewer are enough to see a picture emerge.
const PREVIEW_SIDE: u32 = 256;
/// As ComfyUI's previews.
const PREVIEW_QUALITY: u8 = 90;

/// A picture before it is decoded.
#[derive(Debug, Clone)]
pub(crate) struct Latent {
    /// In pixels, not in latent units.
    width: u32,
    height: u32,
    /// Pictures, or the frames of one video.
    batch: u32,
    is_video: bool,
    content: Content,
    /// Only what is white here is sampled.
    mask: Option<Arc<GrayImage>>,
}

#[derive(Debug, Clone)]
enum Content {
    Empty,
    /// What the sampler decided to draw.
    Scene {
        text: Arc<str>,
        seed: u64,
        /// What it began with, and how far it went from there, from 0 to 1.
        from: Option<(Images, f32)>,
    },
    /// An encoded picture that no sampler has touched.
    Pixels(Images),
}

pub(super) fn encode_text(step: &mut Step<'_>) -> Result<Product, Stop> {
    Ok(values([Value::Conditioning(step.text("text").into())]))
}

pub(super) fn empty_latent(step: &mut Step<'_>) -> Result<Product, Stop> {
    let latent = Latent {
        width: step.size("width", 512, MAX_SIDE),
        height: step.size("height", 512, MAX_SIDE),
        batch: step.size("batch_size", 1, 4096),
        is_video: false,
        content: Content::Empty,
        mask: None,
    };
    Ok(values([Value::Latent(Arc::new(latent))]))
}

pub(super) fn empty_video_latent(step: &mut Step<'_>) -> Result<Product, Stop> {
    // Four frames share a latent one, but for the first.
    let frames = (step.size("length", 25, MAX_SIDE) - 1) / 4 * 4 + 1;
    let latent = Latent {
        width: step.size("width", 848, MAX_SIDE),
        height: step.size("height", 480, MAX_SIDE),
        batch: frames,
        is_video: true,
        content: Content::Empty,
        mask: None,
    };
    Ok(values([Value::Latent(Arc::new(latent))]))
}

pub(super) async fn sample(step: &mut Step<'_>) -> Result<Product, Stop> {
    let latent = latent(step, "latent_image")?;
    let text = match step.inputs.get("positive") {
        Some(Value::Conditioning(text)) => text.clone(),
        _ => "".into(),
    };
    let seed = step.seed("seed");
    let steps = u64::from(step.size("steps", 20, 10_000));
    let time = std::mem::take(step.time_left);
    let pause = time / u32::try_from(steps).unwrap_or(u32::MAX);

    let sketch =
        if step.prompt.previews && step.is_watched() { Some(sketch(&latent, &text, seed).await?) } else { None };
    for number in 1..=steps {
        step.wait(pause).await?;
        let preview = match &sketch {
            Some(sketch) => Some(emerging(sketch.clone(), seed, number, steps).await?),
            None => None,
        };
        step.report(number, steps, preview.as_ref());
    }
    let from = match &latent.content {
        Content::Pixels(images) => Some((images.clone(), step.float("denoise", 1.0).clamp(0.0, 1.0) as f32)),
        Content::Empty | Content::Scene { .. } => None,
    };
    let sampled = Latent { content: Content::Scene { text, seed, from }, ..Latent::clone(&latent) };
    Ok(values([Value::Latent(Arc::new(sampled))]))
}

/// The picture in preview size.
async fn sketch(latent: &Latent, text: &Arc<str>, seed: u64) -> Result<Arc<RgbImage>, Stop> {
    let longer = latent.width.max(latent.height).max(1);
    let fit = |side: u32| (u64::from(side) * u64::from(PREVIEW_SIDE.min(longer)) / u64::from(longer)).max(1) as u32;
    let (width, height) = (fit(latent.width), fit(latent.height));
    let text = text.clone();
    compute(false, move || Ok(Arc::new(picture::draw(&text, seed, width, height)))).await
}

async fn emerging(sketch: Arc<RgbImage>, seed: u64, number: u64, steps: u64) -> Result<Preview, Stop> {
    compute(false, move || {
        let clarity = number as f32 / steps.max(1) as f32;
        jpeg(&picture::emerging(&sketch, seed ^ number, clarity))
    })
    .await
}

pub(super) fn jpeg(image: &RgbImage) -> Result<Preview, Failure> {
    let mut bytes = Cursor::new(Vec::new());
    JpegEncoder::new_with_quality(&mut bytes, PREVIEW_QUALITY)
        .encode_image(image)
        .map_err(|error| Failure::new("OSError", error.to_string()))?;
    Ok(Preview { format: PreviewFormat::Jpeg, bytes: bytes.into_inner() })
}

pub(super) async fn decode(step: &mut Step<'_>) -> Result<Product, Stop> {
    let latent = latent(step, "samples")?;
    pixels(latent.width, latent.height, latent.batch as usize)?;
    let images = compute(false, move || {
        Ok(match &latent.content {
            Content::Pixels(images) => images.clone(),
            Content::Empty => {
                let gray = RgbImage::from_pixel(latent.width, latent.height, image::Rgb([127, 127, 127]));
                Images::new(vec![gray; latent.batch as usize])
            }
            Content::Scene { text, seed, .. } if latent.is_video => Images::new(moving(&latent, text, *seed)),
            Content::Scene { text, seed, from } => {
                let one = |index: u32| {
                    let drawn = picture::draw(text, seed.wrapping_add(u64::from(index)), latent.width, latent.height);
                    match from {
                        Some((images, far)) => painted_over(images, index, &drawn, *far, latent.mask.as_deref()),
                        None => drawn,
                    }
                };
                Images::new((0..latent.batch).map(one).collect())
            }
        })
    })
    .await?;
    Ok(values([Value::Images(images)]))
}

/// A slow pan over one landscape.
fn moving(latent: &Latent, text: &str, seed: u64) -> Vec<RgbImage> {
    /// Pixels from frame to frame.
    const PACE: u32 = 2;
    let way = PACE * latent.batch.saturating_sub(1);
    let wide = picture::draw(text, seed, latent.width.saturating_add(way).min(MAX_SIDE), latent.height);
    let last = wide.width() - latent.width.min(wide.width());
    let frame =
        |index: u32| imageops::crop_imm(&wide, (PACE * index).min(last), 0, latent.width, latent.height).to_image();
    (0..latent.batch).map(frame).collect()
}

/// What the sampler makes of a picture it began with: as much of the new one as it went far, and only under the mask.
fn painted_over(images: &[RgbImage], index: u32, drawn: &RgbImage, far: f32, mask: Option<&GrayImage>) -> RgbImage {
    let (width, height) = drawn.dimensions();
    let Some(before) = images.get(index as usize).or(images.first()) else { return drawn.clone() };
    let mask = mask.map(|mask| imageops::resize(mask, width, height, imageops::FilterType::Triangle));
    RgbImage::from_fn(width, height, |x, y| {
        let meant = mask.as_ref().map_or(1.0, |mask| f32::from(mask.get_pixel(x, y).0[0]) / 255.0);
        let (old, new) = (before.get_pixel(x, y).0, drawn.get_pixel(x, y).0);
        let mixed = |channel: usize| {
            let (old, new) = (f32::from(old[channel]), f32::from(new[channel]));
            (old + (new - old) * far * meant).round() as u8
        };
        image::Rgb([mixed(0), mixed(1), mixed(2)])
    })
}

pub(super) fn encode(step: &mut Step<'_>) -> Result<Product, Stop> {
    encoded(step, None)
}

pub(super) fn encode_for_inpaint(step: &mut Step<'_>) -> Result<Product, Stop> {
    let mask = mask::of(step, "mask")?;
    encoded(step, Some(mask))
}

fn encoded(step: &Step<'_>, mask: Option<Arc<GrayImage>>) -> Result<Product, Stop> {
    let images = step.images("pixels")?;
    let (width, height) = images.first().map_or((1, 1), RgbImage::dimensions);
    let batch = u32::try_from(images.len()).unwrap_or(u32::MAX);
    let latent = Latent { width, height, batch, is_video: false, content: Content::Pixels(images), mask };
    Ok(values([Value::Latent(Arc::new(latent))]))
}

pub(super) fn set_noise_mask(step: &mut Step<'_>) -> Result<Product, Stop> {
    let latent = latent(step, "samples")?;
    let masked = Latent { mask: Some(mask::of(step, "mask")?), ..Latent::clone(&latent) };
    Ok(values([Value::Latent(Arc::new(masked))]))
}

fn latent(step: &Step<'_>, name: &str) -> Result<Arc<Latent>, Stop> {
    match step.inputs.get(name) {
        Some(Value::Latent(latent)) => Ok(latent.clone()),
        _ => Err(Failure::new("TypeError", "'NoneType' object is not subscriptable").into()),
    }
}

/// A picture in preview size, for nodes that show what they were given.
pub(super) fn shrink(image: &RgbImage) -> RgbImage {
    let longer = image.width().max(image.height());
    if longer <= PREVIEW_SIDE {
        return image.clone();
    }
    let fit = |side: u32| (side * PREVIEW_SIDE / longer).max(1);
    imageops::thumbnail(image, fit(image.width()), fit(image.height()))
}

/// A safetensors file with the prompt in its header, as ComfyUI writes latents.
pub(super) fn save_latent(step: &mut Step<'_>) -> Result<Product, Stop> {
    let target = Target::new(step, Folder::Output, &step.text("filename_prefix"))?;
    let prompt = step.prompt.text.get();
    let tensor = json!({"dtype": "F32", "shape": [1], "data_offsets": [0, 4]});
    let header = json!({"__metadata__": {"prompt": prompt}, "latent_tensor": tensor}).to_string();
    let bytes = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &[0; 4]].concat();
    let filename = target.next_name(step, "_.latent");
    let shown = target.describe(&filename);
    step.server.files.write(target.place(filename), bytes.into());
    Ok(Product { ui: Some(json!({"latents": [shown]})), ..Product::default() })
}
