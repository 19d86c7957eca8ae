//! Takes the embedded prompt, workflow and all other metadata out of files while they stream by. Pure.
//!
//! A [`Cut`] per format says what becomes of the bytes that come next. Where other parts of a file count on places in it (MP4, FLAC,
//! WebM), metadata is not taken out but made empty: the file keeps its length. Ogg would need its pages summed anew, GIF has no
//! metadata that ComfyUI writes; both stay as they are, as does what we do not know.

mod boxes;
mod chunks;
mod webp;

use bytes::{Bytes, BytesMut};

pub use webp::without_metadata as webp;

use super::probe::Format;

/// What becomes of the bytes that come next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    /// So many in one piece, to be decided on.
    Look(usize),
    /// So many go by.
    Pass(u64),
    /// So many go away.
    Drop(u64),
    /// So many become zeros.
    Blank(u64),
    /// All go by.
    PassAll,
    /// All go away.
    DropAll,
}

/// One format's way through a file.
trait Cut: Send {
    /// Takes in the piece that was to be decided on (nothing otherwise), writes what shall stand in its place, and says what
    /// comes next. Begins with nothing.
    fn step(&mut self, piece: &[u8], out: &mut BytesMut) -> Next;
}

/// Takes metadata out of one file.
pub struct Strip {
    cut: Box<dyn Cut>,
    next: Next,
    held: Vec<u8>,
}

impl Strip {
    /// For a file of this format; `None` when it cannot be done as the file streams by.
    #[must_use]
    pub fn new(format: Format) -> Option<Self> {
        let mut cut: Box<dyn Cut> = match format {
            Format::Png => Box::<chunks::Png>::default(),
            Format::Jpeg => Box::<chunks::Jpeg>::default(),
            Format::Flac => Box::<chunks::Flac>::default(),
            Format::Mp3 => Box::<chunks::Mp3>::default(),
            Format::Mp4 => Box::<boxes::Mp4>::default(),
            Format::Matroska => Box::<boxes::Matroska>::default(),
            _ => return None,
        };
        let next = cut.step(&[], &mut BytesMut::new());
        Some(Self { cut, next, held: Vec::new() })
    }

    /// Takes in the next bytes of the file; returns what is left of them.
    pub fn feed(&mut self, mut bytes: Bytes) -> Bytes {
        if self.next == Next::PassAll {
            return bytes;
        }
        let mut out = BytesMut::with_capacity(bytes.len());
        while !bytes.is_empty() {
            self.next = match self.next {
                Next::PassAll => {
                    out.extend_from_slice(&std::mem::take(&mut bytes));
                    Next::PassAll
                }
                Next::DropAll => {
                    bytes.clear();
                    Next::DropAll
                }
                Next::Pass(0) | Next::Drop(0) | Next::Blank(0) => self.cut.step(&[], &mut out),
                Next::Pass(left) => {
                    let part = split(&mut bytes, left);
                    out.extend_from_slice(&part);
                    Next::Pass(left - part.len() as u64)
                }
                Next::Drop(left) => Next::Drop(left - split(&mut bytes, left).len() as u64),
                Next::Blank(left) => {
                    let part = split(&mut bytes, left);
                    out.resize(out.len() + part.len(), 0);
                    Next::Blank(left - part.len() as u64)
                }
                Next::Look(count) => {
                    let missing = count.saturating_sub(self.held.len()) as u64;
                    self.held.extend_from_slice(&split(&mut bytes, missing));
                    if self.held.len() < count {
                        Next::Look(count)
                    } else {
                        let next = self.cut.step(&self.held, &mut out);
                        self.held.clear();
                        next
                    }
                }
            };
        }
        out.freeze()
    }

    /// What was held back when the file ended in the middle of something: it goes by, as metadata would not be that short.
    pub fn finish(self) -> Bytes {
        self.held.into()
    }
}

/// The first `count` bytes, or all there are.
fn split(bytes: &mut Bytes, count: u64) -> Bytes {
    let count = usize::try_from(count).unwrap_or(usize::MAX).min(bytes.len());
    bytes.split_to(count)
}

#[cfg(test)]
#[path = "strip/tests.rs"]
mod tests;
