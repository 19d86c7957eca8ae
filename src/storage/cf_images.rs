//! Outputs in Cloudflare Images: pictures only, delivered in the variants the account defines.
//!
//! An image's id is our key, so that storing it again finds it. Such an image cannot be private: whoever knows its address sees it, and
//! nobody guesses an address that holds a task's id. What lies under an id is told by the `metadata` we gave it.
//!
//! Everything is held whole in memory while it is sent: no image there has more than 10 MB.

use std::{collections::BTreeMap, sync::OnceLock, time::Duration};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use comfyd_actors::{
    domain::retry::Backoff,
    ports::{
        ByteStream,
        object_store::{ByteRange, Link, ObjectError, ObjectStore, Reading, Written},
    },
};
use futures_util::{StreamExt, TryStreamExt, stream};
use reqwest::{
    Client, Method, RequestBuilder, Response,
    multipart::{Form, Part as FormPart},
};
use serde::Deserialize;
use serde_json::json;

use super::{CHECK_EVERY, TRIES, answer::fault, check_key, client::describe, intake::Intake};
use crate::config::CfImages;

/// Largest image (developers.cloudflare.com/images, "Limits and formats"). Counted as the smaller of the two things "10 MB" can mean.
const LARGEST: u64 = 10_000_000;
/// What it takes of what ComfyUI makes.
const TYPES: [&str; 4] = ["image/png", "image/jpeg", "image/gif", "image/webp"];
/// An answer of the API is a page of JSON. More is not read.
const MAX_ANSWER: usize = 256 << 10;
/// Images in one answer to a question for many: the fewest it takes, because each comes with the addresses of all its variants, of which
/// there can be a hundred, and a task seldom leaves more behind.
const PER_PAGE: &str = "10";
const PLACE: &str = "Cloudflare Images account";

/// An account.
#[derive(Debug)]
pub struct CfImagesStorage {
    http: Client,
    config: CfImages,
    backoff: Backoff,
    /// What stands for the account in addresses of images. Nobody tells it but the addresses themselves.
    hash: OnceLock<String>,
}

/// How the API answers.
#[derive(Deserialize)]
struct Answer<T> {
    result: Option<T>,
    #[serde(default)]
    errors: Vec<Fault>,
}

#[derive(Deserialize)]
struct Fault {
    #[serde(default)]
    code: i64,
    #[serde(default)]
    message: String,
}

/// Some of the images there are.
#[derive(Deserialize)]
struct Page {
    #[serde(default)]
    images: Vec<Named>,
    /// What asks for the next ones.
    continuation_token: Option<String>,
}

#[derive(Deserialize)]
struct Named {
    id: String,
}

#[derive(Deserialize)]
struct Image {
    #[serde(default)]
    variants: Vec<String>,
    #[serde(default)]
    meta: Option<Meta>,
}

/// What we say of an image's bytes; Cloudflare says nothing of them itself.
#[derive(Deserialize, PartialEq, Eq)]
struct Meta {
    #[serde(default)]
    bytes: u64,
    #[serde(default)]
    sha256: String,
}

impl CfImagesStorage {
    /// An account by its settings. Asks nobody.
    #[must_use]
    pub fn new(config: &CfImages, http: Client, backoff: Backoff) -> Self {
        Self { http, config: config.clone(), backoff, hash: OnceLock::new() }
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let url = format!("{}/accounts/{}/images/v1{path}", self.config.api, self.config.account);
        self.http.request(method, url).bearer_auth(self.config.token.expose())
    }

    /// Sends a request as often as it takes, up to a few times, and reads what was answered.
    async fn ask(&self, request: impl Fn() -> RequestBuilder) -> Result<Response, ObjectError> {
        let mut tries = 0;
        loop {
            tries += 1;
            match self.ask_once(request()).await {
                Err(ObjectError::Unavailable(_)) if tries < TRIES => {
                    tokio::time::sleep(self.backoff.delay_at_least_half(tries, rand::random())).await;
                }
                answer => return answer,
            }
        }
    }

    async fn ask_once(&self, request: RequestBuilder) -> Result<Response, ObjectError> {
        let answer = request.send().await.map_err(|error| ObjectError::Unavailable(describe(error)))?;
        let status = answer.status();
        if status.is_success() {
            return Ok(answer);
        }
        let said = read(answer).await.ok().and_then(|page| serde_json::from_slice::<Answer<Image>>(&page).ok());
        let first = said.and_then(|said| said.errors.into_iter().next());
        let (code, words) = first.map_or_else(Default::default, |Fault { code, message }| (code.to_string(), message));
        Err(fault(status.as_u16(), &code, &words, PLACE))
    }

