//! What becomes of a task while somebody holds it, and how it changes hands.

use std::{collections::BTreeMap, time::Duration};

use comfyd_actors::{
    domain::{
        id::{TaskId, WorkerId},
        task::{Change, Fence, Lease, Task},
    },
    ports::store::{Assignment, Renewed, Sweep},
};

use super::Operation;
use crate::store::redis::{
    keys::{task_of, until},
    tx::{Fault, Rest, Tx},
};

/// `WorkSource::apply`.
pub(in crate::store::redis) struct Apply {
    pub(in crate::store::redis) id: TaskId,
    pub(in crate::store::redis) fence: Fence,
    pub(in crate::store::redis) change: Change,
}

impl Operation for Apply {
    type Answer = Task;

    async fn run(&self, tx: &mut Tx<'_>) -> Result<Task, Fault> {
        tx.load(self.id).await?;
        tx.change(self.id, Some(self.fence), self.change.clone()).await
    }
}

/// `WorkSource::renew`.
pub(in crate::store::redis) struct Renew {
    pub(in crate::store::redis) worker: WorkerId,
    pub(in crate::store::redis) lease: Duration,
    pub(in crate::store::redis) held: Vec<(TaskId, Fence)>,
}

impl Operation for Renew {
    type Answer = Vec<Renewed>;

    async fn run(&self, tx: &mut Tx<'_>) -> Result<Vec<Renewed>, Fault> {
        let ids: Vec<TaskId> = self.held.iter().map(|(id, _)| *id).collect();
        tx.find_many(&ids).await?;
        let mut renewed = Vec::with_capacity(ids.len());
        for &(id, fence) in &self.held {
            let lease = tx.row(id).and_then(|row| row.task.lease.as_ref());
            if !lease.is_some_and(|lease| lease.may_be_renewed(&self.worker, self.lease, tx.moment)) {
                continue;
            }
            let change = Change::Renew { until: tx.now.after(self.lease) };
            if let Ok(task) = tx.change(id, Some(fence), change).await {
                renewed.push(Renewed { id, cancel_requested: task.is_cancelling() });
            }
        }
        Ok(renewed)
    }
}

/// `WorkSource::held`.
pub(in crate::store::redis) struct Held(pub(in crate::store::redis) WorkerId);

impl Operation for Held {
    type Answer = Vec<Assignment>;

    async fn run(&self, tx: &mut Tx<'_>) -> Result<Vec<Assignment>, Fault> {
        let (ids, rest) = leased(tx, |lease| lease.worker == self.0).await?;
        Ok(ids.iter().filter_map(|id| tx.assignment(*id, rest.get(id)?)).collect())
    }
}

/// `WorkSource::take_over`.
pub(in crate::store::redis) struct TakeOver {
    pub(in crate::store::redis) worker: WorkerId,
    pub(in crate::store::redis) lease: Duration,
}

impl Operation for TakeOver {
    type Answer = Vec<Assignment>;

    async fn run(&self, tx: &mut Tx<'_>) -> Result<Vec<Assignment>, Fault> {
        let me = &self.worker;
        let (ids, rest) = leased(tx, |lease| lease.worker != *me && lease.worker.node() == me.node()).await?;
        adopt(tx, &ids, &rest, me, self.lease).await
    }
}

/// `WorkSource::adopt_expired`.
pub(in crate::store::redis) struct AdoptExpired(pub(in crate::store::redis) Sweep);

impl Operation for AdoptExpired {
    type Answer = Vec<Assignment>;

    async fn run(&self, tx: &mut Tx<'_>) -> Result<Vec<Assignment>, Fault> {
        let Self(sweep) = self;
        // Who lives renews in this time. Whose lease is still over afterwards is gone.
        if !tx.moment.is_settled(sweep.lease) {
            return Ok(Vec::new());
        }
        let mut pipe = redis::pipe();
        // Of those that others are to adopt there are as few as there are servers.
        pipe.zrangebylex(tx.keys().leases(), "-", until(tx.now));
        let (found,): (Vec<Vec<u8>>,) = tx.ask(&pipe).await?;
        let mut ids: Vec<TaskId> = found.iter().filter_map(|member| task_of(member)).collect();
        let tasks = tx.find_many(&ids).await?;
        let lease = |id: &TaskId| tasks.iter().find(|task| task.id == *id).and_then(|task| task.lease.as_ref());
        if !ids.iter().all(|id| lease(id).is_some_and(|lease| lease.until <= tx.now)) {
            return Err(Fault::Conflict);
        }
        ids.retain(|id| tasks.iter().any(|task| task.id == *id && sweep.takes(task, tx.now)));
        ids.truncate(usize::try_from(sweep.limit).unwrap_or(usize::MAX));
        let rest = tx.load_whole(&ids).await?;
        adopt(tx, &ids, &rest, &sweep.worker, sweep.lease).await
    }
}

/// Held tasks whose lease is like that, in the order of the queue. Held ones are as few as there are backends, so this walks over all.
async fn leased(
    tx: &mut Tx<'_>,
    fits: impl Fn(&Lease) -> bool,
) -> Result<(Vec<TaskId>, BTreeMap<TaskId, Rest>), Fault> {
    let (found,): (Vec<Vec<u8>>,) = tx.ask(redis::pipe().zrange(tx.keys().leases(), 0, -1)).await?;
    let ids: Vec<TaskId> = found.iter().filter_map(|member| task_of(member)).collect();
    let mut tasks = tx.find_many(&ids).await?;
    tasks.retain(|task| task.lease.as_ref().is_some_and(&fits));
    tasks.sort_unstable_by_key(|task| (task.sort_key, task.id));
    let ids: Vec<TaskId> = tasks.iter().map(|task| task.id).collect();
    let rest = tx.load_whole(&ids).await?;
    Ok((ids, rest))
}

async fn adopt(
    tx: &mut Tx<'_>,
    ids: &[TaskId],
    rest: &BTreeMap<TaskId, Rest>,
    worker: &WorkerId,
    lease: Duration,
) -> Result<Vec<Assignment>, Fault> {
    let until = tx.now.after(lease);
    let mut adopted = Vec::with_capacity(ids.len());
    for id in ids {
        tx.change(*id, None, Change::Adopt { worker: worker.clone(), until }).await?;
        adopted.extend(rest.get(id).and_then(|rest| tx.assignment(*id, rest)));
    }
    Ok(adopted)
}
