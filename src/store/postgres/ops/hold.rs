//! What becomes of a task while somebody holds it, and how it changes hands.

use std::time::Duration;

use comfyd_actors::{
    domain::{
        id::{TaskId, WorkerId},
        task::{Change, Fence, Task},
    },
    ports::store::{Assignment, Renewed, StoreError, Sweep},
};

use crate::store::postgres::{fault::Fault, rows::keys, tx::Tx, writer::Operation};

// Held tasks are as few as there are backends, so this walks over all of them.
const HELD: &str = concat!(
    "SELECT ",
    assignment_columns!(),
    " FROM tasks t JOIN task_payloads p ON p.task_id = t.id
     WHERE t.lease_until IS NOT NULL AND t.worker = $1 ORDER BY t.sort_key, t.id"
);

/// Names first: what is read of a task must be read after it is held.
const HELD_BY_NODE: &str =
    "SELECT t.id FROM tasks t WHERE t.lease_until IS NOT NULL AND t.worker <> $1 AND starts_with(t.worker, $2)
     ORDER BY t.id FOR NO KEY UPDATE";

const EXPIRED: &str = "SELECT t.id FROM tasks t
     WHERE t.lease_until <= $1 AND (t.backend = ANY ($2) OR t.lease_until <= $3)
     ORDER BY t.lease_until, t.id LIMIT $4 FOR NO KEY UPDATE SKIP LOCKED";

macro_rules! assignments_by {
    ($order:literal) => {
        concat!(
            "SELECT ",
            assignment_columns!(),
            " FROM tasks t JOIN task_payloads p ON p.task_id = t.id WHERE t.id = ANY ($1::uuid[]) ORDER BY ",
            $order,
            ", t.id"
        )
    };
}

/// `WorkSource::apply`.
pub(in crate::store::postgres) struct Apply {
    pub(in crate::store::postgres) id: TaskId,
    pub(in crate::store::postgres) fence: Fence,
    pub(in crate::store::postgres) change: Change,
}

impl Operation for Apply {
    type Answer = Task;

    /// A server that crashes forgets what it was not asked to keep, and its clients go on: a fence or a dispatch that it forgot could be given
    /// twice. Evidence and leases are another matter.
    fn is_promise(&self) -> bool {
        !self.change.can_wait()
    }

    fn reach(&self) -> Vec<TaskId> {
        vec![self.id]
    }

    async fn run(&self, tx: &mut Tx<'_>) -> Result<Task, Fault> {
        let mut task = tx.load(self.id).await?;
        tx.change(&mut task, Some(self.fence), self.change.clone()).await?;
        Ok(task)
    }
}

/// `WorkSource::renew`.
pub(in crate::store::postgres) struct Renew {
    pub(in crate::store::postgres) worker: WorkerId,
    pub(in crate::store::postgres) lease: Duration,
    pub(in crate::store::postgres) held: Vec<(TaskId, Fence)>,
}

impl Operation for Renew {
    type Answer = Vec<Renewed>;

    fn reach(&self) -> Vec<TaskId> {
        self.held.iter().map(|(id, _)| *id).collect()
    }

    async fn run(&self, tx: &mut Tx<'_>) -> Result<Vec<Renewed>, Fault> {
        let until = tx.now.after(self.lease);
        let mut renewed = Vec::with_capacity(self.held.len());
        for (id, fence) in &self.held {
            let mut task = match tx.load(*id).await {
                Ok(task) => task,
                Err(Fault::Refused(StoreError::NotFound)) => continue,
                Err(fault) => return Err(fault),
            };
            let lease = task.lease.as_ref();
            if !lease.is_some_and(|lease| lease.may_be_renewed(&self.worker, self.lease, tx.moment)) {
                continue;
            }
            if task.apply(Some(*fence), Change::Renew { until }, tx.now).is_ok() {
                tx.save(&task);
                renewed.push(Renewed { id: *id, cancel_requested: task.is_cancelling() });
            }
        }
        Ok(renewed)
    }
}

/// `WorkSource::held`. It writes nothing, but waits its turn in the queue: an actor that died just after it asked for work must find
/// that work when it comes back.
pub(in crate::store::postgres) struct Held(pub(in crate::store::postgres) WorkerId);

impl Operation for Held {
    type Answer = Vec<Assignment>;

    async fn run(&self, tx: &mut Tx<'_>) -> Result<Vec<Assignment>, Fault> {
        tx.assignments(sqlx::query(HELD).bind(self.0.as_str().to_owned())).await
    }
}

/// `WorkSource::take_over`.
pub(in crate::store::postgres) struct TakeOver {
    pub(in crate::store::postgres) worker: WorkerId,
    pub(in crate::store::postgres) lease: Duration,
}

impl Operation for TakeOver {
    type Answer = Vec<Assignment>;

    fn is_promise(&self) -> bool {
        true
    }

    async fn run(&self, tx: &mut Tx<'_>) -> Result<Vec<Assignment>, Fault> {
        let node = self.worker.node().to_owned();
        let others = sqlx::query(HELD_BY_NODE).bind(self.worker.as_str().to_owned()).bind(node);
        let ids = tx.ids(others).await?;
        let mut found = tx.assignments(sqlx::query(assignments_by!("t.sort_key")).bind(keys(ids))).await?;
        found.retain(|held| held.task.lease.as_ref().is_some_and(|lease| lease.worker.node() == self.worker.node()));
        adopt(tx, found, &self.worker, self.lease).await
    }
}

/// `WorkSource::adopt_expired`.
pub(in crate::store::postgres) struct AdoptExpired(pub(in crate::store::postgres) Sweep);

impl Operation for AdoptExpired {
    type Answer = Vec<Assignment>;

    fn is_promise(&self) -> bool {
        true
    }

    async fn run(&self, tx: &mut Tx<'_>) -> Result<Vec<Assignment>, Fault> {
        // Who lives renews in this time. Whose lease is still over afterwards is gone.
        let Sweep { worker, lease, backends, stranded_after, limit } = &self.0;
        if !tx.moment.is_settled(*lease) {
            return Ok(Vec::new());
        }
        let (now, stranded) = (tx.now, tx.now.before(*stranded_after));
        let reached: Vec<String> = backends.iter().map(ToString::to_string).collect();
        let expired = sqlx::query(EXPIRED).bind(now.0).bind(reached).bind(stranded.0).bind(i64::from(*limit));
        let ids = tx.ids(expired).await?;
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let found = tx.assignments(sqlx::query(assignments_by!("t.lease_until")).bind(keys(ids))).await?;
        adopt(tx, found, worker, *lease).await
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
