//! From words to a scene: words people use in prompts steer time of day, ground and weather; the rest follows from the seed.

use super::canvas::{Color, blend, hex};
use super::noise::unit;
use super::scaled;
use crate::files::mix;

/// What grows on the nearer ridges.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Treeline {
    Forest,
    Grass,
    Bare,
}

/// Everything the painters need to know.
#[derive(Debug)]
pub(super) struct Scene {
    pub seed: u64,
    /// Sky from top to horizon.
    pub sky: [Color; 3],
    pub light_color: Color,
    /// Where the sun or the moon stands, in parts of width and height.
    pub light: (f32, f32),
    /// The disc's radius in parts of the width.
    pub light_size: f32,
    /// How strongly it glows and glitters, 0..1.
    pub light_strength: f32,
    /// Stars, 0 (none) to 1 (many).
    pub stars: f32,
    /// Clouds, 0..1.
    pub clouds: f32,
    pub cloud_color: Color,
    pub far: Color,
    pub near: Color,
    pub haze: Color,
    pub water: bool,
    pub water_color: Color,
    /// The lower edge of the land, in parts of the height.
    pub horizon: f32,
    /// How high the mountains are, in parts of the height.
    pub relief: f32,
    pub treeline: Treeline,
    pub bank_left: bool,
}

/// Colours of a time of day.
struct Mood {
    sky: [u32; 3],
    light: u32,
    far: u32,
    near: u32,
    water: u32,
    stars: f32,
    strength: f32,
    /// The height of sun or moon over the horizon, in parts of the height: lowest and highest.
    height: (f32, f32),
}

const NIGHT: Mood = Mood {
    sky: [0x060A1E, 0x14234F, 0x3A4F86],
    light: 0xF3EFD9,
    far: 0x2B3A6B,
    near: 0x070B1A,
    water: 0x0A1230,
    stars: 1.0,
    strength: 0.7,
    height: (0.3, 0.48),
};
const SUNSET: Mood = Mood {
    sky: [0x2B2556, 0xC2496B, 0xFFB45E],
    light: 0xFFF0C2,
    far: 0xA4506E,
    near: 0x1C1230,
    water: 0x4A2A55,
    stars: 0.15,
    strength: 1.0,
    height: (0.08, 0.17),
};
const DAWN: Mood = Mood {
    sky: [0x4C6A9C, 0xD79AA8, 0xFCE0C0],
    light: 0xFFF6E4,
    far: 0x8F8FB4,
    near: 0x232A45,
    water: 0x5B6C93,
    stars: 0.05,
    strength: 0.85,
    height: (0.1, 0.22),
};
const DAY: Mood = Mood {
    sky: [0x2F74C0, 0x7FB6E3, 0xDCEFF5],
    light: 0xFFFBEA,
    far: 0x7D9CBD,
    near: 0x1E3A33,
    water: 0x2A6691,
    stars: 0.0,
    strength: 0.65,
    height: (0.3, 0.45),
};
const TEAL: Mood = Mood {
    sky: [0x0B2B3F, 0x2F7F86, 0xF2D9A0],
    light: 0xFFF3CF,
    far: 0x4E8A8C,
    near: 0x0A2229,
    water: 0x14505A,
    stars: 0.1,
    strength: 0.9,
    height: (0.12, 0.26),
};
const VIOLET: Mood = Mood {
    sky: [0x1B1440, 0x6A3D8F, 0xF0A6B8],
    light: 0xFFE9EE,
    far: 0x7A559C,
    near: 0x150F2B,
    water: 0x38255F,
    stars: 0.5,
    strength: 0.9,
    height: (0.14, 0.34),
};

