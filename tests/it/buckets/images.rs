//! Cloudflare Images, as far as its documentation tells of what we use (developers.cloudflare.com/api, "Images"; .../images, "Upload",
//! "Serve"): upload with an id, a creator and metadata, details, the list of one creator's images, the original, deletion, statistics, and delivery by variants.

use std::{
    collections::BTreeMap,
    ops::Bound,
    sync::{Arc, Mutex},
};

use axum::{
    Json, Router,
    body::Bytes,
    extract::{DefaultBodyLimit, Multipart, Path, Query, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::{net::TcpListener, task::JoinHandle};

use super::{Dialect, Proxy, settings};

pub const ACCOUNT: &str = "account-1";
pub const TOKEN: &str = "hunter2";
/// What stands for the account in addresses of images.
const HASH: &str = "Vi7wi5KSItxGFsWRG2Us6Q";
const LARGEST: usize = 10 << 20;
const VARIANTS: [&str; 2] = ["public", "thumb"];

#[derive(Clone)]
struct Image {
    bytes: Bytes,
    content_type: String,
    filename: String,
    meta: Value,
    creator: Option<String>,
}

type Stored = Arc<Mutex<BTreeMap<String, Image>>>;

/// The service and a proxy before it.
pub struct Images {
    pub proxy: Proxy,
    stored: Stored,
    serving: JoinHandle<()>,
}

impl Images {
    pub async fn start() -> Self {
        let stored = Stored::default();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let upstream = format!("http://{}", listener.local_addr().unwrap());
        let api = "/accounts/{account}/images/v1";
        let routes = Router::new()
            .route(api, post(upload))
            .route("/accounts/{account}/images/v2", get(list))
            .route(&format!("{api}/stats"), get(stats))
            .route(&format!("{api}/{{id}}"), get(details).delete(delete))
            .route(&format!("{api}/{{id}}/blob"), get(blob))
            .route("/cdn-cgi/imagedelivery/{hash}/{id}/{variant}", get(deliver))
            .layer(DefaultBodyLimit::max(2 * LARGEST))
            .with_state(stored.clone());
        let serving = tokio::spawn(async move { axum::serve(listener, routes).await.unwrap() });
        Self { proxy: Proxy::start(&upstream, Dialect::Json).await, stored, serving }
    }

    /// The settings that make it target `cf_images`.
    pub fn settings(&self) -> Vec<(String, String)> {
        settings(&[
            ("STORAGE_PROVIDER", "cf_images"),
            ("CF_IMAGES_ACCOUNT_ID", ACCOUNT),
            ("CF_IMAGES_API_TOKEN", TOKEN),
            ("CF_IMAGES_API_URL", &self.proxy.url()),
            ("CF_IMAGES_DELIVERY_DOMAIN", &self.proxy.url()),
            ("CF_IMAGES_VARIANTS", "public,thumb"),
        ])
    }

    /// The ids of all images.
    pub fn ids(&self) -> Vec<String> {
        self.stored.lock().unwrap().keys().cloned().collect()
    }
}

impl Drop for Images {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

fn fault(status: StatusCode, code: u32, message: &str) -> Response {
    let body =
        json!({"success": false, "errors": [{"code": code, "message": message}], "messages": [], "result": null});
    (status, Json(body)).into_response()
}

fn success(result: &Value) -> Response {
    Json(json!({"success": true, "errors": [], "messages": [], "result": result})).into_response()
}

fn described(id: &str, image: &Image) -> Value {
    let variant = |name: &str| format!("https://imagedelivery.net/{HASH}/{id}/{name}");
    json!({
        "id": id, "filename": image.filename, "uploaded": "2026-01-01T00:00:00.000Z", "requireSignedURLs": false,
        "meta": image.meta, "variants": VARIANTS.map(variant),
    })
}

fn stranger(account: &str, headers: &HeaderMap) -> Option<Response> {
    let known = headers.get(header::AUTHORIZATION).is_some_and(|value| value == &format!("Bearer {TOKEN}"));
    (account != ACCOUNT || !known).then(|| fault(StatusCode::FORBIDDEN, 10000, "Authentication error"))
}

async fn upload(
    State(stored): State<Stored>,
    Path(account): Path<String>,
    headers: HeaderMap,
    mut form: Multipart,
) -> Response {
    if let Some(refusal) = stranger(&account, &headers) {
        return refusal;
    }
    let (mut id, mut creator, mut meta, mut file) = (None, None, Value::Null, None);
    while let Ok(Some(field)) = form.next_field().await {
        match field.name().unwrap_or_default() {
            "id" => id = field.text().await.ok(),
            "creator" => creator = field.text().await.ok(),
            "metadata" => meta = serde_json::from_str(&field.text().await.unwrap_or_default()).unwrap_or_default(),
            "file" => {
                let (filename, content_type) =
                    (field.file_name().map(str::to_owned), field.content_type().map(str::to_owned));
                file = Some((
                    filename.unwrap_or_default(),
                    content_type.unwrap_or_default(),
                    field.bytes().await.unwrap_or_default(),
                ));
            }
            other => return fault(StatusCode::BAD_REQUEST, 5400, &format!("Bad request: unknown field {other}")),
        }
    }
    let (Some(id), Some((filename, content_type, bytes))) = (id, file) else {
        return fault(StatusCode::BAD_REQUEST, 5400, "Bad request: no file");
    };
    if bytes.len() > LARGEST {
        return fault(StatusCode::PAYLOAD_TOO_LARGE, 5413, "Images must be less than 10485760 bytes");
    }
    let known = [&b"\x89PNG"[..], b"\xff\xd8\xff", b"GIF8", b"RIFF"];
    if !known.iter().any(|magic| bytes.starts_with(magic)) {
        return fault(StatusCode::UNSUPPORTED_MEDIA_TYPE, 5455, "Unsupported image format");
    }
    let mut stored = stored.lock().unwrap();
    if stored.contains_key(&id) {
        return fault(StatusCode::CONFLICT, 5409, "Resource already exists");
    }
    let image = Image { bytes, content_type, filename, meta, creator };
    let result = described(&id, &image);
    stored.insert(id, image);
    success(&result)
}

#[derive(Deserialize)]
struct ListQuery {
    #[serde(default)]
    creator: String,
    per_page: usize,
    /// An id: the page begins behind it.
    #[serde(default)]
    continuation_token: String,
}

/// A page of the images of one creator.
async fn list(
    State(stored): State<Stored>,
    Path(account): Path<String>,
    Query(query): Query<ListQuery>,
    headers: HeaderMap,
) -> Response {
    if let Some(refusal) = stranger(&account, &headers) {
        return refusal;
    }
    if !(10..=10_000).contains(&query.per_page) {
        return fault(StatusCode::BAD_REQUEST, 5400, "Bad request: per_page");
    }
    let stored = stored.lock().unwrap();
    let behind = (Bound::Excluded(query.continuation_token), Bound::Unbounded);
    let mut found = stored
        .range::<String, _>(behind)
        .filter(|(_, image)| image.creator.as_deref().unwrap_or_default() == query.creator);
    let page: Vec<_> = found.by_ref().take(query.per_page).collect();
    let next = page.last().filter(|_| found.next().is_some()).map(|(id, _)| id);
    let images: Vec<_> = page.iter().map(|(id, image)| described(id, image)).collect();
    success(&json!({"images": images, "continuation_token": next}))
}

async fn stats(State(stored): State<Stored>, Path(account): Path<String>, headers: HeaderMap) -> Response {
    let current = stored.lock().unwrap().len();
    stranger(&account, &headers).unwrap_or_else(|| success(&json!({"count": {"current": current, "allowed": 100_000}})))
}

fn find(stored: &Stored, id: &str) -> Result<Image, Box<Response>> {
    let found = stored.lock().unwrap().get(id).cloned();
    found.ok_or_else(|| Box::new(fault(StatusCode::NOT_FOUND, 5404, "Image not found")))
}

async fn details(
    State(stored): State<Stored>,
    Path((account, id)): Path<(String, String)>,
    headers: HeaderMap,
) -> Response {
    if let Some(refusal) = stranger(&account, &headers) {
        return refusal;
    }
    find(&stored, &id).map_or_else(|missing| *missing, |image| success(&described(&id, &image)))
}

async fn blob(
    State(stored): State<Stored>,
    Path((account, id)): Path<(String, String)>,
    headers: HeaderMap,
) -> Response {
    if let Some(refusal) = stranger(&account, &headers) {
        return refusal;
    }
    find(&stored, &id).map_or_else(
        |missing| *missing,
        |image| ([(header::CONTENT_TYPE, image.content_type)], image.bytes).into_response(),
    )
}

async fn delete(
    State(stored): State<Stored>,
    Path((account, id)): Path<(String, String)>,
    headers: HeaderMap,
) -> Response {
    if let Some(refusal) = stranger(&account, &headers) {
        return refusal;
    }
    match stored.lock().unwrap().remove(&id) {
        Some(_) => success(&json!({})),
        None => fault(StatusCode::NOT_FOUND, 5404, "Image not found"),
    }
}

/// Every variant shows the same bytes here.
async fn deliver(State(stored): State<Stored>, Path((hash, id, variant)): Path<(String, String, String)>) -> Response {
    if hash != HASH || !VARIANTS.contains(&variant.as_str()) {
        return StatusCode::NOT_FOUND.into_response();
    }
    find(&stored, &id).map_or_else(
        |missing| *missing,
        |image| ([(header::CONTENT_TYPE, image.content_type)], image.bytes).into_response(),
    )
}
