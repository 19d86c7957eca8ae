//! Looks into files while they stream by: how large, how long, how many frames. Pure.
//!
//! A [`Walk`] per format says what it wants of the bytes that come next: some in one piece, or some skipped. So no more than a piece is
//! ever held, nothing is read twice, and a hostile file can only be unknown: numbers are taken as they are told, never allocated by.

pub(super) mod audio;
mod gif;
mod matroska;
mod mp4;
mod pictures;
mod png;
mod webp;

use comfyd_actors::domain::artifact::Facts;

/// Largest piece that is held. The index of a long video is some megabytes.
const MAX_PIECE: usize = 8 << 20;
/// Enough to know any format by.
pub const MAGIC: usize = 12;

/// What is wanted of the bytes that come next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Want {
    /// As many as this in one piece.
    Take(usize),
    /// None of so many.
    Skip(u64),
    /// Nothing more.
    Enough,
}

/// One format's way through a file.
pub trait Walk: Send {
    /// Takes in the piece that was wanted (nothing after a skip) and says what is wanted next. Begins with nothing.
    fn step(&mut self, piece: &[u8]) -> Want;

    /// What is known by now.
    fn facts(&self) -> Facts;
}

/// What a file is, by its first bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    Png,
    Jpeg,
    Webp,
    Gif,
    Bmp,
    Mp4,
    /// AVIF and its kin: boxes like MP4's that hold a picture.
    Avif,
    Matroska,
    Flac,
    Wav,
    Ogg,
    Mp3,
    Other,
}

impl Format {
    /// By the first [`MAGIC`] bytes, or all there are.
    #[must_use]
    pub fn of(head: &[u8]) -> Self {
        let at = |place: usize, magic: &[u8]| head.get(place..).is_some_and(|rest| rest.starts_with(magic));
        match head {
            _ if at(0, b"\x89PNG\r\n\x1a\n") => Self::Png,
            _ if at(0, b"\xff\xd8\xff") => Self::Jpeg,
            _ if at(0, b"RIFF") && at(8, b"WEBP") => Self::Webp,
            _ if at(0, b"RIFF") && at(8, b"WAVE") => Self::Wav,
            _ if at(0, b"GIF87a") || at(0, b"GIF89a") => Self::Gif,
            _ if at(4, b"ftyp") => match head.get(8..12) {
                Some(b"avif" | b"avis" | b"heic" | b"heix" | b"mif1") => Self::Avif,
                _ => Self::Mp4,
            },
            _ if at(0, b"\x1a\x45\xdf\xa3") => Self::Matroska,
            _ if at(0, b"fLaC") => Self::Flac,
            _ if at(0, b"OggS") => Self::Ogg,
            _ if at(0, b"ID3") => Self::Mp3,
            [0xff, second, ..] if second & 0xe6 == 0xe2 => Self::Mp3,
            _ if at(0, b"BM") => Self::Bmp,
            _ => Self::Other,
        }
    }

    fn walk(self) -> Option<Box<dyn Walk>> {
        Some(match self {
            Self::Png => Box::<png::Png>::default(),
            Self::Jpeg => Box::<pictures::Jpeg>::default(),
            Self::Bmp => Box::<pictures::Bmp>::default(),
            Self::Webp => Box::<webp::Webp>::default(),
            Self::Gif => Box::<gif::Gif>::default(),
            Self::Mp4 | Self::Avif => Box::<mp4::Mp4>::default(),
            Self::Matroska => Box::<matroska::Matroska>::default(),
            Self::Flac => Box::<audio::Flac>::default(),
            Self::Wav => Box::<audio::Wav>::default(),
            Self::Ogg => Box::<audio::Ogg>::default(),
            Self::Mp3 => Box::<audio::Mp3>::default(),
            Self::Other => return None,
        })
    }
}

/// A look into one file.
pub struct Probe {
    walk: Option<Box<dyn Walk>>,
    want: Want,
    held: Vec<u8>,
}

impl Probe {
    /// A look into a file of this format.
    #[must_use]
    pub fn new(format: Format) -> Self {
        let mut walk = format.walk();
        let want = walk.as_mut().map_or(Want::Enough, |walk| walk.step(&[]));
        Self { walk, want, held: Vec::new() }
    }

    /// Takes in the next bytes of the file.
    pub fn feed(&mut self, mut bytes: &[u8]) {
        let Some(walk) = &mut self.walk else { return };
        loop {
            match self.want {
                Want::Enough => return,
                Want::Skip(0) => self.want = walk.step(&[]),
                Want::Skip(count) => {
                    if bytes.is_empty() {
                        return;
                    }
                    let skipped = usize::try_from(count).unwrap_or(usize::MAX).min(bytes.len());
                    bytes = &bytes[skipped..];
                    self.want = Want::Skip(count - skipped as u64);
                }
                Want::Take(count) if count > MAX_PIECE => self.want = Want::Enough,
                Want::Take(count) => {
                    let (taken, rest) = bytes.split_at((count - self.held.len()).min(bytes.len()));
                    bytes = rest;
                    if self.held.is_empty() && taken.len() == count {
                        self.want = walk.step(taken);
                        continue;
                    }
                    self.held.extend_from_slice(taken);
                    if self.held.len() < count {
                        return;
                    }
                    self.want = walk.step(&self.held);
                    self.held.clear();
                }
            }
        }
    }

    /// What is known by now.
    #[must_use]
    pub fn facts(&self) -> Facts {
        self.walk.as_ref().map(|walk| walk.facts()).unwrap_or_default()
    }
}

/// The whole of some bytes.
#[must_use]
pub fn look(bytes: &[u8]) -> Facts {
    let mut probe = Probe::new(Format::of(bytes));
    probe.feed(bytes);
    probe.facts()
}

/// Numbers at a place, 0 where there are none.
pub(super) trait Numbers {
    fn part<const N: usize>(&self, at: usize) -> [u8; N];

    fn be16(&self, at: usize) -> u16 {
        u16::from_be_bytes(self.part(at))
    }
    fn be32(&self, at: usize) -> u32 {
        u32::from_be_bytes(self.part(at))
    }
    fn be64(&self, at: usize) -> u64 {
        u64::from_be_bytes(self.part(at))
    }
    fn le16(&self, at: usize) -> u16 {
        u16::from_le_bytes(self.part(at))
    }
    fn le24(&self, at: usize) -> u32 {
        let [a, b, c] = self.part(at);
        u32::from_le_bytes([a, b, c, 0])
    }
    fn le32(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.part(at))
    }
    fn le64(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.part(at))
    }
}

impl Numbers for [u8] {
    fn part<const N: usize>(&self, at: usize) -> [u8; N] {
        self.get(at..).and_then(|rest| rest.first_chunk::<N>()).copied().unwrap_or([0; N])
    }
}

/// So many units of which `rate` make a second, in milliseconds; unknown when the rate is.
fn millis(units: u64, rate: u64) -> Option<u64> {
    let millis = u128::from(units) * 1_000 / u128::from(rate).max(1);
    (rate > 0).then(|| u64::try_from(millis).ok()).flatten()
}

/// A size of which no side is missing.
fn sized(width: u32, height: u32) -> Facts {
    if width == 0 || height == 0 {
        return Facts::default();
    }
    Facts { width: Some(width), height: Some(height), ..Facts::default() }
}

#[cfg(test)]
#[path = "probe/tests.rs"]
mod tests;
