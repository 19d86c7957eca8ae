//! Tasks come in and are taken from the head of the order.

use comfyd_actors::{
    domain::task::{Change, Task},
    ports::store::{Assignment, Claim, Created, Idempotency, NewTask},
};

use crate::store::sqlite::{
    fault::Fault,
    rows::{self, corrupt, get, key},
    tx::Tx,
    writer::Operation,
};

const FIND_KEY: &str = "SELECT body_sha256, task_id FROM idempotency WHERE tenant = ? AND key = ?";

/// Row and payload of a new task in one trip. In a query of several statements the arguments of all of them follow one another.
macro_rules! insert {
    () => {
        "INSERT INTO tasks (id, tenant, lane, workflow, priority, sort_key, state, generation, fence, dispatch, attempt, max_attempts,
             poison, timeout_ms, created_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?);
         INSERT INTO task_payloads (task_id, graph, inputs, metadata, options) VALUES (?, ?, ?, ?, ?)"
    };
}

const INSERT: &str = insert!();
const INSERT_WITH_KEY: &str = concat!(
    insert!(),
    "; INSERT INTO idempotency (tenant, key, body_sha256, task_id, created_at) VALUES (?, ?, ?, ?, ?)"
);

/// The least heads of all lanes, in order. Each step through the lanes and each lane's head is a seek in `tasks_claim`, so with one
/// lane the cost is that of a seek, whatever waits behind. CROSS JOIN keeps the lanes outermost.
pub(in crate::store::sqlite) const HEADS: &str = concat!(
    "WITH RECURSIVE lanes (lane) AS (
         SELECT min(lane) FROM tasks INDEXED BY tasks_claim WHERE state = 'pending'
         UNION ALL
         SELECT (SELECT min(n.lane) FROM tasks n INDEXED BY tasks_claim WHERE n.state = 'pending' AND n.lane > lanes.lane)
         FROM lanes WHERE lanes.lane IS NOT NULL
     )
     SELECT ",
    assignment_columns!(),
    " FROM lanes CROSS JOIN tasks t CROSS JOIN task_payloads p
     WHERE t.id IN (SELECT h.id FROM tasks h INDEXED BY tasks_claim
                    WHERE h.state = 'pending' AND h.lane = lanes.lane ORDER BY h.sort_key, h.id LIMIT 0 + ?)
       AND p.task_id = t.id
     ORDER BY t.sort_key, t.id LIMIT 0 + ?"
);

/// `TaskStore::create`.
pub(in crate::store::sqlite) struct Create {
    pub(in crate::store::sqlite) new: NewTask,
    pub(in crate::store::sqlite) claim: Option<Claim>,
}

impl Operation for Create {
    type Answer = (Created, Vec<Assignment>);

    fn is_promise(&self) -> bool {
        true
    }

    async fn run(self, tx: &mut Tx<'_>) -> Result<Self::Answer, Fault> {
        let Self { new, claim } = self;
        if let Some(idempotency) = &new.idempotency
            && let Some(repeated) = find_repeated(tx, new.tenant, idempotency).await?
        {
            return Ok((repeated, Vec::new()));
        }
        let task = insert(tx, new).await?;
        let claimed = match claim {
            Some(claim) => claim_heads(tx, claim).await?,
            None => Vec::new(),
        };
        Ok((Created::New(task), claimed))
    }
}

/// `WorkSource::claim`.
pub(in crate::store::sqlite) struct ClaimHeads(pub(in crate::store::sqlite) Claim);

impl Operation for ClaimHeads {
    type Answer = Vec<Assignment>;

    async fn run(self, tx: &mut Tx<'_>) -> Result<Self::Answer, Fault> {
        claim_heads(tx, self.0).await
    }
}

async fn find_repeated(tx: &mut Tx<'_>, tenant: i64, asked: &Idempotency) -> Result<Option<Created>, Fault> {
    let found = tx.fetch(sqlx::query(FIND_KEY).bind(tenant).bind(asked.key.clone())).await?;
    let Some(row) = found.first() else { return Ok(None) };
    let body: &[u8] = get(row, "body_sha256")?;
    if body != asked.body_sha256 {
        return Ok(Some(Created::KeyReused));
    }
    let id = rows::id(row, "task_id")?;
    tx.load(id).await.map(|task| Some(Created::Replayed(task)))
}

async fn insert(tx: &mut Tx<'_>, new: NewTask) -> Result<Task, Fault> {
    let task = new.first_state();
    let options = serde_json::to_string(&new.payload.options).map_err(corrupt)?;
    let sql = if new.idempotency.is_some() { INSERT_WITH_KEY } else { INSERT };
    let mut insert = rows::bind_new(sqlx::query(sql), &task)
        .bind(key(task.id))
        .bind(new.payload.graph)
        .bind(new.payload.inputs)
        .bind(new.payload.metadata)
        .bind(options);
    if let Some(asked) = new.idempotency {
        let body = asked.body_sha256.to_vec();
        insert = insert.bind(task.tenant).bind(asked.key).bind(body).bind(key(task.id)).bind(task.created_at.0);
    }
    tx.execute(insert).await?;
    tx.tell(&task);
    Ok(task)
}

async fn claim_heads(tx: &mut Tx<'_>, claim: Claim) -> Result<Vec<Assignment>, Fault> {
    let Claim { worker, lease, slots } = claim;
    if slots.is_empty() {
        return Ok(Vec::new());
    }
    let wanted = i64::try_from(slots.len()).unwrap_or(i64::MAX);
    let mut heads = tx.assignments(sqlx::query(HEADS).bind(wanted).bind(wanted)).await?;
    let until = tx.now.after(lease);
    for (Assignment { task, .. }, intent) in heads.iter_mut().zip(slots) {
        tx.change(task, None, Change::Claim { worker: worker.clone(), until, intent }).await?;
    }
    Ok(heads)
}
