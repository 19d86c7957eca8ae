//! One task on one backend, from its intent to its end: what is known about its prompt, and what to do next.
//!
//! Pure. Events change what is known ([`Flight::on_submitted`] and its siblings); [`Flight::next`] looks at what is known and names the
//! one thing to do now. It is level-triggered: losing an event, getting it twice or out of order only makes the answer later,
//! because the server is asked in the end.

use std::{sync::Arc, time::Duration};

#[cfg(test)]
mod ageing;
mod files;
mod heard;
mod room;
mod signs;
mod stopping;
mod stream;

use files::{Files, Next};
pub use files::{Prepared, Trouble, Unprepared};
use room::Room;
pub use stopping::Stop;
use stream::Stream;

use super::frames::{Delivery, Frames};
use crate::{
    domain::{
        artifact::Artifact,
        error::{ErrorCode, TaskError},
        id::{PromptId, TaskId},
        options::TaskOptions,
        prompt::{Finished, Outcome},
        reconcile::Doubt,
        task::{Change, Release, Task},
        time::Timestamp,
    },
    ports::comfy::Wanted,
    system::SessionSettings,
};

/// Time between two questions about a prompt nobody speaks of.
const ASK_EVERY: Duration = Duration::from_secs(1);
/// Time between two reads of a history that should be there and is not yet.
const REREAD_EVERY: Duration = Duration::from_millis(100);
/// A history that is missing this long after the prompt's end is looked for in every other way.
const HISTORY_LATE: Duration = Duration::from_secs(10);
/// Every so many cheap questions a conclusive one: only that one can tell that the server forgot the prompt.
const LOOK_EVERY: u32 = 5;

/// How a task came to this session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// Just claimed: its prompt was never sent.
    Claimed,
    /// Just claimed, but a lost record may hide that its prompt was sent.
    ClaimedUnsure,
    /// Ours or a dead predecessor's: whatever was sent has left its sender.
    Resumed,
    /// Its holder let the lease expire, and may only be paused: a POST of his may still come.
    Expired,
}

/// What is known about the prompt.
#[derive(Debug, Clone, PartialEq)]
enum Fate {
    /// Not sent.
    Unsent,
    /// Being sent right now.
    Sending,
    /// Perhaps on the server.
    Unclear(Doubt),
    /// On the server.
    Accepted { running: bool },
    /// Refused over a file that was handed over earlier and may be gone by now.
    Stale,
    /// Over, by its history.
    Over(Finished),
    /// Not on the server, and it never will be.
    Gone { was_accepted: bool, was_running: bool },
    /// It cannot be sent, or the server refused it.
    Refused(TaskError),
}

/// The one thing to do now.
#[derive(Debug, Clone, PartialEq)]
pub enum Act {
    /// Hand the graph's files to the server.
    Prepare,
    /// Have the server free its memory.
    MakeRoom,
    /// Send the prompt.
    Submit,
    /// Look for it, conclusively.
    Look(Wanted),
    /// Read its history.
    ReadHistory(PromptId),
    /// Ask the server to stop it.
    Stop(PromptId),
    /// Ask the server for it back, unless it runs.
    Withdraw(PromptId),
    /// It succeeded: record what is to be stored, then store it.
    Plan(Vec<Artifact>),
    /// It is over in another way: record that. `orphan` may still be on the server.
    Settle { change: Change, orphan: Option<PromptId> },
}

impl Act {
    /// The same on a server that was broken already: what breaks there is not the task's doing.
    pub(super) fn without_blame(self) -> Self {
        match self {
            Self::Settle { change: Change::Elsewhere { error, .. }, orphan } => {
                Self::Settle { change: Change::Elsewhere { error, blamed: false }, orphan }
            }
            other => other,
        }
    }
}

