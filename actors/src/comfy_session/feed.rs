//! What the reader of a WebSocket does with each frame, without touching a mailbox: a fast server sends hundreds of progress
//! frames a second, and only the newest counts.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::{
    board::Board,
    domain::{
        id::{PromptId, TaskId},
        progress::{NodeTiming, Tracker},
        prompt::Signal,
        time::Timestamp,
    },
    ports::clock::Clock,
};

/// A frame that changes what is known about a prompt: these alone reach the session's mailbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Word {
    /// It runs.
    Running(PromptId),
    /// It is over; `written` when its history is there for certain.
    Over { prompt: PromptId, written: bool },
}

/// Shared by a session and its reader.
#[derive(Clone)]
pub struct Feed(Arc<Inner>);

struct Inner {
    board: Board,
    clock: Arc<dyn Clock>,
    heard: Mutex<Heard>,
}

#[derive(Default)]
struct Heard {
    followed: HashMap<PromptId, Followed>,
    last_status: Timestamp,
}

struct Followed {
    task: TaskId,
    tracker: Tracker,
    last_word: Timestamp,
    running: bool,
}

impl Feed {
    /// Writes progress to `board`.
    #[must_use]
    pub fn new(board: Board, clock: Arc<dyn Clock>) -> Self {
        Self(Arc::new(Inner { board, clock, heard: Mutex::default() }))
    }

    /// Frames of this prompt are about that task from now on.
    pub fn follow(&self, prompt: PromptId, task: TaskId, nodes: usize) {
        let last_word = self.0.clock.now();
        let followed = Followed { task, tracker: Tracker::new(nodes), last_word, running: false };
        self.lock().followed.insert(prompt, followed);
    }

    /// Nobody cares about this prompt any more. What its nodes took, as far as it was heard.
    pub fn unfollow(&self, prompt: &PromptId) -> Vec<NodeTiming> {
        let Some(followed) = self.lock().followed.remove(prompt) else { return Vec::new() };
        self.0.board.clear_progress(followed.task);
        followed.tracker.into_timings(self.0.clock.now())
    }

    /// When a prompt was last heard of.
    #[must_use]
    pub fn last_word(&self, prompt: &PromptId) -> Option<Timestamp> {
        self.lock().followed.get(prompt).map(|followed| followed.last_word)
    }

    /// When the last `status` frame came.
    #[must_use]
    pub fn last_status(&self) -> Timestamp {
        self.lock().last_status
    }

    /// Takes in a frame; returns what the session must hear of.
    #[must_use]
    pub fn take(&self, signal: Signal) -> Option<Word> {
        let now = self.0.clock.now();
        match signal {
            Signal::Status { .. } => {
                self.lock().last_status = now;
                None
            }
            Signal::Started { prompt } => self.advance(prompt, now, |_| ()),
            Signal::Cached { prompt, nodes } => self.advance(prompt, now, |tracker| tracker.cached(nodes)),
            Signal::Executing { prompt: Some(prompt), node } => {
                self.advance(prompt, now, |tracker| tracker.node_started(&node, now))
            }
            Signal::Stepped { prompt, node, value, max } => {
                self.advance(prompt, now, |tracker| tracker.stepped(&node, value, max, now))
            }
            Signal::Ending { prompt } => Some(self.over(prompt, false, now)),
            Signal::Ended { prompt } => Some(self.over(prompt, true, now)),
            Signal::Executing { prompt: None, .. } | Signal::Preview { .. } | Signal::Other => None,
        }
    }

    fn advance(&self, prompt: PromptId, now: Timestamp, update: impl FnOnce(&mut Tracker)) -> Option<Word> {
        let mut heard = self.lock();
        let followed = heard.followed.get_mut(&prompt)?;
        update(&mut followed.tracker);
        followed.last_word = now;
        self.0.board.set_progress(followed.task, followed.tracker.progress());
        let first = !std::mem::replace(&mut followed.running, true);
        first.then_some(Word::Running(prompt))
    }

    /// The last node ends with its prompt.
    fn over(&self, prompt: PromptId, written: bool, now: Timestamp) -> Word {
        if let Some(followed) = self.lock().followed.get_mut(&prompt) {
            followed.tracker.ended(now);
        }
        Word::Over { prompt, written }
    }

    /// The critical sections above cannot panic half-way, so a poisoned lock is still good.
    fn lock(&self) -> MutexGuard<'_, Heard> {
        self.0.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
