//! The heads of the queue, read once for all claims of a batch and shared out among them.
//!
//! A claim of its own each would cost three round trips a task: find the head, take hold of it, write. Together they cost as much as one, and
//! what is found is held until the commit, so nobody else can take it in between. Claims of other processes pass over it.

use std::collections::{BTreeMap, HashMap};

use comfyd_actors::{
    domain::{
        id::TaskId,
        lane::Head,
        task::{Change, Task, TaskState},
    },
    ports::store::{Assignment, Claim, ClaimSlot, NewTask, StoreError},
};

use super::{
    fault::Fault,
    rows::{get, keys},
    tx::Tx,
    unwritten::Statement,
};
use crate::store::columns::{self, corrupt};

/// The lanes that are asked for, each with how many tasks of it are wanted: those of a list, or, when it is null, all that have waiting tasks.
/// Each step from one of these to the next is a seek.
macro_rules! lanes {
    () => {
        "WITH RECURSIVE present (lane) AS (
             SELECT min(lane) FROM tasks WHERE state = 'pending' AND $1::bigint[] IS NULL
             UNION ALL
             SELECT (SELECT min(n.lane) FROM tasks n WHERE n.state = 'pending' AND n.lane > present.lane)
             FROM present WHERE present.lane IS NOT NULL
         ), lanes (lane, wanted) AS (
             SELECT * FROM unnest($1::bigint[], $2::bigint[]) UNION ALL SELECT lane, $3 FROM present WHERE lane IS NOT NULL)"
    };
}

/// The first tasks of each of them that no other claimer holds: a seek in `tasks_claim` per lane, whatever waits behind.
macro_rules! first_of_each {
    ($columns:literal) => {
        concat!(
            " FROM lanes CROSS JOIN LATERAL (SELECT ",
            $columns,
            " FROM tasks t WHERE t.state = 'pending' AND t.lane = lanes.lane
             ORDER BY t.sort_key, t.id LIMIT lanes.wanted FOR NO KEY UPDATE SKIP LOCKED) t"
        )
    };
}

/// As many as are wanted altogether, with what it takes to run them. What is held is read as it is then, and nothing else of a waiting task
/// changes.
pub(super) const HEADS: &str = concat!(
    lanes!(),
    " SELECT ",
    assignment_columns!(),
    first_of_each!("t.*"),
    " JOIN task_payloads p ON p.task_id = t.id ORDER BY t.sort_key, t.id LIMIT $3"
);

/// The names alone, of each lane as many as are wanted of it: what is large is read of those that are taken.
const NAMES: &str = concat!(
    lanes!(),
    " SELECT t.id, t.lane, t.tenant, t.sort_key",
    first_of_each!("t.id, t.lane, t.tenant, t.sort_key"),
    " ORDER BY t.sort_key, t.id"
);

/// How many tasks of each tenant are held: as few as there are servers. Exact, because whoever claims within caps takes turns.
const RUNNING: &str =
    "SELECT tenant, count(*) AS running FROM tasks WHERE lease_until IS NOT NULL AND tenant <> 0 GROUP BY tenant";

const TAKE: &str = concat!(
    "SELECT ",
    assignment_columns!(),
    " FROM tasks t JOIN task_payloads p ON p.task_id = t.id WHERE t.id = ANY ($1::uuid[])"
);

/// Tasks that wait, held by this transaction.
#[derive(Debug, Default)]
pub(super) struct Heads {
    /// In the order of the queue, with their places.
    waiting: Vec<(i64, Head)>,
    /// How many tasks of each tenant are held, if anybody claims within caps: counted before the batch began, with those it took since.
    running: BTreeMap<i64, u64>,
    /// What is known of them beyond that.
    whole: HashMap<TaskId, Assignment>,
    /// There may be others by now.
    is_stale: bool,
}

impl Heads {
    /// One that came into being just now.
    pub(super) fn add(&mut self, task: &Task, new: &NewTask) {
        if task.state != TaskState::Pending {
            return;
        }
        let options = new.payload.options.clone();
        let whole = Assignment { task: task.clone(), graph: new.payload.graph.clone(), options, artifacts: Vec::new() };
        self.whole.insert(task.id, whole);
        self.waiting.push((task.sort_key, Head { task: task.id, lane: task.lane, tenant: task.tenant }));
        self.waiting.sort_unstable_by_key(|(place, head)| (*place, head.task));
    }

    /// Something else became of a task than that it was taken: it waits no more, somewhere else, or again.
    pub(super) fn forget(&mut self, task: &Task) {
        let before = self.waiting.len();
        self.waiting.retain(|(_, head)| head.task != task.id);
        self.is_stale |= self.waiting.len() < before || task.state == TaskState::Pending;
    }

