//! Messages to webhooks, written and signed as Standard Webhooks has it (<https://www.standardwebhooks.com>), and sent by the one way out
//! to URLs of clients.
//!
//! A message is written anew for each try, from the task as it is then: so the URLs of its outputs are fresh. What is signed is what is
//! sent, byte for byte, with every key there is: a receiver that knows any of them is served while keys are exchanged.

mod message;

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use base64::{Engine, engine::general_purpose::STANDARD};
use comfyd_actors::{
    domain::webhook::{Answer, Delivery},
    ports::{clock::Clock, hook_sender::HookSender, store::TaskRecord},
    targets::Targets,
};
use reqwest::{
    Response,
    header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue},
};
use ring::hmac;

pub use self::message::Message;
use crate::{
    config::{SigningKey, Webhooks},
    crash_point,
    http::link_all,
    outbound::{Outbound, retry_after},
};

/// Of an answer so much is read, for the sake of the connection, which can be used again then. Nobody looks at it.
const ANSWER: usize = 16 << 10;

/// The way to receivers.
pub struct Receivers {
    outbound: Outbound,
    targets: Targets,
    keys: Vec<hmac::Key>,
    timeout: Duration,
    /// What URLs of outputs begin with.
    base: String,
    clock: Arc<dyn Clock>,
}

impl Receivers {
    /// By the configuration.
    #[must_use]
    pub fn new(
        outbound: Outbound,
        targets: Targets,
        settings: &Webhooks,
        public_url: Option<&str>,
        clock: Arc<dyn Clock>,
    ) -> Self {
        let key = |key: &SigningKey| hmac::Key::new(hmac::HMAC_SHA256, key.bytes());
        Self {
            outbound,
            targets,
            keys: settings.secrets.iter().map(key).collect(),
            timeout: settings.timeout,
            base: public_url.unwrap_or_default().to_owned(),
            clock,
        }
    }

    fn headers(&self, id: &str, body: &str) -> HeaderMap {
        let seconds = (self.clock.now().0 / 1_000).to_string();
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        let signatures = signatures(&self.keys, id, &seconds, body);
        let ours = [("webhook-id", id), ("webhook-timestamp", &seconds), ("webhook-signature", &signatures)];
        for (name, value) in ours.into_iter().filter(|(_, value)| !value.is_empty()) {
            // All of these are digits, letters and base64.
            if let Ok(value) = HeaderValue::from_str(value) {
                headers.insert(HeaderName::from_static(name), value);
            }
        }
        headers
    }
}

#[async_trait]
impl HookSender for Receivers {
    async fn send(&self, delivery: &Delivery, record: &TaskRecord) -> Result<Answer, String> {
        let webhook = record.options.webhook.as_ref().ok_or("the task names no webhook")?;
        // Read anew: what is allowed may have changed since.
        let target = self.outbound.read(&webhook.url).map_err(|refusal| refusal.to_string())?;
        let mut message = Message::of(delivery, record, &self.base);
        link_all(&self.targets, &mut message.data.outputs, &record.artifacts).await;
        let body = message.write();
        let headers = self.headers(&delivery.message_id(), &body);
        crash_point::reach("webhook/sending");
        let answer =
            self.outbound.post(&target, headers, body, self.timeout).await.map_err(|error| error.to_string())?;
        let (status, retry_after) = (answer.status(), retry_after(answer.headers(), self.clock.now()));
        finish(answer).await;
        if status.is_success() {
            crash_point::reach("webhook/sent");
        }
        Ok(Answer { status: status.as_u16(), retry_after })
    }
}

/// One signature per key, the newest key first; empty without keys.
fn signatures(keys: &[hmac::Key], id: &str, timestamp: &str, body: &str) -> String {
    let signed = format!("{id}.{timestamp}.{body}");
    let sign = |key| format!("v1,{}", STANDARD.encode(hmac::sign(key, signed.as_bytes())));
    keys.iter().map(sign).collect::<Vec<_>>().join(" ")
}

/// Reads what is left, unless that is a lot. It has been answered: what goes wrong now is of no interest.
async fn finish(mut answer: Response) {
    let mut left = ANSWER;
    while let Ok(Some(chunk)) = answer.chunk().await {
        let Some(rest) = left.checked_sub(chunk.len()) else { return };
        left = rest;
    }
}

#[cfg(test)]
mod tests;