/// A task on a backend.
#[derive(Debug, Clone)]
pub struct Flight {
    /// The task as last recorded.
    pub task: Task,
    /// What is done differently for it.
    pub options: Arc<TaskOptions>,
    /// What it sends over the WebSocket.
    pub frames: Frames,
    /// When it was taken: the deadline's stretch.
    pub stretch: u64,
    fate: Fate,
    files: Files,
    room: Room,
    verify: bool,
    /// One act is being done, other than those that take their time.
    busy: bool,
    stop: Option<Stop>,
    stop_sent_at: Option<Timestamp>,
    stop_asked_at: Option<Timestamp>,
    /// When the server had heard of the stop.
    stop_heard_at: Option<Timestamp>,
    /// When the prompt was first seen running.
    running_since: Option<Timestamp>,
    /// Whether its frames come to us.
    stream: Stream,
    /// What its end says about the server was told.
    sign_told: bool,
    /// When its end was first heard of.
    end_heard_at: Option<Timestamp>,
    /// Since when no answer about it could be read.
    unread_since: Option<Timestamp>,
    /// When its history was read.
    over_at: Timestamp,
    next_ask: Timestamp,
    asks: u32,
    /// What the server said when it failed to take it.
    post_failed: Option<String>,
    /// Since when the server is known to have it: a look that began before may have been too early to see it.
    there_since: Timestamp,
    /// Its acceptance is known and not recorded.
    unrecorded: bool,
}

impl Flight {
    /// A task that just arrived.
    #[must_use]
    pub fn new(
        task: Task,
        options: Arc<TaskOptions>,
        origin: Origin,
        now: Timestamp,
        settings: &SessionSettings,
    ) -> Self {
        let accepted = task.prompt.as_ref().is_some_and(|prompt| prompt.accepted);
        let fate = match origin {
            Origin::Claimed | Origin::ClaimedUnsure => Fate::Unsent,
            _ if accepted => Fate::Unclear(Doubt::confirmed(now)),
            Origin::Resumed => Fate::Unclear(Doubt::unconfirmed(now, Duration::ZERO, settings.validate_grace)),
            Origin::Expired => Fate::Unclear(Doubt::unconfirmed(now, settings.post_timeout, settings.validate_grace)),
        };
        let stop = task.is_cancelling().then_some(Stop::Client);
        Self {
            stop_asked_at: stop.as_ref().map(|_| now),
            files: Files::of(&options),
            room: Room::of(task.ooms),
            task,
            options,
            frames: Frames::default(),
            stretch: 0,
            fate,
            verify: origin == Origin::ClaimedUnsure,
            busy: false,
            stop,
            stop_sent_at: None,
            stop_heard_at: None,
            running_since: None,
            stream: Stream::default(),
            sign_told: false,
            end_heard_at: None,
            unread_since: None,
            over_at: now,
            next_ask: now,
            asks: 0,
            post_failed: None,
            there_since: now,
            unrecorded: false,
        }
    }

    /// The id the server knows it by, as far as we know.
    #[must_use]
    pub fn prompt(&self) -> PromptId {
        self.task
            .prompt
            .as_ref()
            .map_or_else(|| PromptId::of(self.task.id, self.task.dispatch), |prompt| prompt.id.clone())
    }

    /// Whether its POST never left us.
    #[must_use]
    pub fn was_not_sent(&self) -> bool {
        self.fate == Fate::Gone { was_accepted: false, was_running: false }
    }

    /// Whether its POST is still to come.
    #[must_use]
    pub fn is_unsent(&self) -> bool {
        self.fate == Fate::Unsent
    }

