//! What becomes of a task while somebody holds it, and how it changes hands.

use std::time::Duration;

use comfyd_actors::{
    domain::{
        id::{TaskId, WorkerId},
        task::{Change, Fence, Task},
    },
    ports::store::{Assignment, Renewed, Sweep},
};

use crate::store::sqlite::{
    fault::Fault,
    rows::keys,
    statement::query,
    tx::Tx,
    writer::{Operation, Reach},
};

// Held tasks are as few as there are backends, so these walk over all of them.
const HELD: &str = concat!(
    "SELECT ",
    assignment_columns!(),
    " FROM tasks t INDEXED BY tasks_leases CROSS JOIN task_payloads p
     WHERE t.lease_until IS NOT NULL AND t.worker = ? AND p.task_id = t.id ORDER BY t.sort_key, t.id"
);
const HELD_BY_OTHERS: &str = concat!(
    "SELECT ",
    assignment_columns!(),
    " FROM tasks t INDEXED BY tasks_leases CROSS JOIN task_payloads p
     WHERE t.lease_until IS NOT NULL AND t.worker <> ? AND p.task_id = t.id ORDER BY t.sort_key, t.id"
);

pub(super) const EXPIRED: &str = concat!(
    "SELECT ",
    assignment_columns!(),
    " FROM tasks t INDEXED BY tasks_leases CROSS JOIN task_payloads p
     WHERE t.lease_until <= ? AND (t.backend IN (SELECT value FROM json_each(?)) OR t.lease_until <= ?)
         AND p.task_id = t.id ORDER BY t.lease_until, t.id LIMIT 0 + ?"
);

/// Saves what `Change::Renew` changes, for a whole consumer at once.
const SAVE_LEASES: &str = "UPDATE tasks SET lease_until = ? WHERE id IN (SELECT unhex(value) FROM json_each(?))";

/// `WorkSource::apply`.
pub(in crate::store::sqlite) struct Apply {
    pub(in crate::store::sqlite) id: TaskId,
    pub(in crate::store::sqlite) fence: Fence,
    pub(in crate::store::sqlite) change: Change,
}

impl Operation for Apply {
    type Answer = Task;

    fn is_promise(&self) -> bool {
        self.change.is_promise()
    }

    fn can_wait(&self) -> bool {
        self.change.can_wait()
    }

    fn reach(&self) -> Reach {
        Reach::Task(self.id)
    }

    async fn run(self, tx: &mut Tx<'_>) -> Result<Task, Fault> {
        let mut task = tx.load(self.id).await?;
        tx.change(&mut task, Some(self.fence), self.change).await?;
        Ok(task)
    }
}

/// `WorkSource::renew`.
pub(in crate::store::sqlite) struct Renew {
    pub(in crate::store::sqlite) worker: WorkerId,
    pub(in crate::store::sqlite) lease: Duration,
    pub(in crate::store::sqlite) held: Vec<(TaskId, Fence)>,
}

impl Operation for Renew {
    type Answer = Vec<Renewed>;

    async fn run(self, tx: &mut Tx<'_>) -> Result<Vec<Renewed>, Fault> {
        let until = tx.now.after(self.lease);
        let mut tasks = tx.load_many(self.held.iter().map(|(id, _)| *id)).await?;
        let mut renewed = Vec::with_capacity(tasks.len());
        for (id, fence) in self.held {
            let Some(task) = tasks.get_mut(&id) else { continue };
            let lease = task.lease.as_ref();
            if !lease.is_some_and(|lease| lease.may_be_renewed(&self.worker, self.lease, tx.moment)) {
                continue;
            }
            if task.apply(Some(fence), Change::Renew { until }, tx.now).is_ok() {
                tx.tell(task, Some(task.state));
                renewed.push(Renewed { id, cancel_requested: task.is_cancelling() });
            }
        }
        if !renewed.is_empty() {
            let ids = keys(renewed.iter().map(|renewed| renewed.id));
            tx.write(query(SAVE_LEASES).bind(until.0).bind(ids));
        }
        Ok(renewed)
    }
}

/// `WorkSource::held`. It writes nothing, but waits its turn in the queue: an actor that died just after it asked for work must find
/// that work when it comes back.
pub(in crate::store::sqlite) struct Held(pub(in crate::store::sqlite) WorkerId);

impl Operation for Held {
    type Answer = Vec<Assignment>;

    async fn run(self, tx: &mut Tx<'_>) -> Result<Self::Answer, Fault> {
        tx.assignments(query(HELD).bind(self.0.as_str().to_owned())).await
    }
}

/// `WorkSource::take_over`.
pub(in crate::store::sqlite) struct TakeOver {
    pub(in crate::store::sqlite) worker: WorkerId,
    pub(in crate::store::sqlite) lease: Duration,
}

impl Operation for TakeOver {
    type Answer = Vec<Assignment>;

    async fn run(self, tx: &mut Tx<'_>) -> Result<Self::Answer, Fault> {
        let others = query(HELD_BY_OTHERS).bind(self.worker.as_str().to_owned());
        let mut found = tx.assignments(others).await?;
        found.retain(|held| held.task.lease.as_ref().is_some_and(|lease| lease.worker.node() == self.worker.node()));
        adopt(tx, found, &self.worker, self.lease).await
    }
}

/// `WorkSource::adopt_expired`.
pub(in crate::store::sqlite) struct AdoptExpired(pub(in crate::store::sqlite) Sweep);

impl Operation for AdoptExpired {
    type Answer = Vec<Assignment>;

    async fn run(self, tx: &mut Tx<'_>) -> Result<Self::Answer, Fault> {
        // Who lives renews in this time. Whose lease is still over afterwards is gone.
        let Sweep { worker, lease, backends, stranded_after, limit } = self.0;
        if !tx.moment.is_settled(lease) {
            return Ok(Vec::new());
        }
        let reached = serde_json::to_string(&backends).unwrap_or_default();
        let stranded = tx.now.before(stranded_after);
        let expired = query(EXPIRED).bind(tx.now.0).bind(reached).bind(stranded.0).bind(limit);
        let found = tx.assignments(expired).await?;
        adopt(tx, found, &worker, lease).await
    }
}

async fn adopt(
    tx: &mut Tx<'_>,
    mut found: Vec<Assignment>,
    worker: &WorkerId,
    lease: Duration,
) -> Result<Vec<Assignment>, Fault> {
    let until = tx.now.after(lease);
    for Assignment { task, .. } in &mut found {
        tx.change(task, None, Change::Adopt { worker: worker.clone(), until }).await?;
    }
    Ok(found)
}
