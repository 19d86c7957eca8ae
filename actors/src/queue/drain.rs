//! The end of the process: nothing is taken on, what is nearly done is finished, and the rest is handed to whoever comes next.
//!
//! No attempt is spent, and servers go on working: a prompt that runs or waits there is found by its id.

use futures_util::future::join_all;
use ractor::{ActorRef, RpcReplyPort};

use super::{QueueMsg, State, Whereabouts};
use crate::{
    comfy_session::SessionMsg,
    domain::{
        id::TaskId,
        task::{Change, Fence},
    },
};

/// How far the end has come.
#[derive(Debug, Default)]
pub(super) struct Drain {
    /// Who is to be told; empty while there is no end in sight.
    waiting: Vec<RpcReplyPort<()>>,
    /// The sessions send nothing more, and have the answers to what they sent.
    quiet: bool,
    /// The leases are let go of: what arrives now is let go of as well.
    handed_over: bool,
}

impl Drain {
    /// Nothing new is taken on.
    pub(super) fn has_begun(&self) -> bool {
        !self.waiting.is_empty() || self.handed_over
    }

    pub(super) fn is_over(&self) -> bool {
        self.handed_over
    }
}

impl State {
    pub(super) fn drain(&mut self, me: &ActorRef<QueueMsg>, reply: RpcReplyPort<()>) {
        self.drain.waiting.push(reply);
        let (sessions, patience) = (self.system.slots.sessions.clone(), self.system.settings.drain);
        let work = async move {
            // A session that is down sends nothing.
            join_all(sessions.values().map(|slot| slot.ask(|reply| SessionMsg::Drain { reply }, patience))).await;
        };
        self.tasks.run(me, work, |_| QueueMsg::Quiet);
        me.send_after(patience, || QueueMsg::HandOver);
    }

    pub(super) fn on_quiet(&mut self, me: &ActorRef<QueueMsg>) {
        self.drain.quiet = true;
        self.hand_over_when_done(me);
    }

    /// What is being stored or recorded is waited for, and the answers to claims. What runs is not: it may take hours.
    pub(super) fn hand_over_when_done(&mut self, me: &ActorRef<QueueMsg>) {
        let nearly = |at| matches!(at, Whereabouts::Uploads | Whereabouts::Settling | Whereabouts::Ran);
        let goes_on = self.held.values().any(|held| nearly(held.at)) || self.awaits_tasks();
        if self.drain.quiet && !goes_on {
            self.hand_over(me);
        }
    }

    pub(super) fn hand_over(&mut self, me: &ActorRef<QueueMsg>) {
        if !std::mem::replace(&mut self.drain.handed_over, true) {
            let held = std::mem::take(&mut self.held);
            self.let_go(me, held.into_iter().map(|(id, held)| (id, held.fence)).collect());
        }
    }

    /// Ends the leases now, so that others need not wait for it.
    pub(super) fn let_go(&mut self, me: &ActorRef<QueueMsg>, held: Vec<(TaskId, Fence)>) {
        let source = self.system.source.clone();
        let work = async move {
            // Refused or unavailable: the lease expires by itself.
            join_all(held.into_iter().map(|(id, fence)| source.apply(id, fence, Change::HandOff))).await;
        };
        self.tasks.run(me, work, |_| QueueMsg::HandedOver);
    }

    pub(super) fn on_handed_over(&mut self) {
        for reply in self.drain.waiting.drain(..) {
            _ = reply.send(());
        }
    }
}