    async fn image(&self, key: &str) -> Result<Image, ObjectError> {
        let answer = self.ask(|| self.request(Method::GET, &format!("/{}", id(key)))).await?;
        self.learn(read(answer).await?)
    }

    /// Reads an answer about an image, and remembers what it tells of the account.
    fn learn(&self, page: Bytes) -> Result<Image, ObjectError> {
        let image = serde_json::from_slice::<Answer<Image>>(&page).ok().and_then(|answer| answer.result);
        let image = image.ok_or_else(unclear)?;
        // https://imagedelivery.net/<hash>/<id>/<variant>
        let hash = image.variants.first().and_then(|url| url.split('/').nth(3)).filter(|hash| !hash.is_empty());
        if let Some(hash) = hash {
            self.hash.get_or_init(|| hash.to_owned());
        }
        Ok(image)
    }

    async fn compare(&self, key: &str, written: Written) -> Result<Written, ObjectError> {
        let Written { bytes, sha256 } = written.clone();
        if self.image(key).await?.meta == Some(Meta { bytes, sha256 }) { Ok(written) } else { Err(ObjectError::Taken) }
    }
}

#[async_trait]
impl ObjectStore for CfImagesStorage {
    fn takes(&self, content_type: &str, bytes: Option<u64>) -> Result<(), String> {
        if !TYPES.contains(&content_type) {
            return Err(format!("it is {content_type}, and Cloudflare Images takes PNG, JPEG, GIF and WebP"));
        }
        match bytes.filter(|bytes| *bytes > LARGEST) {
            Some(bytes) => Err(format!("it has {bytes} bytes, and Cloudflare Images takes at most {LARGEST}")),
            None => Ok(()),
        }
    }

    fn only_pictures(&self) -> bool {
        true
    }

    async fn put(
        &self,
        key: &str,
        content_type: &str,
        bytes: Option<u64>,
        body: ByteStream,
    ) -> Result<Written, ObjectError> {
        check_key(key)?;
        self.takes(content_type, bytes).map_err(ObjectError::Refused)?;
        let (whole, written) = hold(body, bytes).await?;
        let name = key.rsplit('/').next().unwrap_or(key).to_owned();
        let about = json!({"bytes": written.bytes, "sha256": written.sha256}).to_string();
        let request = || {
            // A length, so that it is not sent in chunks.
            let file = FormPart::stream_with_length(whole.clone(), written.bytes).file_name(name.clone());
            // One of ours, so it is a media type.
            let file = file
                .mime_str(content_type)
                .unwrap_or_else(|_| FormPart::stream_with_length(whole.clone(), written.bytes));
            let form = Form::new().text("id", id(key)).text("creator", creator(key).to_owned());
            let form = form.text("metadata", about.clone()).part("file", file);
            self.request(Method::POST, "").multipart(form)
        };
        match self.ask(request).await {
            Ok(answer) => {
                self.learn(read(answer).await?)?;
                Ok(written)
            }
            // By an earlier try whose answer was lost, or by a process before this one.
            Err(ObjectError::Taken) => self.compare(key, written).await,
            Err(error) => Err(error),
        }
    }

    async fn size(&self, key: &str) -> Result<u64, ObjectError> {
        check_key(key)?;
        self.image(key).await?.meta.map(|meta| meta.bytes).ok_or(ObjectError::NotFound)
    }

    async fn open(&self, key: &str, range: Option<ByteRange>) -> Result<Reading, ObjectError> {
        check_key(key)?;
        let answer = self.ask(|| self.request(Method::GET, &format!("/{}/blob", id(key)))).await?;
        let body = answer.bytes_stream().map_err(|error| std::io::Error::other(describe(error))).boxed();
        // It knows no ranges, and no image is long.
        let (whole, Written { bytes, .. }) = hold(body, None).await?;
        let part = match range {
            Some(ByteRange { first, last }) if first <= last && last < bytes => {
                let at = |byte: u64| usize::try_from(byte).unwrap_or(usize::MAX);
                whole.slice(at(first)..=at(last))
            }
            Some(_) => return Err(ObjectError::Refused("the range lies outside of the object".to_owned())),
            None => whole,
        };
        Ok(Reading { bytes, body: stream::once(std::future::ready(Ok(part))).boxed() })
    }

