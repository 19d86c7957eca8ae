//! Figures of the service: what this process counts, and what there is to do and who is there to do it. The latter is told by the store and
//! by the consumers, so every process that has clients tells the same.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use super::Bridge;
use crate::{
    domain::{
        id::BackendId,
        lane::{Lane, Needs},
        scaling::{Line, Load, of_use, usual},
        task::{Task, TaskState},
        tenant::{Caps, NOBODY, Tenant},
    },
    metrics::{Demand, DeviceMemory, MetricFamily, Picture},
    ports::store::{Counts, Pausable, Query, StoreError},
};

impl Bridge {
    /// Everything that is counted and timed, with the memory of the servers that told it, and what is asked of the service, if that could be
    /// told.
    #[must_use]
    pub fn metrics(&self, memory: Vec<DeviceMemory>, demand: Option<Demand>) -> Vec<MetricFamily> {
        self.0.metrics.gather(&Picture {
            now: self.0.clock.now(),
            backends: self.0.board.backends(),
            pauses: self.0.board.pauses(),
            webhooks: self.0.board.webhooks(),
            memory,
            demand,
        })
    }

    /// What there is to do and who is there to do it, and how many tasks of each tenant wait for their turn, when so many tasks are not over and so
    /// many wait in each lane.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn load(
        &self,
        counts: Counts,
        lanes: &[(Lane, u64)],
        caps: &Caps,
    ) -> Result<(Load, BTreeMap<Tenant, u64>), StoreError> {
        let last = self.0.store.list(Query::lessons()).await?;
        let elsewhere = self.0.board.elsewhere();
        let own = usize::from(!self.0.backends.is_empty());
        let others: BTreeSet<&String> = elsewhere.values().map(|other| &other.consumer).collect();
        let all = self.all_backends();
        let busy = all.values().filter(|backend| backend.in_flight > 0).count();
        let ahead: usize = all.values().map(|backend| backend.in_flight.saturating_sub(1)).sum();
        let mut tenants: BTreeMap<Tenant, u64> = BTreeMap::new();
        for (lane, tasks) in lanes {
            if let Some(tenant) = &lane.needs.tenant {
                *tenants.entry(tenant.clone()).or_default() += tasks;
            }
        }
        let running = if caps.are_none() { BTreeMap::new() } else { self.running_of_tenants().await? };
        let line = |(lane, tasks): &(Lane, u64)| Line {
            tenant: lane.needs.tenant.as_ref().map_or(NOBODY, Tenant::id),
            tasks: *tasks,
            is_served: self.might_serve(&lane.needs),
        };
        let lines: Vec<Line> = lanes.iter().map(line).collect();
        // Nobody begins anything while the queue is paused, however many there are.
        let is_paused = self.pauses().iter().any(|pause| pause.what == Pausable::Queue);
        let waiting = if is_paused { 0 } else { of_use(counts.pending, &lines, caps, &running) + ahead as u64 };
        let load = Load {
            waiting,
            running: busy as u64,
            held: counts.held,
            took: usual(last.iter().filter_map(occupied)),
            consumers: (own + others.len()) as u64,
            servers: all.len() as u64,
        };
        Ok((load, tenants))
    }

    async fn running_of_tenants(&self) -> Result<BTreeMap<i64, u64>, StoreError> {
        let states = TaskState::ALL.into_iter().filter(|state| state.is_held()).collect();
        let held = self.0.store.list(Query::all_held(states)).await?;
        let mut running = BTreeMap::new();
        held.iter().for_each(|task| *running.entry(task.tenant).or_default() += 1);
        Ok(running)
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
