//! The nodes that make, change and keep pictures. They work for real.

use std::io::Cursor;

use image::codecs::png::{CompressionType, FilterType as PngFilter, PngEncoder};
use image::{DynamicImage, ExtendedColorType, ImageEncoder, Rgb, RgbImage, imageops};
use serde_json::{Value as Json, json};

use super::{Failure, Images, Product, Stop, Value, compute, mask, values};
use crate::files::{Folder, Place, Stored, clean_subfolder, mix};
use crate::frames::{Preview, PreviewFormat};
use crate::worker::step::Step;

/// Pictures up to this many pixels are handled on the spot: a hand-over to another thread costs more.
const CHEAP_PIXELS: u64 = 64 * 64;
/// The largest side, as in ComfyUI.
pub(super) const MAX_SIDE: u32 = 16_384;
/// More pixels than this in one batch are out of memory, like on a small card: a graph from outside must not eat the host's.
const MAX_PIXELS: u64 = 32 * 1024 * 1024;

/// How many pixels a batch has, if the fake can hold them.
pub(super) fn pixels(width: u32, height: u32, batch: usize) -> Result<u64, Failure> {
    let pixels = (u64::from(width) * u64::from(height)).saturating_mul(batch as u64);
    if pixels > MAX_PIXELS { Err(Failure::out_of_memory()) } else { Ok(pixels) }
}

pub(super) async fn empty(step: &mut Step<'_>) -> Result<Product, Stop> {
    let (width, height) = (step.size("width", 512, MAX_SIDE), step.size("height", 512, MAX_SIDE));
    let batch = step.size("batch_size", 1, 4096);
    let color = step.int("color", 0);
    let pixels = pixels(width, height, batch as usize)?;
    let channel = |shift: u32| u8::try_from((color >> shift) & 0xFF).unwrap_or(0);
    let pixel = Rgb([channel(16), channel(8), channel(0)]);
    let images = compute(pixels <= CHEAP_PIXELS, move || {
        let image = RgbImage::from_pixel(width, height, pixel);
        Ok(Images::new(vec![image; batch as usize]))
    })
    .await?;
    Ok(values([Value::Images(images)]))
}

pub(super) async fn load(step: &mut Step<'_>) -> Result<Product, Stop> {
    let file = file(step)?;
    let (image, mask) = compute(false, move || {
        let image = decode(&file)?;
        let mask = mask::of_channel(&image, "alpha");
        Ok((image.to_rgb8(), mask))
    })
    .await?;
    Ok(values([Value::Images(Images::new(vec![image])), Value::Mask(mask.into())]))
}

/// The file a loader names.
pub(super) fn file(step: &Step<'_>) -> Result<Stored, Failure> {
    let name = step.text("image");
    let missing = || Failure::new("FileNotFoundError", format!("[Errno 2] No such file or directory: '{name}'"));
    step.server.files.find_annotated(&name).ok_or_else(missing)
}

/// The picture in a file.
pub(super) fn decode(file: &Stored) -> Result<DynamicImage, Failure> {
    let unreadable = |what: String| Failure::new("PIL.UnidentifiedImageError", what);
    let bytes = file.content.read().map_err(|error| unreadable(error.to_string()))?;
    let mut reader = image::ImageReader::new(Cursor::new(bytes))
        .with_guessed_format()
        .map_err(|error| unreadable(format!("cannot identify image file: {error}")))?;
    // The default limits keep a small file from unpacking into gigabytes.
    reader.limits(image::Limits::default());
    reader.decode().map_err(|error| unreadable(format!("cannot identify image file: {error}")))
}

pub(super) async fn scale(step: &mut Step<'_>) -> Result<Product, Stop> {
    let (width, height) = (step.int("width", 0), step.int("height", 0));
    resize(step, move |image| target_size(image, width, height)).await
}

pub(super) async fn scale_by(step: &mut Step<'_>) -> Result<Product, Stop> {
    let factor = step.float("scale_by", 1.0);
    resize(step, move |image| scaled(image, factor)).await
}

pub(super) fn load_upscale_model(step: &mut Step<'_>) -> Result<Product, Stop> {
    let name = step.text("model_name").to_ascii_lowercase();
    let factor = if name.contains("x2") || name.contains("2x") { 2 } else { 4 };
    Ok(values([Value::UpscaleModel(factor)]))
}

