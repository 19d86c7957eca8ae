//! What a flight shows of itself and of its server: whether it moves, and what its end says.

use std::time::Duration;

use super::{Fate, Flight, Stop};
use crate::{
    domain::{
        health::Sign,
        prompt::{Finished, Outcome},
        time::Timestamp,
    },
    system::SessionSettings,
};

impl Flight {
    /// Whether it is taken to be stuck.
    #[must_use]
    pub fn is_stuck(&self) -> bool {
        matches!(self.stop, Some(Stop::Stuck(_)))
    }

    /// Whether the server has heard that it shall stop.
    #[must_use]
    pub fn heard_stop(&self) -> bool {
        self.stop_heard_at.is_some()
    }

    /// Whether it runs, as far as is known.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.running_since.is_some() && self.occupies_backend()
    }

    /// Its limit, when it has shown no sign of progress for that long though one would have come to us.
    #[must_use]
    pub fn stalled(&self, now: Timestamp, settings: &SessionSettings) -> Option<Duration> {
        let limit = self.options.no_progress_timeout.unwrap_or(settings.no_progress_timeout);
        let silence = self.stream.silence(now).filter(|_| self.is_running() && self.stop.is_none());
        silence.is_some_and(|silence| silence >= limit).then_some(limit)
    }

    /// Whether it has been silent for so long that it is worth a word. True once for each silence.
    #[must_use]
    pub fn grows_quiet(&mut self, now: Timestamp, after: Duration) -> bool {
        self.is_running() && self.stop.is_none() && self.stream.grows_quiet(now, after)
    }

    /// What its end says about its server. Told once.
    #[must_use]
    pub fn take_sign(&mut self) -> Option<Sign> {
        let sign = match &self.fate {
            Fate::Over(Finished { outcome: Outcome::Failed(error), .. }) => Sign::of(error),
            Fate::Over(_) => Sign::Sound,
            Fate::Gone { was_running: true, .. } => Sign::Faulty,
            Fate::Gone { was_accepted: false, .. } if self.post_failed.is_some() => Sign::Faulty,
            _ => return None,
        };
        (!std::mem::replace(&mut self.sign_told, true)).then_some(sign)
    }
}
