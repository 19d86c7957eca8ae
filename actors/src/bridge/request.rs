//! What clients ask for, and why they may not get it.

use std::time::Duration;

use crate::{
    domain::{lane::Lane, order::Priority, tenant::Tenant, time::Timestamp},
    kit::slot::AskError,
    ports::store::{Idempotency, Payload, StoreError},
};

/// What a client wants done.
#[derive(Debug, Clone)]
pub struct TaskRequest {
    /// Whose it is.
    pub tenant: i64,
    /// The named workflow it is made from.
    pub workflow: Option<String>,
    /// Graph, inputs and metadata.
    pub payload: Payload,
    /// Which backends can run it.
    pub lane: Lane,
    /// Urgency.
    pub priority: Priority,
    /// When it may run; `None` = at once.
    pub start: Option<Start>,
    /// Attempts allowed; `None` = as configured.
    pub max_attempts: Option<i32>,
    /// Longest time one attempt may execute; `None` = as configured.
    pub timeout: Option<Duration>,
    /// Makes a repeated request find the first task.
    pub idempotency: Option<Idempotency>,
}

/// When a task may run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// Not before this moment. One that has passed is now.
    At(Timestamp),
    /// This long after its creation.
    After(Duration),
}

/// What a client wants of a task that is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    /// Its end.
    Cancel,
    /// Another urgency.
    Prioritize(Priority),
    /// That it is done from the beginning, having failed or been cancelled.
    Again,
    /// That the files it left on its server are stored, and nothing else.
    UploadsAgain,
}

/// Why a request was not accepted. After `Full`, `TenantFull` and `Draining` nothing was written. After the others it may have been: repeating
/// a change does no harm, and a new task is found again by its idempotency key.
#[derive(Debug, Clone, thiserror::Error)]
pub enum RequestError {
    /// The queue is at its limit.
    #[error("the queue is full: {pending} tasks wait, the limit is {limit}")]
    Full {
        /// Tasks that wait.
        pending: u64,
        /// The limit.
        limit: u64,
        /// A guess at when there is room.
        retry_after: Duration,
    },
    /// As many tasks of this tenant wait as may. Nothing was written.
    #[error(
        "as many tasks of tenant `{tenant}` wait as may ({limit}); nothing was changed. Send this again when some of them have begun, or \
             cancel some"
    )]
    TenantFull {
        /// Whose they are.
        tenant: Tenant,
        /// The limit.
        limit: u64,
        /// A guess at when there is room.
        retry_after: Duration,
    },
    /// The process is about to stop.
    #[error("the service is shutting down")]
    Draining,
    /// An actor is being restarted or is too slow.
    #[error(transparent)]
    Actor(#[from] AskError),
    /// The store said no.
    #[error(transparent)]
    Store(#[from] StoreError),
}