/// No model runs: the picture is enlarged as well as can be without one.
pub(super) async fn upscale(step: &mut Step<'_>) -> Result<Product, Stop> {
    let factor = match step.inputs.get("upscale_model") {
        Some(Value::UpscaleModel(factor)) => f64::from(*factor),
        _ => return Err(Failure::new("AttributeError", "'NoneType' object has no attribute 'model'").into()),
    };
    resize(step, move |image| scaled(image, factor)).await
}

fn scaled(image: &RgbImage, factor: f64) -> (u32, u32) {
    let side = |side: u32| ((f64::from(side) * factor).round() as u32).clamp(1, MAX_SIDE);
    (side(image.width()), side(image.height()))
}

/// The pictures of `image` in the sizes asked for, by the node's method.
async fn resize(step: &Step<'_>, size: impl Fn(&RgbImage) -> (u32, u32) + Send + 'static) -> Result<Product, Stop> {
    let images = step.images("image")?;
    let filter = match step.text("upscale_method").as_str() {
        "bilinear" | "area" => imageops::FilterType::Triangle,
        "bicubic" | "" => imageops::FilterType::CatmullRom,
        "lanczos" => imageops::FilterType::Lanczos3,
        _ => imageops::FilterType::Nearest,
    };
    let resized = compute(false, move || {
        let one = |image: &RgbImage| {
            let (width, height) = size(image);
            pixels(width, height, images.len())?;
            Ok(imageops::resize(image, width, height, filter))
        };
        Ok(Images::new(images.iter().map(one).collect::<Result<_, Failure>>()?))
    })
    .await?;
    Ok(values([Value::Images(resized)]))
}

/// The asked-for size; a side of 0 follows from the other, two of them keep the size.
fn target_size(image: &RgbImage, width: i64, height: i64) -> (u32, u32) {
    let side = |side: f64| (side.round() as u32).clamp(1, MAX_SIDE);
    let (own_width, own_height) = (f64::from(image.width()), f64::from(image.height()));
    match (width as f64, height as f64) {
        (width, height) if width <= 0.0 && height <= 0.0 => (image.width(), image.height()),
        (width, height) if width <= 0.0 => (side(own_width * height / own_height), side(height)),
        (width, height) if height <= 0.0 => (side(width), side(own_height * width / own_width)),
        (width, height) => (side(width), side(height)),
    }
}

pub(super) async fn invert(step: &mut Step<'_>) -> Result<Product, Stop> {
    let images = step.images("image")?;
    let inverted = compute(is_cheap(&images), move || {
        let one = |image: &RgbImage| {
            let mut image = image.clone();
            imageops::invert(&mut image);
            image
        };
        Ok(Images::new(images.iter().map(one).collect()))
    })
    .await?;
    Ok(values([Value::Images(inverted)]))
}

pub(super) async fn blur(step: &mut Step<'_>) -> Result<Product, Stop> {
    let images = step.images("image")?;
    #[expect(clippy::cast_possible_truncation, reason = "0.1 to 10")]
    let sigma = step.float("sigma", 1.0).clamp(0.1, 10.0) as f32;
    let blurred = compute(is_cheap(&images), move || {
        Ok(Images::new(images.iter().map(|image| imageops::blur(image, sigma)).collect()))
    })
    .await?;
    Ok(values([Value::Images(blurred)]))
}

pub(super) async fn save(step: &mut Step<'_>) -> Result<Product, Stop> {
    let prefix = step.text("filename_prefix");
    let target = Target::new(step, Folder::Output, &prefix)?;
    keep(step, target).await
}

pub(super) async fn preview(step: &mut Step<'_>) -> Result<Product, Stop> {
    let target = Target::temporary(step)?;
    keep(step, target).await
}

/// Sends the pictures over the WebSocket at full size, as if they were previews. They are kept nowhere.
pub(super) async fn send(step: &mut Step<'_>) -> Result<Product, Stop> {
    let images = step.images("images")?;
    let count = images.len() as u64;
    let cheap = is_cheap(&images);
    let encoded = compute(cheap, move || images.iter().map(png).collect::<Result<Vec<_>, _>>()).await?;
    for (number, bytes) in (0..).zip(encoded) {
        step.report(number, count, Some(&Preview { format: PreviewFormat::Png, bytes }));
    }
    Ok(Product::default())
}

