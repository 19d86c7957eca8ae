//! Pictures made into others. The whole of one is held, so there are limits before anything is unpacked.

use std::io::Cursor;

use bytes::Bytes;
use comfyd_actors::domain::options::{ImageFormat, OutputOptions};
use image::{
    DynamicImage, ExtendedColorType, ImageDecoder, ImageEncoder, ImageReader, Limits, Rgb, RgbImage,
    codecs::{jpeg::JpegEncoder, png::PngEncoder},
};

use super::probe::Format;

/// Largest picture in pixels. Unpacked it takes four bytes each.
pub const MAX_PIXELS: u64 = 100_000_000;
/// Largest picture as a file.
pub const MAX_BYTES: u64 = 128 << 20;
/// WebP has no room for longer sides.
const MAX_WEBP_SIDE: u32 = 16_383;
/// Little is to be seen of the loss, at a fifth of a PNG's size.
const JPEG_QUALITY: u8 = 90;
const WEBP_QUALITY: u8 = 85;

/// What this format is called among those we can make; `None` when it is not one that we can read.
#[must_use]
pub fn readable(format: Format) -> Option<ImageFormat> {
    match format {
        Format::Png => Some(ImageFormat::Png),
        Format::Jpeg => Some(ImageFormat::Jpeg),
        Format::Webp => Some(ImageFormat::Webp),
        _ => None,
    }
}

/// How many megapixels a picture has, rounded up: what its conversion costs.
///
/// # Errors
/// In words, when it has too many.
pub fn megapixels(width: u32, height: u32) -> Result<u32, String> {
    let pixels = u64::from(width) * u64::from(height);
    if pixels > MAX_PIXELS {
        return Err(format!(
            "it has {width} x {height} pixels, more than {} megapixels; leave `format` out for pictures of this size",
            MAX_PIXELS / 1_000_000
        ));
    }
    Ok(u32::try_from(pixels.div_ceil(1_000_000)).unwrap_or(u32::MAX))
}

/// Makes a picture into `target`. Blocks for as long as that takes.
///
/// # Errors
/// In words: not a picture, too large, or not to be had in this format.
pub fn convert(picture: &[u8], target: ImageFormat, options: &OutputOptions) -> Result<Bytes, String> {
    let decoded = decode(picture)?;
    match target {
        ImageFormat::Jpeg => jpeg(&flat(decoded), options.quality.unwrap_or(JPEG_QUALITY)),
        ImageFormat::Webp => webp(decoded, options.quality.unwrap_or(WEBP_QUALITY)),
        ImageFormat::Png => png(&decoded),
    }
    .map(Bytes::from)
}

fn decode(picture: &[u8]) -> Result<DynamicImage, String> {
    let unreadable = |error: image::ImageError| format!("it cannot be read as a picture ({error})");
    let reader = ImageReader::new(Cursor::new(picture)).with_guessed_format().map_err(|error| error.to_string())?;
    let mut decoder = reader.into_decoder().map_err(unreadable)?;
    let (width, height) = decoder.dimensions();
    megapixels(width, height)?;
    // Sixteen bits of four colours are the most a pixel takes; the header was believed for its size only.
    let mut limits = Limits::default();
    limits.max_alloc = Some(MAX_PIXELS * 8 + (64 << 20));
    decoder.set_limits(limits).map_err(unreadable)?;
    DynamicImage::from_decoder(decoder).map_err(unreadable)
}

/// On white, which is what a transparent picture mostly lies on.
fn flat(picture: DynamicImage) -> RgbImage {
    if !picture.color().has_alpha() {
        return picture.into_rgb8();
    }
    let picture = picture.into_rgba8();
    RgbImage::from_fn(picture.width(), picture.height(), |x, y| {
        let [r, g, b, alpha] = picture.get_pixel(x, y).0.map(u32::from);
        let mixed = |colour: u32| u8::try_from((colour * alpha + 255 * (255 - alpha) + 127) / 255).unwrap_or(u8::MAX);
        Rgb([mixed(r), mixed(g), mixed(b)])
    })
}

fn jpeg(picture: &RgbImage, quality: u8) -> Result<Vec<u8>, String> {
    let (width, height) = picture.dimensions();
    let mut out = Vec::new();
    let encoder = JpegEncoder::new_with_quality(&mut out, quality);
    encoder.write_image(picture.as_raw(), width, height, ExtendedColorType::Rgb8).map_err(|error| error.to_string())?;
    Ok(out)
}

