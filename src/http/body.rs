//! Reading a JSON body from somebody we do not know: bounded memory, bounded time, and faults told by their place.

use std::{
    fmt, io,
    sync::{Arc, OnceLock},
    time::Duration,
};

use axum::{
    body::{Body, Bytes},
    http::{HeaderMap, StatusCode, header},
};
use bytes::BytesMut;
use futures_util::{StreamExt, stream};
use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor},
};
use serde_json::{Map, Value, value::RawValue};
use sha2::{Digest, Sha256};

use comfyd_actors::{
    domain::{
        graph::{MAX_DEPTH, escape, is_shallow},
        workflow::type_of,
    },
    ports::ByteStream,
};

use super::problem::{FieldFault, MAX_FAULTS, Problem};
use crate::{
    config::nearest,
    json::count_values,
    pace::{Pace, TooSlow},
};

/// More than any graph we take has. Each value costs dozens of bytes once parsed, so that a body of nothing but `[0,0,0...` would
/// grow to twenty times its size.
const MAX_VALUES: usize = 250_000;
/// What a body may be.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Most bytes.
    pub bytes: u64,
    /// The name of the setting that says so, if one does.
    pub setting: Option<&'static str>,
    /// How long it may take over each piece.
    pub pace: Duration,
}

impl Limits {
    /// No more than this either, whatever the settings say.
    #[must_use]
    pub fn at_most(self, bytes: u64) -> Self {
        if bytes < self.bytes { Self { bytes, setting: None, ..self } } else { self }
    }

    fn too_large(&self) -> Problem {
        let bytes = self.bytes;
        let of =
            self.setting.map_or_else(|| "for such a request".to_owned(), |name| format!("of this server ({name})"));
        let detail = format!("the body is larger than {bytes} bytes, the limit {of}");
        Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", detail)
    }

    fn too_slow(&self) -> Problem {
        let pace = humantime::format_duration(self.pace);
        let detail = format!("the body came too slowly: less than 16 KiB in {pace} (connections.body_timeout)");
        Problem::new(StatusCode::REQUEST_TIMEOUT, "body_timeout", detail)
    }
}

/// Reads a JSON body.
///
/// # Errors
/// 415 for another content type, 413 when it is too long, 408 when it stops coming, 400 when it breaks off.
pub async fn read(headers: &HeaderMap, body: Body, limits: Limits) -> Result<Bytes, Problem> {
    if !is_json(headers) {
        let detail = "the body must be JSON, sent with `Content-Type: application/json`";
        return Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", detail));
    }
    read_any(headers, body, limits).await
}

/// Reads a body of any type.
///
/// # Errors
/// As [`read`], but for 415.
pub async fn read_any(headers: &HeaderMap, body: Body, limits: Limits) -> Result<Bytes, Problem> {
    let (mut stream, trouble) = stream(headers, body, limits)?;
    let mut whole = BytesMut::new();
    while let Some(chunk) = stream.next().await {
        match chunk {
            Ok(chunk) => whole.extend_from_slice(&chunk),
            Err(_) => return Err(trouble.get().cloned().unwrap_or_else(broken)),
        }
    }
    Ok(whole.freeze())
}

/// What ended a body early, once something did.
pub type Trouble = Arc<OnceLock<Problem>>;

