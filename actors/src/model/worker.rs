//! One consumer process as far as one task goes: its queue, session and uploads in one.

use std::hash::{Hash, Hasher};

use super::{
    names::Names,
    server::{Glimpse, hash_glimpse},
    time::Leap,
};
use crate::{
    comfy_session::flight::Flight,
    domain::{
        id::PromptId,
        task::{Change, Fence, Task},
        time::Timestamp,
    },
};

/// What a worker has of the task.
#[derive(Debug, Clone, Default)]
pub struct Worker {
    /// With its session.
    pub flight: Option<Flight>,
    /// Its POST.
    pub post: Option<Post>,
    /// What else the session does about it.
    pub doing: Doing,
    /// With its uploads.
    pub uploading: Option<Task>,
    /// With its queue, which records the end.
    pub settling: Option<Ending>,
    /// Evidence on its way into the store.
    pub writes: Vec<(Fence, Change)>,
    /// As far as it knows its lease holds.
    pub open: bool,
}

/// An end to be recorded.
#[derive(Debug, Clone)]
pub struct Ending {
    pub fence: Fence,
    /// The prompt it is about.
    pub dispatch: i64,
    pub change: Change,
}

/// A POST without an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Post {
    pub dispatch: i64,
    pub sent: bool,
}

/// What was named by [`Flight::next`] and is under way.
#[derive(Debug, Clone, Default)]
pub enum Doing {
    #[default]
    Nothing,
    /// A look that began then. So far it found this, as the first of its two reads, or as the answer.
    Look { began: Timestamp, first: Glimpse },
    /// Asking the server to stop it.
    Stop { prompt: PromptId, next: Asking },
}

/// What is next in asking the server to stop a prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Asking {
    /// `/api/jobs/{id}/cancel`.
    Cancel,
    /// Delete it from the queue, and no more.
    Withdraw,
    /// Delete it from the queue, then interrupt it if it runs.
    Delete,
    /// See whether it runs.
    See,
    /// Interrupt it.
    Interrupt,
    /// Hear that all this was done.
    Answer,
}

impl Worker {
    /// Under which fence it has the task.
    pub fn fence(&self) -> Option<Fence> {
        let flight = self.flight.as_ref().map(|flight| flight.task.fence);
        flight.or(self.uploading.as_ref().map(|task| task.fence)).or(self.settling.as_ref().map(|ending| ending.fence))
    }

    /// The POST it is about to send.
    pub fn unsent(&self) -> Option<i64> {
        self.post.filter(|post| !post.sent).map(|post| post.dispatch)
    }

    /// Whether it still could do harm when all its writes are refused. To stop the prompt of a cancelled task is none.
    pub fn is_dangerous(&self) -> bool {
        self.unsent().is_some() || self.flight.as_ref().is_some_and(|flight| flight.is_dangerous(self.open))
    }

    pub fn age(&mut self, leap: Leap) {
        if let Doing::Look { began, .. } = &mut self.doing {
            *began = leap.over(*began);
        }
        if let Some(flight) = &mut self.flight {
            flight.age(leap);
        }
    }

    /// Everything that what it does next may depend on.
    pub fn hash(&self, names: &Names, newest: Fence, hasher: &mut impl Hasher) {
        // An old fence is an old fence: it never becomes the newest again.
        let is_newest = |fence: Fence| fence == newest;
        // Whether it is sure of its lease matters to sending only.
        (self.open && self.flight.as_ref().is_some_and(Flight::is_unsent)).hash(hasher);
        self.flight.is_some().hash(hasher);
        if let Some(flight) = &self.flight {
            is_newest(flight.task.fence).hash(hasher);
            flight.hash_future(|name| names.number(name), hasher);
        }
        self.post.hash(hasher);
        std::mem::discriminant(&self.doing).hash(hasher);
        match &self.doing {
            Doing::Nothing => {}
            Doing::Look { began, first } => {
                began.hash(hasher);
                hash_glimpse(first, names, hasher);
            }
            Doing::Stop { prompt, next } => (names.number(prompt), next).hash(hasher),
        }
        self.uploading.as_ref().map(|task| (is_newest(task.fence), task.dispatch)).hash(hasher);
        self.settling.is_some().hash(hasher);
        if let Some(Ending { fence, dispatch, change }) = &self.settling {
            (is_newest(*fence), dispatch).hash(hasher);
            hash_change(change, names, hasher);
        }
        self.writes.len().hash(hasher);
        for (fence, change) in &self.writes {
            is_newest(*fence).hash(hasher);
            hash_change(change, names, hasher);
        }
    }
}

fn hash_change(change: &Change, names: &Names, hasher: &mut impl Hasher) {
    std::mem::discriminant(change).hash(hasher);
    match change {
        Change::Accept { prompt } => names.number(prompt).hash(hasher),
        Change::Release(reason) => std::mem::discriminant(reason).hash(hasher),
        _ => {}
    }
}
