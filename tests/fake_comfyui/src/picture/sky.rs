//! Sky, clouds, stars, and the sun or the moon.

use super::canvas::{Canvas, Color, blend};
use super::noise::{plane, unit};
use super::scene::Scene;

/// Cells of the coarse grid along each side.
const GRID: usize = 56;

pub(super) fn paint(canvas: &mut Canvas, scene: &Scene) {
    let (width, height) = canvas.size();
    let aspect = height / width;
    let grid = soft_sky(scene, aspect);
    // Only what the land will not cover for certain.
    let bottom = ((scene.horizon * height) as u32 + 1).min(canvas.height);
    for y in 0..bottom {
        let row = y as f32 / height * GRID as f32;
        for x in 0..canvas.width {
            canvas.set(x, y, sample(&grid, x as f32 / width * GRID as f32, row));
        }
    }
    paint_stars(canvas, scene, bottom);
    paint_disc(canvas, scene, bottom);
}

/// The soft part of the sky at the corners of the grid's cells.
fn soft_sky(scene: &Scene, aspect: f32) -> Vec<Color> {
    let mut grid = Vec::with_capacity((GRID + 1) * (GRID + 1));
    for row in 0..=GRID {
        for column in 0..=GRID {
            grid.push(soft_color(scene, column as f32 / GRID as f32, row as f32 / GRID as f32, aspect));
        }
    }
    grid
}

fn soft_color(scene: &Scene, u: f32, v: f32, aspect: f32) -> Color {
    let fall = (v / scene.horizon.min(0.8)).min(1.0);
    let mut color = if fall < 0.55 {
        blend(scene.sky[0], scene.sky[1], fall / 0.55)
    } else {
        blend(scene.sky[1], scene.sky[2], (fall - 0.55) / 0.45)
    };
    let (dx, dy) = (u - scene.light.0, (v - scene.light.1) * aspect);
    let distance = dx * dx + dy * dy;
    let glow = 0.55 * (-distance / 0.012).exp() + 0.4 * (-distance / 0.11).exp();
    // Clouds are long and flat, and lit from the light's side.
    let dense = plane(scene.seed ^ 0xC10D, u * 2.6 + v * 0.8, v * 9.0 * aspect.max(0.4), 4);
    let cover = ((dense - 0.62 + 0.22 * scene.clouds) / 0.26).clamp(0.0, 1.0) * (1.0 - 0.4 * fall);
    let lit = blend(blend(color, scene.cloud_color, 0.55), scene.light_color, (0.7 * glow).min(0.6));
    color = blend(color, lit, cover * 0.8);
    blend(color, scene.light_color, (glow * scene.light_strength).min(0.9))
}

fn sample(grid: &[Color], column: f32, row: f32) -> Color {
    let (left, upper) = ((column as usize).min(GRID - 1), (row as usize).min(GRID - 1));
    let (across, down) = (column - left as f32, row - upper as f32);
    let at = upper * (GRID + 1) + left;
    let top = blend(grid[at], grid[at + 1], across);
    let bottom = blend(grid[at + GRID + 1], grid[at + GRID + 2], across);
    blend(top, bottom, down)
}

fn paint_stars(canvas: &mut Canvas, scene: &Scene, bottom: u32) {
    let (width, height) = canvas.size();
    let count = (scene.stars * 420.0) as u64;
    for star in 0..count {
        let key = scene.seed ^ (star + 1).wrapping_mul(0x9E6C_63D0_876A_68AF);
        let (u, v) = (unit(key), unit(key ^ 1) * scene.horizon);
        let (x, y) = ((u * width) as u32, (v * height) as u32);
        if x >= canvas.width || y >= bottom {
            continue;
        }
        // Few are bright, and those near the horizon drown in the haze.
        let bright = unit(key ^ 2).powi(4) * (1.0 - v / scene.horizon) * scene.stars.max(0.4);
        let color = blend([255.0, 255.0, 255.0], [190.0, 210.0, 255.0], unit(key ^ 3));
        let mut touch = |x: u32, y: u32, part: f32| {
            if x < canvas.width && y < bottom {
                let blended = blend(canvas.get(x, y), color, part.min(1.0));
                canvas.set(x, y, blended);
            }
        };
        touch(x, y, 0.25 + bright);
        if bright > 0.3 {
            for (x, y) in [(x + 1, y), (x.wrapping_sub(1), y), (x, y + 1), (x, y.wrapping_sub(1))] {
                touch(x, y, bright * 0.45);
            }
        }
    }
}

fn paint_disc(canvas: &mut Canvas, scene: &Scene, bottom: u32) {
    let (width, height) = canvas.size();
    let radius = scene.light_size * width;
    let (center_x, center_y) = (scene.light.0 * width, scene.light.1 * height);
    let reach = radius + 2.0;
    let clamp = |value: f32, most: u32| (value.max(0.0) as u32).min(most);
    for y in clamp(center_y - reach, bottom)..clamp(center_y + reach, bottom) {
        for x in clamp(center_x - reach, canvas.width)..clamp(center_x + reach, canvas.width) {
            let (dx, dy) = (x as f32 + 0.5 - center_x, y as f32 + 0.5 - center_y);
            let inside = (radius - (dx * dx + dy * dy).sqrt() + 0.5).clamp(0.0, 1.0);
            if inside > 0.0 {
                // A moon has spots; a sun outshines them.
                let spots = if scene.stars > 0.9 {
                    26.0 * plane(scene.seed, dx / radius * 2.2, dy / radius * 2.2, 3)
                } else {
                    0.0
                };
                let face = scene.light_color.map(|channel| (channel - spots).max(0.0));
                let blended = blend(canvas.get(x, y), face, inside);
                canvas.set(x, y, blended);
            }
        }
    }
}
