//! Tasks come in and are taken from the head of the order.

use std::collections::BTreeMap;

use comfyd_actors::{
    domain::{
        id::TaskId,
        lane::Head,
        task::{ArtifactEdit, Change, Task},
    },
    ports::store::{Assignment, Claim, ClaimSlot, Created, Creation, Idempotency, NewTask, StoreError},
};

use super::inputs;
use crate::store::{
    columns,
    sqlite::{
        fault::Fault,
        outbox::introduce,
        rows::{self, corrupt, get, key, keys},
        statement::{Statement, query},
        tx::Tx,
        writer::{Operation, Reach},
    },
};

const FIND_KEY: &str = "SELECT body_sha256, task_id FROM idempotency WHERE tenant = ? AND key = ?";

/// Row and payload of a new task in one trip. In a query of several statements the arguments of all of them follow one another.
macro_rules! insert {
    () => {
        "INSERT INTO tasks (id, tenant, lane, workflow, priority, sort_key, queued_at, state, generation, fence, dispatch, attempt,
             max_attempts, poison, timeout_ms, run_at, created_at, hook_endpoint, hook_events)
             VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?);
         INSERT INTO task_payloads (task_id, graph, inputs, metadata, options) VALUES (?, ?, ?, ?, ?)"
    };
}

const INSERT: &str = insert!();
const INSERT_WITH_KEY: &str = concat!(
    insert!(),
    "; INSERT INTO idempotency (tenant, key, body_sha256, task_id, created_at) VALUES (?, ?, ?, ?, ?)"
);

/// The lanes to look into: those of a JSON list, or, when it is null, all that have waiting tasks. Each step from one of these to the
/// next is a seek in `tasks_claim`.
macro_rules! lanes {
    () => {
        "WITH RECURSIVE present (lane) AS (
             SELECT min(lane) FROM tasks INDEXED BY tasks_claim WHERE state = 'pending' AND ? IS NULL
             UNION ALL
             SELECT (SELECT min(n.lane) FROM tasks n INDEXED BY tasks_claim WHERE n.state = 'pending' AND n.lane > present.lane)
             FROM present WHERE present.lane IS NOT NULL
         ), lanes (lane) AS (SELECT value FROM json_each(?) UNION ALL SELECT lane FROM present)"
    };
}

/// The heads of `lanes`, as many of each as there are slots: a seek in `tasks_claim` per lane, whatever waits behind.
macro_rules! heads_of_lane {
    () => {
        "(SELECT h.id FROM tasks h INDEXED BY tasks_claim
          WHERE h.state = 'pending' AND h.lane = lanes.lane ORDER BY h.sort_key, h.id LIMIT 0 + ?)"
    };
}

/// The least heads of some lanes, in order: for slots that are all alike. CROSS JOIN keeps the lanes outermost.
pub(in crate::store::sqlite) const HEADS: &str = concat!(
    lanes!(),
    " SELECT ",
    assignment_columns!(),
    " FROM lanes CROSS JOIN tasks t CROSS JOIN task_payloads p
     WHERE t.id IN ",
    heads_of_lane!(),
    " AND p.task_id = t.id ORDER BY t.sort_key, t.id LIMIT 0 + ?"
);

/// The heads of each lane, in order, by name only: for slots that differ, which of them are taken is found out in between.
pub(in crate::store::sqlite) const NAMES: &str = concat!(
    lanes!(),
    " SELECT t.id, t.lane, t.tenant FROM lanes CROSS JOIN tasks t WHERE t.id IN ",
    heads_of_lane!(),
    " ORDER BY t.sort_key, t.id"
);

/// How many tasks of each tenant are held: as few as there are backends, so this walks over all of them.
pub(in crate::store::sqlite) const RUNNING: &str =
    "SELECT tenant, count(*) AS running FROM tasks INDEXED BY tasks_leases
    WHERE lease_until IS NOT NULL AND tenant <> 0 GROUP BY tenant";

const TAKE: &str = concat!(
    "SELECT ",
    assignment_columns!(),
    " FROM tasks t CROSS JOIN task_payloads p WHERE t.id IN (SELECT unhex(value) FROM json_each(?)) AND p.task_id = t.id
     ORDER BY t.sort_key, t.id"
);

/// `TaskStore::create`.
pub(in crate::store::sqlite) struct Create {
    pub(in crate::store::sqlite) new: NewTask,
    pub(in crate::store::sqlite) claim: Option<Claim>,
}

impl Operation for Create {
    type Answer = Creation;

    fn reach(&self) -> Reach {
        Reach::Unheld
    }

    async fn run(self, tx: &mut Tx<'_>) -> Result<Self::Answer, Fault> {
        let Self { new, claim } = self;
        if let Some(idempotency) = &new.idempotency
            && let Some(repeated) = find_repeated(tx, new.tenant, idempotency).await?
        {
            return Ok(Creation { created: repeated, claimed: Vec::new(), durable: tx.promise() });
        }
        let task = insert(tx, new)?;
        let claimed = match claim {
            Some(claim) => claim_heads(tx, &claim).await?,
            None => Vec::new(),
        };
        Ok(Creation { created: Created::New(task), claimed, durable: tx.promise() })
    }
}

