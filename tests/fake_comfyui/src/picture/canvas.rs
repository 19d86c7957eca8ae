//! A picture in the making, with more precision than eight bits.

use image::{Rgb, RgbImage};

/// Red, green and blue from 0 to 255, in floating point.
pub(super) type Color = [f32; 3];

/// Mixes two colours; `part` is the share of the second.
pub(super) fn blend(first: Color, second: Color, part: f32) -> Color {
    let mix = |channel: usize| first[channel] + (second[channel] - first[channel]) * part;
    [mix(0), mix(1), mix(2)]
}

/// A colour from its usual notation.
pub(super) const fn hex(code: u32) -> Color {
    [((code >> 16) & 0xFF) as f32, ((code >> 8) & 0xFF) as f32, (code & 0xFF) as f32]
}

/// Thresholds of ordered dithering, which keeps smooth gradients free of bands.
const DITHER: [[f32; 4]; 4] = [
    [0.0, 0.5, 0.125, 0.625],
    [0.75, 0.25, 0.875, 0.375],
    [0.1875, 0.6875, 0.0625, 0.5625],
    [0.9375, 0.4375, 0.8125, 0.3125],
];

pub(super) struct Canvas {
    pub width: u32,
    pub height: u32,
    pixels: Vec<Color>,
}

impl Canvas {
    pub fn new(width: u32, height: u32) -> Self {
        Self { width, height, pixels: vec![[0.0; 3]; width as usize * height as usize] }
    }

    /// Width and height as numbers to compute with.
    pub fn size(&self) -> (f32, f32) {
        (self.width as f32, self.height as f32)
    }

    pub fn get(&self, x: u32, y: u32) -> Color {
        self.pixels[y as usize * self.width as usize + x as usize]
    }

    pub fn set(&mut self, x: u32, y: u32, color: Color) {
        self.pixels[y as usize * self.width as usize + x as usize] = color;
    }

    /// Paints a column from `top` to `bottom`, with a smooth upper edge.
    pub fn column(&mut self, x: u32, top: f32, bottom: f32, color: impl Fn(f32) -> Color) {
        let top = top.max(0.0);
        let first = top as u32;
        let last = (bottom.ceil().max(0.0) as u32).min(self.height);
        for y in first..last {
            let own = color(y as f32);
            let painted = if y == first { blend(self.get(x, y), own, 1.0 - top.fract()) } else { own };
            self.set(x, y, painted);
        }
    }

    /// The picture in eight bits, a little darker towards the corners.
    pub fn finish(self) -> RgbImage {
        let (width, height) = self.size();
        let fall = |at: u32, side: f32| {
            let off = (at as f32 + 0.5) / side - 0.5;
            off * off
        };
        let across: Vec<f32> = (0..self.width).map(|x| fall(x, width)).collect();
        let mut image = RgbImage::new(self.width, self.height);
        for (y, row) in (0..self.height).zip(self.pixels.chunks(self.width as usize)) {
            let down = fall(y, height);
            for (x, color) in (0..self.width).zip(row) {
                let light = 1.0 - 0.42 * (across[x as usize] + down);
                let dither = DITHER[(y % 4) as usize][(x % 4) as usize];
                image.put_pixel(x, y, Rgb(color.map(|channel| (channel * light + dither) as u8)));
            }
        }
        image
    }
}
