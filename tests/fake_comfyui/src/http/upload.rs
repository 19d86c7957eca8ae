//! `POST /upload/image` and `/upload/mask`.

use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{ConnectInfo, FromRequest, Multipart, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::StreamExt;
use serde_json::{Value as Json, json};

use super::{Shared, json, read_body, trouble};
use crate::fault::Fault;
use crate::files::{Content, Folder, Place, clean_subfolder};
use crate::log::EventKind;
use crate::net::Peer;
use crate::server::Server;

/// The longest file name a file system takes.
const MAX_NAME: usize = 255;

/// What a form brought.
#[derive(Default)]
struct Form {
    /// Name and bytes of the file part; `None` inside when the part has no file name.
    image: Option<(Option<String>, Bytes)>,
    folder: Option<String>,
    subfolder: String,
    overwrite: bool,
    original: Option<String>,
}

/// An answer other than success.
enum Rejected {
    /// 400 with an empty body.
    Bad,
    /// 500.
    Stumbled,
    /// The body could not be read at all.
    Unread(Box<Response>),
}

impl IntoResponse for Rejected {
    fn into_response(self) -> Response {
        match self {
            Self::Bad => StatusCode::BAD_REQUEST.into_response(),
            Self::Stumbled => trouble(),
            Self::Unread(response) => *response,
        }
    }
}

pub(super) async fn image(
    State(server): Shared,
    ConnectInfo(peer): ConnectInfo<Peer>,
    headers: HeaderMap,
    body: Body,
) -> Response {
    server.log.push(EventKind::UploadBegun);
    let cut = server.faults.strike(|fault| match fault {
        Fault::CutUpload { bytes } => Some(*bytes),
        _ => None,
    });
    if let Some(bytes) = cut {
        read_some(body, bytes).await;
        peer.cut();
        return trouble();
    }
    let pace = server.faults.strike(|fault| match fault {
        Fault::SlowUpload { bytes_per_second } => Some((*bytes_per_second).max(1)),
        _ => None,
    });
    let body = match pace {
        Some(pace) => slowly(body, pace),
        None => body,
    };
    let status = server.faults.strike(|fault| match fault {
        Fault::UploadStatus { status } => StatusCode::from_u16(*status).ok(),
        _ => None,
    });
    if let Some(status) = status {
        // Read whole, as a real server does before it answers anything.
        let _ = read_body(&server, body).await;
        return status.into_response();
    }
    match read_form(&server, &headers, body).await.and_then(|form| store(&server, form)) {
        Ok(stored) => json(StatusCode::OK, &stored),
        Err(rejected) => rejected.into_response(),
    }
}

/// Stores the mask as it came: the fake does not merge it into the original. Whether the original exists makes no difference to
/// the answer on a real server either.
pub(super) async fn mask(State(server): Shared, headers: HeaderMap, body: Body) -> Response {
    let stored = read_form(&server, &headers, body).await.and_then(|form| {
        let reference = form.original.as_deref().and_then(|text| serde_json::from_str::<Json>(text).ok());
        let reference = reference.ok_or(Rejected::Stumbled)?;
        if reference.get("filename").and_then(Json::as_str).is_none() {
            return Err(Rejected::Bad);
        }
        store(&server, form)
    });
    match stored {
        Ok(stored) => json(StatusCode::OK, &stored),
        Err(rejected) => rejected.into_response(),
    }
}

async fn read_some(body: Body, bytes: u64) {
    let mut stream = body.into_data_stream();
    let mut seen = 0;
    while seen < bytes
        && let Some(Ok(chunk)) = stream.next().await
    {
        seen += chunk.len() as u64;
    }
}

/// The body, each chunk after the time it takes at this pace.
fn slowly(body: Body, bytes_per_second: u64) -> Body {
    Body::from_stream(body.into_data_stream().then(move |chunk| async move {
        let bytes = chunk.as_ref().map_or(0, Bytes::len) as u64;
        tokio::time::sleep(Duration::from_secs(bytes) / u32::try_from(bytes_per_second).unwrap_or(u32::MAX)).await;
        chunk
    }))
}

async fn read_form(server: &Server, headers: &HeaderMap, body: Body) -> Result<Form, Rejected> {
    let body = read_body(server, body).await.map_err(|response| Rejected::Unread(Box::new(response)))?;
    let content_type = headers.get(header::CONTENT_TYPE).ok_or(Rejected::Bad)?;
    let is_urlencoded = content_type.to_str().is_ok_and(|text| text.starts_with("application/x-www-form-urlencoded"));
    if is_urlencoded {
        // A text field called `image` makes ComfyUI stumble; anything else has no image.
        return Err(if body.starts_with(b"image=") { Rejected::Stumbled } else { Rejected::Bad });
    }
    let mut request = Request::new(Body::from(body));
    request.headers_mut().insert(header::CONTENT_TYPE, content_type.clone());
    // The limit has been applied above.
    axum::extract::DefaultBodyLimit::disable().apply(&mut request);
    let mut parts = Multipart::from_request(request, &()).await.map_err(|_| Rejected::Bad)?;
    let mut form = Form::default();
    while let Some(part) = parts.next_field().await.map_err(|_| Rejected::Stumbled)? {
        let name = part.name().unwrap_or_default().to_owned();
        let filename = part.file_name().map(str::to_owned);
        let bytes = part.bytes().await.map_err(|_| Rejected::Stumbled)?;
        let text = || String::from_utf8_lossy(&bytes).into_owned();
        match name.as_str() {
            "image" => form.image = Some((filename, bytes)),
            "type" => form.folder = Some(text()),
            "subfolder" => form.subfolder = text(),
            "overwrite" => form.overwrite = matches!(text().as_str(), "true" | "1"),
            "original_ref" => form.original = Some(text()),
            _ => {}
        }
    }
    Ok(form)
}

fn store(server: &Server, form: Form) -> Result<Json, Rejected> {
    let (filename, bytes) = form.image.ok_or(Rejected::Bad)?;
    let renamed = server.faults.strikes(&Fault::RenameUpload);
    let filename = filename.map(|name| if renamed { format!("renamed-{name}") } else { name });
    let filename = filename.filter(|name| !name.is_empty() && name.len() <= MAX_NAME).ok_or(Rejected::Stumbled)?;
    let folder = match form.folder.as_deref() {
        None => Folder::Input,
        Some(name) => Folder::parse(name).ok_or(Rejected::Stumbled)?,
    };
    let subfolder = clean_subfolder(&form.subfolder).ok_or(Rejected::Bad)?;
    if clean_subfolder(format!("{subfolder}/{filename}").trim_start_matches('/')).is_none() {
        return Err(Rejected::Bad);
    }
    if filename.contains('/') {
        // The directory part would have to exist.
        return Err(Rejected::Stumbled);
    }
    let place = |filename: String| Place { folder, subfolder: subfolder.clone(), filename };
    let (name, write) = if form.overwrite {
        (filename, true)
    } else {
        free_name(filename, |name| {
            server.files.get(&place(name.to_owned())).map(|stored| holds(&stored.content, &bytes))
        })
    };
    if write {
        server.files.write(place(name.clone()), bytes);
    }
    server.log.push(EventKind::Uploaded { filename: name.clone() });
    Ok(json!({"name": name, "subfolder": subfolder, "type": folder.name()}))
}

fn holds(content: &Content, bytes: &Bytes) -> bool {
    content.length() == bytes.len() as u64 && content.read().is_ok_and(|stored| stored == bytes)
}

/// The name to use, and whether to write: a taken name with the same bytes is used as it is, one with other bytes gets a number.
/// `look` tells whether a name is taken and, if so, whether by the same bytes.
fn free_name(filename: String, look: impl Fn(&str) -> Option<bool>) -> (String, bool) {
    let (stem, ending) = match filename.rsplit_once('.') {
        Some((stem, ending)) if !stem.is_empty() => (stem.to_owned(), format!(".{ending}")),
        _ => (filename.clone(), String::new()),
    };
    let mut name = filename;
    let mut number = 0;
    loop {
        match look(&name) {
            None => return (name, true),
            Some(true) => return (name, false),
            Some(false) => {
                number += 1;
                name = format!("{stem} ({number}){ending}");
            }
        }
    }
}
