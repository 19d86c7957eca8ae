//! Wall-clock time as a port, so that tests can move it.

use crate::domain::time::Timestamp;

/// Tells the time of day. Durations inside the process are measured with `tokio::time::Instant` instead, which a step of the
/// machine's clock cannot alter.
pub trait Clock: Send + Sync + 'static {
    /// Now.
    fn now(&self) -> Timestamp;
}
