//! What happened to a flight: each event changes what is known, and decides nothing.

use std::time::Duration;

use super::{ASK_EVERY, Fate, Files, Flight, Next, Prepared, REREAD_EVERY, Stop, Unprepared};
use crate::{
    domain::{
        error::{ErrorCode, TaskError},
        id::PromptId,
        prompt::{Finished, Receipt, Sighting},
        reconcile::{Doubt, PAIR_GAP, Verdict},
        time::Timestamp,
    },
    ports::comfy::{ComfyError, SubmitError},
    system::{SessionSettings, UploadSettings},
};

impl Flight {
    /// The graph's files are on the server, or are not.
    pub fn on_prepared(
        &mut self,
        result: Result<Prepared, Unprepared>,
        now: Timestamp,
        settings: &UploadSettings,
        draw: f64,
    ) {
        match result {
            Ok(prepared) => self.files = Files::There(prepared),
            Err(unprepared) => match self.files.fail(unprepared, now, settings, draw) {
                Next::Again(delay) => self.next_ask = now.after(delay),
                Next::Failed(error) => self.fate = Fate::Refused(error),
            },
        }
    }

    /// The server freed its memory, or did not in time.
    pub fn on_room_made(&mut self) {
        self.room.made();
    }

    /// The POST ended.
    pub fn on_submitted(&mut self, result: Result<Receipt, SubmitError>, now: Timestamp, settings: &SessionSettings) {
        if !matches!(self.fate, Fate::Sending | Fate::Unclear(_)) {
            // Its fate was learned in another way meanwhile.
            return;
        }
        match result {
            Ok(receipt) => self.on_receipt(receipt, now, settings),
            Err(SubmitError::Refused { node_errors, .. }) if self.files.may_be_gone(node_errors.as_ref()) => {
                self.fate = Fate::Stale;
            }
            Err(SubmitError::Refused { message, node_id, class_type, node_errors }) => {
                let error = TaskError::new(ErrorCode::InvalidPrompt, message);
                self.fate = Fate::Refused(TaskError { node_id, class_type, node_errors, ..error });
            }
            Err(SubmitError::NotSent(_)) => self.fate = Fate::Gone { was_accepted: false, was_running: false },
            Err(SubmitError::Failed(reason)) => {
                self.post_failed = Some(reason);
                self.on_unanswered(now, settings);
            }
            Err(SubmitError::Unknown(_)) => self.on_unanswered(now, settings),
        }
    }

    fn on_unanswered(&mut self, now: Timestamp, settings: &SessionSettings) {
        self.fate = Fate::Unclear(Doubt::unconfirmed(now, Duration::ZERO, settings.validate_grace));
        self.next_ask = now;
        if self.running_since.is_some() {
            self.accepted_as(self.prompt(), now);
        }
    }

    fn on_receipt(&mut self, receipt: Receipt, now: Timestamp, settings: &SessionSettings) {
        self.accepted_as(receipt.prompt, now);
        // Its frames may have overtaken the answer.
        self.next_ask = if self.end_heard_at.is_some() { now } else { now.after(settings.silence) };
        if let Some(node_errors) = receipt.node_errors.filter(|_| !self.options.allow_partial) {
            let mut error = TaskError::new(
                ErrorCode::PartiallyAccepted,
                "the server accepted only some outputs of the graph, so the run was taken back; see node_errors",
            );
            error.node_errors = Some(node_errors);
            self.request_stop(Stop::Partial(error), now);
        }
    }

    fn accepted_as(&mut self, id: PromptId, now: Timestamp) {
        let running = self.running_since.is_some();
        if let Some(prompt) = &mut self.task.prompt {
            self.unrecorded |= !prompt.accepted || prompt.id != id;
            prompt.accepted = true;
            prompt.id = id;
        }
        if !matches!(self.fate, Fate::Accepted { .. }) {
            // A stop that was asked for before it arrived, or under another id, hit nothing.
            (self.stop_sent_at, self.stop_heard_at) = (None, None);
            self.there_since = now;
        }
        self.fate = Fate::Accepted { running };
    }

    /// A look ended that began at `began`.
    pub fn on_looked(&mut self, result: Result<Sighting, ComfyError>, began: Timestamp, now: Timestamp) {
        self.busy = false;
        self.on_answer(result.is_ok(), now);
        let Ok(sighting) = result else {
            self.next_ask = now.after(ASK_EVERY);
            return;
        };
        if self.fate == Fate::Unsent {
            self.on_verified(&sighting, now);
            return;
        }
        if let Some(again) = self.look_again_at(began, now).filter(|_| sighting == Sighting::Absent) {
            self.next_ask = again;
            return;
        }
        let mut doubt = match &self.fate {
            Fate::Unclear(doubt) => *doubt,
            _ => self.stop_heard_at.map_or_else(|| Doubt::confirmed(began), Doubt::taken_back),
        };
        match doubt.conclude(sighting, began) {
            Verdict::Alive { prompt, running } => {
                self.accepted_as(prompt, now);
                if running {
                    self.on_running(now);
                }
                self.next_ask = now.after(ASK_EVERY);
            }
            Verdict::Ended(finished) => self.on_finished(finished, now),
            Verdict::LookAgain(at) => {
                self.fate = Fate::Unclear(doubt);
                self.next_ask = at.max(now);
            }
            Verdict::Gone => {
                let was_accepted = self.task.prompt.as_ref().is_some_and(|prompt| prompt.accepted);
                let was_running = self.running_since.is_some() || self.end_heard_at.is_some();
                self.fate = Fate::Gone { was_accepted, was_running };
            }
        }
    }

