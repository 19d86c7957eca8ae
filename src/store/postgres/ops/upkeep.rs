//! What time brings: scheduled tasks become pending, old ones are deleted.

use std::collections::BTreeSet;

use comfyd_actors::{
    domain::{
        id::TaskId,
        moment::DATE_TRUSTED_AFTER,
        task::{Change, TaskState},
        time::Timestamp,
    },
    ports::store::Retention,
};
use uuid::Uuid;

use super::hooks;
use crate::store::{
    columns,
    postgres::{
        fault::Fault,
        rows::{get, keys},
        tx::Tx,
        writer::Operation,
    },
};

const DUE: &str = concat!(
    "SELECT ",
    task_columns!(),
    " FROM tasks t WHERE t.state = 'scheduled' AND t.run_at <= $1 ORDER BY t.run_at, t.id LIMIT $2 FOR NO KEY UPDATE SKIP LOCKED"
);

/// Tasks of one state that finished so long ago, and have told what they had to tell, or had the time for it.
macro_rules! finished_of {
    ($state:literal, $before:literal) => {
        concat!(
            "(SELECT t.id, t.hook_endpoint, t.finished_at FROM tasks t
             WHERE t.state = '",
            $state,
            "' AND t.finished_at <= ",
            $before,
            " AND (t.hook_endpoint IS NULL OR NOT EXISTS (
                 SELECT 1 FROM webhook_deliveries p WHERE p.task_id = t.id AND p.state = 'pending' AND p.at > $3))
             ORDER BY t.finished_at, t.id LIMIT $4 FOR UPDATE OF t SKIP LOCKED)"
        )
    };
}

/// Finished tasks past their time, oldest first. One seek per state: failed ones stay longer, and must not be walked over meanwhile.
const FINISHED: &str = concat!(
    "SELECT id, hook_endpoint FROM (SELECT * FROM ",
    finished_of!("completed", "$1"),
    " a UNION ALL SELECT * FROM ",
    finished_of!("cancelled", "$1"),
    " b UNION ALL SELECT * FROM ",
    finished_of!("failed", "$2"),
    " c) due ORDER BY finished_at, id LIMIT $4"
);

/// The number of the newest event outlives its row.
const REMEMBER: &str = "INSERT INTO meta (name, value) SELECT 'pruned', coalesce(max(seq), 0) FROM task_events
     ON CONFLICT (name) DO UPDATE SET value = greatest(meta.value, excluded.value)";

/// Payload, artifacts, events and idempotency key go with the task.
const DELETE_TASKS: &str = "DELETE FROM tasks WHERE id = ANY ($1::uuid[])";

const DELETE_KEYS: &str = "DELETE FROM idempotency WHERE (tenant, key) IN (
        SELECT tenant, key FROM idempotency WHERE created_at <= $1 ORDER BY created_at, tenant, key LIMIT $2 FOR UPDATE SKIP LOCKED)";

/// One that somebody is about to use is left to the next time.
const DELETE_LANES: &str = "DELETE FROM lanes WHERE id IN (SELECT id FROM lanes WHERE id <> 0 FOR UPDATE SKIP LOCKED)
     AND NOT EXISTS (SELECT 1 FROM tasks t WHERE t.lane = lanes.id AND t.lane <> 0)";

const CHECK: &str = "INSERT INTO meta (name, value, by) VALUES ('checked', $1, $2)
     ON CONFLICT (name) DO UPDATE SET value = excluded.value, by = excluded.by";

/// In `by` is the id of the task, in `value` when it ended.
const SWEPT: &str = "INSERT INTO meta (name, value, by) VALUES ('swept_' || $1, $2, $3)
     ON CONFLICT (name) DO UPDATE SET value = excluded.value, by = excluded.by
     WHERE (excluded.value, excluded.by) > (meta.value, meta.by)";

/// Taken note of once, by whoever sees it first: another process saw the same moments ago.
const NOTE_SET_BACK: &str = "INSERT INTO meta (name, value, by) VALUES ('set_back', $1, $2)
     ON CONFLICT (name) DO UPDATE SET value = excluded.value, by = excluded.by
     WHERE meta.by = excluded.by OR abs(meta.value - excluded.value) > 60000";

/// The clock was set back: what shall happen after a time is brought back with it. What a client wants at a time of day is not, and what
/// is over is history.
const SET_BACK: [&str; 4] = [
    "UPDATE tasks SET lease_until = lease_until + $1 WHERE lease_until IS NOT NULL",
    "UPDATE tasks SET run_at = run_at + $1 WHERE state = 'scheduled' AND error IS NOT NULL",
    "UPDATE webhook_deliveries SET due_at = due_at + $1 WHERE due_at IS NOT NULL",
    "UPDATE webhook_endpoints SET due_at = due_at + $1, not_before = not_before + $1
     WHERE due_at IS NOT NULL OR not_before IS NOT NULL",
];

