//! The bytes of a stored file, whole or in part (RFC 9110, 14).
//!
//! A node or a stranger wrote it, so nothing of it is trusted: it is never served as something a browser would run.

use std::fmt::Write;

use axum::{
    body::Body,
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header},
    response::{IntoResponse, Response},
};
use comfyd_actors::ports::object_store::{ByteRange, ObjectError, ObjectStore};
use utoipa::ToSchema;

use super::problem::Problem;

// Documents the answer only.
/// The bytes of a file.
#[derive(ToSchema)]
#[schema(value_type = String, format = Binary)]
#[expect(dead_code, reason = "the OpenAPI document is made from it")]
pub struct Binary(Vec<u8>);

/// A stored file.
pub struct Stored<'a> {
    /// Who holds it.
    pub store: &'a dyn ObjectStore,
    /// Where it lies.
    pub key: &'a str,
    /// Its size.
    pub bytes: u64,
    /// Its hash, which is its ETag.
    pub sha256: &'a str,
    /// Its media type.
    pub content_type: &'a str,
    /// What it is called.
    pub filename: &'a str,
    /// The answer when the storage does not have it any more.
    pub missing: Problem,
}

/// Answers a GET or HEAD.
///
/// # Errors
/// As the file is missing, or 503.
pub async fn serve(method: &Method, headers: &HeaderMap, stored: &Stored<'_>) -> Result<Response, Problem> {
    let etag = format!("\"{}\"", stored.sha256);
    if has(headers, &header::IF_NONE_MATCH, &etag) {
        return Ok((StatusCode::NOT_MODIFIED, [(header::ETAG, etag)]).into_response());
    }
    // What ranges mean is defined for GET alone (RFC 9110, 14.2).
    let asked = headers.get(header::RANGE).filter(|_| *method == Method::GET).and_then(|value| value.to_str().ok());
    // A range meant for other bytes would be glued to the wrong file.
    let fits =
        !headers.contains_key(header::IF_RANGE) || headers.get(header::IF_RANGE).is_some_and(|tag| *tag == *etag);
    let range = match asked.filter(|_| fits).map_or(Ranged::Whole, |asked| parse_range(asked, stored.bytes)) {
        Ranged::Whole => None,
        Ranged::Part(range) => Some(range),
        Ranged::Outside => return Ok(outside(stored.bytes)),
    };
    let body = if *method == Method::HEAD { Body::empty() } else { open(stored, range).await? };
    Ok(respond(stored, range, &etag, body))
}

fn outside(bytes: u64) -> Response {
    let detail = format!("the file has {bytes} bytes; the range lies outside");
    let problem = Problem::new(StatusCode::RANGE_NOT_SATISFIABLE, "range_not_satisfiable", detail);
    ([(header::CONTENT_RANGE, format!("bytes */{bytes}"))], problem).into_response()
}

async fn open(stored: &Stored<'_>, range: Option<ByteRange>) -> Result<Body, Problem> {
    match stored.store.open(stored.key, range).await {
        Ok(reading) => Ok(Body::from_stream(reading.body)),
        Err(ObjectError::NotFound) => {
            tracing::error!(key = stored.key, "a stored file is missing from the storage");
            Err(stored.missing.clone())
        }
        Err(error) => {
            tracing::warn!(%error, key = stored.key, "a stored file could not be read");
            Err(Problem::unavailable("storage_unavailable", "the storage cannot be used now"))
        }
    }
}

fn respond(object: &Stored<'_>, range: Option<ByteRange>, etag: &str, body: Body) -> Response {
    let (content_type, inline) = safe_type(object.content_type);
    let length = range.map_or(object.bytes, |range| range.last - range.first + 1);
    let mut response = Response::new(body);
    if range.is_some() {
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
    }
    let headers = [
        (header::CONTENT_TYPE, content_type.to_owned()),
        (header::CONTENT_LENGTH, length.to_string()),
        (header::CONTENT_DISPOSITION, disposition(inline, object.filename)),
        (header::ETAG, etag.to_owned()),
        (header::ACCEPT_RANGES, "bytes".to_owned()),
        // An explicit retry of the task may make other bytes, so a cache must ask; asking costs a 304.
        (header::CACHE_CONTROL, "private, no-cache".to_owned()),
        (header::CONTENT_SECURITY_POLICY, "default-src 'none'; sandbox".to_owned()),
    ];
    let part = range.map(|r| (header::CONTENT_RANGE, format!("bytes {}-{}/{}", r.first, r.last, object.bytes)));
    for (name, value) in headers.into_iter().chain(part) {
        insert(response.headers_mut(), name, value);
    }
    response
}

fn insert(headers: &mut HeaderMap, name: HeaderName, value: String) {
    if let Ok(value) = HeaderValue::try_from(value) {
        headers.insert(name, value);
    }
}

