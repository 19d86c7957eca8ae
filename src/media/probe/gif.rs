//! GIF: blocks of sub-blocks. Nothing says how many pictures there are, so all are walked over.

use comfyd_actors::domain::artifact::Facts;

use super::{Numbers, Walk, Want, sized};

#[derive(Default)]
pub struct Gif {
    state: State,
    size: (u32, u32),
    frames: u64,
    duration_ms: u64,
}

#[derive(Default)]
enum State {
    #[default]
    Start,
    Screen,
    /// Before a block.
    Between,
    Block,
    Extension,
    Control,
    Picture,
    /// After a picture's colours, before its code size.
    Colours,
    SubBlock,
    SubBlockData,
}

impl Walk for Gif {
    fn step(&mut self, piece: &[u8]) -> Want {
        let byte = piece.first().copied().unwrap_or_default();
        match self.state {
            State::Start => self.then(State::Screen, Want::Take(13)),
            State::Screen => {
                self.size = (u32::from(piece.le16(6)), u32::from(piece.le16(8)));
                self.then(State::Between, Want::Skip(colours(piece.get(10))))
            }
            State::Between => self.then(State::Block, Want::Take(1)),
            State::Block => match byte {
                0x21 => self.then(State::Extension, Want::Take(1)),
                0x2c => self.then(State::Picture, Want::Take(9)),
                _ => Want::Enough,
            },
            // Length, flags, delay, transparent colour, end.
            State::Extension if byte == 0xf9 => self.then(State::Control, Want::Take(6)),
            State::Extension | State::SubBlockData => self.then(State::SubBlock, Want::Take(1)),
            State::Control => {
                self.duration_ms = self.duration_ms.saturating_add(u64::from(piece.le16(2)) * 10);
                self.then(State::Block, Want::Take(1))
            }
            State::Picture => {
                self.frames += 1;
                self.then(State::Colours, Want::Skip(colours(piece.get(8)) + 1))
            }
            State::Colours => self.then(State::SubBlock, Want::Take(1)),
            State::SubBlock if byte == 0 => self.then(State::Block, Want::Take(1)),
            State::SubBlock => self.then(State::SubBlockData, Want::Skip(u64::from(byte))),
        }
    }

    fn facts(&self) -> Facts {
        let (width, height) = self.size;
        let frames = Some(self.frames).filter(|frames| *frames > 0);
        let duration_ms = frames.filter(|frames| *frames > 1).map(|_| self.duration_ms);
        Facts { frames, duration_ms, ..sized(width, height) }
    }
}

impl Gif {
    fn then(&mut self, state: State, want: Want) -> Want {
        self.state = state;
        want
    }
}

/// Bytes of the table of colours that these flags announce.
fn colours(flags: Option<&u8>) -> u64 {
    flags.filter(|flags| **flags & 0x80 != 0).map_or(0, |flags| 3 << ((flags & 7) + 1))
}
