//! Files that are parts within parts, where one counts on places in another: metadata is made empty in its place.

use bytes::BytesMut;

use super::{Cut, Next};
use crate::media::probe::Numbers;

/// MP4: `udta`, `meta` and `uuid` boxes become free space, in the file, its movie and its tracks.
#[derive(Default)]
pub struct Mp4 {
    state: Boxes,
}

#[derive(Default)]
enum Boxes {
    #[default]
    Between,
    Header,
    LargeSize {
        metadata: bool,
    },
}

impl Cut for Mp4 {
    fn step(&mut self, piece: &[u8], out: &mut BytesMut) -> Next {
        let (state, next) = match self.state {
            Boxes::Between => (Boxes::Header, Next::Look(8)),
            Boxes::Header => {
                let (size, kind) = (piece.be32(0), &piece[4..8]);
                let metadata = matches!(kind, b"udta" | b"meta" | b"uuid");
                out.extend_from_slice(&piece[..4]);
                out.extend_from_slice(if metadata { b"free" } else { kind });
                match (size, kind) {
                    // One: the size follows in 64 bits. Zero: to the end of the file.
                    (1, _) => (Boxes::LargeSize { metadata }, Next::Look(8)),
                    (0, _) if metadata => (Boxes::Between, Next::Blank(u64::MAX)),
                    (0, _) => (Boxes::Between, Next::PassAll),
                    // What is in them comes as if it stood beside them.
                    (_, b"moov" | b"trak") => (Boxes::Header, Next::Look(8)),
                    _ => (Boxes::Between, rest(u64::from(size).saturating_sub(8), metadata)),
                }
            }
            Boxes::LargeSize { metadata } => {
                out.extend_from_slice(piece);
                (Boxes::Between, rest(piece.be64(0).saturating_sub(16), metadata))
            }
        };
        self.state = state;
        next
    }
}

fn rest(length: u64, metadata: bool) -> Next {
    if metadata { Next::Blank(length) } else { Next::Pass(length) }
}

/// WebM: `Tags` become a void of the same length.
#[derive(Default)]
pub struct Matroska {
    state: Elements,
    /// Of the element whose size is being read: its id and as much of its size as there is.
    header: Vec<u8>,
    id_length: usize,
}

#[derive(Default)]
enum Elements {
    #[default]
    Between,
    Id,
    IdRest,
    Size,
    SizeRest,
}

const SEGMENT: &[u8] = &[0x18, 0x53, 0x80, 0x67];
const TAGS: &[u8] = &[0x12, 0x54, 0xc3, 0x67];
/// The id of an element that means nothing.
const VOID: u8 = 0xec;
/// Its header: the id, and a size of eight bytes.
const LONGEST: usize = 9;

impl Cut for Matroska {
    fn step(&mut self, piece: &[u8], out: &mut BytesMut) -> Next {
        self.header.extend_from_slice(piece);
        let more = piece.first().map_or(0, |first| first.leading_zeros() as usize);
        let (state, next) = match self.state {
            Elements::Between => (Elements::Id, Next::Look(1)),
            Elements::Id if more < 4 => (Elements::IdRest, Next::Look(more)),
            Elements::IdRest => {
                self.id_length = self.header.len();
                (Elements::Size, Next::Look(1))
            }
            Elements::Size if more < 8 => (Elements::SizeRest, Next::Look(more)),
            Elements::SizeRest => return self.element(out),
            Elements::Id | Elements::Size => return self.give_up(out),
        };
        self.state = state;
        next
    }
}

impl Matroska {
    fn element(&mut self, out: &mut BytesMut) -> Next {
        let (id, size) = self.header.split_at(self.id_length);
        let unmarked = 0x7f_u8.checked_shr(size[0].leading_zeros()).unwrap_or(0);
        let unknown = size[0] & unmarked == unmarked && size[1..].iter().all(|byte| *byte == 0xff);
        let length = size[1..].iter().fold(u64::from(size[0] & unmarked), |value, byte| value << 8 | u64::from(*byte));
        self.state = Elements::Between;
        if id == TAGS && !unknown {
            // As long as the header it stands for; what does not fit into the longest size is content.
            let spare = self.header.len().saturating_sub(LONGEST);
            let sized = self.header.len() - spare - 1;
            let void = length.saturating_add(spare as u64) | 1 << (7 * sized);
            out.extend_from_slice(&[VOID]);
            out.extend_from_slice(&void.to_be_bytes()[8 - sized..]);
            out.resize(out.len() + spare, 0);
            self.header.clear();
            return Next::Blank(length);
        }
        let inside = id == SEGMENT;
        if unknown && !inside {
            return self.give_up(out);
        }
        out.extend_from_slice(&self.header);
        self.header.clear();
        if inside {
            self.state = Elements::Id;
            return Next::Look(1);
        }
        Next::Pass(length)
    }

    /// Nothing leads on from here.
    fn give_up(&mut self, out: &mut BytesMut) -> Next {
        out.extend_from_slice(&self.header);
        Next::PassAll
    }
}