    /// An absence that tells nothing, and when to look again; `None` when it counts.
    fn look_again_at(&self, began: Timestamp, now: Timestamp) -> Option<Timestamp> {
        match &self.fate {
            _ if self.awaits_history(now) => Some(now.after(REREAD_EVERY)),
            // It may be on its way.
            Fate::Sending => Some(now.after(ASK_EVERY)),
            // The look came before it.
            Fate::Accepted { .. } if began < self.there_since => Some(now),
            _ => None,
        }
    }

    /// Before the first POST after an unclean start: the prompt of a lost record is adopted, else it is sent.
    fn on_verified(&mut self, sighting: &Sighting, now: Timestamp) {
        self.verify = false;
        if *sighting != Sighting::Absent {
            self.fate = Fate::Unclear(Doubt::confirmed(now));
            self.next_ask = now;
        }
    }

    /// Its history was read.
    pub fn on_history(&mut self, result: Result<Option<Finished>, ComfyError>, now: Timestamp) {
        self.busy = false;
        self.on_answer(result.is_ok(), now);
        match result {
            Ok(Some(finished)) => self.on_finished(finished, now),
            Ok(None) if self.end_heard_at.is_some() => self.next_ask = now.after(REREAD_EVERY),
            Ok(None) | Err(_) => self.next_ask = now.after(ASK_EVERY),
        }
    }

    /// A server may be there, hear everything, and say nothing about this prompt that can be read: too much of it, for one.
    fn on_answer(&mut self, was_read: bool, now: Timestamp) {
        self.unread_since = if was_read { None } else { self.unread_since.or(Some(now)) };
    }

    /// What was being done broke off, for a reason that passes. If that was its POST, it may be on its way.
    pub fn on_interrupted(&mut self, now: Timestamp, settings: &SessionSettings) {
        self.busy = false;
        self.files.interrupt();
        self.room.made();
        self.next_ask = now.after(PAIR_GAP);
        if self.fate == Fate::Sending {
            self.fate = Fate::Unclear(Doubt::unconfirmed(now, settings.post_timeout, settings.validate_grace));
        }
    }

    fn on_finished(&mut self, finished: Finished, now: Timestamp) {
        self.over_at = now;
        if let Some(prompt) = &mut self.task.prompt {
            prompt.accepted = true;
            prompt.id = finished.prompt.clone();
        }
        self.fate = Fate::Over(finished);
    }

    /// It was seen or heard running.
    pub fn on_running(&mut self, now: Timestamp) {
        // Being seen there again and again is no progress.
        if self.running_since.is_none() {
            self.running_since = Some(now);
            self.stream.moved(now);
        }
        match &mut self.fate {
            Fate::Accepted { running } => *running = true,
            // Only what was accepted can run.
            Fate::Unclear(_) => {
                self.accepted_as(self.prompt(), now);
                self.next_ask = self.next_ask.min(now.after(ASK_EVERY));
            }
            _ => {}
        }
        if self.stop == Some(Stop::Recall) {
            // Too late: it is fastest where it is.
            self.stop = None;
            (self.stop_sent_at, self.stop_heard_at) = (None, None);
        }
    }

    /// Its progress was heard of just now: no need to ask for a while.
    pub fn on_word(&mut self, now: Timestamp, settings: &SessionSettings) {
        self.stream.moved(now);
        if matches!(self.fate, Fate::Accepted { .. }) && self.end_heard_at.is_none() && self.stop.is_none() {
            self.next_ask = self.next_ask.max(now.after(settings.silence));
        }
    }

    /// A frame said that it is over. `written` when that frame also says that the history is.
    pub fn on_end_heard(&mut self, written: bool, now: Timestamp) {
        self.on_running(now);
        self.end_heard_at.get_or_insert(now);
        self.asks = 0;
        self.next_ask = if written { now } else { self.next_ask.min(now.after(REREAD_EVERY)) };
    }

    /// The connection its frames come over is gone.
    pub fn on_disconnected(&mut self) {
        self.stream.end();
    }

    /// Frames may have been missed: ask at once.
    pub fn on_reconnected(&mut self, now: Timestamp) {
        // That nothing could be read of a server that was away says nothing about it now.
        self.unread_since = None;
        // What is over and only awaits its history has no frames left to miss.
        if matches!(self.fate, Fate::Accepted { .. }) && self.end_heard_at.is_none() {
            self.fate = Fate::Unclear(Doubt::confirmed(now));
            self.next_ask = now;
        }
    }
}
