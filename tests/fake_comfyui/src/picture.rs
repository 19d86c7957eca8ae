//! The drawing: a landscape that follows from a text and a seed, and the same landscape while it emerges from noise.
//!
//! Cost decides the method. What is soft (sky, glow, clouds) is computed on a coarse grid and interpolated; what is sharp (ridges,
//! trees, the water's edge) is computed once per column. So a picture costs a few operations per pixel even in a debug build.

mod canvas;
mod noise;
mod scene;
mod sky;

use image::{Rgb, RgbImage, imageops};

use canvas::{Canvas, Color, blend};
use noise::{fractal, unit};
use scene::{Scene, Treeline};

/// Ridges drawn behind each other.
const LAYERS: usize = 5;

/// Draws the landscape of a text and a seed.
pub(crate) fn draw(text: &str, seed: u64, width: u32, height: u32) -> RgbImage {
    let scene = Scene::imagine(text, seed);
    let mut canvas = Canvas::new(width.max(1), height.max(1));
    sky::paint(&mut canvas, &scene);
    paint_land(&mut canvas, &scene);
    if scene.water {
        paint_water(&mut canvas, &scene);
    }
    paint_foreground(&mut canvas, &scene);
    canvas.finish()
}

/// The ridges, column by column from the nearest to the farthest, so that no pixel is painted twice.
fn paint_land(canvas: &mut Canvas, scene: &Scene) {
    let (width, height) = canvas.size();
    // Without water the land goes on to the onlooker's feet.
    let bottom = if scene.water { scene.horizon * height } else { height };
    for x in 0..canvas.width {
        let u = x as f32 / width;
        let mut floor = bottom;
        for layer in (0..LAYERS).rev() {
            let ground = ridge(scene, layer, u);
            let top = ((ground - growth(scene, layer, u)) * height).min(bottom);
            let ground = ground * height;
            let (near, far) = (scene.ridge_color(layer, LAYERS), scene.haze);
            if top < floor {
                canvas.column(x, top, floor, |y| {
                    blend(near, far, 0.55 * ((y - ground) / (0.22 * height)).clamp(0.0, 1.0))
                });
                floor = top;
            }
        }
    }
}

/// The height of a ridge at `u` in 0..1, as a part of the picture's height from the top.
fn ridge(scene: &Scene, layer: usize, u: f32) -> f32 {
    let depth = layer as f32 / (LAYERS - 1) as f32;
    let seed = scene.seed ^ (layer as u64 + 11).wrapping_mul(0x9E37_79B9);
    // Far ridges are high and jagged, near ones low and rolling.
    let frequency = 2.2 + 1.3 * depth;
    let rough = fractal(seed, u * frequency, if layer < 3 { 6 } else { 4 });
    let peaks = 1.0 - (2.0 * rough - 1.0).abs();
    let shape = peaks * (1.0 - depth) + rough * depth;
    let relief = scene.relief * (1.0 - 0.72 * depth);
    let base = scene.horizon - 0.02 - 0.16 * (1.0 - depth) * scene.relief / 0.4;
    base + 0.06 * depth - relief * (shape - 0.28)
}

/// How far what grows on a ridge stands out of it at `u`.
fn growth(scene: &Scene, layer: usize, u: f32) -> f32 {
    let depth = layer as f32 / (LAYERS - 1) as f32;
    match scene.treeline {
        Treeline::Forest if layer >= 3 => {
            trees(scene.seed ^ layer as u64, u, 0.022 + 0.012 * depth, 90.0 - 40.0 * depth)
        }
        _ => 0.0,
    }
}

/// How far conifers stand out of the ground at `u`.
fn trees(seed: u64, u: f32, size: f32, density: f32) -> f32 {
    let position = u * density;
    let slot = position.floor();
    // A tree reaches into the slots beside its own.
    (-1..=1)
        .map(|neighbour| {
            let slot = slot + neighbour as f32;
            let key = seed ^ (slot as i64 as u64).wrapping_mul(0x0051_7CC1_B727_220A);
            let center = slot + 0.2 + 0.6 * unit(key);
            let tall = size * (0.5 + unit(key ^ 7));
            let offset = (position - center).abs() / 0.75;
            // Steps in the outline look like branches.
            let branches = 0.08 * ((1.0 - offset) * 7.0).fract();
            tall * (1.0 - offset + branches).max(0.0)
        })
        .fold(0.0, f32::max)
}

