//! The way of a message to its receiver.

use async_trait::async_trait;

use super::store::TaskRecord;
use crate::domain::webhook::{Answer, Delivery};

/// Writes, signs and sends messages. One call is one try: it sends at most one request and follows nothing.
#[async_trait]
pub trait HookSender: Send + Sync + 'static {
    /// Sends a message about a task, to the URL that the task names. Bounds its own time.
    ///
    /// # Errors
    /// Why there is no answer, in words that hold no secret.
    async fn send(&self, delivery: &Delivery, record: &TaskRecord) -> Result<Answer, String>;
}
