//! Tells the other processes on the database what this one changed, and hears what they tell: NOTIFY and LISTEN.
//!
//! All of it is a hint. A word may be lost with its connection, or never come (a pooler in between, a server that fails over), and whoever
//! needs to know looks by itself now and then. So what there is no room for is dropped, and nobody waits for it: NOTIFY makes the commits of a
//! whole database take turns, so a process speaks at most once in [`PAUSE`], on a connection of its own, after the commit.

use std::{sync::Arc, time::Duration};

use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::Bytes;
use comfyd_actors::ports::{
    store::{Changed, StoreError},
    wire::{Kind, Notice, Wire},
};
use serde::{Deserialize, Serialize};
use sqlx::{
    PgConnection,
    postgres::{PgListener, PgPoolOptions},
};
use tokio::{
    sync::{Mutex, mpsc},
    time::{Instant, sleep, sleep_until, timeout},
};
use tracing::{debug, info, warn};
use uuid::Uuid;

use super::{
    PgConfig, PgStore,
    fault::{answered, store_error},
    pooler,
    rows::json,
    writer::{connect, hang_up},
};
use crate::store::{columns::corrupt, told::Told};

/// Where all processes on a database speak.
pub(super) const CHANNEL: &str = "comfyd";

/// The least time between two words about changes.
const PAUSE: Duration = Duration::from_millis(50);

/// Changes in one word: a hundred letters each, and a word has room for 8,000 bytes.
const CHANGES_PER_WORD: usize = 60;

/// Changes told at a time. More are not worth it: who is so far behind looks by itself.
const CHANGES_AT_ONCE: usize = 600;

/// Bodies of notices that go with the word, in bytes; longer ones are looked up.
const LONGEST_INLINE: usize = 4096;

/// How long it may take to get a connection to listen on.
const LISTEN_TIMEOUT: Duration = Duration::from_secs(10);

/// Before the next try to listen.
const LISTEN_AGAIN: Duration = Duration::from_secs(1);

const NOTIFY: &str = "SELECT pg_notify($1, word) FROM unnest($2::text[]) word";

/// What is said.
#[derive(Debug, Serialize, Deserialize)]
struct Word {
    /// Whose process.
    from: Uuid,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    changes: Vec<Told>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    notice: Option<Posted>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Posted {
    kind: String,
    name: String,
    /// base64; none when it is too long.
    body: Option<String>,
}

/// The writer's end.
#[derive(Clone)]
pub(super) struct Herald {
    /// Who speaks.
    id: Uuid,
    changes: mpsc::Sender<Changed>,
}

/// What is to be told; it outlives who tells it.
pub(super) struct Waiting(Mutex<mpsc::Receiver<Changed>>);

impl Herald {
    pub(super) fn new(id: Uuid) -> (Self, Waiting) {
        let (changes, waiting) = mpsc::channel(CHANGES_AT_ONCE);
        (Self { id, changes }, Waiting(Mutex::new(waiting)))
    }

    /// Has these told, as far as there is room.
    pub(super) fn tell(&self, changed: &[Changed]) {
        for change in changed {
            if self.changes.try_send(*change).is_err() {
                return;
            }
        }
    }

    /// What is said when a notice is posted.
    pub(super) fn word_of(&self, notice: &Notice) -> Result<String, StoreError> {
        let body = (notice.body.len() <= LONGEST_INLINE).then(|| BASE64_STANDARD.encode(&notice.body));
        let posted = Posted { kind: notice.kind.as_str().to_owned(), name: notice.name.clone(), body };
        json(&Word { from: self.id, changes: Vec::new(), notice: Some(posted) })
    }

    fn words(&self, changed: &[Changed]) -> Result<Vec<String>, StoreError> {
        let word = |changes: &[Changed]| {
            json(&Word { from: self.id, changes: changes.iter().map(Told::from).collect(), notice: None })
        };
        changed.chunks(CHANGES_PER_WORD).map(word).collect()
    }

    /// Tells what waits, until nobody can have anything told any more.
    pub(super) async fn speak(&self, waiting: &Waiting, config: &PgConfig) {
        let mut waiting = waiting.0.lock().await;
        let (mut conn, mut batch) = (None, Vec::new());
        while waiting.recv_many(&mut batch, CHANGES_AT_ONCE).await > 0 {
            let next = Instant::now() + PAUSE;
            if let Err(error) = self.say(&mut conn, config, &batch).await {
                debug!(%error, "could not tell other processes of changes; they look by themselves");
            }
            batch.clear();
            sleep_until(next).await;
        }
        if let Some(conn) = conn {
            hang_up(conn).await;
        }
    }