/// Below the horizon: the picture above, mirrored, rippled and tinted, with a path of light under the sun.
fn paint_water(canvas: &mut Canvas, scene: &Scene) {
    let (width, height) = canvas.size();
    let edge = (scene.horizon * height) as u32;
    let depth = height - edge as f32;
    for y in edge..canvas.height {
        let below = (y - edge) as f32 / depth.max(1.0);
        // The farther from the horizon, the longer the waves.
        let wave = y as f32 * (0.9 - 0.45 * below);
        let shift = (wave.sin() + 0.6 * (wave * 0.37 + 1.3).sin()) * (0.6 + 7.0 * below) * width / 512.0;
        let mirrored = edge as f32 - 1.0 - (y - edge) as f32 * (0.72 + 0.1 * unit(scene.seed ^ u64::from(y)));
        let source = mirrored.max(0.0) as u32;
        let tint = 0.22 + 0.45 * below;
        for x in 0..canvas.width {
            let from = (x as f32 + shift).clamp(0.0, width - 1.0) as u32;
            let mut color = blend(canvas.get(from, source), scene.water_color, tint);
            let away = (x as f32 / width - scene.light.0).abs() / (0.015 + 0.09 * below);
            if away < 1.0 {
                let sparkle = unit(scene.seed ^ (u64::from(x / 3) << 20 | u64::from(y)) ^ 0x5BD1);
                let strength = (1.0 - away) * (1.0 - 0.6 * below) * if sparkle > 0.45 { 0.75 } else { 0.12 };
                color = blend(color, scene.light_color, strength * scene.light_strength);
            }
            canvas.set(x, y, color);
        }
    }
}

/// The dark bank the onlooker stands on.
fn paint_foreground(canvas: &mut Canvas, scene: &Scene) {
    let (width, height) = canvas.size();
    let dark = blend(scene.near, [6.0, 7.0, 12.0], 0.55);
    for x in 0..canvas.width {
        let u = x as f32 / width;
        let rough = fractal(scene.seed ^ 0xF0E, u * 1.7, 4);
        let slope = if scene.bank_left { 1.0 - u } else { u };
        let mut top = 1.03 - 0.16 * slope * slope - 0.07 * rough * slope;
        top -= match scene.treeline {
            Treeline::Forest => trees(scene.seed ^ 0xABCD, u, 0.15 * (0.35 + slope), 13.0) * (0.25 + slope),
            Treeline::Grass => 0.012 * unit(scene.seed ^ u64::from(x)) * (0.4 + slope),
            Treeline::Bare => 0.0,
        };
        canvas.column(x, top * height, height, |_| dark);
    }
}

/// The picture while it is sampled: `clarity` goes from 0 (noise) to 1 (the picture).
pub(crate) fn emerging(image: &RgbImage, seed: u64, clarity: f32) -> RgbImage {
    let murk = (1.0 - clarity).clamp(0.0, 1.0);
    if murk <= 0.0 {
        return image.clone();
    }
    let (width, height) = image.dimensions();
    // Blurred by going through a smaller picture.
    let shrink = 1.0 + 22.0 * murk * murk;
    let small = |side: u32| ((side as f32 / shrink) as u32).max(2);
    let blurred = imageops::thumbnail(image, small(width), small(height));
    let blurred = imageops::resize(&blurred, width, height, imageops::FilterType::Triangle);
    let strength = 150.0 * murk.powf(1.4);
    // Noise comes in blocks, as latent pixels are larger than those of the picture.
    let block = 1 + (4.0 * murk) as u32;
    RgbImage::from_fn(width, height, |x, y| {
        let key = seed ^ (u64::from(x / block) << 32) ^ u64::from(y / block);
        let pixel = blurred.get_pixel(x, y).0;
        let noisy = |channel: usize| -> u8 {
            let noise = unit(key.wrapping_add(channel as u64 * 0x1357_9BDF)) - 0.5;
            let calm = f32::from(pixel[channel]) * (1.0 - 0.35 * murk) + 128.0 * 0.35 * murk;
            (calm + noise * strength).clamp(0.0, 255.0) as u8
        };
        Rgb([noisy(0), noisy(1), noisy(2)])
    })
}

/// Multiplies a colour.
fn scaled(color: Color, factor: f32) -> Color {
    color.map(|channel| channel * factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_words_and_seed_give_the_same_picture() {
        let one = draw("mountains at night", 7, 64, 48);
        assert_eq!(one, draw("mountains at night", 7, 64, 48));
        assert_ne!(one, draw("mountains at night", 8, 64, 48));
        assert_ne!(one, draw("a sea at sunset", 7, 64, 48));
    }

    #[test]
    fn every_size_can_be_drawn() {
        for (width, height) in [(1, 1), (1, 300), (300, 1), (16, 16), (513, 257)] {
            assert_eq!(draw("forest lake", 3, width, height).dimensions(), (width, height));
        }
    }

    #[test]
    fn a_picture_clears_step_by_step() {
        let image = draw("sunset over the sea", 1, 96, 96);
        let distance = |clarity: f32| -> u64 {
            let preview = emerging(&image, 5, clarity);
            preview.as_raw().iter().zip(image.as_raw()).map(|(a, b)| u64::from(a.abs_diff(*b))).sum()
        };
        assert!(distance(0.1) > distance(0.5));
        assert!(distance(0.5) > distance(0.9));
        assert_eq!(distance(1.0), 0);
    }
}
