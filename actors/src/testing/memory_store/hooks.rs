//! Messages to webhooks in memory.

use std::collections::BTreeMap;

use async_trait::async_trait;

use super::{MemoryStore, Shelf, up_to};
use crate::{
    domain::{
        event::Fact,
        id::TaskId,
        task::Task,
        time::Timestamp,
        webhook::{Delivery, DeliveryState, Endpoint, EndpointId, Policy, Report, Webhook},
    },
    ports::{
        hook_store::{DeliveryQuery, HookLevels, HookStore},
        store::StoreError,
    },
};

#[derive(Default)]
pub(super) struct Outbox {
    endpoints: BTreeMap<EndpointId, Endpoint>,
    deliveries: BTreeMap<i64, Delivery>,
    newest: i64,
}

impl Outbox {
    pub(super) fn introduce(&mut self, webhook: &Webhook) {
        self.endpoints.entry(webhook.hook().endpoint).or_insert_with(|| Endpoint::new(webhook));
    }

    pub(super) fn tell(&mut self, task: &Task, fact: &Fact, at: Timestamp) {
        let Fact::Stage { stage, attempt, error } = fact else { return };
        let Some(hook) = task.hook.filter(|hook| hook.events.contains(*stage)) else { return };
        self.newest += 1;
        let new = Delivery::new(self.newest, task.id, hook.endpoint, at, *stage);
        let delivery = Delivery { generation: task.generation, attempt: *attempt, error: error.clone(), ..new };
        self.deliveries.insert(delivery.id, delivery);
        self.open(task.id, at);
    }

    /// The first pending delivery of a task is due.
    fn open(&mut self, task: TaskId, now: Timestamp) {
        let mut pending = self.deliveries.values_mut().filter(|delivery| delivery.task == task);
        let first = pending.find(|delivery| delivery.state == DeliveryState::Pending);
        if let Some(first) = first {
            first.due_at.get_or_insert(now);
        }
    }

    /// The clock was set back.
    pub(super) fn set_back(&mut self, step: i64) {
        let due = self.deliveries.values_mut().filter_map(|delivery| delivery.due_at.as_mut());
        let waits = self.endpoints.values_mut().filter_map(|endpoint| endpoint.not_before.as_mut());
        due.chain(waits).for_each(|at| at.0 = at.0.saturating_add(step));
    }

    /// Whether something of a task is still to be told that happened after `since`.
    pub(super) fn needs(&self, task: TaskId, since: Timestamp) -> bool {
        let of_task = self.deliveries.values().filter(|delivery| delivery.task == task);
        of_task.into_iter().any(|delivery| delivery.state == DeliveryState::Pending && delivery.at > since)
    }

    /// These tasks are deleted; the others are `left`.
    pub(super) fn forget(&mut self, gone: &[TaskId], left: impl Iterator<Item = EndpointId>) {
        self.deliveries.retain(|_, delivery| !gone.contains(&delivery.task));
        let left: Vec<_> = left.collect();
        self.endpoints.retain(|id, _| left.contains(id));
    }

    fn with_endpoint(&self, delivery: &Delivery) -> Result<(Delivery, Endpoint), StoreError> {
        Ok((delivery.clone(), self.endpoints.get(&delivery.endpoint).ok_or(StoreError::NotFound)?.clone()))
    }

    fn due(&self, endpoint: &Endpoint) -> Option<Timestamp> {
        let of_it = self.deliveries.values().filter(|delivery| delivery.endpoint == endpoint.id);
        let first = of_it.filter_map(|delivery| delivery.due_at).min()?;
        endpoint.disabled_at.is_none().then(|| endpoint.not_before.map_or(first, |at| at.max(first)))
    }

    /// What may be sent now.
    fn ripe(&self, policy: &Policy, now: Timestamp) -> Vec<(Timestamp, i64)> {
        let mut ripe = Vec::new();
        for endpoint in self.endpoints.values().filter(|endpoint| self.due(endpoint).is_some_and(|at| at <= now)) {
            let of_it = || self.deliveries.values().filter(|delivery| delivery.endpoint == endpoint.id);
            let sending = of_it().filter(|delivery| delivery.is_sending(now)).count();
            let due = of_it().filter_map(|delivery| Some((delivery.due_at?, delivery.id)));
            let mut due: Vec<_> = due.filter(|(at, _)| *at <= now).collect();
            due.sort_unstable();
            due.truncate(up_to(endpoint.parallel(policy)).saturating_sub(sending));
            ripe.extend(due);
        }
        ripe.sort_unstable();
        ripe
    }
}

