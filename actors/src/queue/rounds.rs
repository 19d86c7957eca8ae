//! What happens at a time: the tick and the count.

use ractor::ActorRef;
use tracing::{debug, error};

use super::{QueueMsg, State};
use crate::{
    kit::tasks::Panicked,
    ports::store::{Counts, Depth, StoreError},
};

impl State {
    pub(super) fn on_tick(&mut self, me: &ActorRef<QueueMsg>) {
        self.read_pauses(me);
        self.move_away();
        if !self.recovered || self.doubtful {
            return self.recover(me);
        }
        self.read_lanes(me);
        self.on_wake(me);
    }

    pub(super) fn count(&mut self, me: &ActorRef<QueueMsg>) {
        let Some(store) = self.system.store.clone() else { return };
        if std::mem::replace(&mut self.counting, true) {
            return;
        }
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
}
