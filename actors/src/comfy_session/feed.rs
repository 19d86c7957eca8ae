//! What the reader of a WebSocket does with each frame, without touching a mailbox: a fast server sends hundreds of progress
//! frames a second, and only the newest counts.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::frames::Outline;
use crate::{
    board::Board,
    domain::{
        id::PromptId,
        progress::{NodeTiming, Progress, Tracker},
        prompt::Signal,
        task::Task,
        time::Timestamp,
    },
    ports::clock::Clock,
    watch::{Preview, Run},
};

/// KiB of pictures that wait to be stored, per session. More come than the storage takes: the run is lost, not the process.
const ROOM: usize = 128 << 10;
/// The least a picture counts for, so that their number is bounded too.
const LEAST: usize = 1 << 10;

/// A frame that changes what is known about a prompt: these alone reach the session's mailbox.
#[derive(Debug)]
pub enum Word {
    /// It runs.
    Running(PromptId),
    /// It is over; `written` when its history is there for certain.
    Over { prompt: PromptId, written: bool },
    /// A node whose result is what it sends sent a picture; none when there was no room for it.
    Frame { prompt: PromptId, node: String, picture: Option<Picture> },
}

impl Word {
    /// Which prompt it is about.
    #[must_use]
    pub fn prompt(&self) -> &PromptId {
        match self {
            Self::Running(prompt) | Self::Over { prompt, .. } | Self::Frame { prompt, .. } => prompt,
        }
    }
}

/// A picture in memory, and the room it takes until it is dropped.
#[derive(Debug)]
pub struct Picture {
    /// The file.
    pub bytes: Bytes,
    _room: OwnedSemaphorePermit,
}

/// Shared by a session and its reader.
#[derive(Clone)]
pub struct Feed(Arc<Inner>);

struct Inner {
    board: Board,
    clock: Arc<dyn Clock>,
    heard: Mutex<Heard>,
    room: Arc<Semaphore>,
}

#[derive(Default)]
struct Heard {
    followed: HashMap<PromptId, Followed>,
    last_status: Timestamp,
    /// What the server runs now: plain pictures name neither prompt nor node.
    current: Option<(PromptId, String)>,
    queue_remaining: u64,
}

struct Followed {
    run: Run,
    tracker: Tracker,
    last_word: Timestamp,
    running_since: Option<Timestamp>,
    /// It is over, and whether its history is known to be written.
    over: Option<bool>,
    /// Nodes whose pictures are results, not previews.
    senders: Vec<String>,
}

impl Feed {
    /// Writes progress to `board`.
    #[must_use]
    pub fn new(board: Board, clock: Arc<dyn Clock>) -> Self {
        Self(Arc::new(Inner { board, clock, heard: Mutex::default(), room: Arc::new(Semaphore::new(ROOM)) }))
    }

    /// Frames of this prompt are about that task from now on.
    pub fn follow(&self, prompt: PromptId, task: &Task, outline: Outline) {
        let Outline { nodes, senders } = outline;
        let followed = Followed {
            run: Run::of(task),
            tracker: Tracker::new(nodes),
            last_word: self.0.clock.steady(),
            running_since: None,
            over: None,
            senders,
        };
        self.lock().followed.insert(prompt, followed);
    }

    /// Nobody cares about this prompt any more. What its nodes took, as far as it was heard.
    pub fn unfollow(&self, prompt: &PromptId) -> Vec<NodeTiming> {
        let Some(followed) = self.lock().followed.remove(prompt) else { return Vec::new() };
        self.0.board.clear_progress(followed.run.task);
        followed.tracker.into_timings(self.0.clock.steady())
    }

    /// Its files are on their way to the server: so many bytes of so many.
    pub fn handing_over(&self, prompt: &PromptId, sent: u64, total: u64) {
        let heard = self.lock();
        // Under the lock, so that no progress is left on the board by a flight that is gone.
        if let Some(followed) = heard.followed.get(prompt) {
            let progress = Progress { sent_bytes: Some(sent), total_bytes: Some(total), ..Progress::default() };
            self.0.board.set_progress(&followed.run, progress);
        }
    }

    /// When a prompt was last heard of.
    #[must_use]
    pub fn last_word(&self, prompt: &PromptId) -> Option<Timestamp> {
        self.lock().followed.get(prompt).map(|followed| followed.last_word)
    }