async fn keep(step: &mut Step<'_>, target: Target) -> Result<Product, Stop> {
    let images = step.images("images")?;
    let prompt = metadata(step);
    let embedded = move |image: &RgbImage| png(image).map(|bytes| embed(&bytes, &prompt));
    let encoded =
        compute(is_cheap(&images), move || images.iter().map(embedded).collect::<Result<Vec<_>, _>>()).await?;
    let files: Vec<Json> = encoded
        .into_iter()
        .map(|bytes| {
            let filename = target.next_name(step, "_.png");
            let shown = target.describe(&filename);
            step.server.files.write(target.place(filename), bytes.into());
            shown
        })
        .collect();
    Ok(Product { ui: Some(json!({"images": files})), ..Product::default() })
}

pub(super) fn is_cheap(images: &Images) -> bool {
    images.iter().map(|image| u64::from(image.width()) * u64::from(image.height())).sum::<u64>() <= CHEAP_PIXELS
}

/// A PNG, made quickly rather than small.
pub(super) fn png(image: &RgbImage) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    PngEncoder::new_with_quality(&mut bytes, CompressionType::Fast, PngFilter::Up)
        .write_image(image.as_raw(), image.width(), image.height(), ExtendedColorType::Rgb8)
        .map_err(|error| Failure::new("OSError", error.to_string()))?;
    Ok(bytes)
}

/// What ComfyUI embeds into the files of a prompt: a name, and the graph as JSON.
pub(super) fn metadata(step: &Step<'_>) -> Vec<u8> {
    [b"prompt\0", step.prompt.text.get().as_bytes()].concat()
}

/// A PNG with a text in it, behind the signature and the header.
fn embed(png: &[u8], text: &[u8]) -> Vec<u8> {
    let (head, rest) = png.split_at(33.min(png.len()));
    [head, &chunk(*b"tEXt", text), rest].concat()
}

/// A chunk of a PNG: length, kind, data, checksum.
pub(super) fn chunk(kind: [u8; 4], data: &[u8]) -> Vec<u8> {
    let sum = !kind.iter().chain(data).fold(u32::MAX, |sum, byte| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| if sum & 1 == 1 { sum >> 1 ^ 0xEDB8_8320 } else { sum >> 1 })
    });
    [&(data.len() as u32).to_be_bytes()[..], &kind, data, &sum.to_be_bytes()].concat()
}

/// Where the files of an output node go.
pub(super) struct Target {
    folder: Folder,
    subfolder: String,
    name: String,
}

impl Target {
    /// Splits a prefix like `"lab/simple"` into folder and name; one that leaves the folder is an error, as in ComfyUI only now.
    pub fn new(step: &Step<'_>, folder: Folder, prefix: &str) -> Result<Self, Stop> {
        let (subfolder, name) = prefix.rsplit_once('/').unwrap_or(("", prefix));
        let Some(subfolder) = clean_subfolder(subfolder).filter(|_| name != "..") else {
            let message = format!(
                "**** ERROR: Saving image outside the output folder is not allowed.\n full_output_folder: /comfyui/{name}\n         \
                 output_dir: /comfyui/{}\n",
                folder.name()
            );
            return Err(Failure::new("Exception", message).into());
        };
        let (width, height) = match step.inputs.get("images") {
            Some(Value::Images(images)) => images.first().map_or((0, 0), RgbImage::dimensions),
            _ => (0, 0),
        };
        let name = name.replace("%width%", &width.to_string()).replace("%height%", &height.to_string());
        Ok(Self { folder, subfolder, name })
    }

    /// The temp folder, under a name with five letters that differ from prompt to prompt, like the random ones of ComfyUI.
    pub fn temporary(step: &Step<'_>) -> Result<Self, Stop> {
        let mut word =
            step.prompt.id.bytes().chain(step.node.id.bytes()).fold(0u64, |hash, byte| mix(hash ^ u64::from(byte)));
        let mut letters = String::new();
        for _ in 0..5 {
            letters.push(char::from(b"abcdefghijklmnopqrstupvxyz"[(word % 26) as usize]));
            word /= 26;
        }
        Self::new(step, Folder::Temp, &format!("ComfyUI_temp_{letters}"))
    }

    /// The next free name, `<name>_<number><ending>`.
    pub fn next_name(&self, step: &Step<'_>, ending: &str) -> String {
        let number = step.server.files.next_number(self.folder, &self.subfolder, &self.name);
        format!("{}_{number:05}{ending}", self.name)
    }

    pub fn place(&self, filename: String) -> Place {
        Place { folder: self.folder, subfolder: self.subfolder.clone(), filename }
    }

    /// The file as outputs name it.
    pub fn describe(&self, filename: &str) -> Json {
        json!({"filename": filename, "subfolder": self.subfolder, "type": self.folder.name()})
    }
}
