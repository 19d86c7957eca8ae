//! What is known when everything is over: what clients were told, what the servers did, what lies in the database and the storage.

use std::collections::BTreeMap;

use fake_comfyui::Event;

use crate::receiver::Heard;

/// Everything a run left behind.
#[derive(Debug, Clone, Default)]
pub struct History {
    /// What clients were told, in the order in which they were.
    pub told: Vec<Told>,
    /// The log of each ComfyUI server.
    pub servers: Vec<Vec<Event>>,
    /// The tasks of the database.
    pub rows: Vec<Row>,
    /// What lies in the storage, by key.
    pub objects: BTreeMap<String, Object>,
    /// What SQLite says about its file.
    pub integrity: String,
    /// What the receiver of webhooks heard, in order; again when it was sent again.
    pub messages: Vec<Message>,
    /// Executions that what was done to the processes explains, beyond what the logs show: by task.
    pub pardons: BTreeMap<String, usize>,
    /// What runs that were given up left in the storage had the time to be deleted.
    pub is_tidied: bool,
}

impl History {
    /// The task that an object is of, and the number of the dispatch that stored it: `{tenant}/{date}/{task}_{dispatch}_{output}`.
    pub fn maker_of(&self, key: &str) -> Option<(&Row, i64)> {
        let mut parts = key.rsplit('/').next()?.splitn(3, '_');
        let (task, dispatch) = (parts.next()?, parts.next()?.parse().ok()?);
        Some((self.rows.iter().find(|row| row.id == task)?, dispatch))
    }

    /// Objects of earlier dispatches than the newest of tasks that are over, and whatever a complete task does not name.
    pub fn left_behind(&self) -> Vec<&str> {
        let is_named = |row: &Row, key: &str| row.outputs.iter().any(|output| output.key.as_deref() == Some(key));
        let is_left = |key: &&str| {
            self.maker_of(key).is_some_and(|(row, dispatch)| {
                is_final(&row.state) && !is_named(row, key) && (dispatch < row.dispatch || row.state == "completed")
            })
        };
        self.objects.keys().map(String::as_str).filter(is_left).collect()
    }
}

/// Something a client was told.
#[derive(Debug, Clone)]
pub struct Told {
    /// When, in milliseconds since 1970: by the clock of the servers' logs.
    pub at: u64,
    /// What.
    pub word: Word,
}

/// What a client can be told.
#[derive(Debug, Clone)]
pub enum Word {
    /// A creation was answered with a task.
    Accepted {
        /// Its `Idempotency-Key`.
        key: String,
        /// The colour its picture shall have, where that is known beforehand.
        color: Option<u32>,
        /// The task.
        task: String,
    },
    /// A creation was not answered, or with a 503: it may have made a task.
    Unanswered { key: String },
    /// A task was read.
    Seen(View),
    /// A cancellation was answered.
    Cancelled(View),
    /// A client's wish to have it done again was answered.
    Reopened(View),
    /// An output was downloaded.
    Read { task: String, index: u32, bytes: u64, sha256: String },
    /// An event came over a stream.
    Heard { seq: i64, task: String },
}

/// A task as the API shows it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct View {
    pub task: String,
    pub status: String,
    pub generation: i64,
    pub attempt: i64,
    pub finished_at: Option<String>,
    pub outputs: Vec<Output>,
}

impl View {
    /// Whether this is an end.
    pub fn is_final(&self) -> bool {
        is_final(&self.status)
    }
}

/// Whether a state or a stage is an end.
pub fn is_final(state: &str) -> bool {
    matches!(state, "completed" | "failed" | "cancelled")
}

/// An output as the API shows it.
#[derive(Debug, Clone, PartialEq)]
pub struct Output {
    pub index: u32,
    pub bytes: u64,
    pub sha256: String,
}

/// A task in the database.
#[derive(Debug, Clone, Default)]
pub struct Row {
    pub id: String,
    pub state: String,
    pub generation: i64,
    pub attempt: i64,
    pub dispatch: i64,
    /// The keys of the requests that made it.
    pub keys: Vec<String>,
    /// Its manifest.
    pub outputs: Vec<Stored>,
    /// Its story, in order.
    pub facts: Vec<Fact>,
    /// Stages that a webhook is told of.
    pub told_of: Vec<String>,
    /// The messages of its outbox: their numbers and stages.
    pub posted: Vec<(i64, String)>,
}

/// A message to a webhook, as it came.
#[derive(Debug, Clone, PartialEq)]
pub struct Message {
    pub task: String,
    pub number: i64,
    pub stage: String,
}

impl Message {
    pub fn of(heard: Heard) -> Self {
        let stage = heard.kind().trim_start_matches("task.").to_owned();
        Self { task: heard.task().to_owned(), number: heard.number(), stage }
    }
}

/// A line of a manifest.
#[derive(Debug, Clone)]
pub struct Stored {
    pub index: u32,
    /// Where it is stored, if it is.
    pub key: Option<String>,
    pub bytes: u64,
    pub sha256: String,
}

/// An event in the database.
#[derive(Debug, Clone)]
pub struct Fact {
    pub seq: i64,
    /// The stage that began, unless it is about an output.
    pub stage: Option<String>,
}

/// An object in the storage.
#[derive(Debug, Clone, PartialEq)]
pub struct Object {
    pub bytes: u64,
    pub sha256: String,
    /// The colour of its first pixel, when it is a picture.
    pub color: Option<u32>,
}
