//! WebP: its beginning tells the length of the whole, so the whole must be there.

use crate::media::probe::Numbers;

/// Flags of the extended header: Exif and XMP.
const METADATA: u8 = 0x08 | 0x04;

/// The file without Exif and XMP. What cannot be read as chunks is left out: what it hides is not known.
#[must_use]
pub fn without_metadata(file: &[u8]) -> Vec<u8> {
    let mut kept = file.get(..12).unwrap_or(file).to_vec();
    let mut rest = file.get(12..).unwrap_or_default();
    while rest.len() >= 8 {
        let size = rest.le32(4) as usize;
        let length = (8 + size).saturating_add(size & 1).min(rest.len());
        let (chunk, behind) = rest.split_at(length);
        if !matches!(&chunk[..4], b"EXIF" | b"XMP ") {
            let start = kept.len();
            kept.extend_from_slice(chunk);
            if chunk.starts_with(b"VP8X")
                && let Some(flags) = kept.get_mut(start + 8)
            {
                *flags &= !METADATA;
            }
        }
        rest = behind;
    }
    let size = u32::try_from(kept.len().saturating_sub(8)).unwrap_or(u32::MAX);
    if let Some(told) = kept.get_mut(4..8) {
        told.copy_from_slice(&size.to_le_bytes());
    }
    kept
}
