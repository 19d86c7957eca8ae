//! What a session is doing about its connection. One value with one setter, never a set of flags.

use crate::{
    board::PhaseName,
    domain::{id::ClientId, time::Timestamp},
    kit::tasks::Guard,
};

/// The phase.
pub enum Phase {
    /// No connection; the next attempt is on a timer.
    Disconnected {
        /// Attempts that failed in a row.
        failures: u32,
        /// Since when.
        since: Timestamp,
    },
    /// An attempt is under way.
    Connecting {
        /// Attempts that failed in a row before it.
        failures: u32,
        /// Since when there is no connection.
        since: Timestamp,
    },
    /// The socket is open.
    Online(Connection),
}

/// An open connection. Dropping it stops its reader, and with that closes the socket.
pub struct Connection {
    /// Counts up: the last word of an older connection is told apart by it.
    pub number: u64,
    /// Our name on it.
    pub client: ClientId,
    pub(super) _reader: Guard,
}

impl Phase {
    /// The phase in a word.
    pub fn name(&self) -> PhaseName {
        match self {
            Self::Disconnected { .. } => PhaseName::Disconnected,
            Self::Connecting { .. } => PhaseName::Connecting,
            Self::Online(_) => PhaseName::Online,
        }
    }

    /// Our name on the open connection.
    pub fn client(&self) -> Option<&ClientId> {
        match self {
            Self::Online(connection) => Some(&connection.client),
            _ => None,
        }
    }

    /// Since when there is no connection.
    pub fn offline_since(&self) -> Option<Timestamp> {
        match self {
            Self::Disconnected { since, .. } | Self::Connecting { since, .. } => Some(*since),
            Self::Online(_) => None,
        }
    }

    /// Attempts that failed in a row.
    pub fn failures(&self) -> u32 {
        match self {
            Self::Disconnected { failures, .. } | Self::Connecting { failures, .. } => *failures,
            Self::Online(_) => 0,
        }
    }

    /// An attempt begins.
    pub fn dialing(self) -> Self {
        match self {
            Self::Disconnected { failures, since } => Self::Connecting { failures, since },
            other => other,
        }
    }

    /// An attempt failed, or the connection ended.
    pub fn disconnected(self, now: Timestamp) -> Self {
        match self {
            Self::Connecting { failures, since } | Self::Disconnected { failures, since } => {
                Self::Disconnected { failures: failures.saturating_add(1), since }
            }
            Self::Online(_) => Self::Disconnected { failures: 1, since: now },
        }
    }
}
