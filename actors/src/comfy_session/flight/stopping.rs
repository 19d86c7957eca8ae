//! Stopping a prompt: who wants it, when the server is asked, what it means for the task.
//!
//! A stop is a request, never a result: the prompt's end is awaited and looked for, and it may have succeeded before the server heard.

use std::time::Duration;

use super::{ASK_EVERY, Fate, Flight};
use crate::{
    domain::{
        error::{ErrorCode, TaskError},
        task::{Change, Release},
        time::Timestamp,
    },
    system::SessionSettings,
};

/// A stop that brought nothing is asked for again.
const STOP_AGAIN: Duration = Duration::from_secs(5);

/// Why a prompt shall stop.
#[derive(Debug, Clone, PartialEq)]
pub enum Stop {
    /// A client cancelled the task.
    Client,
    /// The task ran out of time.
    Timeout,
    /// It is prepared here while another backend is free.
    Recall,
    /// It showed no progress for too long.
    Stuck(TaskError),
    /// Its server is being drained and it took too long: it runs elsewhere.
    Move,
    /// The server took only part of the graph.
    Partial(TaskError),
}

impl Flight {
    /// Somebody wants it stopped. A client's wish outranks every other.
    pub fn request_stop(&mut self, stop: Stop, now: Timestamp) {
        if self.stop.is_none() || stop == Stop::Client && self.stop != Some(Stop::Client) {
            self.stop = Some(stop);
            self.stop_asked_at = Some(now);
            (self.stop_sent_at, self.stop_heard_at) = (None, None);
        }
    }

    /// The server was asked to stop it: the end is awaited and looked for.
    pub fn on_stop_asked(&mut self, heard: bool, now: Timestamp) {
        self.busy = false;
        self.stop_heard_at = heard.then_some(now);
        self.next_ask = now;
    }

    pub(super) fn watch_the_clock(&mut self, now: Timestamp) {
        let over = self.task.timeout.zip(self.running_since).is_some_and(|(limit, since)| now.since(since) >= limit);
        if over && self.end_heard_at.is_none() {
            self.request_stop(Stop::Timeout, now);
        }
    }

    pub(super) fn must_stop(&self, now: Timestamp) -> bool {
        self.stop.is_some()
            && self.stop_sent_at.is_none_or(|sent| now.since(sent) >= STOP_AGAIN)
            && self.end_heard_at.is_none()
    }

    /// It shall stop and its answer does not come: the server may have it all the same, and be running it.
    pub(super) fn is_overdue(&self, now: Timestamp) -> bool {
        self.stop.is_some() && self.stop_asked_at.is_some_and(|asked| now.since(asked) >= ASK_EVERY)
    }

    /// Recalls never give up on a prompt: it just runs where it is.
    pub(super) fn is_beyond_stopping(&self, now: Timestamp, settings: &SessionSettings) -> bool {
        // One that may still arrive is waited for: nobody would stop it once its task is forgotten.
        let may_arrive = matches!(&self.fate, Fate::Unclear(doubt) if now < doubt.grace_until);
        !may_arrive
            && !matches!(self.stop, None | Some(Stop::Recall))
            && self.stop_asked_at.is_some_and(|asked| now.since(asked) >= settings.stop_grace)
    }

    pub(super) fn after_stop(&self) -> Change {
        match &self.stop {
            Some(Stop::Timeout) => Change::Fail { error: self.timed_out() },
            Some(Stop::Partial(error)) => Change::Fail { error: error.clone() },
            Some(Stop::Client) => Change::Release(Release::Cancelled),
            Some(Stop::Stuck(error)) => Change::after(error.clone()),
            Some(Stop::Recall | Stop::Move) | None => Change::Release(Release::Recalled),
        }
    }

    /// It did not stop when told to: a task that got stuck took its server with it.
    pub(super) fn after_defiance(&self) -> Change {
        match &self.stop {
            Some(Stop::Stuck(error)) => Change::Elsewhere { error: error.clone(), blamed: true },
            _ => self.after_stop(),
        }
    }

    pub(super) fn timed_out(&self) -> TaskError {
        let limit = humantime::format_duration(self.task.timeout.unwrap_or_default());
        TaskError::new(
            ErrorCode::Timeout,
            format!(
                "the task was stopped because it executed longer than its timeout of {limit}; create it with a longer `timeout`"
            ),
        )
    }
}
