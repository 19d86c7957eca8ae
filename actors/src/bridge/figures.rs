//! Figures of the service: what this process counts, and what there is to do and who is there to do it. The latter is told by the store and
//! by the consumers, so every process that has clients tells the same.

use std::{collections::BTreeSet, time::Duration};

use super::Bridge;
use crate::{
    domain::{
        id::BackendId,
        lane::Needs,
        scaling::{Load, usual},
        task::{Task, TaskState},
    },
    metrics::{DeviceMemory, MetricFamily, Picture},
    ports::store::{Pausable, Query, StoreError},
};

/// So many of the newest completed tasks tell how long tasks take: a few odd ones do not sway it.
const LESSONS: u32 = 100;

impl Bridge {
    /// Everything that is counted and timed, with the memory of the servers that told it, and how many consumers there should be, if that
    /// could be told.
    #[must_use]
    pub fn metrics(&self, memory: Vec<DeviceMemory>, consumers_wanted: Option<u64>) -> Vec<MetricFamily> {
        self.0.metrics.gather(&Picture {
            now: self.0.clock.now(),
            backends: self.0.board.backends(),
            pauses: self.0.board.pauses(),
            webhooks: self.0.board.webhooks(),
            memory,
            consumers_wanted,
        })
    }

    /// What there is to do and who is there to do it. Costs a walk over the waiting tasks.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn load(&self) -> Result<Load, StoreError> {
        let store = &self.0.store;
        let last = Query { states: vec![TaskState::Completed], limit: LESSONS, ..Query::default() };
        let (counts, lanes, last) = tokio::try_join!(store.counts(), store.waiting(), store.list(last))?;
        let elsewhere = self.0.board.elsewhere();
        let own = usize::from(!self.0.backends.is_empty());
        let others: BTreeSet<&String> = elsewhere.values().map(|other| &other.consumer).collect();
        let all = self.all_backends();
        let busy = all.values().filter(|backend| backend.in_flight > 0).count();
        let ahead: usize = all.values().map(|backend| backend.in_flight.saturating_sub(1)).sum();
        let in_vain: u64 =
            lanes.iter().filter(|(lane, _)| !self.might_serve(&lane.needs)).map(|(_, tasks)| tasks).sum();
        // Nobody begins anything while the queue is paused, however many there are.
        let is_paused = self.pauses().iter().any(|pause| pause.what == Pausable::Queue);
        let waiting = if is_paused { 0 } else { counts.pending.saturating_sub(in_vain) + ahead as u64 };
        Ok(Load {
            waiting,
            running: busy as u64,
            held: counts.held,
            took: usual(last.iter().filter_map(occupied)),
            consumers: (own + others.len()) as u64,
            servers: all.len() as u64,
        })
    }

    /// Whether another server like one of those there are might run tasks with these needs. While there is none, anybody might.
    fn might_serve(&self, needs: &Needs) -> bool {
        let (fleet, all) = (self.0.catalogues.fleet(), self.all_backends());
        let might = |backend: &BackendId| {
            let is_told = self.0.validate && fleet.catalogue(backend).is_some();
            if is_told { fleet.meets(backend, needs) } else { fleet.allows(backend, needs) }
        };
        needs.is_empty() || all.is_empty() || all.keys().any(might)
    }
}

/// How long its last run occupied a server.
fn occupied(task: &Task) -> Option<Duration> {
    Some(task.uploading_at.or(task.finished_at)?.since(task.executing_at?))
}
