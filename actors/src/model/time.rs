//! Time that passes in leaps: "now" stays, every other moment moves away from it.
//!
//! The protocol measures time in two ways only: pauses of seconds (between two looks, two questions, two requests to stop), and patience (a
//! grace, a history that is late, a prompt that will not stop). So there are two leaps, one longer than every pause and shorter than every
//! patience, and one longer than all.

use crate::domain::time::Timestamp;

/// The moment everything happens at.
pub const NOW: Timestamp = Timestamp(1_000_000_000);

/// Time that passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leap {
    /// Every pause is over, no patience is.
    Seconds,
    /// All patience is over.
    Hours,
}

/// Before everything that is compared with it.
pub const LONG_AGO: Timestamp = Timestamp(NOW.0 - HOUR);

const SECONDS: i64 = 6_000;
const TWICE: i64 = 9_000;
const HOUR: i64 = 3_600_000;

impl Leap {
    /// Where a moment is afterwards. What was earlier than another is never later than it, and two leaps of seconds are told from one.
    pub fn over(self, moment: Timestamp) -> Timestamp {
        let ago = NOW.0 - moment.0;
        let ago = match self {
            // Due by then.
            Self::Seconds if (-SECONDS..0).contains(&ago) => 0,
            Self::Seconds if (0..TWICE).contains(&ago) => (ago + SECONDS).min(TWICE),
            Self::Seconds => ago,
            // What was to come stays after what had been.
            Self::Hours if ago < 0 => HOUR / 2,
            Self::Hours => HOUR,
        };
        Timestamp(NOW.0 - ago)
    }

    /// The same for what is compared with a pause only: long ago is long ago.
    pub fn over_pause(self, moment: Timestamp) -> Timestamp {
        if moment > NOW { self.over(moment) } else { Timestamp(NOW.0 - SECONDS) }
    }

    /// The same for what is compared with a patience only: seconds are nothing.
    pub fn over_patience(self, moment: Timestamp) -> Timestamp {
        if self == Self::Hours { self.over(moment) } else { moment }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_leap_changes_an_order() {
        let moments: Vec<_> = [HOUR, HOUR / 2, TWICE, SECONDS, 2_000, 0, -100, -SECONDS + 1, -SECONDS, -40_000].into();
        for leap in [Leap::Seconds, Leap::Hours] {
            let after: Vec<_> = moments.iter().map(|ago| leap.over(Timestamp(NOW.0 - ago))).collect();
            assert!(after.is_sorted(), "{leap:?}: {after:?}");
        }
    }
}