    async fn delete(&self, key: &str) -> Result<(), ObjectError> {
        check_key(key)?;
        match self.ask(|| self.request(Method::DELETE, &format!("/{}", id(key)))).await {
            Ok(_) | Err(ObjectError::NotFound) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// By its creator: what it has of ours to be grouped by.
    async fn list(&self, prefix: &str, limit: usize) -> Result<Vec<String>, ObjectError> {
        check_key(prefix)?;
        let (mut keys, mut next) = (Vec::new(), None::<String>);
        loop {
            let page = || {
                let url = format!("{}/accounts/{}/images/v2", self.config.api, self.config.account);
                let query = [("creator", creator(prefix)), ("per_page", PER_PAGE)];
                let request = self.http.get(url).bearer_auth(self.config.token.expose()).query(&query);
                request.query(&next.as_ref().map(|next| [("continuation_token", next)]))
            };
            let page = read(self.ask(page).await?).await?;
            let page = serde_json::from_slice::<Answer<Page>>(&page).ok().and_then(|answer| answer.result);
            let Page { images, continuation_token } = page.ok_or_else(unclear)?;
            // Keys were made ids by what this undoes.
            let ours = images.iter().filter_map(|image| image.id.strip_prefix(&id(prefix)));
            keys.extend(ours.map(|rest| format!("{prefix}{rest}")));
            next = continuation_token.filter(|token| !token.is_empty());
            if keys.len() >= limit || next.is_none() {
                keys.truncate(limit);
                return Ok(keys);
            }
        }
    }

    async fn link(&self, key: &str) -> Result<Option<Link>, ObjectError> {
        check_key(key)?;
        if self.hash.get().is_none() {
            self.image(key).await?;
        }
        let Some(hash) = self.hash.get() else {
            return Err(ObjectError::Misconfigured(format!("{PLACE}: it has no variants; make one at Cloudflare")));
        };
        let base = match &self.config.delivery {
            Some(domain) => format!("{domain}/cdn-cgi/imagedelivery/{hash}"),
            None => format!("https://imagedelivery.net/{hash}"),
        };
        let address = |variant: &String| (variant.clone(), format!("{base}/{}/{variant}", id(key)));
        let variants: BTreeMap<String, String> = self.config.variants.iter().map(address).collect();
        let first = self.config.variants.first().and_then(|first| variants.get(first));
        Ok(first.map(|url| Link { url: url.clone(), variants: variants.clone() }))
    }

    fn check_every(&self) -> Duration {
        CHECK_EVERY
    }

    async fn check(&self) -> Result<(), ObjectError> {
        self.ask(|| self.request(Method::GET, "/stats")).await.map(|_| ())
    }
}

/// The id of an image: its key in one piece, because slashes in an id are slashes in the API's own addresses.
fn id(key: &str) -> String {
    key.replace('/', ".")
}

/// What groups the images of one task: what the last part of its keys begins with.
fn creator(key: &str) -> &str {
    let last = key.rsplit('/').next().unwrap_or(key);
    last.split('_').next().unwrap_or(last)
}

fn unclear() -> ObjectError {
    ObjectError::Unavailable(format!("{PLACE}: the answer cannot be read"))
}

/// The whole of a small file.
async fn hold(body: ByteStream, bytes: Option<u64>) -> Result<(Bytes, Written), ObjectError> {
    let mut intake = Intake::new(body, bytes);
    let mut whole = BytesMut::new();
    while let Some(part) = intake.next().await? {
        if (whole.len() + part.bytes.len()) as u64 > LARGEST {
            return Err(ObjectError::Refused(format!(
                "it has more than {LARGEST} bytes, the most that Cloudflare Images takes"
            )));
        }
        whole.extend_from_slice(&part.bytes);
    }
    Ok((whole.freeze(), intake.written()))
}

async fn read(answer: Response) -> Result<Bytes, ObjectError> {
    let mut page = BytesMut::new();
    let mut body = answer.bytes_stream();
    while let Some(chunk) = body.next().await {
        page.extend_from_slice(&chunk.map_err(|error| ObjectError::Unavailable(describe(error)))?);
        if page.len() > MAX_ANSWER {
            return Err(ObjectError::Unavailable(format!("{PLACE}: the answer is too long to be one")));
        }
    }
    Ok(page.freeze())
}
