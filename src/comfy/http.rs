//! Questions to one server over HTTP: addresses, time limits, bounded answers. Knows nothing of prompts.

use std::time::Duration;

use comfyd_actors::{
    domain::{id::BackendId, passthrough::Target},
    ports::comfy::ComfyError,
};
use reqwest::{
    Client, Method, RequestBuilder, Response, StatusCode,
    header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue},
    redirect,
};
use serde::Serialize;
use url::{Host, Url};

use super::{ComfyConfig, ConfigError, json::relaxed};
use crate::{describe::describe, json::count_values, tls};

/// Idle connections are dropped after this. Python's server keeps them 75 s or more; staying well below means that a
/// request is hardly ever written to a connection the server is just closing.
const POOL_IDLE: Duration = Duration::from_secs(20);

/// Once parsed a value takes dozens of bytes, however few it is written in: an answer may hold as many as would be this long in the
/// largest one. Graphs and lists of nodes have half as many.
const BYTES_PER_VALUE: usize = 32;

/// One server's address and the connections to it.
pub(super) struct Http {
    client: Client,
    base: Url,
    headers: HeaderMap,
    timeout: Duration,
    max_bytes: usize,
}

/// Status and body. The body may have failed when the status is known already.
pub(super) struct Answer {
    pub status: StatusCode,
    pub body: Result<String, Fault>,
}

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Fault {
    /// No connection, so certainly not one byte of the request left.
    NotConnected(String),
    /// Anything else: the server may have got the request.
    Broken(String),
    /// The answer is larger than we read.
    TooLarge(usize),
    /// The answer would take far more memory than it has bytes.
    TooMany(usize),
}

impl From<Fault> for ComfyError {
    fn from(fault: Fault) -> Self {
        Self::Unavailable(fault.to_string())
    }
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NotConnected(why) | Self::Broken(why) => f.write_str(why),
            Self::TooLarge(limit) => write!(f, "the answer is larger than {limit} bytes (comfyui.max_answer)"),
            Self::TooMany(limit) => write!(f, "the answer holds more than {limit} values"),
        }
    }
}

impl Http {
    pub fn new(config: &ComfyConfig) -> Result<Self, ConfigError> {
        let mut base = parse(&config.url)?;
        let mut headers = header_map(&config.headers)?;
        let client = client(config)?;
        if let Some(value) = basic_auth(&client, &base)? {
            headers.insert(AUTHORIZATION, value);
        }
        // Both fail only for addresses without a host, which `parse` refused.
        let _ = base.set_username("");
        let _ = base.set_password(None);
        Ok(Self { client, base, headers, timeout: config.request_timeout, max_bytes: config.max_json_bytes })
    }

    /// The address without credentials and without a trailing slash; with the name of the machine for its own.
    pub fn id(&self, machine: Option<&str>) -> BackendId {
        let mut named = self.base.clone();
        if machine.is_some() && is_loopback(&self.base) {
            // A name that is no host name leaves the address as it is.
            let _ = named.set_host(machine);
        }
        BackendId::new(named.as_str().trim_end_matches('/'))
    }

    /// Headers of every request, credentials among them.
    pub fn headers(&self) -> &HeaderMap {
        &self.headers
    }

