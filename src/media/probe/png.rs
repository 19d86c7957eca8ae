//! PNG and its animations (APNG): chunks of length, type, data, checksum.

use comfyd_actors::domain::artifact::Facts;

use super::{Numbers, Walk, Want, sized};

#[derive(Default)]
pub struct Png {
    state: State,
    size: (u32, u32),
    /// As `acTL` says; none in a still.
    frames: Option<u64>,
    duration_ms: u64,
}

#[derive(Default)]
enum State {
    #[default]
    Start,
    Signature,
    Chunk,
    Header,
    Animation,
    Frame,
    Skipped,
}

impl Walk for Png {
    fn step(&mut self, piece: &[u8]) -> Want {
        match self.state {
            State::Start => return self.then(State::Signature, Want::Take(8)),
            State::Signature | State::Skipped => {}
            State::Chunk => {
                let length = piece.be32(0);
                return match piece.get(4..8) {
                    Some(b"IHDR") => self.then(State::Header, Want::Take(13 + 4)),
                    Some(b"acTL") => self.then(State::Animation, Want::Take(8 + 4)),
                    Some(b"fcTL") => self.then(State::Frame, Want::Take(26 + 4)),
                    // An animation tells so before its first picture.
                    Some(b"IDAT") if self.frames.is_none() => Want::Enough,
                    Some(b"IEND") | None => Want::Enough,
                    Some(_) => self.then(State::Skipped, Want::Skip(u64::from(length) + 4)),
                };
            }
            State::Header => self.size = (piece.be32(0), piece.be32(4)),
            State::Animation => self.frames = Some(u64::from(piece.be32(0))),
            State::Frame => {
                let (delay, per_second) = (u64::from(piece.be16(20)), u64::from(piece.be16(22)));
                // Zero means hundredths.
                let per_second = if per_second == 0 { 100 } else { per_second };
                self.duration_ms = self.duration_ms.saturating_add(delay * 1_000 / per_second);
            }
        }
        self.then(State::Chunk, Want::Take(8))
    }

    fn facts(&self) -> Facts {
        let (width, height) = self.size;
        let duration_ms = self.frames.filter(|frames| *frames > 1).map(|_| self.duration_ms);
        Facts { frames: Some(self.frames.unwrap_or(1)).filter(|_| width > 0), duration_ms, ..sized(width, height) }
    }
}

impl Png {
    fn then(&mut self, state: State, want: Want) -> Want {
        self.state = state;
        want
    }
}
