//! WebP: RIFF chunks.

use comfyd_actors::domain::artifact::Facts;

use super::{Numbers, Walk, Want, sized};

#[derive(Default)]
pub struct Webp {
    state: State,
    size: (u32, u32),
    /// Bytes of the chunk that follow what was taken of it.
    rest: u64,
    animated: bool,
    frames: u64,
    duration_ms: u64,
}

#[derive(Default)]
enum State {
    #[default]
    Start,
    Riff,
    Chunk,
    Extended,
    Lossy,
    Lossless,
    Frame,
    Skipped,
}

impl Walk for Webp {
    fn step(&mut self, piece: &[u8]) -> Want {
        match self.state {
            State::Start => return self.then(State::Riff, Want::Take(12)),
            State::Riff | State::Skipped => return self.then(State::Chunk, Want::Take(8)),
            State::Chunk => return self.chunk(piece),
            State::Extended => {
                self.animated = piece.first().is_some_and(|flags| flags & 2 != 0);
                self.size = (piece.le24(4) + 1, piece.le24(7) + 1);
            }
            State::Lossy | State::Lossless if self.animated => {}
            State::Lossy => {
                self.still(u32::from(piece.le16(6) & 0x3fff), u32::from(piece.le16(8) & 0x3fff));
                return Want::Enough;
            }
            State::Lossless => {
                let bits = piece.le32(1);
                self.still((bits & 0x3fff) + 1, ((bits >> 14) & 0x3fff) + 1);
                return Want::Enough;
            }
            State::Frame => {
                self.frames += 1;
                self.duration_ms = self.duration_ms.saturating_add(u64::from(piece.le24(12)));
            }
        }
        self.then(State::Skipped, Want::Skip(self.rest))
    }

    fn facts(&self) -> Facts {
        let (width, height) = self.size;
        let frames = Some(self.frames).filter(|frames| *frames > 0);
        let duration_ms = frames.filter(|_| self.animated).map(|_| self.duration_ms);
        Facts { frames, duration_ms, ..sized(width, height) }
    }
}

impl Webp {
    fn then(&mut self, state: State, want: Want) -> Want {
        self.state = state;
        want
    }

    fn chunk(&mut self, header: &[u8]) -> Want {
        let size = header.le32(4);
        let length = u64::from(size) + u64::from(size & 1);
        let (state, taken) = match header.get(..4) {
            Some(b"VP8X") => (State::Extended, 10),
            Some(b"VP8 ") => (State::Lossy, 10),
            Some(b"VP8L") => (State::Lossless, 5),
            Some(b"ANMF") => (State::Frame, 16),
            _ => (State::Skipped, 0),
        };
        match length.checked_sub(taken as u64) {
            Some(rest) if taken > 0 => {
                self.rest = rest;
                self.then(state, Want::Take(taken))
            }
            Some(rest) => self.then(state, Want::Skip(rest)),
            None => Want::Enough,
        }
    }

    fn still(&mut self, width: u32, height: u32) {
        self.size = (width, height);
        self.frames = 1;
    }
}
