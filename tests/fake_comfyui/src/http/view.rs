//! `GET /view`: the bytes of a file.

use std::collections::HashMap;
use std::io::{Cursor, SeekFrom};
use std::ops::Range;
use std::time::{Duration, UNIX_EPOCH};

use axum::body::{Body, Bytes};
use axum::extract::{Query, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::stream::{self, Stream};
use image::ImageFormat;
use tokio::io::{AsyncReadExt, AsyncSeekExt};

use super::{Shared, trouble};
use crate::fault::Fault;
use crate::files::{Content, Folder, Place, Stored, clean_subfolder, generate, split_annotation};
use crate::log::EventKind;
use crate::nodes;
use crate::server::Server;

/// Bytes sent at once.
const CHUNK: u64 = 128 * 1024;

pub(super) async fn view(
    State(server): Shared,
    headers: HeaderMap,
    Query(query): Query<HashMap<String, String>>,
) -> Response {
    let status = server.faults.strike(|fault| match fault {
        Fault::ViewStatus { status } => StatusCode::from_u16(*status).ok(),
        _ => None,
    });
    if let Some(status) = status {
        return status.into_response();
    }
    let (place, stored) = match find(&server, &query) {
        Ok(found) => found,
        Err(status) => return status.into_response(),
    };
    server.log.push(EventKind::Viewed { filename: place.filename.clone() });
    if let Some(format) = query.get("preview") {
        return reencode(stored, format.starts_with("jpeg")).await;
    }
    send(&server, &headers, &place, &stored)
}

fn find(server: &Server, query: &HashMap<String, String>) -> Result<(Place, Stored), StatusCode> {
    let name = query.get("filename").ok_or(StatusCode::NOT_FOUND)?;
    let (name, annotated) = split_annotation(name);
    if name.is_empty() || name.starts_with('/') || name.contains("..") {
        return Err(StatusCode::BAD_REQUEST);
    }
    let folder = match (annotated, query.get("type")) {
        (Some(folder), _) => folder,
        (None, Some(name)) => Folder::parse(name).ok_or(StatusCode::BAD_REQUEST)?,
        (None, None) => Folder::Output,
    };
    let subfolder = query.get("subfolder").map_or("", String::as_str);
    let subfolder = clean_subfolder(subfolder).ok_or(StatusCode::FORBIDDEN)?;
    // A directory part in the name is dropped, as ComfyUI does.
    let filename = name.rsplit('/').next().unwrap_or(name).to_owned();
    let place = Place { folder, subfolder, filename };
    let stored = server.files.get(&place).ok_or(StatusCode::NOT_FOUND)?;
    Ok((place, stored))
}

fn send(server: &Server, headers: &HeaderMap, place: &Place, stored: &Stored) -> Response {
    let length = stored.content.length();
    let since = stored.modified.duration_since(UNIX_EPOCH).unwrap_or_default();
    let etag = format!("\"{:x}{:04x}-{length:x}\"", since.as_nanos(), stored.version & 0xFFFF);
    let given = |name: header::HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    let mut response = Response::builder()
        .header(header::ETAG, &etag)
        .header(header::LAST_MODIFIED, http_date(since.as_secs()))
        .header(header::ACCEPT_RANGES, "bytes")
        .header("X-Content-Type-Options", "nosniff");
    if given(header::IF_NONE_MATCH).is_some_and(|tags| tags == "*" || tags.split(',').any(|tag| tag.trim() == etag)) {
        return finish(response.status(StatusCode::NOT_MODIFIED), Body::empty());
    }
    let (media, attachment) = media_type(&place.filename);
    let quoted = place.filename.replace(['"', '\\'], "_");
    let disposition =
        if attachment { format!("attachment; filename=\"{quoted}\"") } else { format!("filename=\"{quoted}\"") };
    if let Ok(disposition) = HeaderValue::from_bytes(disposition.as_bytes()) {
        response = response.header(header::CONTENT_DISPOSITION, disposition);
    }
    response = response.header(header::CONTENT_TYPE, media);

    let range = match given(header::RANGE).map(|text| parse_range(text, length)) {
        None => 0..length,
        Some(Ok(range)) => {
            let shown = format!("bytes {}-{}/{length}", range.start, range.end.saturating_sub(1));
            response = response.status(StatusCode::PARTIAL_CONTENT).header(header::CONTENT_RANGE, shown);
            range
        }
        Some(Err(())) => {
            let shown = format!("bytes */{length}");
            let response = response.status(StatusCode::RANGE_NOT_SATISFIABLE).header(header::CONTENT_RANGE, shown);
            return finish(response, Body::empty());
        }
    };
    response = response.header(header::CONTENT_LENGTH, range.end - range.start);
    finish(response, body(server, stored.content.clone(), range))
}

fn finish(response: axum::http::response::Builder, body: Body) -> Response {
    response.body(body).unwrap_or_else(|_| trouble())
}

/// One range, `bytes=a-b`, `bytes=a-` or `bytes=-n`; more than one is answered like none that fits.
fn parse_range(text: &str, length: u64) -> Result<Range<u64>, ()> {
    let (first, last) = text.strip_prefix("bytes=").and_then(|range| range.split_once('-')).ok_or(())?;
    let range = match (first.trim().parse::<u64>(), last.trim().parse::<u64>()) {
        (Ok(first), Ok(last)) => first..last.saturating_add(1).min(length),
        (Ok(first), Err(_)) if last.trim().is_empty() => first..length,
        (Err(_), Ok(count)) if first.trim().is_empty() => length.saturating_sub(count)..length,
        _ => return Err(()),
    };
    if range.start < range.end { Ok(range) } else { Err(()) }
}

/// The body of a range, slowed down or cut if a fault asks for it.
fn body(server: &Server, content: Content, range: Range<u64>) -> Body {
    let speed = server.faults.strike(|fault| match fault {
        Fault::SlowView { bytes_per_second } => Some((*bytes_per_second).max(1)),
        _ => None,
    });
    let cut = server.faults.strike(|fault| match fault {
        Fault::CutView { bytes } => Some(*bytes),
        _ => None,
    });
    match &content {
        Content::Memory(bytes) if speed.is_none() && cut.is_none() => {
            let at = |position: u64| usize::try_from(position).unwrap_or(bytes.len()).min(bytes.len());
            Body::from(bytes.slice(at(range.start)..at(range.end)))
        }
        _ => Body::from_stream(chunks(Transfer { content, range, speed, cut, file: None })),
    }
}

/// A body on its way.
struct Transfer {
    content: Content,
    range: Range<u64>,
    /// Bytes per second, if slowed down.
    speed: Option<u64>,
    /// Bytes until the connection breaks.
    cut: Option<u64>,
    file: Option<tokio::fs::File>,
}

fn chunks(transfer: Transfer) -> impl Stream<Item = std::io::Result<Bytes>> {
    stream::try_unfold(transfer, async |mut transfer| match transfer.next().await? {
        Some(chunk) => Ok(Some((chunk, transfer))),
        None => Ok(None),
    })
}

impl Transfer {
    async fn next(&mut self) -> std::io::Result<Option<Bytes>> {
        let left = self.range.end - self.range.start;
        if left == 0 {
            return Ok(None);
        }
        if self.cut == Some(0) {
            // Giving way once lets the server send what it has; else the client would not even see the head.
            tokio::task::yield_now().await;
            return Err(std::io::ErrorKind::ConnectionAborted.into());
        }
        let mut size = left.min(CHUNK);
        if let Some(cut) = &mut self.cut {
            size = size.min(*cut);
            *cut -= size;
        }
        if let Some(speed) = self.speed {
            // Ten chunks a second are smooth enough; a chunk has at least one byte.
            size = size.min((speed / 10).max(1));
            tokio::time::sleep(Duration::from_secs_f64(size as f64 / speed as f64)).await;
        }
        let start = self.range.start;
        self.range.start += size;
        self.read(start, usize::try_from(size).unwrap_or(0)).await.map(Some)
    }

    async fn read(&mut self, start: u64, size: usize) -> std::io::Result<Bytes> {
        match &self.content {
            Content::Memory(bytes) => {
                let start = usize::try_from(start).unwrap_or(bytes.len()).min(bytes.len());
                Ok(bytes.slice(start..(start + size).min(bytes.len())))
            }
            Content::Generated { seed, .. } => {
                let mut buffer = vec![0; size];
                generate(*seed, start, &mut buffer);
                Ok(buffer.into())
            }
            Content::Disk { path, .. } => {
                let file = match &mut self.file {
                    Some(file) => file,
                    None => {
                        let mut file = tokio::fs::File::open(path).await?;
                        file.seek(SeekFrom::Start(start)).await?;
                        self.file.insert(file)
                    }
                };
                let mut buffer = vec![0; size];
                file.read_exact(&mut buffer).await?;
                Ok(buffer.into())
            }
        }
    }
}

/// The media type by the ending of the name, and whether the file is only offered for download.
fn media_type(filename: &str) -> (&'static str, bool) {
    let ending = filename.rsplit_once('.').map_or("", |(_, ending)| ending).to_ascii_lowercase();
    match ending.as_str() {
        "png" => ("image/png", false),
        "jpg" | "jpeg" => ("image/jpeg", false),
        "webp" => ("image/webp", false),
        "gif" => ("image/gif", false),
        "mp4" => ("video/mp4", false),
        "webm" => ("video/webm", false),
        "flac" => ("audio/flac", false),
        "mp3" => ("audio/mpeg", false),
        "opus" | "ogg" => ("audio/ogg", false),
        "wav" => ("audio/x-wav", false),
        "txt" => ("text/plain", false),
        "json" => ("application/json", false),
        // What a browser would run.
        "html" | "htm" | "js" | "css" | "svg" | "xhtml" => ("application/octet-stream", true),
        _ => ("application/octet-stream", false),
    }
}

/// The picture in another format. The fake has no WebP encoder, so whatever is not JPEG comes as PNG.
async fn reencode(stored: Stored, jpeg: bool) -> Response {
    let (format, media) = if jpeg { (ImageFormat::Jpeg, "image/jpeg") } else { (ImageFormat::Png, "image/png") };
    let encoded = nodes::compute(false, move || {
        let failed = |error: String| nodes::Failure::new("PIL.UnidentifiedImageError", error);
        let bytes = stored.content.read().map_err(|error| failed(error.to_string()))?;
        let image = image::load_from_memory(&bytes).map_err(|error| failed(error.to_string()))?;
        let mut encoded = Cursor::new(Vec::new());
        image.to_rgb8().write_to(&mut encoded, format).map_err(|error| failed(error.to_string()))?;
        Ok(encoded.into_inner())
    })
    .await;
    match encoded {
        Ok(bytes) => ([(header::CONTENT_TYPE, media)], bytes).into_response(),
        Err(_) => trouble(),
    }
}

/// A time as HTTP writes it.
fn http_date(seconds: u64) -> String {
    const DAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
    const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    let (weekday, month) = (DAYS[(days % 7) as usize], MONTHS[(month as usize - 1) % 12]);
    format!("{weekday}, {day:02} {month} {year} {hour:02}:{minute:02}:{second:02} GMT")
}

/// Year, month and day of a number of days since 1970, counted in years that begin in March so that leap days come last.
fn civil(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let (era, of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_dates_as_http_does() {
        assert_eq!(http_date(0), "Thu, 01 Jan 1970 00:00:00 GMT");
        assert_eq!(http_date(1_795_463_454), "Mon, 23 Nov 2026 19:50:54 GMT");
        assert_eq!(http_date(1_709_210_096), "Thu, 29 Feb 2024 12:34:56 GMT");
    }

    #[test]
    fn reads_the_three_kinds_of_range() {
        assert_eq!(parse_range("bytes=0-9", 100), Ok(0..10));
        assert_eq!(parse_range("bytes=90-", 100), Ok(90..100));
        assert_eq!(parse_range("bytes=-5", 100), Ok(95..100));
        assert_eq!(parse_range("bytes=0-999", 100), Ok(0..100));
        assert_eq!(parse_range("bytes=100-", 100), Err(()));
        assert_eq!(parse_range("lines=1-2", 100), Err(()));
    }
}
