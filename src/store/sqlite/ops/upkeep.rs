//! What time brings: scheduled tasks become pending, old ones are deleted.

use comfyd_actors::{
    domain::{
        id::TaskId,
        moment::DATE_TRUSTED_AFTER,
        task::{Change, TaskState},
        time::Timestamp,
    },
    ports::store::{Retention, StoreError},
};

use super::hooks;
use crate::store::sqlite::{
    fault::Fault,
    rows::{self, keys},
    statement::query,
    tx::Tx,
    writer::Operation,
};

pub(super) const DUE: &str = concat!(
    "SELECT ",
    task_columns!(),
    " FROM tasks t INDEXED BY tasks_scheduled
     WHERE t.state = 'scheduled' AND t.run_at <= ? ORDER BY t.run_at, t.id LIMIT 0 + ?"
);

/// Tasks of one state that finished so long ago, and have told what they had to tell, or had the time for it.
macro_rules! finished_of {
    ($state:literal) => {
        concat!(
            "SELECT * FROM (SELECT t.id, t.hook_endpoint, t.finished_at FROM tasks t INDEXED BY tasks_finished
             WHERE t.state = '",
            $state,
            "' AND t.finished_at <= ? AND (t.hook_endpoint IS NULL OR NOT EXISTS (
                 SELECT 1 FROM webhook_deliveries p INDEXED BY webhook_deliveries_pending
                 WHERE p.task_id = t.id AND p.state = 'pending' AND p.at > ?))
             ORDER BY t.finished_at, t.id LIMIT 0 + ?)"
        )
    };
}

/// Finished tasks past their time, oldest first. One seek per state: failed ones stay longer, and must not be walked over meanwhile.
pub(super) const FINISHED: &str = concat!(
    "SELECT id, hook_endpoint FROM (",
    finished_of!("completed"),
    " UNION ALL ",
    finished_of!("cancelled"),
    " UNION ALL ",
    finished_of!("failed"),
    ") ORDER BY finished_at, id LIMIT 0 + ?"
);

/// Payload, artifacts and idempotency key go with the task.
const DELETE_TASKS: &str = "DELETE FROM tasks WHERE id IN (SELECT unhex(value) FROM json_each(?))";

pub(super) const DELETE_KEYS: &str = "DELETE FROM idempotency WHERE rowid IN (
        SELECT rowid FROM idempotency INDEXED BY idempotency_age
        WHERE created_at <= ? ORDER BY created_at, tenant, key LIMIT 0 + ?)";

pub(super) const DELETE_LANES: &str = "DELETE FROM lanes
     WHERE NOT EXISTS (SELECT 1 FROM tasks t INDEXED BY tasks_lane WHERE t.lane = lanes.id AND t.lane <> 0)";

/// Only a write shows that a write is possible: a full disk lets everything else pass, and only one that reaches the disk that promises
/// can be kept.
const CHECK: &str =
    "INSERT INTO meta (name, value) VALUES ('checked_at', ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value";

const SWEPT: &str = "INSERT INTO swept (state, finished_at, id) VALUES (?, ?, ?)
     ON CONFLICT (state) DO UPDATE SET finished_at = excluded.finished_at, id = excluded.id
     WHERE (excluded.finished_at, excluded.id) > (swept.finished_at, swept.id)";

/// The clock was set back: what shall happen after a time is brought back with it. What a client wants at a time of day is not, and what
/// is over is history.
const SET_BACK: &str = "UPDATE tasks SET lease_until = lease_until + ? WHERE lease_until IS NOT NULL;
     UPDATE tasks SET run_at = run_at + ? WHERE state = 'scheduled' AND error IS NOT NULL;
     UPDATE webhook_deliveries SET due_at = due_at + ? WHERE due_at IS NOT NULL;
     UPDATE webhook_endpoints SET due_at = due_at + ?, not_before = not_before + ? WHERE due_at IS NOT NULL OR not_before IS NOT NULL";

