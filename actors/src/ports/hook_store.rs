//! Messages for receivers outside, until they are delivered: the outbox, and its log.
//!
//! Nobody puts anything in: what a task has to tell comes into being in the same transaction as the change it tells of
//! ([`store`](super::store)), as a [`Delivery`] under the next number. A store decides nothing about it: it loads a delivery and its
//! endpoint, calls the functions of [`domain::webhook`](crate::domain::webhook), and saves what comes out. Its own rules:
//! - of the pending deliveries of one task, the first is due; the next becomes due when that one is over;
//! - an endpoint has at most as many on their way as it [may](Endpoint::parallel), whichever process sends them;
//! - the cost of a look does not grow with what waits;
//! - deliveries go with their task. One that is pending keeps its task from being pruned for a while
//!   ([`Retention::webhooks`](super::store::Retention)).

use async_trait::async_trait;

use super::store::StoreError;
use crate::domain::{
    id::TaskId,
    time::Timestamp,
    webhook::{Delivery, DeliveryState, Endpoint, EndpointId, Policy, Report},
};

/// Which deliveries to list, newest first.
#[derive(Debug, Clone, Default)]
pub struct DeliveryQuery {
    /// Only about this task.
    pub task: Option<TaskId>,
    /// Only to this endpoint.
    pub endpoint: Option<EndpointId>,
    /// Only in this state.
    pub state: Option<DeliveryState>,
    /// Only older than this one, which was the last of the page before.
    pub before: Option<i64>,
    /// At most this many.
    pub limit: u32,
}

/// How much waits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HookLevels {
    /// Deliveries that are pending.
    pub pending: u64,
    /// When that happened what the oldest of them tells.
    pub oldest: Option<Timestamp>,
    /// Endpoints that want nothing more.
    pub disabled: u64,
    /// Endpoints that failed the last time.
    pub failing: u64,
}

/// The outbox.
#[async_trait]
pub trait HookStore: Send + Sync + 'static {
    /// When something is to be sent next, if anything is. It may be earlier than that, never later.
    ///
    /// # Errors
    /// `Unavailable`.
    async fn next_due(&self) -> Result<Option<Timestamp>, StoreError>;

    /// Takes deliveries that are due, at most `limit`, the longest due first. Who takes one sends it and [settles](Self::settle) it before
    /// its lease is over; else it is due again. What they tell is safe from a power cut when it returns.
    ///
    /// # Errors
    /// `Unavailable`: nothing was taken, or it will be due again.
    async fn take(&self, limit: u32, policy: &Policy) -> Result<Vec<Delivery>, StoreError>;

    /// Notes what came of a try, and returns the delivery as it is then; `None` when it was taken again meanwhile, or is not there any more.
    ///
    /// # Errors
    /// `Unavailable`.
    async fn settle(&self, id: i64, turn: i64, report: Report, policy: &Policy)
    -> Result<Option<Delivery>, StoreError>;

    /// A page of deliveries, newest first, each with its endpoint.
    ///
    /// # Errors
    /// `Unavailable`.
    async fn deliveries(&self, query: DeliveryQuery) -> Result<Vec<(Delivery, Endpoint)>, StoreError>;

    /// Has a delivery sent, whatever became of it, and returns it as it is then.
    ///
    /// # Errors
    /// `NotFound`, `Unavailable`.
    async fn redeliver(&self, id: i64) -> Result<(Delivery, Endpoint), StoreError>;

    /// Endpoints with an id above `after`, by id, at most `limit`.
    ///
    /// # Errors
    /// `Unavailable`.
    async fn endpoints(&self, after: Option<EndpointId>, limit: u32) -> Result<Vec<Endpoint>, StoreError>;

    /// Takes an endpoint for well: what is held back for it is sent. Returns it as it is then.
    ///
    /// # Errors
    /// `NotFound`, `Unavailable`.
    async fn enable(&self, id: EndpointId) -> Result<Endpoint, StoreError>;

    /// How much waits. Costs a walk over it: for slow timers.
    ///
    /// # Errors
    /// `Unavailable`.
    async fn levels(&self) -> Result<HookLevels, StoreError>;
}