/// A body of any type, chunk by chunk. It fails when it is too long, comes too slowly or breaks off: the answer to that is told beside it,
/// as whoever reads it knows only that it failed.
///
/// # Errors
/// 413 when it says itself that it is too long.
pub fn stream(headers: &HeaderMap, body: Body, limits: Limits) -> Result<(ByteStream, Trouble), Problem> {
    let told = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if told.is_some_and(|length| length > limits.bytes) {
        return Err(limits.too_large());
    }
    let trouble = Trouble::default();
    let noted = trouble.clone();
    let start = Some((body.into_data_stream(), 0_u64, Pace::new(limits.pace)));
    let stream = stream::unfold(start, move |state| {
        let noted = noted.clone();
        async move {
            let (mut body, seen, mut pace) = state?;
            let problem = match pace.keep(body.next(), |chunk| chunk.as_ref().map_or(0, Bytes::len)).await {
                Ok(None) => return None,
                Ok(Some(Ok(chunk))) => {
                    let seen = seen + chunk.len() as u64;
                    if seen <= limits.bytes {
                        return Some((Ok(chunk), Some((body, seen, pace))));
                    }
                    limits.too_large()
                }
                Ok(Some(Err(_))) => broken(),
                Err(TooSlow) => limits.too_slow(),
            };
            let error = io::Error::other(problem.detail().to_owned());
            // Nothing comes after it, so it is the first.
            let _ = noted.set(problem);
            Some((Err(error), None))
        }
    });
    Ok((stream.boxed(), trouble))
}

fn broken() -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, "broken_body", "the body broke off before its end")
}

/// Reads a JSON body that may be missing: no body at all, whatever its type is said to be, and `null` are read as empty.
///
/// # Errors
/// As [`read`].
pub async fn read_optional(headers: &HeaderMap, body: Body, limits: Limits) -> Result<Bytes, Problem> {
    let bytes = read_any(headers, body, limits).await?;
    if bytes.is_empty() || bytes.trim_ascii() == b"null" {
        Ok(Bytes::new())
    } else {
        read(headers, Body::from(bytes), limits).await
    }
}

fn is_json(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    kind == "application/json" || (kind.starts_with("application/") && kind.ends_with("+json"))
}

/// The fields of a JSON object in order, each still as text: so that every field's faults can be found, not only the first.
pub struct Fields<'a>(pub Vec<(String, &'a RawValue)>);

impl<'a> Fields<'a> {
    /// Splits an object.
    ///
    /// # Errors
    /// 400 when it is not JSON, 422 when it is not an object.
    pub fn parse(body: &'a [u8]) -> Result<Self, Problem> {
        let text = std::str::from_utf8(body).map_err(|_| not_json("it is not UTF-8"))?;
        if count_values(body) > MAX_VALUES {
            let detail = format!("the body holds more than {MAX_VALUES} values");
            return Err(Problem::invalid(vec![FieldFault::at("", detail)]));
        }
        serde_json::from_str(text).map_err(|error| match error.classify() {
            serde_json::error::Category::Data => {
                Problem::invalid(vec![FieldFault::at("", "the body must be a JSON object")])
            }
            _ => not_json(&error.to_string()),
        })
    }
}

impl Fields<'_> {
    /// Hands the value of each field to `read`, and lists all that is wrong with any of them. Null is as good as not there.
    ///
    /// # Errors
    /// 422 with every fault.
    pub fn each(
        self,
        known: &[&'static str],
        mut read: impl FnMut(&str, Value) -> Result<(), String>,
    ) -> Result<(), Problem> {
        let mut faults = Vec::new();
        let mut seen = Vec::new();
        for (name, raw) in self.0 {
            let pointer = format!("/{}", escape(&name));
            let read = |value| read(&name, value).map_err(|detail| FieldFault::at(&pointer, detail));
            let outcome = if !known.contains(&name.as_str()) {
                let near = nearest(&name, known.iter().copied());
                Err(FieldFault::at(&pointer, "there is no such field").suggesting(near))
            } else if seen.contains(&name) {
                Err(FieldFault::at(&pointer, "this field is there twice"))
            } else {
                match value(&pointer, raw) {
                    Ok(Value::Null) => Ok(()),
                    value => value.and_then(read),
                }
            };
            seen.push(name);
            faults.extend(outcome.err());
            if faults.len() == MAX_FAULTS {
                break;
            }
        }
        if faults.is_empty() { Ok(()) } else { Err(Problem::invalid(faults)) }
    }
}

fn not_json(reason: &str) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, "invalid_json", format!("the body is not JSON: {reason}"))
}