/// `WorkSource::claim`.
pub(in crate::store::sqlite) struct ClaimHeads(pub(in crate::store::sqlite) Claim);

impl Operation for ClaimHeads {
    type Answer = Vec<Assignment>;

    fn reach(&self) -> Reach {
        Reach::Unheld
    }

    async fn run(self, tx: &mut Tx<'_>) -> Result<Self::Answer, Fault> {
        claim_heads(tx, &self.0).await
    }
}

async fn find_repeated(tx: &mut Tx<'_>, tenant: i64, asked: &Idempotency) -> Result<Option<Created>, Fault> {
    let found = tx.fetch(query(FIND_KEY).bind(tenant).bind(asked.key.clone())).await?;
    let Some(row) = found.first() else { return Ok(None) };
    let body: &[u8] = get(row, "body_sha256")?;
    if body != asked.body_sha256 {
        return Ok(Some(Created::KeyReused));
    }
    let id = rows::id(row, "task_id")?;
    tx.load(id).await.map(|task| Some(Created::Replayed(task)))
}

fn insert(tx: &mut Tx<'_>, new: NewTask) -> Result<Task, Fault> {
    let task = new.first_state();
    if let Some(lane) = rows::insert_lane(&new.lane)? {
        tx.write(lane);
    }
    let options = serde_json::to_string(&new.payload.options).map_err(corrupt)?;
    let sql = if new.idempotency.is_some() { INSERT_WITH_KEY } else { INSERT };
    let mut insert = rows::bind_new(query(sql), &task)
        .bind(key(task.id))
        .bind(new.payload.graph)
        .bind(new.payload.inputs)
        .bind(new.payload.metadata)
        .bind(options);
    if let Some(asked) = new.idempotency {
        let body = asked.body_sha256.to_vec();
        insert = insert.bind(task.tenant).bind(asked.key).bind(body).bind(key(task.id)).bind(task.created_at.0);
    }
    tx.write(insert);
    if !new.payload.options.files.is_empty() {
        inputs::need(tx, task.id, new.payload.options.files.iter())?;
    }
    if let Some(webhook) = &new.payload.options.webhook {
        tx.write(introduce(webhook));
    }
    tx.write_down(&task, None, &ArtifactEdit::Keep);
    tx.tell(&task, None);
    Ok(task)
}

async fn claim_heads(tx: &mut Tx<'_>, claim: &Claim) -> Result<Vec<Assignment>, Fault> {
    let slots = &claim.slots;
    if slots.is_empty() {
        return Ok(Vec::new());
    }
    let are_alike = slots.windows(2).all(|pair| pair[0].lanes == pair[1].lanes);
    let (mut heads, changes) = if are_alike && claim.caps.are_none() {
        let heads = tx.assignments(bind_lanes(HEADS, claim)?.bind(wanted(slots))).await?;
        let named: Vec<_> = heads.iter().map(|Assignment { task, .. }| head(task.id, task.lane, task.tenant)).collect();
        (heads, claim.take(&named, &BTreeMap::new(), tx.now).into_iter().map(|(_, change)| change).collect())
    } else {
        allotted(tx, claim).await?
    };
    for (Assignment { task, .. }, change) in heads.iter_mut().zip(changes) {
        tx.change(task, None, change).await?;
    }
    Ok(heads)
}

fn head(task: TaskId, lane: i64, tenant: i64) -> Head {
    Head { task, lane, tenant }
}

/// The tasks for slots that serve different lanes, or of tenants with caps, and how each of them is taken.
async fn allotted(tx: &mut Tx<'_>, claim: &Claim) -> Result<(Vec<Assignment>, Vec<Change>), Fault> {
    let rows = tx.fetch(bind_lanes(NAMES, claim)?).await?;
    let named = rows.iter().map(|row| Ok(head(rows::id(row, "id")?, get(row, "lane")?, get(row, "tenant")?)));
    let named = named.collect::<Result<Vec<_>, StoreError>>()?;
    let running = if claim.capped(&named).is_empty() { BTreeMap::new() } else { running(tx).await? };
    let taken = claim.take(&named, &running, tx.now);
    let (ids, changes): (Vec<_>, Vec<_>) = taken.into_iter().unzip();
    if ids.is_empty() {
        return Ok((Vec::new(), changes));
    }
    let heads = tx.assignments(query(TAKE).bind(keys(ids.into_iter()))).await?;
    Ok((heads, changes))
}

async fn running(tx: &mut Tx<'_>) -> Result<BTreeMap<i64, u64>, Fault> {
    let rows = tx.fetch(query(RUNNING)).await?;
    let counted = rows.iter().map(|row| Ok((get(row, "tenant")?, columns::count(row, "running")?)));
    Ok(counted.collect::<Result<_, StoreError>>()?)
}

fn wanted(slots: &[ClaimSlot]) -> i64 {
    i64::try_from(slots.len()).unwrap_or(i64::MAX)
}

/// Binds every lane that any of the slots serves, twice, and how many slots there are.
fn bind_lanes(sql: &'static str, claim: &Claim) -> Result<Statement, Fault> {
    let list = claim.lanes().map(|lanes| serde_json::to_string(&lanes)).transpose().map_err(corrupt)?;
    Ok(query(sql).bind(list.clone()).bind(list).bind(wanted(&claim.slots)))
}