    /// The node a prompt is in, as far as was heard.
    #[must_use]
    pub fn node(&self, prompt: &PromptId) -> Option<String> {
        self.lock().followed.get(prompt)?.tracker.progress().node
    }

    /// When the last `status` frame came.
    #[must_use]
    pub fn last_status(&self) -> Timestamp {
        self.lock().last_status
    }

    /// How many prompts run or wait on the server, by the last `status` frame.
    #[must_use]
    pub fn queue_remaining(&self) -> u64 {
        self.lock().queue_remaining
    }

    /// Takes in a frame; returns what the session must hear of.
    #[must_use]
    pub fn take(&self, signal: Signal) -> Option<Word> {
        let now = self.0.clock.steady();
        match signal {
            Signal::Status { queue_remaining, .. } => {
                let mut heard = self.lock();
                heard.last_status = now;
                heard.queue_remaining = queue_remaining;
                None
            }
            Signal::Started { prompt } => self.advance(prompt, now, |_| ()),
            Signal::Cached { prompt, nodes } => self.advance(prompt, now, |tracker| tracker.cached(nodes)),
            Signal::Executing { prompt: Some(prompt), node } => {
                self.lock().current = Some((prompt.clone(), node.clone()));
                self.advance(prompt, now, |tracker| tracker.node_started(&node, now))
            }
            Signal::Stepped { prompt, node, value, max } => {
                self.advance(prompt, now, |tracker| tracker.stepped(&node, value, max, now))
            }
            Signal::Ending { prompt } => self.over(prompt, false, now),
            Signal::Ended { prompt } => self.over(prompt, true, now),
            Signal::Preview { prompt, node, content_type, image } => {
                self.picture(prompt.zip(node), content_type, image)
            }
            Signal::Executing { prompt: None, .. } | Signal::Other => None,
        }
    }

    /// A preview, for who watches the task; or a result, when the node that sent it keeps no file. Those without a name are of what runs
    /// now, as servers run one at a time.
    fn picture(&self, of: Option<(PromptId, String)>, content_type: &'static str, image: Bytes) -> Option<Word> {
        let mut heard = self.lock();
        let (prompt, node) = of.or_else(|| heard.current.clone())?;
        let now = self.0.clock.steady();
        let followed = heard.followed.get_mut(&prompt)?;
        followed.last_word = now;
        if content_type != "image/png" || !followed.senders.contains(&node) {
            let watch = self.0.board.watch();
            if watch.wants_previews(followed.run.task) {
                watch.show_preview(&followed.run, Preview { node: Some(node), content_type, image });
            }
            return None;
        }
        drop(heard);
        let cost = u32::try_from((image.len() >> 10).clamp(LEAST, ROOM)).ok()?;
        let room = self.0.room.clone().try_acquire_many_owned(cost);
        let picture = room.ok().map(|room| Picture { bytes: image, _room: room });
        Some(Word::Frame { prompt, node, picture })
    }

    fn advance(&self, prompt: PromptId, now: Timestamp, update: impl FnOnce(&mut Tracker)) -> Option<Word> {
        let mut heard = self.lock();
        let followed = heard.followed.get_mut(&prompt)?;
        update(&mut followed.tracker);
        followed.last_word = now;
        let first = followed.running_since.is_none();
        let elapsed = now.since(*followed.running_since.get_or_insert(now));
        let mut progress = followed.tracker.progress();
        progress.eta = self.0.board.remaining(followed.run.workflow.as_deref(), elapsed, progress.percent);
        self.0.board.set_progress(&followed.run, progress);
        first.then_some(Word::Running(prompt))
    }

    /// The last node ends with its prompt. Told once, and once more when its history is written: the mailbox has no limit, and a server
    /// that repeats itself, or speaks of prompts that are not ours, must not fill it.
    fn over(&self, prompt: PromptId, written: bool, now: Timestamp) -> Option<Word> {
        let mut heard = self.lock();
        let followed = heard.followed.get_mut(&prompt)?;
        followed.tracker.ended(now);
        let known = followed.over.replace(written || followed.over == Some(true));
        (known.is_none() || (written && known == Some(false))).then_some(Word::Over { prompt, written })
    }

    /// The critical sections above cannot panic half-way, so a poisoned lock is still good.
    fn lock(&self) -> MutexGuard<'_, Heard> {
        self.0.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