/// Takes note that the clock was set by so many milliseconds, as an operation of its own.
pub(in crate::store::sqlite) async fn set_back(tx: &mut Tx<'_>, step: i64) -> Result<(), StoreError> {
    if step < 0 {
        tx.write((0..5).fold(query(SET_BACK), |statement, _| statement.bind(step)));
        tx.keep_operation().await.map_err(Fault::into_inner)?;
    }
    Ok(())
}

/// `WorkSource::promote`.
pub(in crate::store::sqlite) struct Promote {
    pub(in crate::store::sqlite) limit: u32,
}

impl Operation for Promote {
    type Answer = u32;

    async fn run(self, tx: &mut Tx<'_>) -> Result<u32, Fault> {
        let due = tx.fetch(query(DUE).bind(tx.now.0).bind(self.limit)).await?;
        let mut promoted = 0;
        for row in &due {
            let mut task = rows::task(row)?;
            tx.change(&mut task, None, Change::Promote).await?;
            promoted += 1;
        }
        Ok(promoted)
    }
}

/// `WorkSource::prune`: tasks first, then, as far as the limit allows, keys.
pub(in crate::store::sqlite) struct Prune {
    pub(in crate::store::sqlite) retention: Retention,
    pub(in crate::store::sqlite) limit: u32,
}

impl Operation for Prune {
    type Answer = u32;

    async fn run(self, tx: &mut Tx<'_>) -> Result<u32, Fault> {
        let Self { retention, limit } = self;
        if !tx.moment.is_settled(DATE_TRUSTED_AFTER) {
            return Ok(0);
        }
        let Retention { completed, failed, idempotency, webhooks } = retention;
        let [completed, failed, idempotency, untold] =
            [completed, failed, idempotency, webhooks].map(|kept| tx.now.before(kept).0);
        let mut finished = query(FINISHED);
        for before in [completed, completed, failed] {
            finished = finished.bind(before).bind(untold).bind(limit);
        }
        let due = tx.fetch(finished.bind(limit)).await?;
        let hooked = due.iter().filter_map(|row| rows::get(row, "hook_endpoint").transpose());
        let hooked = hooked.collect::<Result<Vec<i64>, _>>()?;
        let due = due.iter().map(|row| rows::id(row, "id")).collect::<Result<Vec<_>, _>>()?;
        let mut gone = 0;
        if !due.is_empty() {
            gone = tx.execute(query(DELETE_TASKS).bind(keys(due.iter().copied()))).await?;
            tx.gone(&due);
            tx.write(query(DELETE_LANES));
        }
        if !hooked.is_empty() {
            tx.write(hooks::forget(&hooked)?);
        }
        let gone = u32::try_from(gone).unwrap_or(limit);
        let keys = tx.execute(query(DELETE_KEYS).bind(idempotency).bind(limit.saturating_sub(gone))).await?;
        Ok(gone.saturating_add(u32::try_from(keys).unwrap_or(limit)))
    }
}

/// `TaskStore::note_swept`.
pub(in crate::store::sqlite) struct NoteSwept {
    pub(in crate::store::sqlite) state: TaskState,
    pub(in crate::store::sqlite) last: (Timestamp, TaskId),
}

impl Operation for NoteSwept {
    type Answer = ();

    async fn run(self, tx: &mut Tx<'_>) -> Result<(), Fault> {
        let (at, id) = self.last;
        tx.write(query(SWEPT).bind(self.state.as_str()).bind(at.0).bind(rows::key(id)));
        Ok(())
    }
}

/// `TaskStore::check`.
pub(in crate::store::sqlite) struct Check;

impl Operation for Check {
    type Answer = ();

    fn is_promise(&self) -> bool {
        true
    }

    async fn run(self, tx: &mut Tx<'_>) -> Result<(), Fault> {
        tx.write(query(CHECK).bind(tx.now.0.to_string()));
        Ok(())
    }
}
