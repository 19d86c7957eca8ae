//! `[consumer]`: processes that run tasks apart from the API, and how they come to them.

use std::collections::BTreeSet;

use super::{
    reader::Reader,
    values::{Secret, SecretUrl, backend_url},
};

/// Shortest token: what 16 random bytes are in base64 without padding.
const SHORTEST_TOKEN: usize = 22;

/// `[consumer]`
#[derive(Debug, Clone)]
pub struct Consumer {
    /// Where `comfyd consumer` serves its probes and metrics; 0 = any.
    pub port: u16,
    /// The API it works for, without the trailing `/api`, when it has no database.
    pub api_url: Option<SecretUrl>,
    /// What consumers show the API.
    pub token: Option<Secret>,
    /// What it is good for, in the words of the tasks that need it.
    pub labels: BTreeSet<String>,
    /// The named workflows it takes, `*` for any text in a name; empty = everything.
    pub workflows: Vec<String>,
    /// Tasks come over HTTP: there is an API, and nobody named a database.
    pub remote: bool,
}

pub(super) fn consumer(r: &mut Reader) -> Consumer {
    let api_url = r.text("consumer.api_url", |text| {
        let text = text.trim_end_matches('/');
        let text = text.strip_suffix("/api").unwrap_or(text);
        if text.is_empty() {
            Ok(None)
        } else {
            backend_url(text).map(Some).map_err(|why| why.replace("ComfyUI server", "comfyd API"))
        }
    });
    let token: Option<Secret> = r.text("consumer.token", |text| match text.len() {
        0 => Ok(None),
        length if length < SHORTEST_TOKEN => {
            Err(format!("a token has at least {SHORTEST_TOKEN} characters: echo $(openssl rand -hex 24)"))
        }
        _ if !text.bytes().all(|byte| byte.is_ascii_graphic()) => Err("a token is ASCII without spaces".to_owned()),
        _ => Ok(Some(Secret::new(text))),
    });
    let labels = r.list("consumer.labels", |text| label(text).map(Some));
    let workflows = r.list("consumer.workflows", |text| pattern(text).map(Some));
    Consumer {
        port: r.number("consumer.port", 0..=65_535),
        api_url,
        token,
        labels: labels.into_iter().flatten().collect(),
        workflows: workflows.into_iter().flatten().collect(),
        remote: false,
    }
}

/// A word for what a consumer is good for.
///
/// # Errors
/// What a label may be.
pub fn label(text: &str) -> Result<String, String> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-' | b'=' | b':');
    if (1..=64).contains(&text.len()) && text.bytes().all(plain) {
        Ok(text.to_owned())
    } else {
        Err("a label has 1 to 64 ASCII letters, digits and `. _ - = :`".to_owned())
    }
}

fn pattern(text: &str) -> Result<String, String> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-' | b'*');
    if (1..=128).contains(&text.len()) && text.bytes().all(plain) {
        Ok(text.to_owned())
    } else {
        Err("write a workflow's name, with `*` for any text: upscale-*".to_owned())
    }
}
