//! HTTP, the same for all sides, and the graphs that are run.

use reqwest::Client;
use serde_json::{Value, json};

use super::PATIENCE;

/// Kept-alive connections that send at once.
pub fn client() -> Client {
    Client::builder().no_proxy().tcp_nodelay(true).timeout(PATIENCE).build().expect("an HTTP client")
}

/// A graph that saves one small image. Each number makes another image, so that nothing comes from the server's cache.
pub fn graph(number: usize) -> Value {
    json!({
        "1": {"class_type": "EmptyImage", "inputs": {"width": 16, "height": 16, "batch_size": 1, "color": number & 0xff_ffff}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "bench"}},
    })
}

/// A graph with `count` outputs of `bytes` bytes.
pub fn large_graph(count: usize, bytes: usize) -> Value {
    json!({"1": {"class_type": "FakeBytes", "inputs": {"bytes": bytes, "count": count, "seed": 1, "extension": "bin"}}})
}