    /// An address below the base. Each part is one path segment: a slash in it is escaped.
    pub fn url(&self, parts: &[&str]) -> Url {
        let mut url = self.base.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().extend(parts);
        }
        url
    }

    /// The address of a client's own target.
    pub fn below(&self, target: &Target, query: Option<&str>) -> Url {
        let mut url = self.base.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().extend(target.parts());
        }
        url.set_query(query);
        url
    }

    pub fn request(&self, method: Method, url: Url) -> RequestBuilder {
        self.request_with(method, url, HeaderMap::new())
    }

    /// Ours win over `headers`.
    pub fn request_with(&self, method: Method, url: Url, headers: HeaderMap) -> RequestBuilder {
        self.client.request(method, url).headers(headers).headers(self.headers.clone())
    }

    pub async fn get(&self, parts: &[&str], query: &[(&str, &str)]) -> Result<Answer, Fault> {
        let request = self.request(Method::GET, self.url(parts)).query(query);
        self.ask(request, self.timeout).await
    }

    pub async fn post<T: Serialize + Sync>(&self, parts: &[&str], body: &T, limit: Duration) -> Result<Answer, Fault> {
        self.ask(self.request(Method::POST, self.url(parts)).json(body), limit).await
    }

    /// Posts with the usual limit and no interest in the answer's body.
    pub async fn tell<T: Serialize + Sync>(&self, parts: &[&str], body: &T) -> Result<StatusCode, Fault> {
        Ok(self.post(parts, body, self.timeout).await?.status)
    }

    /// The text of a 200 answer to a GET, in JSON that serde takes.
    pub async fn json(&self, parts: &[&str], query: &[(&str, &str)]) -> Result<String, Fault> {
        let Answer { status, body } = self.get(parts, query).await?;
        if status != StatusCode::OK {
            return Err(Fault::Broken(format!("the server answered {status} to /{}", parts.join("/"))));
        }
        let text = body?;
        Ok(match relaxed(&text) {
            std::borrow::Cow::Borrowed(_) => text,
            std::borrow::Cow::Owned(relaxed) => relaxed,
        })
    }

    async fn ask(&self, request: RequestBuilder, limit: Duration) -> Result<Answer, Fault> {
        self.send(request.timeout(limit)).await
    }

    /// Sends a request whose time somebody else limits, and reads the answer.
    pub async fn send(&self, request: RequestBuilder) -> Result<Answer, Fault> {
        let response = request.send().await.map_err(fault)?;
        let status = response.status();
        Ok(Answer { status, body: self.read(response).await })
    }

    /// Reads a body up to the limit. The request's time limit goes on while reading.
    async fn read(&self, mut response: Response) -> Result<String, Fault> {
        let too_large = || Fault::TooLarge(self.max_bytes);
        let told = response.content_length().unwrap_or(0);
        if told > self.max_bytes as u64 {
            return Err(too_large());
        }
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(fault)? {
            if body.len() + chunk.len() > self.max_bytes {
                return Err(too_large());
            }
            body.extend_from_slice(&chunk);
        }
        // The shortest value has two bytes with its comma, so most answers need not be looked through.
        let most = self.max_bytes / BYTES_PER_VALUE;
        if body.len() / 2 > most && count_values(&body) > most {
            return Err(Fault::TooMany(most));
        }
        String::from_utf8(body).map_err(|_| Fault::Broken("the answer is not UTF-8".to_owned()))
    }
}

fn parse(text: &str) -> Result<Url, ConfigError> {
    // The parser's own words do not repeat the text, which may hold a password.
    let mut url = Url::parse(text.trim()).map_err(|error| ConfigError::Url(error.to_string()))?;
    if !matches!(url.scheme(), "http" | "https") || url.host().is_none() {
        return Err(ConfigError::Url("it is neither http nor https".to_owned()));
    }
    url.set_query(None);
    url.set_fragment(None);
    Ok(url)
}

fn header_map(headers: &[(String, String)]) -> Result<HeaderMap, ConfigError> {
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        let invalid = || ConfigError::Header(name.clone());
        let name = HeaderName::try_from(name.trim()).map_err(|_| invalid())?;
        let mut value = HeaderValue::try_from(value.trim()).map_err(|_| invalid())?;
        value.set_sensitive(true);
        map.append(name, value);
    }
    Ok(map)
}

fn client(config: &ComfyConfig) -> Result<Client, ConfigError> {
    Client::builder()
        .tls_backend_preconfigured((*tls::client_config()).clone())
        .connect_timeout(config.connect_timeout)
        .pool_idle_timeout(POOL_IDLE)
        .tcp_nodelay(true)
        // The server is configured by address; an environment variable or an answer must not send prompts elsewhere.
        .no_proxy()
        .redirect(redirect::Policy::none())
        // A prompt must never be sent twice. This turns off the client's own repetition after protocol errors. What is left
        // is hyper's: on a kept-alive connection that turns out closed it takes a new one, but only when the request was
        // not begun to be written, and hands it back as an error otherwise.
        .retry(reqwest::retry::never())
        .build()
        .map_err(|error| ConfigError::Client(describe(error)))
}

/// `user:password@` in the address as a header. The HTTP client knows how to write one.
/// Whether an address means another server on each machine.
fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(ip)) => ip.is_loopback(),
        Some(Host::Ipv6(ip)) => ip.is_loopback(),
        None => false,
    }
}

fn basic_auth(client: &Client, base: &Url) -> Result<Option<HeaderValue>, ConfigError> {
    if base.username().is_empty() && base.password().is_none() {
        return Ok(None);
    }
    // A request built from an address with credentials moves them, unescaped, into the header.
    let request = client.get(base.clone()).build().map_err(|error| ConfigError::Client(describe(error)))?;
    Ok(request.headers().get(AUTHORIZATION).cloned().map(|mut value| {
        value.set_sensitive(true);
        value
    }))
}

/// `is_connect` is set by the connector alone (name, TCP, TLS), before there is a connection to write to.
pub(super) fn fault(error: reqwest::Error) -> Fault {
    let connecting = error.is_connect();
    let why = describe(error);
    if connecting { Fault::NotConnected(why) } else { Fault::Broken(why) }
}
