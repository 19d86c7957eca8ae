//! Drawing (first version).
use crate::files::mix;
use image::{Rgb, RgbImage};
pub(crate) fn draw(text: &str, seed: u64, width: u32, height: u32) -> RgbImage {
    let base = text.bytes().fold(seed, |hash, byte| mix(hash ^ u64::from(byte)));
    RgbImage::from_fn(width, height, |_, y| {
        Rgb([(base & 0xFF) as u8, (y * 255 / height) as u8, 90])
    })
}
pub(crate) fn emerging(image: &RgbImage, _seed: u64, _clarity: f32) -> RgbImage {
    image.clone()
}