fn webp(picture: DynamicImage, quality: u8) -> Result<Vec<u8>, String> {
    let (width, height) = (picture.width(), picture.height());
    if width > MAX_WEBP_SIDE || height > MAX_WEBP_SIDE {
        return Err(format!(
            "WebP pictures have at most {MAX_WEBP_SIDE} pixels a side, and this one has {width} x {height}"
        ));
    }
    let quality = f32::from(quality);
    let encoded = if picture.color().has_alpha() {
        let picture = picture.into_rgba8();
        webp::Encoder::from_rgba(&picture, width, height).encode_simple(false, quality)
    } else {
        let picture = picture.into_rgb8();
        webp::Encoder::from_rgb(&picture, width, height).encode_simple(false, quality)
    };
    encoded.map(|memory| memory.to_vec()).map_err(|error| format!("it cannot be made into WebP ({error:?})"))
}

fn png(picture: &DynamicImage) -> Result<Vec<u8>, String> {
    let mut out = Vec::new();
    picture.write_with_encoder(PngEncoder::new(&mut out)).map_err(|error| error.to_string())?;
    Ok(out)
}

#[cfg(test)]
mod tests {
    use image::{Rgba, RgbaImage};

    use super::*;
    use crate::media::{
        probe::look,
        tests::{crc, low},
    };

    fn encoded(picture: RgbaImage) -> Vec<u8> {
        png(&picture.into()).unwrap()
    }

    fn options(quality: Option<u8>) -> OutputOptions {
        OutputOptions { quality, ..OutputOptions::default() }
    }

    /// Something with detail in it.
    fn noise() -> RgbaImage {
        RgbaImage::from_fn(64, 48, |x, y| Rgba([(x * 37) ^ (y * 91), x * y, y * 5, 255].map(low)))
    }

    #[test]
    fn every_format_can_be_made_of_every_other() {
        let mut picture = Bytes::from(encoded(noise()));
        for target in [ImageFormat::Jpeg, ImageFormat::Webp, ImageFormat::Png, ImageFormat::Webp, ImageFormat::Jpeg] {
            picture = convert(&picture, target, &options(None)).unwrap();
            assert_eq!(readable(Format::of(&picture)), Some(target));
            let facts = look(&picture);
            assert_eq!((facts.width, facts.height, facts.frames), (Some(64), Some(48), Some(1)), "{target:?}");
        }
    }

    #[test]
    fn quality_costs_bytes() {
        let picture = encoded(noise());
        for target in [ImageFormat::Jpeg, ImageFormat::Webp] {
            let [low, high] = [5, 100].map(|quality| convert(&picture, target, &options(Some(quality))).unwrap().len());
            assert!(low * 2 < high, "{target:?}: {low} {high}");
        }
    }

    #[test]
    fn what_shines_through_becomes_white() {
        let half = RgbaImage::from_fn(16, 16, |x, _| Rgba([0, 0, 0, if x < 8 { 0 } else { 255 }]));
        let jpeg = convert(&encoded(half), ImageFormat::Jpeg, &options(Some(100))).unwrap();
        let back = decode(&jpeg).unwrap().into_rgb8();
        assert!(back.get_pixel(1, 8).0[0] > 250 && back.get_pixel(14, 8).0[0] < 5, "{back:?}");
    }

    #[test]
    fn a_bomb_is_refused_by_its_header() {
        let mut bomb = encoded(RgbaImage::new(1, 1));
        // Width and height in the header, whose checksum follows.
        bomb[16..20].copy_from_slice(&20_000_u32.to_be_bytes());
        bomb[20..24].copy_from_slice(&20_000_u32.to_be_bytes());
        let sum = crc(&bomb[12..29]);
        bomb[29..33].copy_from_slice(&sum.to_be_bytes());
        let refused = convert(&bomb, ImageFormat::Jpeg, &options(None)).unwrap_err();
        assert!(refused.contains("20000 x 20000") && refused.contains("100 megapixels"), "{refused}");
        let broken = convert(b"\x89PNG\r\n\x1a\nnonsense", ImageFormat::Jpeg, &options(None)).unwrap_err();
        assert!(broken.contains("cannot be read"), "{broken}");
    }
}
