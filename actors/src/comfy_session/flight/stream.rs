//! Whether a prompt's frames come to us, and when it last showed progress. Pure.
//!
//! Frames go to the connection a prompt was sent under and to no other. Once that is gone, the prompt's silence says nothing: it may be
//! sampling happily. Then only its `timeout` bounds it.

use std::time::Duration;

use crate::domain::time::Timestamp;

/// What is known of a prompt's frames.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Stream {
    /// The last sign of progress; `None` = they do not come to us.
    moved_at: Option<Timestamp>,
    /// Its silence was told already.
    told: bool,
}

impl Stream {
    /// It is sent under the connection that stands.
    pub(super) fn begin(&mut self, now: Timestamp) {
        *self = Self { moved_at: Some(now), told: false };
    }

    /// That connection is gone.
    pub(super) fn end(&mut self) {
        *self = Self::default();
    }

    /// A sign of progress came.
    pub(super) fn moved(&mut self, at: Timestamp) {
        if self.moved_at.is_some_and(|before| at > before) {
            *self = Self { moved_at: Some(at), told: false };
        }
    }

    /// How long there was none, if there could have been one.
    pub(super) fn silence(&self, now: Timestamp) -> Option<Duration> {
        self.moved_at.map(|at| now.since(at))
    }

    /// Whether it has been silent for so long. True once for each silence.
    pub(super) fn grows_quiet(&mut self, now: Timestamp, after: Duration) -> bool {
        let quiet = self.silence(now).is_some_and(|silence| silence >= after);
        quiet && !std::mem::replace(&mut self.told, true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_counts_only_where_a_frame_could_come() {
        let at = |seconds| Timestamp(0).after(Duration::from_secs(seconds));
        let minute = Duration::from_secs(60);
        let mut stream = Stream::default();
        stream.moved(at(5));
        assert_eq!(stream.silence(at(1_000)), None, "adopted");
        stream.begin(at(10));
        assert!(!stream.grows_quiet(at(69), minute) && stream.grows_quiet(at(70), minute));
        assert!(!stream.grows_quiet(at(500), minute), "told");
        stream.moved(at(600));
        stream.moved(at(590));
        assert_eq!(stream.silence(at(601)), Some(Duration::from_secs(1)), "frames overtake each other");
        assert!(stream.grows_quiet(at(660), minute));
        stream.end();
        assert!(!stream.grows_quiet(at(9_999), minute));
    }
}
