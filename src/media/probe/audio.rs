//! Sounds: how long they are.

use comfyd_actors::domain::artifact::Facts;

use super::{Numbers, Walk, Want, millis};

fn lasting(duration_ms: Option<u64>) -> Facts {
    Facts { duration_ms, ..Facts::default() }
}

/// FLAC: the first block tells rate and number of samples.
#[derive(Default)]
pub struct Flac {
    begun: bool,
    duration_ms: Option<u64>,
}

impl Walk for Flac {
    fn step(&mut self, piece: &[u8]) -> Want {
        if !std::mem::replace(&mut self.begun, true) {
            return Want::Take(26);
        }
        // 20 bits of rate, 3 of channels, 5 of depth, 36 of samples, which are 0 when unknown.
        let packed = piece.be64(18);
        let (rate, samples) = (packed >> 44, packed & 0xf_ffff_ffff);
        self.duration_ms = millis(samples, rate).filter(|_| samples > 0);
        Want::Enough
    }

    fn facts(&self) -> Facts {
        lasting(self.duration_ms)
    }
}

/// WAV: bytes per second in one chunk, the number of bytes in another.
#[derive(Default)]
pub struct Wav {
    state: Chunks,
    bytes_per_second: u32,
    rest: u64,
    duration_ms: Option<u64>,
}

#[derive(Default)]
enum Chunks {
    #[default]
    Start,
    Between,
    Header,
    Format,
}

impl Walk for Wav {
    fn step(&mut self, piece: &[u8]) -> Want {
        let (state, want) = match self.state {
            Chunks::Start => (Chunks::Between, Want::Skip(12)),
            Chunks::Between => (Chunks::Header, Want::Take(8)),
            Chunks::Header => {
                let size = piece.le32(4);
                let length = u64::from(size) + u64::from(size & 1);
                match piece.get(..4) {
                    Some(b"fmt ") if size >= 16 => {
                        self.rest = length - 16;
                        (Chunks::Format, Want::Take(16))
                    }
                    // All ones: written before the length was known.
                    Some(b"data") if size != u32::MAX => {
                        self.duration_ms = millis(u64::from(size), u64::from(self.bytes_per_second));
                        return Want::Enough;
                    }
                    _ => (Chunks::Between, Want::Skip(length)),
                }
            }
            Chunks::Format => {
                self.bytes_per_second = piece.le32(8);
                (Chunks::Between, Want::Skip(self.rest))
            }
        };
        self.state = state;
        want
    }

    fn facts(&self) -> Facts {
        lasting(self.duration_ms)
    }
}

/// Ogg with Opus or Vorbis: each page tells how far the sound has come.
#[derive(Default)]
pub struct Ogg {
    state: Pages,
    position: u64,
    rate: u64,
    /// Samples at the beginning that are not to be heard.
    lead: u64,
}

#[derive(Default)]
enum Pages {
    #[default]
    Between,
    Header,
    Segments,
    /// The first page's content: what is in it.
    Head,
}

impl Walk for Ogg {
    fn step(&mut self, piece: &[u8]) -> Want {
        let (state, want) = match self.state {
            Pages::Between => (Pages::Header, Want::Take(27)),
            Pages::Header => {
                if !piece.starts_with(b"OggS") {
                    return Want::Enough;
                }
                // All ones: no sound ends on this page.
                let position = piece.le64(6);
                self.position = if position == u64::MAX { self.position } else { position };
                (Pages::Segments, Want::Take(usize::from(piece[26])))
            }
            Pages::Segments => {
                let length: usize = piece.iter().map(|length| usize::from(*length)).sum();
                if self.rate == 0 {
                    (Pages::Head, Want::Take(length))
                } else {
                    (Pages::Between, Want::Skip(length as u64))
                }
            }
            Pages::Head => {
                if piece.starts_with(b"OpusHead") {
                    // Opus counts in 48 kHz whatever it was made from.
                    (self.rate, self.lead) = (48_000, u64::from(piece.le16(10)));
                } else if piece.starts_with(b"\x01vorbis") {
                    self.rate = u64::from(piece.le32(12));
                }
                if self.rate == 0 {
                    return Want::Enough;
                }
                (Pages::Header, Want::Take(27))
            }
        };
        self.state = state;
        want
    }

    fn facts(&self) -> Facts {
        lasting(millis(self.position.saturating_sub(self.lead), self.rate).filter(|duration| *duration > 0))
    }
}

/// MP3: the first frame tells how many there are, if its maker counted them. Guessing by size would be wrong for most.
#[derive(Default)]
pub struct Mp3 {
    state: Frames,
    /// The beginning of a first frame that no tag precedes.
    begun: Vec<u8>,
    duration_ms: Option<u64>,
}

#[derive(Default)]
enum Frames {
    #[default]
    Start,
    Tag,
    Skipped,
    Frame,
}

impl Walk for Mp3 {
    fn step(&mut self, piece: &[u8]) -> Want {
        let (state, want) = match self.state {
            Frames::Start => (Frames::Tag, Want::Take(10)),
            Frames::Tag => match id3_length(piece) {
                Some(length) => (Frames::Skipped, Want::Skip(length)),
                None => {
                    self.begun = piece.to_vec();
                    (Frames::Frame, Want::Take(54))
                }
            },
            Frames::Skipped => (Frames::Frame, Want::Take(64)),
            Frames::Frame => {
                self.duration_ms = counted(&[&self.begun, piece].concat());
                return Want::Enough;
            }
        };
        self.state = state;
        want
    }

    fn facts(&self) -> Facts {
        lasting(self.duration_ms)
    }
}

/// Bytes of an ID3 tag behind its ten bytes of header.
pub fn id3_length(header: &[u8]) -> Option<u64> {
    let length = header.get(6..10)?.iter().fold(0, |length, byte| length << 7 | u64::from(byte & 0x7f));
    let footer = if header.get(5)? & 0x10 == 0 { 0 } else { 10 };
    header.starts_with(b"ID3").then_some(length + footer)
}

/// The duration by the count of frames in a `Xing` or `Info` header.
fn counted(frame: &[u8]) -> Option<u64> {
    let (second, third, fourth) = (*frame.get(1)?, *frame.get(2)?, *frame.get(3)?);
    if frame.first() != Some(&0xff) || second & 0xe0 != 0xe0 {
        return None;
    }
    let (first_version, mono) = (second & 0x18 == 0x18, fourth & 0xc0 == 0xc0);
    let divisor = match second & 0x18 {
        0x18 => 1,
        0x10 => 2,
        0x00 => 4,
        _ => return None,
    };
    let rate = [44_100, 48_000, 32_000].get(usize::from(third >> 2 & 3))? / divisor;
    let at = 4 + match (first_version, mono) {
        (true, false) => 32,
        (true, true) | (false, false) => 17,
        (false, true) => 9,
    };
    let header = frame.get(at..)?;
    if !(header.starts_with(b"Xing") || header.starts_with(b"Info")) || header.be32(4) & 1 == 0 {
        return None;
    }
    let per_frame = if first_version { 1_152 } else { 576 };
    millis(u64::from(header.be32(8)) * per_frame, rate)
}