/// The type to serve, and whether a browser may show it. Pages and SVG run scripts: they are bytes to be saved.
pub fn safe_type(told: &str) -> (&str, bool) {
    let kind = told.split(';').next().unwrap_or_default().trim();
    let shown = matches!(
        kind,
        "image/png" | "image/jpeg" | "image/webp" | "image/gif" | "image/avif" | "image/bmp" | "image/tiff"
    ) || kind.starts_with("video/")
        || kind.starts_with("audio/");
    let harmless =
        matches!(kind, "text/plain" | "text/csv" | "application/json" | "image/x-exr") || kind.starts_with("model/");
    match (shown, harmless) {
        (true, _) => (told, true),
        (_, true) => (told, false),
        _ => ("application/octet-stream", false),
    }
}

/// RFC 6266: a plain name for old clients, the true one percent-encoded beside it.
pub fn disposition(inline: bool, filename: &str) -> String {
    let plain: String = filename
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ' ' | '(' | ')') { c } else { '_' })
        .collect();
    let kind = if inline { "inline" } else { "attachment" };
    let mut text = format!("{kind}; filename=\"{plain}\"");
    if plain != filename {
        text.push_str("; filename*=UTF-8''");
        for byte in filename.bytes() {
            if byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_') {
                text.push(char::from(byte));
            } else {
                // Writing to a String cannot fail.
                let _ = write!(text, "%{byte:02X}");
            }
        }
    }
    text
}

/// Whether a list of tags holds this one, or is `*`.
pub fn has(headers: &HeaderMap, name: &HeaderName, etag: &str) -> bool {
    let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    values
        .flat_map(|value| value.split(','))
        .any(|tag| matches!(tag.trim(), "*") || tag.trim().trim_start_matches("W/") == etag)
}

/// What a `Range` header asks for.
#[derive(Debug, PartialEq, Eq)]
pub enum Ranged {
    /// Everything: no range, several, or one that cannot be read, which must be ignored.
    Whole,
    Part(ByteRange),
    Outside,
}

pub fn parse_range(text: &str, size: u64) -> Ranged {
    let Some((first, last)) = text.strip_prefix("bytes=").and_then(|range| range.trim().split_once('-')) else {
        return Ranged::Whole;
    };
    let number = |text: &str| text.parse::<u64>().ok().filter(|_| text.bytes().all(|b| b.is_ascii_digit()));
    let (first, last) = match (first, last, number(first), number(last)) {
        ("", _, _, Some(suffix)) if suffix > 0 => (size.saturating_sub(suffix), u64::MAX),
        ("", _, _, Some(_)) => return Ranged::Outside,
        (_, "", Some(first), _) => (first, u64::MAX),
        (_, _, Some(first), Some(last)) if first <= last => (first, last),
        _ => return Ranged::Whole,
    };
    if first >= size {
        return Ranged::Outside;
    }
    Ranged::Part(ByteRange { first, last: last.min(size - 1) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_as_the_rfc_says() {
        let part = |first, last| Ranged::Part(ByteRange { first, last });
        for (text, expected) in [
            ("bytes=0-4", part(0, 4)),
            ("bytes=5-", part(5, 9)),
            ("bytes=-3", part(7, 9)),
            ("bytes=-30", part(0, 9)),
            ("bytes=2-99", part(2, 9)),
            ("bytes=10-", Ranged::Outside),
            ("bytes=-0", Ranged::Outside),
            ("bytes=4-2", Ranged::Whole),
            ("bytes=0-1,3-4", Ranged::Whole),
            ("bytes=+1-2", Ranged::Whole),
            ("lines=1-2", Ranged::Whole),
            ("bytes=99999999999999999999-", Ranged::Whole),
        ] {
            assert_eq!(parse_range(text, 10), expected, "{text}");
        }
        assert_eq!(parse_range("bytes=0-", 0), Ranged::Outside);
    }

    #[test]
    fn names_cannot_break_out_of_the_header() {
        assert_eq!(disposition(true, "a (1).png"), "inline; filename=\"a (1).png\"");
        assert_eq!(
            disposition(false, "é\"\r\n;.png"),
            "attachment; filename=\"_____.png\"; filename*=UTF-8''%C3%A9%22%0D%0A%3B.png"
        );
    }

    #[test]
    fn nothing_a_browser_runs_is_served_as_such() {
        for (told, served, inline) in [
            ("image/png", "image/png", true),
            ("text/html", "application/octet-stream", false),
            ("image/svg+xml", "application/octet-stream", false),
            ("text/plain; charset=utf-8", "text/plain; charset=utf-8", false),
            ("", "application/octet-stream", false),
        ] {
            assert_eq!(safe_type(told), (served, inline), "{told}");
        }
    }
}