    async fn say(
        &self,
        conn: &mut Option<PgConnection>,
        config: &PgConfig,
        changed: &[Changed],
    ) -> Result<(), StoreError> {
        let mut open = match conn.take() {
            Some(open) => open,
            None => connect(&config.options).await?,
        };
        let notify = sqlx::query(NOTIFY).bind(CHANNEL).bind(self.words(changed)?);
        answered(config.patience, pooler::rows(&mut open, config.is_pooled, notify))
            .await
            .map_err(|error| store_error(&error))?;
        *conn = Some(open);
        Ok(())
    }
}

/// Listens to the other processes, for ever.
pub(super) async fn listen(store: Arc<PgStore>) {
    let Some(options) = store.config.listening.clone() else { return std::future::pending().await };
    let mut is_told = false;
    loop {
        // A pool of its own each time: one that lost its connection to silence waits for it.
        let pool = PgPoolOptions::new().max_connections(1).acquire_timeout(LISTEN_TIMEOUT);
        let pool = pool.connect_lazy_with(options.clone());
        let mut listener = match PgListener::connect_with(&pool).await {
            Ok(listener) => listener,
            Err(error) => {
                if !std::mem::replace(&mut is_told, true) {
                    warn!(%error, "cannot listen to the other processes on the database; what they do is found by looking");
                }
                sleep(LISTEN_AGAIN).await;
                continue;
            }
        };
        if let Err(error) = hear(&store, &mut listener, &mut is_told).await {
            debug!(%error, "the connection for listening broke");
        }
        drop(listener);
        sleep(LISTEN_AGAIN).await;
    }
}

/// Until the connection breaks.
async fn hear(store: &PgStore, listener: &mut PgListener, is_told: &mut bool) -> Result<(), sqlx::Error> {
    let patience = store.config.patience;
    answered(patience, listener.listen(CHANNEL)).await?;
    if std::mem::take(is_told) {
        info!("listening to the other processes on the database again");
    }
    loop {
        let word = match timeout(patience, listener.try_recv()).await {
            Ok(word) => word?,
            // Nothing was said, or the line is silent: an answer tells.
            Err(_) => {
                answered(patience, sqlx::query("SELECT 1").execute(&mut *listener)).await?;
                continue;
            }
        };
        let Some(word) = word else { return Ok(()) };
        match serde_json::from_str::<Word>(word.payload()) {
            Ok(word) if word.from == store.herald.id => {}
            Ok(word) => store.take_note(word).await,
            // Of another version, or of somebody else who uses the channel.
            Err(error) => debug!(%error, "did not understand a notification"),
        }
    }
}

impl PgStore {
    async fn take_note(&self, word: Word) {
        for change in word.changes {
            _ = self.changes.send(change.into());
        }
        let Some(posted) = word.notice else { return };
        match self.posted(&posted).await {
            Ok(Some(notice)) => _ = self.heard.send(Arc::new(notice)),
            Ok(None) => {}
            Err(error) => debug!(%error, name = posted.name, "could not read a notice"),
        }
    }

    async fn posted(&self, posted: &Posted) -> Result<Option<Notice>, StoreError> {
        let Some(kind) = Kind::parse(&posted.kind) else { return Ok(None) };
        let body = match &posted.body {
            Some(body) => Bytes::from(BASE64_STANDARD.decode(body).map_err(corrupt)?),
            None if kind == Kind::Glimpse => Bytes::new(),
            None => return self.notice(kind, &posted.name).await,
        };
        Ok(Some(Notice { kind, name: posted.name.clone(), body }))
    }
}

#[cfg(test)]
mod tests {
    use comfyd_actors::domain::{id::TaskId, order::Priority, task::TaskState};

    use super::*;

    #[test]
    fn a_word_of_changes_has_room_and_says_all_of_it() {
        let (herald, _waiting) = Herald::new(Uuid::now_v7());
        let state = TaskState::Dispatching;
        let changed = Changed {
            id: TaskId::new(),
            was: Some(state),
            state,
            priority: Priority::new(-100).unwrap(),
            cancelling: false,
            hooked: false,
            of_tenant: true,
            here: true,
        };
        let words = herald.words(&vec![changed; CHANGES_PER_WORD + 1]).unwrap();
        assert!(words.len() == 2 && words.iter().all(|word| word.len() < 8000), "{}", words[0].len());
        let mut word: Word = serde_json::from_str(&words[1]).unwrap();
        assert_eq!(Changed::from(word.changes.remove(0)), Changed { here: false, ..changed });
    }

    #[test]
    fn a_word_of_a_notice_has_room() {
        let (herald, _waiting) = Herald::new(Uuid::now_v7());
        let body = Bytes::from(vec![255; LONGEST_INLINE]);
        let notice = Notice { kind: Kind::Consumer, name: "n".repeat(500), body };
        assert!(herald.word_of(&notice).unwrap().len() < 8000);
        let longer = Notice { body: Bytes::from(vec![0; LONGEST_INLINE + 1]), ..notice };
        assert!(herald.word_of(&longer).unwrap().len() < 1000);
    }
}
