//! The end of the process: nothing more is sent, what was not sent is given back, and the answers on their way are waited for. What runs
//! is left to whoever comes next.

use ractor::{ActorRef, RpcReplyPort};

use super::{SessionMsg, State};

/// Whether the end has begun, and who is to be told when no answer is awaited any more.
#[derive(Debug, Default)]
pub(super) struct Drain(Option<Vec<RpcReplyPort<()>>>);

impl Drain {
    /// Nothing is sent from here on.
    pub(super) fn has_begun(&self) -> bool {
        self.0.is_some()
    }
}

impl State {
    pub(super) fn drain(&mut self, me: &ActorRef<SessionMsg>, reply: RpcReplyPort<()>) {
        self.drain.0.get_or_insert_default().push(reply);
        self.give_back_unsent(me);
        self.answer_drain();
    }

    /// An answer saves the next process the time until the prompt cannot be on its way any more.
    pub(super) fn answer_drain(&mut self) {
        let Some(waiting) = &mut self.drain.0 else { return };
        if !self.flights.values().any(|(flight, _)| flight.is_sending()) {
            for reply in waiting.drain(..) {
                _ = reply.send(());
            }
        }
    }
}