    /// Whether nothing but its turn is missing for its POST.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        let there = matches!(self.files, Files::None | Files::There(_));
        self.fate == Fate::Unsent && there && self.stop.is_none() && !self.verify && self.room != Room::Making
    }

    /// Another session began its POST, which may still be under way: its answer would tell. False when that is known better already.
    pub fn may_be_answered(&mut self, now: Timestamp, settings: &SessionSettings) -> bool {
        let accepted = self.task.prompt.as_ref().is_some_and(|prompt| prompt.accepted);
        let may = !accepted && matches!(self.fate, Fate::Unclear(_));
        if may {
            // Looked for meanwhile, because its frames go to a connection that is gone.
            self.fate = Fate::Unclear(Doubt::unconfirmed(now, settings.post_timeout, settings.validate_grace));
        }
        may
    }

    /// Its place in the order.
    #[must_use]
    pub fn place(&self) -> (i64, TaskId) {
        (self.task.sort_key, self.task.id)
    }

    /// Whether it needs the server for itself: it ran out of memory before.
    #[must_use]
    pub fn runs_alone(&self) -> bool {
        self.task.ooms > 0
    }

    /// Whether its POST is under way.
    #[must_use]
    pub fn is_sending(&self) -> bool {
        self.fate == Fate::Sending
    }

    /// Whether it is being sent, or memory was freed so that it can be.
    #[must_use]
    pub fn is_going(&self) -> bool {
        self.is_sending() || self.fate == Fate::Unsent && matches!(self.room, Room::Making | Room::Made)
    }

    /// Whether the server may be working on it, or will be when it comes to it.
    #[must_use]
    pub fn is_on_server(&self) -> bool {
        self.occupies_backend() && self.fate != Fate::Unsent
    }

    /// Evidence that the server has it, to be recorded: the id it goes by there. Told once.
    #[must_use]
    pub fn take_evidence(&mut self) -> Option<PromptId> {
        std::mem::take(&mut self.unrecorded).then(|| self.prompt())
    }

    /// The graph to be sent when it is not the task's own, because files' names were put in.
    #[must_use]
    pub fn graph(&self) -> Option<Arc<str>> {
        match &self.files {
            Files::There(prepared) => Some(prepared.graph.clone()),
            _ => None,
        }
    }

    /// Whether it was refused over a file the server may have lost.
    #[must_use]
    pub fn is_stale(&self) -> bool {
        self.fate == Fate::Stale
    }

    /// Whether it waits here for its turn, in the server's queue or because its files are on their way, and nobody wants it back yet.
    #[must_use]
    pub fn is_prepared(&self) -> bool {
        let waits = match self.fate {
            Fate::Unsent => !self.verify,
            Fate::Accepted { running } => !running,
            _ => false,
        };
        waits && self.end_heard_at.is_none() && self.stop.is_none()
    }

    /// Whether it is on the server and only its frames can tell how it goes.
    #[must_use]
    pub fn awaits_word(&self) -> bool {
        matches!(self.fate, Fate::Accepted { .. }) && self.end_heard_at.is_none() && self.stop.is_none()
    }

    /// Whether the server may still be working on it.
    #[must_use]
    pub fn occupies_backend(&self) -> bool {
        !matches!(self.fate, Fate::Over(_) | Fate::Gone { .. } | Fate::Refused(_) | Fate::Stale)
            && self.end_heard_at.is_none()
    }

    /// Names the one thing to do now, and takes note that it is being done; `None` when there is nothing or when something is.
    pub fn next(&mut self, now: Timestamp, online: bool, settings: &SessionSettings) -> Option<Act> {
        if self.busy {
            return None;
        }
        self.watch_the_clock(now);
        let act = self.decide(now, online, settings)?;
        // Files may take minutes, and so may memory and an answer: none of them holds up a cancellation.
        self.busy = !matches!(act, Act::Prepare | Act::MakeRoom | Act::Submit);
        match &act {
            Act::Prepare => self.files.begin(),
            Act::MakeRoom => self.room = Room::Making,
            Act::Submit => {
                self.fate = Fate::Sending;
                self.stream.begin(now);
            }
            Act::Look(_) | Act::ReadHistory(_) => self.asks += 1,
            Act::Stop(_) | Act::Withdraw(_) => (self.stop_sent_at, self.stop_heard_at) = (Some(now), None),
            Act::Plan(_) | Act::Settle { .. } => {}
        }
        Some(act)
    }

    fn decide(&self, now: Timestamp, online: bool, settings: &SessionSettings) -> Option<Act> {
        let due = now >= self.next_ask;
        match &self.fate {
            Fate::Unsent if self.stop.is_some() => {
                Some(self.settle(self.after_stop(), self.verify.then(|| self.prompt())))
            }
            Fate::Unsent if self.verify => due.then(|| self.look()),
            Fate::Unsent => match self.files {
                Files::None | Files::There(_) => self.room.then_send().filter(|_| online),
                Files::Wanted { .. } => (online && due).then_some(Act::Prepare),
                Files::UnderWay { .. } => None,
            },
            Fate::Sending if self.is_overdue(now) && self.must_stop(now) => Some(Act::Stop(self.prompt())),
            Fate::Sending => (due && self.is_overdue(now)).then(|| self.look()),
            Fate::Over(finished) => self.ending(finished, now),
            Fate::Gone { was_accepted, was_running } => {
                Some(self.settle(self.after_loss(*was_accepted, *was_running), None))
            }
            Fate::Refused(error) => Some(self.settle(Change::after(error.clone()), None)),
            Fate::Stale => Some(self.settle(self.after_stop(), None)),
            Fate::Accepted { .. } | Fate::Unclear(_) if self.is_beyond_stopping(now, settings) => {
                Some(self.settle(self.after_defiance(), Some(self.prompt())))
            }
            Fate::Accepted { .. } | Fate::Unclear(_) if online && self.is_lost(now, settings) => self.give_up(),
            Fate::Accepted { .. } | Fate::Unclear(_) if self.must_stop(now) => Some(match self.stop {
                Some(Stop::Recall) => Act::Withdraw(self.prompt()),
                _ => Act::Stop(self.prompt()),
            }),
            Fate::Accepted { .. } => due.then(|| self.ask(now)),
            Fate::Unclear(_) => due.then(|| self.look()),
        }
    }

    /// As good as on a server that is away, though it is there. For one that is away the session decides: it knows whether there is another.
    fn is_lost(&self, now: Timestamp, settings: &SessionSettings) -> bool {
        self.unread_since.is_some_and(|since| now.since(since) >= settings.backend_lost_after)
    }

    /// Cheap while it runs, conclusive now and then, and whenever we want it gone.
    fn ask(&self, now: Timestamp) -> Act {
        let in_turn = self.asks % LOOK_EVERY == LOOK_EVERY - 1;
        let conclusive = in_turn || self.stop_sent_at.is_some() || self.end_heard_at.is_some();
        if conclusive && !self.awaits_history(now) { self.look() } else { Act::ReadHistory(self.prompt()) }
    }

    /// It is over and its history may not be written yet: it may be nowhere on the server, and that means nothing.
    fn awaits_history(&self, now: Timestamp) -> bool {
        self.end_heard_at.is_some_and(|heard| now.since(heard) < HISTORY_LATE)
    }

    fn look(&self) -> Act {
        Act::Look(Wanted { prompt: self.prompt(), task: self.task.id, dispatch: self.task.dispatch })
    }

    fn settle(&self, change: Change, orphan: Option<PromptId>) -> Act {
        Act::Settle { change, orphan }
    }

    /// What a finished prompt means for its task. Nothing yet while pictures it sent are still being stored.
    fn ending(&self, finished: &Finished, now: Timestamp) -> Option<Act> {
        let change = match (&finished.outcome, &self.stop) {
            (_, Some(Stop::Client)) => Change::Release(Release::Cancelled),
            (_, Some(Stop::Partial(error))) => Change::Fail { error: error.clone() },
            (Outcome::Success, _) => match self.frames.delivery(self.end_heard_at.is_some(), self.over_at, now) {
                Delivery::Open => return None,
                Delivery::Failed(error) => Change::after(error),
                Delivery::Complete(frames) => match finished.artifacts(&self.options.output, &frames) {
                    Ok(artifacts) => return Some(Act::Plan(artifacts)),
                    Err(error) => Change::after(error),
                },
            },
            (Outcome::Failed(error), _) => Change::after(error.clone()),
            (Outcome::Interrupted, None) => Change::Release(Release::Interrupted),
            (Outcome::Interrupted, Some(_)) => self.after_stop(),
        };
        Some(self.settle(change, None))
    }

    fn after_loss(&self, was_accepted: bool, was_running: bool) -> Change {
        match (&self.stop, &self.post_failed) {
            (None | Some(Stop::Stuck(_)), _) if was_accepted && was_running => Change::Release(Release::ServerDied),
            // The server is well enough to say that it does not have it: the graph may be what it stumbles over each time.
            (None, Some(reason)) if !was_accepted => Change::after(TaskError::new(
                ErrorCode::BackendError,
                format!("the ComfyUI server failed to take the prompt: {reason}. Its own log says why"),
            )),
            _ => self.after_stop(),
        }
    }

    /// The backend is out of reach for too long: the task goes elsewhere, its prompt is an orphan. `None` when its fate is known: the
    /// server is not needed to record that.
    #[must_use]
    pub fn give_up(&self) -> Option<Act> {
        if matches!(self.fate, Fate::Over(_) | Fate::Gone { .. } | Fate::Refused(_) | Fate::Stale) {
            return None;
        }
        let change = match self.stop {
            None if self.running_since.is_some() => Change::Release(Release::ServerDied),
            _ => self.after_stop(),
        };
        let orphan = (self.fate != Fate::Unsent).then(|| self.prompt());
        Some(self.settle(change, orphan))
    }
}

#[cfg(test)]
mod tests;
