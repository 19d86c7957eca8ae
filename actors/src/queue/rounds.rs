//! What happens at a time: the tick, the count, and the end of the process.

use ractor::{ActorRef, RpcReplyPort};
use std::time::Duration;
use tracing::{debug, error};

use super::{QueueMsg, State, Whereabouts};
use crate::{
    domain::task::Change,
    kit::tasks::Panicked,
    ports::store::{Counts, Depth, StoreError},
};

impl State {
    pub(super) fn on_tick(&mut self, me: &ActorRef<QueueMsg>) {
        self.read_pauses(me);
        if !self.recovered || self.doubtful {
            return self.recover(me);
        }
        self.read_lanes(me);
        self.on_wake(me);
    }

    pub(super) fn count(&mut self, me: &ActorRef<QueueMsg>) {
        if std::mem::replace(&mut self.counting, true) {
            return;
        }
        let store = self.system.store.clone();
        let work = async move { Ok((store.counts().await?, store.depths().await?)) };
        self.tasks.run(me, work, QueueMsg::Counted);
    }

    pub(super) fn on_counted(&mut self, result: Result<Result<(Counts, Vec<Depth>), StoreError>, Panicked>) {
        self.counting = false;
        match result {
            Ok(Ok((counts, depths))) => {
                self.waiting.counted(counts.pending + counts.scheduled);
                self.system.metrics.counted(counts, &depths);
            }
            Ok(Err(error)) => debug!(%error, "could not count the waiting tasks"),
            Err(Panicked) => error!("counting the waiting tasks panicked"),
        }
    }

    pub(super) fn drain(&mut self, me: &ActorRef<QueueMsg>, reply: RpcReplyPort<()>) {
        self.draining.push(reply);
        let uploading = self
            .held
            .values()
            .any(|held| matches!(held.at, Whereabouts::Uploads | Whereabouts::Settling | Whereabouts::Ran));
        let patience = if uploading { self.system.settings.drain } else { Duration::ZERO };
        me.send_after(patience, || QueueMsg::HandOver);
    }

    /// Whatever is still held goes to whoever comes next, prompts running on: no attempt is spent, the GPU keeps working.
    pub(super) fn hand_over(&mut self, me: &ActorRef<QueueMsg>) {
        let (source, held) = (self.system.source.clone(), std::mem::take(&mut self.held));
        let work = async move {
            for (id, held) in held {
                // Refused or unavailable: the lease expires by itself.
                let _ = source.apply(id, held.fence, Change::HandOff).await;
            }
        };
        self.tasks.run(me, work, |_| QueueMsg::HandedOver);
    }

    pub(super) fn on_handed_over(&mut self) {
        for reply in &mut self.draining.drain(..) {
            _ = reply.send(());
        }
    }
}
