//! When something happens, for a store: what the wall clock says, and whether it can be believed.
//!
//! Leases, pauses and ages are kept as times of day, because they outlive the process. When somebody sets the clock they mean something
//! else from one moment to the next, so it is watched beside a clock that nobody sets ([`ClockWatch`]), and after a step what depends on
//! it is left alone until it has been written anew ([`Moment::is_settled`]).

use std::time::Duration;

use super::time::Timestamp;

/// From here on a difference between the clocks is a step. Far more than any slow correction brings about between two looks, far less
/// than a lease.
const STEP: i64 = 5_000;

/// A date that was set wrong is set right again within this time, one hopes: nothing is deleted for its age meanwhile.
pub const DATE_TRUSTED_AFTER: Duration = Duration::from_secs(3600);

/// A moment in a store's life.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Moment {
    /// The time of day.
    pub now: Timestamp,
    /// How long ago the clock was set, if it was.
    pub since_step: Option<Duration>,
}

impl Moment {
    /// Whether the clock has not been set for so long.
    #[must_use]
    pub fn is_settled(self, span: Duration) -> bool {
        self.since_step.is_none_or(|since| since >= span)
    }
}

/// Watches the wall clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct ClockWatch {
    /// By how much the wall clock was ahead of the steady one, in milliseconds.
    ahead: Option<i64>,
    /// When it was set last, by the steady clock.
    stepped: Option<Timestamp>,
}

impl ClockWatch {
    /// What both clocks say now: the moment, and by how many milliseconds the wall clock was set since the last look, if it was.
    pub fn look(&mut self, now: Timestamp, steady: Timestamp) -> (Moment, Option<i64>) {
        let ahead = now.0.saturating_sub(steady.0);
        let before = self.ahead.replace(ahead).unwrap_or(ahead);
        let step = Some(ahead.saturating_sub(before)).filter(|step| step.saturating_abs() >= STEP);
        if step.is_some() {
            self.stepped = Some(steady);
        }
        (Moment { now, since_step: self.stepped.map(|at| steady.since(at)) }, step)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_a_step_from_time_that_passes() {
        let mut watch = ClockWatch::default();
        let mut look = |now, steady| watch.look(Timestamp(now), Timestamp(steady));
        let settled = |moment: Moment| moment.is_settled(Duration::from_secs(30));
        for (now, steady) in [(1_000, 7), (601_000, 600_007), (606_000, 600_008)] {
            let (moment, step) = look(now, steady);
            assert_eq!((moment.now, settled(moment), step), (Timestamp(now), true, None), "{steady}");
        }
        // An hour back, and for 30 seconds from then on nothing is as it was.
        let (moment, step) = look(-2_994_000, 600_009);
        assert_eq!((settled(moment), step), (false, Some(-3_600_001)));
        assert!(!settled(look(-2_964_001, 630_008).0));
        assert!(settled(look(-2_964_000, 630_009).0));
        assert_eq!(look(i64::MAX, 630_010).1, Some(i64::MAX));
        assert!(!settled(look(i64::MIN, 630_011).0), "never overflows");
    }
}
