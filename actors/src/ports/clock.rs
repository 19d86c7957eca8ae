//! Time as a port, so that tests can move it.

use crate::domain::time::Timestamp;

/// Tells the time of day, and the time that has passed.
pub trait Clock: Send + Sync + 'static {
    /// The time of day: for what is stored and shown. Somebody may set it at any moment, forwards and backwards.
    fn now(&self) -> Timestamp;

    /// Time by a clock that nobody sets: it began with what [`Self::now`] said then and counts on from there. For all that is measured
    /// inside the process; it means nothing to another one, so it is never stored and never shown.
    fn steady(&self) -> Timestamp;
}
