//! What a consumer and an API say to each other: `POST /api/consumer/{verb}` with one of these as JSON, answered with a `Result` as JSON
//! when the request was understood. Fields that are not known are ignored, so that the two may differ in version; a change that an older
//! side would misunderstand is another [`VERSION`].

use std::time::Duration;

use base64::{Engine, engine::general_purpose::STANDARD};
use comfyd_actors::{
    domain::{
        id::{TaskId, WorkerId},
        input::InputId,
        options::StorageChoice,
        progress::NodeTiming,
        task::{Change, Fence},
        workflow::Kind as FileKind,
    },
    ports::{
        object_store::Written,
        store::{Changed, StoreError},
        wire::{Kind, Notice},
    },
};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// The version of all this.
pub const VERSION: &str = "1";
/// The header that says which version a consumer speaks.
pub const VERSION_HEADER: &str = "comfyd-protocol";
/// How long the API waits for something to tell: below the shortest patience of proxies in use, which is 30 s.
pub const HEARING: Duration = Duration::from_secs(25);

/// `apply`: a change to a held task. May be repeated until it is answered.
#[derive(Debug, Serialize, Deserialize)]
pub struct Apply {
    /// Which task.
    pub id: TaskId,
    /// The holder's fence.
    pub fence: Fence,
    /// What happens to it.
    pub change: Change,
}

/// `note-run`: what a run spent on each node.
#[derive(Debug, Serialize, Deserialize)]
pub struct Run {
    /// Which task.
    pub id: TaskId,
    /// Which run of it.
    pub dispatch: i64,
    /// The times.
    pub nodes: Vec<NodeTiming>,
}

/// `renew`: the heartbeat, whose answer tells which tasks are to end.
#[derive(Debug, Serialize, Deserialize)]
pub struct Renewal {
    /// Whose leases.
    pub worker: WorkerId,
    /// How long they last from now on.
    pub lease: Duration,
    /// Which.
    pub held: Vec<(TaskId, Fence)>,
}

/// `held` and `take-over`: what somebody holds, or their predecessors.
#[derive(Debug, Serialize, Deserialize)]
pub struct Own {
    /// Who asks.
    pub worker: WorkerId,
    /// How long new leases last.
    pub lease: Duration,
}

/// `listen`: waits for something to hear.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Listen {
    /// How far one has heard; `None` = from now on.
    pub after: Option<Cursor>,
}

/// A place in what one API passes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cursor {
    /// Which start of which API.
    pub source: Uuid,
    /// How far.
    pub number: u64,
}

/// What happened. May be nothing, and need not be all: whoever listens looks now and then as well.
#[derive(Debug, Serialize, Deserialize)]
pub struct Heard {
    /// Where to go on.
    pub cursor: Cursor,
    /// What others did to tasks.
    pub changes: Vec<Changed>,
    /// What others posted.
    pub notices: Vec<Posted>,
}

/// A notice on its way.
#[derive(Debug, Serialize, Deserialize)]
pub struct Posted {
    /// What it is about.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// What it says, in base64.
    pub body: String,
}

impl Posted {
    /// Packs a notice.
    #[must_use]
    pub fn of(notice: &Notice) -> Self {
        let Notice { kind, name, body } = notice;
        Self { kind: kind.as_str().to_owned(), name: name.clone(), body: STANDARD.encode(body) }
    }

    /// Unpacks it; `None` when it is of a kind that this version does not know.
    #[must_use]
    pub fn read(self) -> Option<Notice> {
        let body = STANDARD.decode(self.body).ok()?.into();
        Some(Notice { kind: Kind::parse(&self.kind)?, name: self.name, body })
    }
}

/// `post`: a notice to be left.
#[derive(Debug, Serialize, Deserialize)]
pub struct Post {
    /// The notice.
    #[serde(flatten)]
    pub notice: Posted,
    /// For how long.
    pub keep: Duration,
}

/// `withdraw`, and `notices` without a name.
#[derive(Debug, Serialize, Deserialize)]
pub struct Named {
    /// Of which kind.
    pub kind: String,
    /// Which.
    #[serde(default)]
    pub name: String,
}

/// `find` a file.
#[derive(Debug, Serialize, Deserialize)]
pub struct Find {
    /// Which.
    pub id: InputId,
}

/// `fetched`: what was fetched for a task.
#[derive(Debug, Serialize, Deserialize)]
pub struct Fetched {
    /// Which task.
    pub task: TaskId,
}

/// `fetch` a file for a task.
#[derive(Debug, Serialize, Deserialize)]
pub struct Fetch {
    /// Which task.
    pub task: TaskId,
    /// Where it lies.
    pub url: String,
    /// What it should be.
    pub kind: Option<FileKind>,
}

/// `place`: where an output goes; also the query of the `PUT` that brings it.
#[derive(Debug, Serialize, Deserialize)]
pub struct Place {
    /// Its key without what a target puts before it.
    pub name: String,
    /// Its media type.
    pub content_type: String,
    /// Its length, when it is known.
    pub bytes: Option<u64>,
    /// Where its task wants it.
    pub choice: StorageChoice,
    /// For how long the target it would go to has been away.
    pub away: Duration,
}

/// The answer to that.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Placed {
    /// The target's name.
    pub target: String,
    /// The whole of the key.
    pub key: String,
    /// The target of tasks that do not say.
    pub usual: String,
}

/// The answer to the `PUT` of an output.
#[derive(Debug, Serialize, Deserialize)]
pub struct Kept {
    /// Where it is.
    pub placed: Placed,
    /// What was stored.
    pub written: Written,
}

/// An answer that holds nothing.
pub type Done = Result<(), StoreError>;
