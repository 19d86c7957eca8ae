//! Value noise: random numbers at whole positions, smooth in between.

use crate::files::mix;

/// A number in 0..1 that follows from a key.
pub(super) fn unit(key: u64) -> f32 {
    (mix(key.wrapping_add(0x9E37_79B9_7F4A_7C15)) >> 40) as f32 / (1u64 << 24) as f32
}

fn smooth(t: f32) -> f32 {
    t * t * (3.0 - 2.0 * t)
}

/// Noise along a line, in 0..1.
pub(super) fn line(seed: u64, x: f32) -> f32 {
    let cell = x.floor();
    let at = |cell: f32| unit(seed ^ (cell as i64 as u64).wrapping_mul(0xD6E8_FEB8_6659_FD93));
    let (left, right) = (at(cell), at(cell + 1.0));
    left + (right - left) * smooth(x - cell)
}

/// Noise along a line with finer and finer detail, in 0..1.
pub(super) fn fractal(seed: u64, x: f32, octaves: u32) -> f32 {
    let (mut sum, mut weight, mut total, mut frequency) = (0.0, 1.0, 0.0, 1.0);
    for octave in 0..octaves {
        sum += weight * line(seed.wrapping_add(u64::from(octave)), x * frequency);
        total += weight;
        weight *= 0.48;
        frequency *= 2.05;
    }
    sum / total
}

/// Noise on a plane with finer and finer detail, in 0..1.
pub(super) fn plane(seed: u64, x: f32, y: f32, octaves: u32) -> f32 {
    let (mut sum, mut weight, mut total, mut frequency) = (0.0, 1.0, 0.0, 1.0);
    for octave in 0..octaves {
        let seed = seed.wrapping_add(u64::from(octave) * 31);
        let (x, y) = (x * frequency, y * frequency);
        let row = y.floor();
        let along = |row: f32| line(seed ^ (row as i64 as u64).wrapping_mul(0xA076_1D64_78BD_642F), x);
        let (upper, lower) = (along(row), along(row + 1.0));
        sum += weight * (upper + (lower - upper) * smooth(y - row));
        total += weight;
        weight *= 0.5;
        frequency *= 2.1;
    }
    sum / total
}
