//! The client of one ComfyUI server: the `ComfyTransport` port over HTTP and WebSocket.
//!
//! It owns the connections to the server and nothing else: no task, no retry, no decision. A session actor asks, and each
//! question has a time limit of its own; when the server does not answer, the error says so and the session decides. What
//! the server answers is untrusted input: sizes are bounded, shapes are checked, and words of the server reach users only
//! after [`redact`].
//!
//! Pure decoding is apart from the network, so that recorded traffic of real servers tests it: [`frame`] reads WebSocket
//! frames, [`history`] and [`lookup`] read what the server says about a prompt, [`refusal`] reads why it said no.
//! "Protocol" in comments means ComfyUI's wire protocol as recorded in `tests/fixtures/comfyui`.

mod client;
pub mod frame;
#[cfg(any(test, feature = "fuzz"))]
pub(crate) mod fuzz;
pub mod history;
mod http;
mod json;
pub mod lookup;
mod outputs;
pub mod redact;
pub mod refusal;
mod relay;
mod socket;
mod upload;
mod view;

#[cfg(test)]
mod client_tests;
#[cfg(test)]
mod relay_tests;
#[cfg(test)]
mod socket_tests;
#[cfg(test)]
mod trace_tests;

use std::{fmt, time::Duration};

pub use client::HttpComfy;

/// How to reach one ComfyUI server.
#[derive(Clone)]
pub struct ComfyConfig {
    /// Base URL, `http` or `https`, with a path when a proxy puts the server under one. `user:password@` becomes basic
    /// authentication and shows up nowhere else.
    pub url: String,
    /// Sent with every request and with the WebSocket handshake, for servers behind authentication.
    pub headers: Vec<(String, String)>,
    /// The name of this machine, which goes into the server's name in the place of `localhost`: for consumers, as each machine has one.
    pub machine: Option<String>,
    /// Limit for opening a TCP and TLS connection.
    pub connect_timeout: Duration,
    /// Limit for a whole question and answer. Below 5 s it raises false alarms: the server freezes for up to 1.2 s at a
    /// time, longer while it loads a model.
    pub request_timeout: Duration,
    /// Limit for submitting a prompt, which the server validates before it answers. When it passes, nobody knows whether
    /// the prompt was taken.
    pub post_timeout: Duration,
    /// Longest silence within a download.
    pub view_idle_timeout: Duration,
    /// Longest silence of either side of a client's own request.
    pub relay_idle_timeout: Duration,
    /// How often the WebSocket is pinged. It is given up after two and a half intervals without a sign of life.
    pub ping_interval: Duration,
    /// Largest JSON answer read, in bytes. `/queue` and `/history` repeat whole graphs.
    pub max_json_bytes: usize,
}

impl ComfyConfig {
    /// The server at `url`, with limits that suit a local network and the internet alike.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            headers: Vec::new(),
            machine: None,
            connect_timeout: Duration::from_secs(5),
            request_timeout: Duration::from_secs(15),
            post_timeout: Duration::from_secs(30),
            view_idle_timeout: Duration::from_secs(30),
            relay_idle_timeout: Duration::from_secs(60),
            ping_interval: Duration::from_secs(10),
            max_json_bytes: 64 << 20,
        }
    }
}

impl fmt::Debug for ComfyConfig {
    /// Without the URL and the headers' values, which may hold secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.headers.iter().map(|(name, _)| name.as_str()).collect();
        f.debug_struct("ComfyConfig")
            .field("headers", &names)
            .field("connect_timeout", &self.connect_timeout)
            .field("request_timeout", &self.request_timeout)
            .field("post_timeout", &self.post_timeout)
            .field("view_idle_timeout", &self.view_idle_timeout)
            .field("relay_idle_timeout", &self.relay_idle_timeout)
            .field("ping_interval", &self.ping_interval)
            .field("max_json_bytes", &self.max_json_bytes)
            .finish()
    }
}

/// Why a server's configuration cannot be used. Never shows the URL, which may hold a password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// Not an address.
    #[error("the ComfyUI URL cannot be read ({0}); it looks like http://127.0.0.1:8188")]
    Url(String),
    /// A header that HTTP does not allow.
    #[error("the header {0:?} for ComfyUI is not a valid HTTP header")]
    Header(String),
    /// The HTTP client cannot be set up.
    #[error("the HTTP client for ComfyUI cannot be set up: {0}")]
    Client(String),
}
