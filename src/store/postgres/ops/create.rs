//! Tasks come in and are taken from the head of the order.

use comfyd_actors::{
    domain::id::TaskId,
    ports::store::{Assignment, Claim, Created, Creation, Durable, Idempotency, NewTask, StoreError},
};

use crate::store::{
    columns::corrupt,
    postgres::{
        fault::Fault,
        rows::{get, keys, text},
        tx::Tx,
        unwritten::Statement,
        writer::Operation,
    },
};

const FIND_KEY: &str = "SELECT body_sha256, task_id AS id FROM idempotency WHERE tenant = $1 AND key = $2";

/// The heads of lanes, as many of each as there are slots, none that another claimer holds: a seek in `tasks_claim` per lane, whatever
/// waits behind. The lanes are those of a list, or, when it is null, all that have waiting tasks: each step from one of these to the next is a
/// seek too.
const HEADS: &str = "WITH RECURSIVE present (lane) AS (
        SELECT min(lane) FROM tasks WHERE state = 'pending' AND $1::bigint[] IS NULL
        UNION ALL
        SELECT (SELECT min(n.lane) FROM tasks n WHERE n.state = 'pending' AND n.lane > present.lane)
        FROM present WHERE present.lane IS NOT NULL
    ), lanes (lane) AS (SELECT unnest($1::bigint[]) UNION ALL SELECT lane FROM present WHERE lane IS NOT NULL)
    SELECT h.id, h.lane FROM lanes CROSS JOIN LATERAL (
        SELECT t.id, t.lane, t.sort_key FROM tasks t WHERE t.state = 'pending' AND t.lane = lanes.lane
        ORDER BY t.sort_key, t.id LIMIT $2 FOR NO KEY UPDATE SKIP LOCKED) h
    ORDER BY h.sort_key, h.id";

/// What is held cannot change any more: this statement, begun later than the one that took hold of it, sees it as it is.
const TAKE: &str = concat!(
    "SELECT ",
    assignment_columns!(),
    " FROM tasks t JOIN task_payloads p ON p.task_id = t.id WHERE t.id = ANY ($1::uuid[]) ORDER BY t.sort_key, t.id"
);

/// `TaskStore::create`.
pub(in crate::store::postgres) struct Create {
    pub(in crate::store::postgres) new: NewTask,
    pub(in crate::store::postgres) claim: Option<Claim>,
}

impl Operation for Create {
    type Answer = Creation;

    fn is_promise(&self) -> bool {
        true
    }

    async fn run(&self, tx: &mut Tx<'_>) -> Result<Creation, Fault> {
        if let Some(idempotency) = &self.new.idempotency
            && let Some(created) = find_repeated(tx, self.new.tenant, idempotency).await?
        {
            return Ok(Creation { created, claimed: Vec::new(), durable: Durable::now() });
        }
        let created = Created::New(tx.add(&self.new)?);
        let claimed = match &self.claim {
            Some(claim) => claim_heads(tx, claim).await?,
            None => Vec::new(),
        };
        Ok(Creation { created, claimed, durable: Durable::now() })
    }
}

/// `WorkSource::claim`.
pub(in crate::store::postgres) struct ClaimHeads(pub(in crate::store::postgres) Claim);

impl Operation for ClaimHeads {
    type Answer = Vec<Assignment>;

    /// A fence that was given must not be given again.
    fn is_promise(&self) -> bool {
        true
    }

    async fn run(&self, tx: &mut Tx<'_>) -> Result<Vec<Assignment>, Fault> {
        claim_heads(tx, &self.0).await
    }
}

async fn find_repeated(tx: &mut Tx<'_>, tenant: i64, asked: &Idempotency) -> Result<Option<Created>, Fault> {
    let found = tx.read(sqlx::query(FIND_KEY).bind(tenant).bind(text(&asked.key))).await?;
    let Some(row) = found.first() else { return Ok(None) };
    if get::<&[u8]>(row, "body_sha256")? != asked.body_sha256 {
        return Ok(Some(Created::KeyReused));
    }
    let task = tx.peek(TaskId(get(row, "id")?)).await?;
    Ok(task.map(Created::Replayed))
}

async fn claim_heads(tx: &mut Tx<'_>, claim: &Claim) -> Result<Vec<Assignment>, Fault> {
    if claim.slots.is_empty() {
        return Ok(Vec::new());
    }
    let rows = tx.read(heads(claim)?).await?;
    let named = rows.iter().map(|row| Ok((TaskId(get(row, "id")?), get(row, "lane")?)));
    let (ids, changes): (Vec<_>, Vec<_>) =
        claim.take(&named.collect::<Result<Vec<_>, StoreError>>()?, tx.now).into_iter().unzip();
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    let mut taken = tx.assignments(sqlx::query(TAKE).bind(keys(ids))).await?;
    for (Assignment { task, .. }, change) in taken.iter_mut().zip(changes) {
        tx.change(task, None, change).await?;
    }
    Ok(taken)
}

/// The heads of every lane that any of the slots serves.
fn heads(claim: &Claim) -> Result<Statement, Fault> {
    let lanes: Option<Vec<i64>> = claim.lanes().map(|lanes| lanes.into_iter().collect());
    let wanted = i64::try_from(claim.slots.len()).map_err(corrupt)?;
    Ok(sqlx::query(HEADS).bind(lanes).bind(wanted))
}
