//! What processes hear of each other: changes and notices, published as they are made, and the service that listens.
//!
//! A hint and nothing more. While the connection is down nothing is heard, and nobody misses it for longer than until the next look into the
//! store.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use comfyd_actors::ports::{
    store::{Changed, StoreError},
    wire::{Kind, Notice},
};
use futures_util::StreamExt;
use redis::RedisError;
use serde::{Deserialize, Serialize};
use tokio::time::sleep;
use tracing::{debug, info, warn};
use uuid::Uuid;

use super::{RedisStore, link::Command, rows::json, words};
use crate::store::told::Told;

/// Bodies up to this size are published; larger ones are fetched by who wants them. The server cuts off listeners that lag too many bytes.
const INLINE: usize = 16 << 10;
/// The pause before the listener connects again.
const PAUSE: Duration = Duration::from_secs(1);

/// Changes of one commit, and whose they are.
#[derive(Serialize, Deserialize)]
struct Announcement {
    origin: Uuid,
    changed: Vec<Told>,
}

/// A notice as it is published. Without a body it is to be fetched.
#[derive(Serialize, Deserialize)]
struct Posted<'a> {
    origin: Uuid,
    kind: &'a str,
    name: String,
}

impl RedisStore {
    /// Tells the others of what is committed with it.
    pub(super) fn announcement(&self, changed: &[Changed]) -> Result<Option<Command>, StoreError> {
        if changed.is_empty() {
            return Ok(None);
        }
        let announcement = Announcement { origin: self.origin, changed: changed.iter().map(Into::into).collect() };
        Ok(Some(words("PUBLISH").arg(self.link.keys.changes()).arg(json(&announcement)?).done()))
    }

    /// The channel of notices, and a notice as it is published there: who posts it and what it is, on a line of JSON, and its body if that
    /// is small.
    pub(super) fn posted(&self, notice: &Notice) -> (String, Vec<u8>) {
        let head = Posted { origin: self.origin, kind: notice.kind.as_str(), name: notice.name.clone() };
        let mut message = serde_json::to_vec(&head).unwrap_or_default();
        if notice.body.len() <= INLINE {
            message.push(b'\n');
            message.extend_from_slice(&notice.body);
        }
        (self.link.keys.posted(), message)
    }

    /// Listens to the others, to be run by whoever supervises it for as long as the store is used.
    pub fn listener(self: &Arc<Self>) -> impl Future<Output = ()> + Send + 'static + use<> {
        let store = Arc::clone(self);
        async move {
            let mut lost = false;
            loop {
                match store.listen(lost).await {
                    Ok(()) => debug!("the connection that hears of other processes ended"),
                    Err(error) if !lost => {
                        warn!(%error, "nothing is heard of other processes; the store is looked into meanwhile");
                    }
                    Err(_) => {}
                }
                lost = true;
                sleep(PAUSE).await;
            }
        }
    }

    async fn listen(&self, again: bool) -> Result<(), RedisError> {
        let mut connection = self.client.get_async_pubsub().await?;
        let (changes, posted) = (self.link.keys.changes(), self.link.keys.posted());
        connection.subscribe(&[&changes, &posted]).await?;
        if again {
            info!("other processes are heard again");
        }
        let mut messages = connection.on_message();
        while let Some(message) = messages.next().await {
            if message.get_channel_name() == changes {
                self.hear_changes(message.get_payload_bytes());
            } else {
                self.hear_notice(message.get_payload_bytes()).await;
            }
        }
        Ok(())
    }

    /// What makes no sense comes from another version of this program.
    fn hear_changes(&self, payload: &[u8]) {
        let Ok(announcement) = serde_json::from_slice::<Announcement>(payload) else { return };
        if announcement.origin != self.origin {
            for changed in announcement.changed {
                let _ = self.changes.send(changed.into());
            }
        }
    }

    async fn hear_notice(&self, payload: &[u8]) {
        let (head, body) = match payload.iter().position(|byte| *byte == b'\n') {
            Some(end) => (&payload[..end], payload.get(end + 1..)),
            None => (payload, None),
        };
        let Ok(Posted { origin, kind, name }) = serde_json::from_slice(head) else { return };
        let Some(kind) = Kind::parse(kind).filter(|_| origin != self.origin) else { return };
        let body = match body {
            Some(body) => Some(Bytes::copy_from_slice(body)),
            None if kind == Kind::Glimpse => Some(Bytes::new()),
            None => self.body_of(kind, &name).await.ok().flatten(),
        };
        if let Some(body) = body {
            let _ = self.heard.send(Arc::new(Notice { kind, name, body }));
        }
    }
}