/// Takes note that the clock was set by so many milliseconds, as an operation of its own.
pub(in crate::store::postgres) async fn set_back(tx: &mut Tx<'_>, step: i64, writer: Uuid) -> Result<(), Fault> {
    let now = tx.now.0;
    if step < 0 && tx.write(sqlx::query(NOTE_SET_BACK).bind(now).bind(writer)).await? > 0 {
        for sql in SET_BACK {
            tx.write(sqlx::query(sql).bind(step)).await?;
        }
    }
    tx.keep_operation();
    Ok(())
}

/// `WorkSource::promote`.
pub(in crate::store::postgres) struct Promote {
    pub(in crate::store::postgres) limit: u32,
}

impl Operation for Promote {
    type Answer = u32;

    async fn run(&self, tx: &mut Tx<'_>) -> Result<u32, Fault> {
        let now = tx.now.0;
        let due = tx.read(sqlx::query(DUE).bind(now).bind(i64::from(self.limit))).await?;
        let mut promoted = 0;
        for row in &due {
            let mut task = columns::task(row)?;
            tx.change(&mut task, None, Change::Promote).await?;
            promoted += 1;
        }
        Ok(promoted)
    }
}

/// `WorkSource::prune`: tasks first, then, as far as the limit allows, keys.
pub(in crate::store::postgres) struct Prune {
    pub(in crate::store::postgres) retention: Retention,
    pub(in crate::store::postgres) limit: u32,
}

impl Operation for Prune {
    type Answer = u32;

    async fn run(&self, tx: &mut Tx<'_>) -> Result<u32, Fault> {
        let limit = self.limit;
        if !tx.moment.is_settled(DATE_TRUSTED_AFTER) {
            return Ok(0);
        }
        let Retention { completed, failed, idempotency, webhooks } = self.retention;
        let [completed, failed, idempotency, untold] =
            [completed, failed, idempotency, webhooks].map(|kept| tx.now.before(kept).0);
        let finished = sqlx::query(FINISHED).bind(completed).bind(failed).bind(untold).bind(i64::from(limit));
        let due = tx.read(finished).await?;
        let hooked = due.iter().filter_map(|row| get(row, "hook_endpoint").transpose());
        let hooked = hooked.collect::<Result<BTreeSet<i64>, _>>()?;
        let due = due.iter().map(|row| get(row, "id").map(TaskId)).collect::<Result<BTreeSet<_>, _>>()?;
        let mut gone = 0;
        if !due.is_empty() {
            tx.write(sqlx::query(REMEMBER)).await?;
            gone = tx.write(sqlx::query(DELETE_TASKS).bind(keys(due.iter().copied()))).await?;
            tx.gone(&due);
            tx.write(sqlx::query(DELETE_LANES)).await?;
        }
        if !hooked.is_empty() {
            tx.write(hooks::forget(hooked.into_iter().collect())).await?;
        }
        let gone = u32::try_from(gone).unwrap_or(limit);
        let room = i64::from(limit.saturating_sub(gone));
        let keys = tx.write(sqlx::query(DELETE_KEYS).bind(idempotency).bind(room)).await?;
        Ok(gone.saturating_add(u32::try_from(keys).unwrap_or(limit)))
    }
}

/// `TaskStore::note_swept`.
pub(in crate::store::postgres) struct NoteSwept {
    pub(in crate::store::postgres) state: TaskState,
    pub(in crate::store::postgres) last: (Timestamp, TaskId),
}

impl Operation for NoteSwept {
    type Answer = ();

    async fn run(&self, tx: &mut Tx<'_>) -> Result<(), Fault> {
        let (at, id) = self.last;
        tx.write(sqlx::query(SWEPT).bind(self.state.as_str()).bind(at.0).bind(id.0)).await?;
        Ok(())
    }
}

/// `TaskStore::check`.
pub(in crate::store::postgres) struct Check;

impl Operation for Check {
    type Answer = ();

    /// A write that reaches the disk: only that shows that a promise would.
    fn is_promise(&self) -> bool {
        true
    }

    async fn run(&self, tx: &mut Tx<'_>) -> Result<(), Fault> {
        let now = tx.now.0;
        tx.write(sqlx::query(CHECK).bind(now).bind(None::<Uuid>)).await?;
        Ok(())
    }
}