impl<'de: 'a, 'a> Deserialize<'de> for Fields<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;
        impl<'de> Visitor<'de> for Object {
            type Value = Vec<(String, &'de RawValue)>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut fields = Vec::new();
                while let Some(field) = map.next_entry()? {
                    fields.push(field);
                }
                Ok(fields)
            }
        }
        deserializer.deserialize_map(Object).map(Fields)
    }
}

/// A whole body's value.
///
/// # Errors
/// 400 when it is not JSON, or holds what nobody can represent.
pub fn whole(body: &[u8]) -> Result<Value, Problem> {
    serde_json::from_slice(body).map_err(|error| not_json(&error.to_string()))
}

/// A field's value.
///
/// # Errors
/// A fault when it is nested too deeply or holds what JSON allows and nobody can represent, such as 1e999.
pub fn value(pointer: &str, raw: &RawValue) -> Result<Value, FieldFault> {
    let deep = || FieldFault::at(pointer, format!("nested deeper than {MAX_DEPTH} levels"));
    match serde_json::from_str(raw.get()) {
        Ok(value) if is_shallow(&value, MAX_DEPTH) => Ok(value),
        Ok(_) => Err(deep()),
        Err(error) if error.to_string().contains("recursion limit") => Err(deep()),
        Err(error) => Err(FieldFault::at(pointer, error.to_string())),
    }
}

/// A field's value, which must be an object.
///
/// # Errors
/// As [`value`], or when it is something else.
pub fn object(pointer: &str, raw: &RawValue) -> Result<Map<String, Value>, FieldFault> {
    match value(pointer, raw)? {
        Value::Object(object) => Ok(object),
        other => Err(FieldFault::at(pointer, format!("expected an object, found {}", type_of(&other)))),
    }
}

/// SHA-256 of the body with sorted keys and no spaces: two clients that mean the same may write it differently.
///
/// # Errors
/// 422 when the body is nested too deeply.
pub fn fingerprint(body: &[u8]) -> Result<[u8; 32], Problem> {
    let parsed = whole(body)?;
    let canonical = serde_json::to_vec(&parsed).map_err(|_| Problem::internal())?;
    Ok(Sha256::digest(&canonical).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fingerprint_knows_no_order_and_no_spaces() {
        let one = fingerprint(br#"{"a": {"y": 1, "x": [1, 2]}, "b": "c"}"#).unwrap();
        assert_eq!(one, fingerprint(br#"{"b":"c","a":{"x":[1,2],"y":1}}"#).unwrap());
        assert_ne!(one, fingerprint(br#"{"b":"c","a":{"x":[2,1],"y":1}}"#).unwrap());
    }

    #[test]
    fn a_body_of_nothing_but_values_is_refused_before_it_is_parsed() {
        let bomb = format!("{{\"workflow\": [{}0]}}", "0,".repeat(MAX_VALUES));
        assert_eq!(Fields::parse(bomb.as_bytes()).err().unwrap().body().status, 422);
    }

    #[tokio::test]
    async fn a_long_body_is_refused_before_it_is_kept() {
        let endless = stream::repeat_with(|| Ok::<_, io::Error>(Bytes::from_static(&[b' '; 1024])));
        let problem = read_any(&HeaderMap::new(), Body::from_stream(endless), limits()).await.unwrap_err();
        assert_eq!(problem.body().status, 413);
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_trickles_is_not_waited_for() {
        let trickle = stream::unfold((), |()| async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            Some((Ok::<_, io::Error>(Bytes::from_static(b" ")), ()))
        });
        let began = tokio::time::Instant::now();
        let problem = read_any(&HeaderMap::new(), Body::from_stream(trickle), limits()).await.unwrap_err();
        assert_eq!((problem.body().status, began.elapsed().as_secs()), (408, 30));
        assert!(problem.detail().contains("30s"), "{}", problem.detail());
    }

    fn limits() -> Limits {
        Limits { bytes: 10_000, setting: None, pace: Duration::from_secs(30) }
    }
}
