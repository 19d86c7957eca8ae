//! Which task comes first: one number per task, fixed at creation, smallest first.
//!
//! `sort_key = created_ms - priority * step`. Every waiting task ages at the same rate, so the relative order never changes
//! and nothing is ever rewritten: a task of priority p waits at most as if it had been created `step * (100 - p)` later.

use std::{fmt, str::FromStr, time::Duration};

use serde::{Deserialize, Serialize};

use super::time::{Timestamp, millis};

/// Urgency from -100 (last) to 100 (first). `low` is -10, `normal` 0, `high` 10.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "i64", into = "i64")]
pub struct Priority(i8);

impl Priority {
    /// The least urgent.
    pub const MIN: Self = Self(-100);
    /// The most urgent.
    pub const MAX: Self = Self(100);

    /// `None` outside -100..=100.
    #[must_use]
    pub fn new(level: i64) -> Option<Self> {
        i8::try_from(level).ok().map(Self).filter(|p| (Self::MIN..=Self::MAX).contains(p))
    }

    /// The level as a number.
    #[must_use]
    pub fn level(self) -> i64 {
        i64::from(self.0)
    }
}

impl TryFrom<i64> for Priority {
    type Error = String;

    fn try_from(level: i64) -> Result<Self, String> {
        Self::new(level).ok_or_else(|| format!("{level} is no priority: it must be from -100 to 100"))
    }
}

impl From<Priority> for i64 {
    fn from(priority: Priority) -> Self {
        priority.level()
    }
}

impl FromStr for Priority {
    type Err = String;

    /// Reads `low`, `normal`, `high` or a whole number.
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "low" => Ok(Self(-10)),
            "normal" => Ok(Self(0)),
            "high" => Ok(Self(10)),
            _ => text.parse::<i64>().ok().and_then(Self::new).ok_or_else(|| {
                format!("`{text}` is no priority: use low, normal, high or a whole number from -100 to 100")
            }),
        }
    }
}

impl fmt::Display for Priority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// How much one level of priority is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Ordering {
    /// A minute of waiting outweighs one level, so nothing starves.
    Aged,
    /// A higher priority always wins; a low one may wait for ever.
    Strict,
}

impl Ordering {
    /// What one level is worth, in milliseconds. 10^13 ms (317 years) makes age a tie-breaker only, and a hundred levels
    /// of it stay below 2^53, so that a double (a Redis score) holds every key exactly.
    fn step(self) -> i64 {
        match self {
            Self::Aged => millis(Duration::from_secs(60)),
            Self::Strict => 10_i64.pow(13),
        }
    }
}

/// The task's place in the order; smaller runs earlier, equal keys run in the order of their ids.
#[must_use]
pub fn sort_key(created_at: Timestamp, priority: Priority, ordering: Ordering) -> i64 {
    created_at.0 - priority.level() * ordering.step()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_is_worth_a_minute_or_everything() {
        let (early, late) = (Timestamp(0), Timestamp(61_000));
        let (normal, one) = (Priority::default(), Priority::new(1).unwrap());
        assert!(sort_key(early, normal, Ordering::Aged) < sort_key(late, one, Ordering::Aged));
        assert!(sort_key(early, normal, Ordering::Strict) > sort_key(late, one, Ordering::Strict));
    }

    #[test]
    fn keys_fit_a_double() {
        let far = Timestamp(4_102_444_800_000);
        for priority in [Priority::MIN, Priority::MAX] {
            assert!(sort_key(far, priority, Ordering::Strict).abs() < 1 << 53);
        }
    }

    #[test]
    fn reads_names_and_numbers() {
        assert_eq!("high".parse::<Priority>().unwrap().level(), 10);
        assert_eq!("-100".parse::<Priority>().unwrap(), Priority::MIN);
        for bad in ["", "101", "-101", "urgent", "1.5", "9999999999999999999999"] {
            assert!(bad.parse::<Priority>().is_err(), "{bad}");
        }
    }
}
