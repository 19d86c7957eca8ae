//! Where a task's time went.

use std::time::Duration;

use super::Task;
use crate::domain::time::Timestamp;

/// What each stage of the newest attempt took; `None` for what has not ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stages {
    /// Waiting for its turn, since it was created, due, or asked for again.
    pub queued: Option<Duration>,
    /// Until a server took it.
    pub prepare: Option<Duration>,
    /// On the server.
    pub execute: Option<Duration>,
    /// Storing its outputs.
    pub upload: Option<Duration>,
    /// From acceptance to end.
    pub total: Option<Duration>,
}

impl Task {
    /// Where its time went. A stage that was never left lasted to the end.
    #[must_use]
    pub fn stages(&self) -> Stages {
        let between = |from: Option<Timestamp>, to: Option<Timestamp>| Some(to?.since(from?));
        let or_end = |moment: Option<Timestamp>| moment.or(self.finished_at);
        Stages {
            queued: between(Some(self.queued_at), or_end(self.started_at)),
            prepare: between(self.started_at, or_end(self.executing_at)),
            execute: between(self.executing_at, or_end(self.uploading_at)),
            upload: between(self.uploading_at, self.finished_at),
            total: between(Some(self.created_at), self.finished_at),
        }
    }
}