impl Shelf {
    fn delivery(&mut self, id: i64) -> Option<(&mut Delivery, &mut Endpoint)> {
        let delivery = self.outbox.deliveries.get_mut(&id)?;
        let endpoint = self.outbox.endpoints.get_mut(&delivery.endpoint)?;
        Some((delivery, endpoint))
    }
}

#[async_trait]
impl HookStore for MemoryStore {
    async fn next_due(&self) -> Result<Option<Timestamp>, StoreError> {
        let shelf = self.open()?;
        Ok(shelf.outbox.endpoints.values().filter_map(|endpoint| shelf.outbox.due(endpoint)).min())
    }

    async fn take(&self, limit: u32, policy: &Policy) -> Result<Vec<Delivery>, StoreError> {
        let mut shelf = self.open()?;
        let now = shelf.moment.now;
        let ripe = shelf.outbox.ripe(policy, now);
        let take = |(_, id): &(Timestamp, i64)| {
            let delivery = shelf.outbox.deliveries.get_mut(id)?;
            delivery.take(policy, now);
            Some(delivery.clone())
        };
        Ok(ripe.iter().take(up_to(limit)).filter_map(take).collect())
    }

    async fn settle(
        &self,
        id: i64,
        turn: i64,
        report: Report,
        policy: &Policy,
    ) -> Result<Option<Delivery>, StoreError> {
        let mut shelf = self.open()?;
        let now = shelf.moment.now;
        let Some((delivery, endpoint)) = shelf.delivery(id).filter(|(delivery, _)| delivery.turn == turn) else {
            return Ok(None);
        };
        delivery.settle(endpoint, &report, policy, now);
        let settled = delivery.clone();
        shelf.outbox.open(settled.task, now);
        Ok(Some(settled))
    }

    async fn deliveries(&self, query: DeliveryQuery) -> Result<Vec<(Delivery, Endpoint)>, StoreError> {
        let shelf = self.open()?;
        let fits = |delivery: &&Delivery| {
            query.task.is_none_or(|task| delivery.task == task)
                && query.endpoint.is_none_or(|endpoint| delivery.endpoint == endpoint)
                && query.state.is_none_or(|state| delivery.state == state)
                && query.before.is_none_or(|before| delivery.id < before)
        };
        let newest = shelf.outbox.deliveries.values().rev().filter(fits).take(up_to(query.limit));
        newest.map(|delivery| shelf.outbox.with_endpoint(delivery)).collect()
    }

    async fn redeliver(&self, id: i64) -> Result<(Delivery, Endpoint), StoreError> {
        let mut shelf = self.open()?;
        let now = shelf.moment.now;
        let (delivery, endpoint) = shelf.delivery(id).ok_or(StoreError::NotFound)?;
        delivery.ask_again(now);
        Ok((delivery.clone(), endpoint.clone()))
    }

    async fn endpoints(&self, after: Option<EndpointId>, limit: u32) -> Result<Vec<Endpoint>, StoreError> {
        let shelf = self.open()?;
        let later = shelf.outbox.endpoints.values().filter(|endpoint| Some(endpoint.id) > after);
        Ok(later.take(up_to(limit)).cloned().collect())
    }

    async fn enable(&self, id: EndpointId) -> Result<Endpoint, StoreError> {
        let mut shelf = self.open()?;
        let endpoint = shelf.outbox.endpoints.get_mut(&id).ok_or(StoreError::NotFound)?;
        endpoint.enable();
        Ok(endpoint.clone())
    }

    async fn levels(&self) -> Result<HookLevels, StoreError> {
        let shelf = self.open()?;
        let pending = || shelf.outbox.deliveries.values().filter(|delivery| delivery.state == DeliveryState::Pending);
        let endpoints = |fits: fn(&&Endpoint) -> bool| shelf.outbox.endpoints.values().filter(fits).count() as u64;
        Ok(HookLevels {
            pending: pending().count() as u64,
            oldest: pending().map(|delivery| delivery.at).min(),
            disabled: endpoints(|endpoint| endpoint.disabled_at.is_some()),
            failing: endpoints(|endpoint| endpoint.failures > 0),
        })
    }
}
