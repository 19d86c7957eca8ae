//! WebM and Matroska: elements of id, size, content, the first two of varying length.

use comfyd_actors::domain::artifact::Facts;

use super::{Numbers, Walk, Want, sized};

const SEGMENT: u32 = 0x1853_8067;
const INFO: u32 = 0x1549_a966;
const TRACKS: u32 = 0x1654_ae6b;
const CLUSTER: u32 = 0x1f43_b675;
const BLOCK_GROUP: u32 = 0xa0;
const BLOCK: u32 = 0xa1;
const SIMPLE_BLOCK: u32 = 0xa3;

#[derive(Default)]
pub struct Matroska {
    state: State,
    id: u32,
    size: u64,
    facts: Facts,
    video_track: Option<u64>,
}

#[derive(Default)]
enum State {
    #[default]
    Between,
    Id,
    IdRest(u8),
    Size,
    SizeRest(u8),
    Info,
    Tracks,
    Block,
}

impl Walk for Matroska {
    fn step(&mut self, piece: &[u8]) -> Want {
        let byte = piece.first().copied().unwrap_or_default();
        match self.state {
            State::Between => return self.then(State::Id, Want::Take(1)),
            State::Id => {
                let length = byte.leading_zeros() as usize;
                return if length < 4 { self.then(State::IdRest(byte), Want::Take(length)) } else { Want::Enough };
            }
            State::IdRest(first) => {
                self.id = piece.iter().fold(u32::from(first), |id, byte| id << 8 | u32::from(*byte));
                return self.then(State::Size, Want::Take(1));
            }
            State::Size => {
                let length = byte.leading_zeros() as usize;
                return if length < 8 { self.then(State::SizeRest(byte), Want::Take(length)) } else { Want::Enough };
            }
            State::SizeRest(first) => return self.element(first, piece),
            State::Info => self.facts.duration_ms = duration(piece),
            State::Tracks => {
                if let Some((number, width, height)) = video(piece) {
                    self.video_track = Some(number);
                    self.facts = Facts { duration_ms: self.facts.duration_ms, frames: Some(0), ..sized(width, height) };
                }
            }
            State::Block => {
                // Its track, in one byte unless there are more than a hundred.
                if self.video_track == Some(u64::from(byte & 0x7f)) {
                    self.facts.frames = self.facts.frames.map(|frames| frames + 1);
                }
                return self.then(State::Between, Want::Skip(self.size.saturating_sub(1)));
            }
        }
        self.then(State::Id, Want::Take(1))
    }

    fn facts(&self) -> Facts {
        Facts { frames: self.facts.frames.filter(|frames| *frames > 0), ..self.facts.clone() }
    }
}

impl Matroska {
    fn then(&mut self, state: State, want: Want) -> Want {
        self.state = state;
        want
    }

    fn element(&mut self, first: u8, rest: &[u8]) -> Want {
        let (size, unknown) = vint(first, rest);
        self.size = size;
        match self.id {
            // What is in them comes as if it stood beside them: where they end does not matter.
            SEGMENT | CLUSTER | BLOCK_GROUP => self.then(State::Id, Want::Take(1)),
            _ if unknown => Want::Enough,
            INFO => self.then(State::Info, take(size)),
            TRACKS => self.then(State::Tracks, take(size)),
            BLOCK | SIMPLE_BLOCK if size > 0 => self.then(State::Block, Want::Take(1)),
            _ => self.then(State::Between, Want::Skip(size)),
        }
    }
}

fn take(size: u64) -> Want {
    Want::Take(usize::try_from(size).unwrap_or(usize::MAX))
}

/// A number whose first byte tells its length; all ones mean "unknown".
fn vint(first: u8, rest: &[u8]) -> (u64, bool) {
    let mask = 0x7f_u8.checked_shr(first.leading_zeros()).unwrap_or(0);
    let unknown = first & mask == mask && rest.iter().all(|byte| *byte == 0xff);
    (rest.iter().fold(u64::from(first & mask), |value, byte| value << 8 | u64::from(*byte)), unknown)
}

/// The elements side by side in `bytes`. Ends at the first that does not fit.
fn elements(mut bytes: &[u8]) -> impl Iterator<Item = (u32, &[u8])> {
    std::iter::from_fn(move || {
        let first = *bytes.first()?;
        let length = first.leading_zeros() as usize + 1;
        let id = bytes.get(..length).filter(|_| length <= 4)?.iter().fold(0, |id, byte| id << 8 | u32::from(*byte));
        let sized = &bytes[length..];
        let first = *sized.first()?;
        let length = first.leading_zeros() as usize + 1;
        let (size, _) = vint(first, sized.get(1..length)?);
        let content = &sized[length..];
        let content = content.get(..usize::try_from(size).ok()?)?;
        bytes = &sized[length + content.len()..];
        Some((id, content))
    })
}

fn find(bytes: &[u8], id: u32) -> Option<&[u8]> {
    elements(bytes).find(|(found, _)| *found == id).map(|(_, content)| content)
}

fn number(bytes: &[u8]) -> u64 {
    bytes.iter().take(8).fold(0, |value, byte| value << 8 | u64::from(*byte))
}

fn duration(info: &[u8]) -> Option<u64> {
    // Nanoseconds per unit.
    let scale = find(info, 0x2a_d7b1).map_or(1_000_000, number);
    let units = match find(info, 0x4489)? {
        bytes if bytes.len() == 4 => f64::from(f32::from_bits(bytes.be32(0))),
        bytes => f64::from_bits(bytes.be64(0)),
    };
    let duration = std::time::Duration::try_from_secs_f64(units * scale as f64 / 1e9).ok()?;
    u64::try_from(duration.as_millis()).ok().filter(|duration| *duration > 0)
}

/// Number, width and height of the first video track.
fn video(tracks: &[u8]) -> Option<(u64, u32, u32)> {
    elements(tracks).filter(|(id, _)| *id == 0xae).find_map(|(_, track)| {
        let video = find(track, 0xe0)?;
        let side = |id| find(video, id).and_then(|bytes| u32::try_from(number(bytes)).ok());
        Some((number(find(track, 0xd7)?), side(0xb0)?, side(0xba)?))
    })
}
