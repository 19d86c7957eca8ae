//! The current address of a peer that may be restarted at any moment.
//!
//! A restarted actor is a new `ActorRef`, so nobody keeps one: they keep the peer's [`Slot`], which its supervisor fills on every
//! (re)start. While the peer is down a call fails at once instead of hanging, and a slot that fills again is itself the signal
//! to announce oneself anew.

use std::time::Duration;

use ractor::{ActorRef, Message, RpcReplyPort};
use tokio::sync::watch;

/// Why a call brought no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AskError {
    /// The peer is down; the message was not delivered.
    #[error("the actor is being restarted")]
    Unavailable,
    /// The peer died with our message; it may or may not have acted on it.
    #[error("the actor died before it answered")]
    Died,
    /// No answer in time; the peer may still act on the message.
    #[error("the actor did not answer in time")]
    TimedOut,
}

/// Where a peer can be reached now. Clones share the address.
pub struct Slot<M: Message>(watch::Sender<Option<ActorRef<M>>>);

impl<M: Message> Clone for Slot<M> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<M: Message> Default for Slot<M> {
    fn default() -> Self {
        Self(watch::Sender::new(None))
    }
}

impl<M: Message> Slot<M> {
    /// Writes the address of a (re)started peer. For its supervisor only.
    pub fn fill(&self, peer: ActorRef<M>) {
        self.0.send_replace(Some(peer));
    }

    /// Forgets the address of a dead peer. For its supervisor only.
    pub fn empty(&self) {
        self.0.send_replace(None);
    }

    /// The address, if the peer is up.
    #[must_use]
    pub fn get(&self) -> Option<ActorRef<M>> {
        self.0.borrow().clone()
    }

    /// Follows the address through restarts.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Option<ActorRef<M>>> {
        self.0.subscribe()
    }

    /// Sends without waiting. False when the peer is down: the message is lost, and whoever restarts works from the store.
    pub fn cast(&self, message: M) -> bool {
        self.get().is_some_and(|peer| peer.cast(message).is_ok())
    }

    /// Asks and waits for the answer.
    ///
    /// # Errors
    /// See [`AskError`].
    pub async fn ask<R, F>(&self, message: F, timeout: Duration) -> Result<R, AskError>
    where
        R: Send + 'static,
        F: FnOnce(RpcReplyPort<R>) -> M,
    {
        let peer = self.get().ok_or(AskError::Unavailable)?;
        match peer.call(message, Some(timeout)).await {
            Ok(ractor::rpc::CallResult::Success(answer)) => Ok(answer),
            Ok(ractor::rpc::CallResult::Timeout) => Err(AskError::TimedOut),
            Ok(ractor::rpc::CallResult::SenderError) => Err(AskError::Died),
            Err(_) => Err(AskError::Unavailable),
        }
    }
}
