//! Files that are a row of parts, each with its length: PNG, JPEG, FLAC, MP3.

use bytes::BytesMut;

use super::{Cut, Next};
use crate::media::probe::{Numbers, audio::id3_length};

/// PNG: what decides about the picture stays, everything else is metadata (`tEXt` and its kin, `eXIf`, `tIME`, `comf` of animations).
#[derive(Default)]
pub struct Png {
    state: Chunks,
}

#[derive(Default)]
enum Chunks {
    #[default]
    Start,
    Signature,
    Between,
    Header,
    Last,
}

/// Colours, transparency, density, animation. Critical chunks begin with a capital letter and need no naming.
const KEPT: [&[u8; 4]; 16] = [
    b"tRNS", b"gAMA", b"cHRM", b"sRGB", b"iCCP", b"sBIT", b"bKGD", b"pHYs", b"cICP", b"mDCV", b"cLLI", b"hIST",
    b"sPLT", b"acTL", b"fcTL", b"fdAT",
];

impl Cut for Png {
    fn step(&mut self, piece: &[u8], out: &mut BytesMut) -> Next {
        let (state, next) = match self.state {
            Chunks::Start => (Chunks::Signature, Next::Look(8)),
            Chunks::Signature => {
                out.extend_from_slice(piece);
                (Chunks::Header, Next::Look(8))
            }
            Chunks::Between => (Chunks::Header, Next::Look(8)),
            Chunks::Header => {
                let rest = u64::from(piece.be32(0)) + 4;
                let kind = &piece[4..8];
                let kept = kind[0].is_ascii_uppercase() || KEPT.iter().any(|known| *known == kind);
                if kept {
                    out.extend_from_slice(piece);
                }
                match kind {
                    b"IEND" => (Chunks::Last, Next::Pass(rest)),
                    _ if kept => (Chunks::Between, Next::Pass(rest)),
                    _ => (Chunks::Between, Next::Drop(rest)),
                }
            }
            // Whatever hides behind the end.
            Chunks::Last => (Chunks::Last, Next::DropAll),
        };
        self.state = state;
        next
    }
}

/// JPEG: application segments but those that decide about colours, and comments.
#[derive(Default)]
pub struct Jpeg {
    state: Segments,
}

#[derive(Default)]
enum Segments {
    #[default]
    Start,
    Begin,
    Between,
    Marker,
}

impl Cut for Jpeg {
    fn step(&mut self, piece: &[u8], out: &mut BytesMut) -> Next {
        let (state, next) = match self.state {
            Segments::Start => (Segments::Begin, Next::Look(2)),
            Segments::Begin => {
                out.extend_from_slice(piece);
                (Segments::Marker, Next::Look(4))
            }
            Segments::Between => (Segments::Marker, Next::Look(4)),
            Segments::Marker => {
                let rest = u64::from(piece.be16(2)).saturating_sub(2);
                match piece[1] {
                    // Application data but JFIF, ICC profiles and Adobe's colour transform; comments.
                    0xe1 | 0xe3..=0xed | 0xef | 0xfe if piece[0] == 0xff => (Segments::Between, Next::Drop(rest)),
                    kind => {
                        out.extend_from_slice(piece);
                        // From the first scan on, lengths do not lead through the file any more.
                        let passes = piece[0] == 0xff && kind != 0xda;
                        (Segments::Between, if passes { Next::Pass(rest) } else { Next::PassAll })
                    }
                }
            }
        };
        self.state = state;
        next
    }
}

/// FLAC: comments, pictures and application data become padding of the same length, as places in the file are counted on.
#[derive(Default)]
pub struct Flac {
    state: Blocks,
}

#[derive(Default)]
enum Blocks {
    #[default]
    Start,
    Signature,
    Between,
    Header,
    Last,
}

impl Cut for Flac {
    fn step(&mut self, piece: &[u8], out: &mut BytesMut) -> Next {
        let (state, next) = match self.state {
            Blocks::Start => (Blocks::Signature, Next::Look(4)),
            Blocks::Signature => {
                out.extend_from_slice(piece);
                (Blocks::Header, Next::Look(4))
            }
            Blocks::Between => (Blocks::Header, Next::Look(4)),
            Blocks::Header => {
                let (flags, length) = (piece[0], u64::from(piece.be32(0) & 0xff_ffff));
                let metadata = matches!(flags & 0x7f, 2 | 4 | 6);
                let last = flags & 0x80;
                out.extend_from_slice(&[if metadata { last | 1 } else { flags }]);
                out.extend_from_slice(&piece[1..]);
                let state = if last == 0 { Blocks::Between } else { Blocks::Last };
                (state, if metadata { Next::Blank(length) } else { Next::Pass(length) })
            }
            Blocks::Last => (Blocks::Last, Next::PassAll),
        };
        self.state = state;
        next
    }
}

/// MP3: the tag before the first frame.
#[derive(Default)]
pub struct Mp3 {
    begun: bool,
    over: bool,
}

impl Cut for Mp3 {
    fn step(&mut self, piece: &[u8], out: &mut BytesMut) -> Next {
        if !std::mem::replace(&mut self.begun, true) {
            return Next::Look(10);
        }
        if std::mem::replace(&mut self.over, true) {
            return Next::PassAll;
        }
        match id3_length(piece) {
            Some(length) => Next::Drop(length),
            None => {
                out.extend_from_slice(piece);
                Next::PassAll
            }
        }
    }
}