impl Scene {
    /// The scene of a text and a seed.
    pub fn imagine(text: &str, seed: u64) -> Self {
        let text = text.to_lowercase();
        let seed = text.bytes().fold(mix(seed), |hash, byte| mix(hash ^ u64::from(byte)));
        let has = |words: &[&str]| words.iter().any(|word| text.contains(word));
        let chance = |salt: u64| unit(seed ^ salt.wrapping_mul(0x2545_F491_4F6C_DD1D));

        let mood = if has(&["night", "moon", "star", "galaxy", "midnight"]) {
            &NIGHT
        } else if has(&["sunset", "dusk", "evening", "golden hour", "autumn", "fire", "desert"]) {
            &SUNSET
        } else if has(&["dawn", "sunrise", "morning", "spring", "fog", "mist"]) {
            &DAWN
        } else if has(&["day", "noon", "summer", "sunny", "blue sky"]) {
            &DAY
        } else {
            [&TEAL, &VIOLET, &SUNSET, &DAWN, &DAY, &NIGHT][(chance(1) * 6.0) as usize % 6]
        };
        let wet =
            has(&["sea", "ocean", "lake", "water", "river", "beach", "coast", "bay", "reflection", "island", "bottle"]);
        let dry = has(&["desert", "field", "meadow", "city", "road"]);
        let water = wet || (!dry && chance(2) < 0.6);
        let flat = has(&["sea", "ocean", "beach", "coast", "desert", "field", "meadow"]);
        let steep = has(&["mountain", "alps", "peak", "cliff", "valley"]);
        let treeline = if has(&["forest", "tree", "wood", "pine", "jungle", "nature"]) || (!flat && chance(3) < 0.45) {
            Treeline::Forest
        } else if has(&["snow", "winter", "ice", "desert"]) {
            Treeline::Bare
        } else {
            Treeline::Grass
        };
        let mut scene = Self::paint(mood, seed, chance);
        scene.water = water;
        scene.treeline = treeline;
        scene.relief = if flat {
            0.12 + 0.08 * chance(4)
        } else if steep {
            0.36 + 0.08 * chance(4)
        } else {
            0.24 + 0.14 * chance(4)
        };
        scene.horizon = if water { 0.6 + 0.08 * chance(5) } else { 0.97 };
        scene.light.1 =
            (if water { scene.horizon } else { 0.66 }) - mood.height.0 - (mood.height.1 - mood.height.0) * chance(6);
        if has(&["fog", "mist", "haze"]) {
            scene.far = blend(scene.far, scene.sky[2], 0.5);
            scene.near = blend(scene.near, scene.sky[2], 0.25);
            scene.clouds = 0.9;
        }
        if has(&["snow", "winter", "ice", "frost"]) {
            scene.far = blend(scene.far, hex(0xEAF2FA), 0.6);
            scene.near = blend(scene.near, hex(0x9FB4CC), 0.35);
        }
        if has(&["forest", "jungle", "green"]) {
            scene.near = blend(scene.near, hex(0x0D3B24), 0.55);
            scene.far = blend(scene.far, hex(0x4F8A6A), 0.35);
        }
        scene
    }

    fn paint(mood: &Mood, seed: u64, chance: impl Fn(u64) -> f32) -> Self {
        let sky = mood.sky.map(hex);
        // A slight turn of the whole palette, so that two seeds of one prompt differ in colour too.
        let warm = chance(7) - 0.5;
        let turn = |color: Color| [color[0] * (1.0 + 0.16 * warm), color[1], color[2] * (1.0 - 0.16 * warm)];
        let left = chance(8) < 0.5;
        let side = 0.2 + 0.16 * chance(9);
        Self {
            seed,
            sky: sky.map(turn),
            light_color: hex(mood.light),
            light: (if left { side } else { 1.0 - side }, 0.3),
            light_size: 0.03 + 0.035 * chance(10),
            light_strength: mood.strength,
            stars: mood.stars,
            clouds: 0.25 + 0.6 * chance(11),
            cloud_color: blend(turn(sky[2]), hex(mood.light), 0.35),
            far: turn(hex(mood.far)),
            near: turn(hex(mood.near)),
            haze: blend(turn(sky[2]), turn(hex(mood.far)), 0.45),
            water: true,
            water_color: turn(hex(mood.water)),
            horizon: 0.65,
            relief: 0.3,
            treeline: Treeline::Grass,
            bank_left: !left,
        }
    }

    /// The colour of a ridge, hazy far away and dark near by.
    pub fn ridge_color(&self, layer: usize, layers: usize) -> Color {
        let depth = layer as f32 / (layers - 1) as f32;
        let color = blend(self.far, self.near, depth.powf(0.8));
        blend(scaled(color, 0.92), self.sky[2], 0.38 * (1.0 - depth) * (1.0 - depth))
    }
}
