//! What became of a prompt whose fate is unclear: the rule that keeps a GPU from running one task twice.
//!
//! After a lost answer, a restart of ours or a silence, we look at the server. Being seen is conclusive at once. Being absent
//! is not: a POST that is still on its way may land after the look. So an absence counts only when the look **began** after
//! the grace period, and only two absences, [`PAIR_GAP`] apart, conclude that the prompt is gone (checking the
//! grace after the reads instead of before them runs a task twice).

use std::time::Duration;

use super::{
    prompt::{Finished, Sighting},
    time::Timestamp,
};

/// Time between the two looks that conclude an absence: longer than a prompt takes to move between the server's lists.
pub const PAIR_GAP: Duration = Duration::from_secs(2);

/// What is known about a prompt whose fate is unclear.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Doubt {
    /// Looks that began before this moment cannot conclude an absence: a POST may still be on its way.
    pub grace_until: Timestamp,
    /// When the first counted absence was read.
    pub absent_since: Option<Timestamp>,
}

/// What to do next.
#[derive(Debug, Clone, PartialEq)]
pub enum Verdict {
    /// It is there: follow it. Carries the id the server goes by, and whether it runs.
    Alive { prompt: super::id::PromptId, running: bool },
    /// It is over: take its results.
    Ended(Finished),
    /// Look again, not before this moment.
    LookAgain(Timestamp),
    /// It was never accepted, or the server forgot it: it will never deliver. A new dispatch may start.
    Gone,
}

impl Doubt {
    /// No grace is needed: the server had confirmed the prompt, so nothing of it can still be on its way.
    #[must_use]
    pub fn confirmed(now: Timestamp) -> Self {
        Self { grace_until: now, absent_since: None }
    }

    /// The server took it out of its queue at `at`, or was about to end it: that is the first absence. It moves a prompt from one of its lists
    /// to the next under a lock, so a look that began later sees it if it is anywhere.
    #[must_use]
    pub fn taken_back(at: Timestamp) -> Self {
        Self { grace_until: at, absent_since: Some(at.before(PAIR_GAP)) }
    }

    /// The POST may have been sent at any moment up to `last_possible_send`, and takes at most `post_timeout` to arrive and
    /// `validate_grace` to be validated and queued.
    #[must_use]
    pub fn unconfirmed(last_possible_send: Timestamp, post_timeout: Duration, validate_grace: Duration) -> Self {
        Self { grace_until: last_possible_send.after(post_timeout).after(validate_grace), absent_since: None }
    }

    /// Draws the conclusion from a look that began at `began`.
    #[must_use]
    pub fn conclude(&mut self, sighting: Sighting, began: Timestamp) -> Verdict {
        match sighting {
            Sighting::Alive { prompt, running } => {
                self.absent_since = None;
                Verdict::Alive { prompt, running }
            }
            Sighting::Ended(finished) => Verdict::Ended(finished),
            Sighting::Absent if began < self.grace_until => Verdict::LookAgain(self.grace_until),
            Sighting::Absent => match self.absent_since {
                None => {
                    self.absent_since = Some(began);
                    Verdict::LookAgain(began.after(PAIR_GAP))
                }
                Some(first) if began.since(first) < PAIR_GAP => Verdict::LookAgain(first.after(PAIR_GAP)),
                Some(_) => Verdict::Gone,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::id::PromptId;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn an_absence_before_the_grace_is_over_never_counts() {
        let mut doubt = Doubt::unconfirmed(Timestamp(0), 30 * SECOND, 10 * SECOND);
        assert_eq!(doubt.conclude(Sighting::Absent, Timestamp(39_999)), Verdict::LookAgain(Timestamp(40_000)));
        assert_eq!(doubt.conclude(Sighting::Absent, Timestamp(40_000)), Verdict::LookAgain(Timestamp(42_000)));
        assert_eq!(doubt.conclude(Sighting::Absent, Timestamp(41_000)), Verdict::LookAgain(Timestamp(42_000)));
        assert_eq!(doubt.conclude(Sighting::Absent, Timestamp(42_000)), Verdict::Gone);
    }

    #[test]
    fn what_was_taken_back_and_is_absent_is_gone() {
        let at = Timestamp(10_000);
        assert_eq!(Doubt::taken_back(at).conclude(Sighting::Absent, at), Verdict::Gone);
        let before = Doubt::taken_back(at).conclude(Sighting::Absent, Timestamp(9_999));
        assert_eq!(before, Verdict::LookAgain(at), "that look may have missed it on its way in");
    }

    #[test]
    fn being_seen_starts_the_count_again() {
        let mut doubt = Doubt::confirmed(Timestamp(0));
        let alive = Sighting::Alive { prompt: PromptId::new("p"), running: true };
        assert_eq!(doubt.conclude(Sighting::Absent, Timestamp(0)), Verdict::LookAgain(Timestamp(2000)));
        assert!(matches!(doubt.conclude(alive, Timestamp(1000)), Verdict::Alive { running: true, .. }));
        assert_eq!(doubt.conclude(Sighting::Absent, Timestamp(2000)), Verdict::LookAgain(Timestamp(4000)));
    }
}
