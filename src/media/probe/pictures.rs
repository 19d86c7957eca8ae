//! Formats of which only the size is wanted.

use comfyd_actors::domain::artifact::Facts;

use super::{Numbers, Walk, Want, sized};

fn still((width, height): (u32, u32)) -> Facts {
    Facts { frames: (width > 0).then_some(1), ..sized(width, height) }
}

/// JPEG: segments up to the one that begins the picture.
#[derive(Default)]
pub struct Jpeg {
    state: Segments,
    size: (u32, u32),
}

#[derive(Default)]
enum Segments {
    #[default]
    Start,
    Marker,
    Header,
    Skipped,
}

impl Walk for Jpeg {
    fn step(&mut self, piece: &[u8]) -> Want {
        match self.state {
            Segments::Start => {
                self.state = Segments::Skipped;
                Want::Skip(2)
            }
            Segments::Skipped => {
                self.state = Segments::Marker;
                Want::Take(4)
            }
            Segments::Marker => match (piece.first(), piece.get(1)) {
                // How a picture is coded: 16 kinds, of which four are something else.
                (Some(0xff), Some(kind @ 0xc0..=0xcf)) if !matches!(kind, 0xc4 | 0xc8 | 0xcc) => {
                    self.state = Segments::Header;
                    Want::Take(5)
                }
                (Some(0xff), Some(0xc0..=0xcf | 0xdb | 0xdd | 0xe0..=0xef | 0xfe)) => {
                    self.state = Segments::Skipped;
                    Want::Skip(u64::from(piece.be16(2)).saturating_sub(2))
                }
                _ => Want::Enough,
            },
            Segments::Header => {
                self.size = (u32::from(piece.be16(3)), u32::from(piece.be16(1)));
                Want::Enough
            }
        }
    }

    fn facts(&self) -> Facts {
        still(self.size)
    }
}

/// BMP: a fixed header. The height is negative when the rows come top down.
#[derive(Default)]
pub struct Bmp {
    begun: bool,
    size: (u32, u32),
}

impl Walk for Bmp {
    fn step(&mut self, piece: &[u8]) -> Want {
        if std::mem::replace(&mut self.begun, true) {
            // The oldest header has sixteen bits each, and nobody writes it.
            let side = |at: usize| i32::from_le_bytes(piece.part(at)).unsigned_abs();
            self.size = if piece.le32(14) >= 40 { (side(18), side(22)) } else { (0, 0) };
            return Want::Enough;
        }
        Want::Take(26)
    }

    fn facts(&self) -> Facts {
        still(self.size)
    }
}