    /// Nothing is known any more.
    pub(super) fn clear(&mut self) {
        *self = Self { is_stale: true, ..Self::default() };
    }
}

impl Tx<'_> {
    /// Takes hold of what these claims can get, all together.
    pub(super) async fn find_heads(&mut self, claims: &[&Claim]) -> Result<(), Fault> {
        let slots: Vec<&ClaimSlot> = claims.iter().flat_map(|claim| &claim.slots).collect();
        let Some(first) = slots.first() else { return Ok(()) };
        let is_capped = claims.iter().any(|claim| !claim.caps.are_none());
        // Of whom the first are none may be taken, others are needed.
        let is_alike = !is_capped && slots.iter().all(|slot| slot.lanes == first.lanes);
        let rows = self.read(bind(if is_alike { HEADS } else { NAMES }, &slots)?).await?;
        let mut heads = Heads::default();
        for row in &rows {
            let head = Head { task: TaskId(get(row, "id")?), lane: get(row, "lane")?, tenant: get(row, "tenant")? };
            heads.waiting.push((get(row, "sort_key")?, head));
            // One that cannot be read is the fault of the claim that takes it, and is told to that one.
            if let (true, Ok(whole)) = (is_alike, columns::assignment(row)) {
                heads.whole.insert(whole.task.id, whole);
            }
        }
        if is_capped {
            let counted = self.read(sqlx::query(RUNNING)).await?;
            let running = counted.iter().map(|row| Ok((get(row, "tenant")?, columns::count(row, "running")?)));
            heads.running = running.collect::<Result<_, StoreError>>()?;
        }
        self.heads = heads;
        Ok(())
    }

    /// Takes tasks for the slots of a claim, as far as there are any.
    pub(super) async fn claim(&mut self, claim: &Claim) -> Result<Vec<Assignment>, Fault> {
        if claim.slots.is_empty() {
            return Ok(Vec::new());
        }
        let mut taken = self.allot(claim);
        if taken.len() < claim.slots.len() && self.heads.is_stale {
            self.find_heads(&[claim]).await?;
            taken = self.allot(claim);
        }
        self.look_up(taken.iter().map(|(id, _)| *id)).await?;
        let mut claimed = Vec::with_capacity(taken.len());
        for (id, change) in taken {
            let mut assignment = self.heads.whole.remove(&id).ok_or_else(|| corrupt("a task has no payload"))?;
            self.heads.waiting.retain(|(_, other)| other.task != id);
            // It may have been changed by this batch since it was found.
            if let Some(task) = self.known(id) {
                assignment.task = task;
            }
            self.change(&mut assignment.task, None, change).await?;
            *self.heads.running.entry(assignment.task.tenant).or_default() += 1;
            claimed.push(assignment);
        }
        Ok(claimed)
    }

    fn allot(&self, claim: &Claim) -> Vec<(TaskId, Change)> {
        let served = |lane: i64| claim.slots.iter().any(|slot| slot.lanes.contains(lane));
        let waiting: Vec<Head> =
            self.heads.waiting.iter().map(|(_, head)| *head).filter(|head| served(head.lane)).collect();
        claim.take(&waiting, &self.heads.running, self.now)
    }

    /// Reads what is not known of these tasks yet.
    async fn look_up(&mut self, ids: impl Iterator<Item = TaskId>) -> Result<(), Fault> {
        let unknown = keys(ids.filter(|id| !self.heads.whole.contains_key(id)));
        if unknown.is_empty() {
            return Ok(());
        }
        for row in &self.read_past(sqlx::query(TAKE).bind(unknown)).await? {
            let whole = columns::assignment(row)?;
            self.heads.whole.insert(whole.task.id, whole);
        }
        Ok(())
    }
}

/// Binds the lanes that any of the slots serves, how many tasks are wanted of each of them, and of all together.
fn bind(sql: &'static str, slots: &[&ClaimSlot]) -> Result<Statement, StoreError> {
    let all = i64::try_from(slots.len()).map_err(corrupt)?;
    let lanes: Option<Vec<i64>> = ClaimSlot::lanes_of(slots.iter().copied()).map(|lanes| lanes.into_iter().collect());
    let wanted = lanes.as_ref().map(|lanes| {
        let wanted = |lane: &i64| slots.iter().filter(|slot| slot.lanes.contains(*lane)).count();
        lanes.iter().map(|lane| i64::try_from(wanted(lane)).unwrap_or(all)).collect::<Vec<_>>()
    });
    Ok(sqlx::query(sql).bind(lanes).bind(wanted).bind(all))
}
