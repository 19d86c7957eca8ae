//! MP4, MOV, M4A and AVIF: boxes within boxes. The index (`moov`) may stand before or behind the media, which is skipped.

use comfyd_actors::domain::artifact::Facts;

use super::{Numbers, Walk, Want, millis, sized};

#[derive(Default)]
pub struct Mp4 {
    state: State,
    facts: Facts,
}

#[derive(Default)]
enum State {
    #[default]
    Between,
    Header,
    LargeSize,
    Movie,
    /// Of a picture: what AVIF has instead of a movie.
    Meta,
}

impl Walk for Mp4 {
    fn step(&mut self, piece: &[u8]) -> Want {
        match self.state {
            State::Between => self.then(State::Header, Want::Take(8)),
            State::Header => {
                let size = piece.be32(0);
                // One: the size follows in 64 bits. Zero: to the end of the file.
                match (size, piece.get(4..8)) {
                    (1, _) => self.then(State::LargeSize, Want::Take(8)),
                    (0, _) => Want::Enough,
                    (_, Some(b"moov")) => self.then(State::Movie, body(size)),
                    (_, Some(b"meta")) => self.then(State::Meta, body(size)),
                    _ => self.then(State::Between, Want::Skip(u64::from(size).saturating_sub(8))),
                }
            }
            State::LargeSize => self.then(State::Between, Want::Skip(piece.be64(0).saturating_sub(16))),
            State::Movie => {
                self.facts = movie(piece);
                Want::Enough
            }
            State::Meta => {
                self.facts = picture(piece);
                if self.facts.width.is_some() { Want::Enough } else { self.then(State::Header, Want::Take(8)) }
            }
        }
    }

    fn facts(&self) -> Facts {
        self.facts.clone()
    }
}

impl Mp4 {
    fn then(&mut self, state: State, want: Want) -> Want {
        self.state = state;
        want
    }
}

fn body(size: u32) -> Want {
    Want::Take((size as usize).saturating_sub(8))
}

/// The boxes side by side in `bytes`: type and content. Ends at the first that does not fit.
fn boxes(mut bytes: &[u8]) -> impl Iterator<Item = ([u8; 4], &[u8])> {
    std::iter::from_fn(move || {
        let size = bytes.be32(0) as usize;
        let content = bytes.get(8..size)?;
        let kind = bytes.part(4);
        bytes = &bytes[size..];
        Some((kind, content))
    })
}

fn find<'b>(bytes: &'b [u8], kind: &[u8; 4]) -> Option<&'b [u8]> {
    boxes(bytes).find(|(found, _)| found == kind).map(|(_, content)| content)
}

fn movie(moov: &[u8]) -> Facts {
    let duration_ms = find(moov, b"mvhd").and_then(|header| {
        // The second version counts time in 64 bits.
        let (rate, units) = match header.first()? {
            1 => (header.be32(20), header.be64(24)),
            _ => (header.be32(12), u64::from(header.be32(16))),
        };
        millis(units, u64::from(rate)).filter(|duration| *duration > 0)
    });
    let video = boxes(moov).filter(|(kind, _)| kind == b"trak").find_map(|(_, track)| video(track));
    Facts { duration_ms, ..video.unwrap_or_default() }
}

/// Size and number of samples, when the track is a video.
fn video(track: &[u8]) -> Option<Facts> {
    let media = find(track, b"mdia")?;
    let handler = find(media, b"hdlr")?;
    if handler.get(8..12) != Some(b"vide") {
        return None;
    }
    let header = find(track, b"tkhd")?;
    // Fixed point, sixteen bits behind it.
    let sides = header.len().checked_sub(8)?;
    let (width, height) = (header.be32(sides) >> 16, header.be32(sides + 4) >> 16);
    let samples = find(media, b"minf").and_then(|info| find(info, b"stbl")).and_then(|table| find(table, b"stsz"));
    let frames = samples.map(|samples| u64::from(samples.be32(8))).filter(|frames| *frames > 0);
    Some(Facts { frames, ..sized(width, height) })
}

fn picture(meta: &[u8]) -> Facts {
    // Version and flags first.
    let properties = meta.get(4..).and_then(|meta| find(meta, b"iprp")).and_then(|all| find(all, b"ipco"));
    // Of several sizes (a thumbnail, tiles) the largest is the picture.
    let sizes = properties.into_iter().flat_map(boxes).filter(|(kind, _)| kind == b"ispe");
    let size = sizes.map(|(_, size)| (size.be32(4), size.be32(8))).max_by_key(|(w, h)| u64::from(*w) * u64::from(*h));
    size.map(|(width, height)| Facts { frames: Some(1), ..sized(width, height) }).unwrap_or_default()
}
