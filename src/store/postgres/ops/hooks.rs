//! Messages to webhooks: written, taken, settled, asked for again.
//!
//! What is pending of a task and when an endpoint is looked at depend on several rows, so whoever changes any of them holds the row of the
//! endpoint, and reads what it needs in a later statement than the one that took hold of it.

use std::collections::BTreeSet;

use comfyd_actors::{
    domain::{
        id::TaskId,
        time::Timestamp,
        webhook::{Delivery, Endpoint, EndpointId, Policy, Report, take_due},
    },
    ports::store::StoreError,
};

use crate::store::{
    columns,
    postgres::{
        fault::Fault,
        rows::{get, json, keys},
        tx::Tx,
        unwritten::{DeliveryRow, Statement},
        writer::Operation,
    },
};

const HOLD: &str = "SELECT id FROM webhook_endpoints WHERE id = ANY ($1::bigint[]) ORDER BY id FOR NO KEY UPDATE";

const POST: &str = "INSERT INTO webhook_deliveries (task_id, endpoint, at, stage, generation, attempt, error)
     SELECT d.task_id, d.endpoint, d.at, d.stage, d.generation, d.attempt, d.error
     FROM json_populate_recordset(NULL::webhook_deliveries, $1::json) WITH ORDINALITY AS d
         (id, task_id, endpoint, at, stage, generation, attempt, error, state, due_at, turn, sending, failures, tries, place)
     ORDER BY d.place";

/// The first pending message of each of these tasks is due.
const OPEN: &str = "UPDATE webhook_deliveries SET due_at = $1 WHERE due_at IS NULL AND id IN (
         SELECT (SELECT p.id FROM webhook_deliveries p WHERE p.task_id = t.id AND p.state = 'pending' ORDER BY p.id LIMIT 1)
         FROM unnest($2::uuid[]) AS t (id))";

/// The first message that may be sent to an endpoint.
macro_rules! first_due {
    () => {
        "(SELECT f.due_at FROM webhook_deliveries f
          WHERE f.endpoint = webhook_endpoints.id AND f.due_at IS NOT NULL ORDER BY f.due_at LIMIT 1)"
    };
}

/// When an endpoint is looked at next: nobody is called for nothing, and not before its time.
macro_rules! call_at {
    ($due:expr) => {
        concat!(
            "CASE WHEN disabled_at IS NULL AND ",
            $due,
            " IS NOT NULL THEN greatest(coalesce(not_before, 0), ",
            $due,
            ") END"
        )
    };
}

/// Whether as many as may be are on their way already is seen by who looks.
const CALL: &str =
    concat!("UPDATE webhook_endpoints SET due_at = ", call_at!(first_due!()), " WHERE id = ANY ($1::bigint[])");

/// Messages that are on their way to an endpoint, at the moment `$1`.
macro_rules! sending {
    ($endpoint:literal) => {
        concat!("FROM webhook_deliveries s WHERE s.endpoint = ", $endpoint, " AND s.sending AND s.due_at > $1")
    };
}

/// When endpoints are looked at next: when the first message is due or, while as many as may be are on their way, when the first of those
/// is taken to be lost.
const REFRESH: &str = concat!(
    "UPDATE webhook_endpoints SET due_at = CASE WHEN (SELECT count(*) ",
    sending!("webhook_endpoints.id"),
    ") >= CASE WHEN failures >= $2 THEN 1 ELSE $3 END THEN ",
    call_at!(concat!("(SELECT min(s.due_at) ", sending!("webhook_endpoints.id"), ")")),
    " ELSE ",
    call_at!(first_due!()),
    " END WHERE id = ANY ($4::bigint[])"
);

/// Endpoints that have something to send, and that nobody else looks at. Those that turn out to have nothing are not called again before
/// they do.
const CALLED: &str = "SELECT id FROM webhook_endpoints WHERE due_at <= $1 ORDER BY due_at, id LIMIT $2
     FOR NO KEY UPDATE SKIP LOCKED";

/// What is due of these endpoints: of each no more than may be on their way to it.
const RIPE: &str = concat!(
    "SELECT ",
    pair_columns!(),
    ", (SELECT count(*) ",
    sending!("e.id"),
    ") AS busy
     FROM webhook_endpoints e CROSS JOIN LATERAL (
         SELECT * FROM webhook_deliveries h WHERE h.endpoint = e.id AND h.due_at <= $1 ORDER BY h.due_at, h.id LIMIT $3) d
     WHERE e.id = ANY ($2::bigint[]) ORDER BY d.due_at, d.id"
);

const TAKE: &str =
    "UPDATE webhook_deliveries SET turn = turn + 1, sending = true, due_at = $1 WHERE id = ANY ($2::bigint[])";

/// The endpoint never changes.
const ENDPOINT_OF: &str = "SELECT endpoint AS id FROM webhook_deliveries WHERE id = $1";

const FIND: &str = concat!(
    "SELECT ",
    pair_columns!(),
    " FROM webhook_deliveries d JOIN webhook_endpoints e ON e.id = d.endpoint WHERE d.id = $1"
);

const FIND_ENDPOINT: &str = concat!("SELECT ", endpoint_columns!(), " FROM webhook_endpoints e WHERE e.id = $1");

const SAVE: &str =
    "UPDATE webhook_deliveries SET state = $2, due_at = $3, turn = $4, sending = $5, failures = $6, tries = $7
     WHERE id = $1";

const SAVE_ENDPOINT: &str =
    "UPDATE webhook_endpoints SET failures = $2, not_before = $3, disabled_at = $4 WHERE id = $1";

/// Of tasks that are gone, unless others have them too. One that somebody is about to use is left to the next time.
const FORGET: &str = "DELETE FROM webhook_endpoints WHERE id IN (
         SELECT e.id FROM webhook_endpoints e WHERE e.id = ANY ($1::bigint[]) FOR UPDATE SKIP LOCKED)
     AND NOT EXISTS (SELECT 1 FROM tasks t WHERE t.hook_endpoint = webhook_endpoints.id)";

/// Writes new messages, and has the first of each task sent.
pub(in crate::store::postgres) fn post(rows: &[DeliveryRow], now: Timestamp) -> Result<[Statement; 4], StoreError> {
    let endpoints: BTreeSet<i64> = rows.iter().map(|row| row.endpoint).collect();
    let endpoints: Vec<i64> = endpoints.into_iter().collect();
    let tasks: BTreeSet<TaskId> = rows.iter().map(|row| row.task_id).collect();
    Ok([hold(endpoints.clone()), sqlx::query(POST).bind(json(rows)?), open(tasks, now), call(endpoints)])
}

fn hold(endpoints: Vec<i64>) -> Statement {
    sqlx::query(HOLD).bind(endpoints)
}

fn open(tasks: impl IntoIterator<Item = TaskId>, now: Timestamp) -> Statement {
    sqlx::query(OPEN).bind(now.0).bind(keys(tasks))
}

/// Has these endpoints looked at when something is due for them.
fn call(endpoints: Vec<i64>) -> Statement {
    sqlx::query(CALL).bind(endpoints)
}

/// `HookStore::take`.
pub(in crate::store::postgres) struct Take {
    pub(in crate::store::postgres) limit: u32,
    pub(in crate::store::postgres) policy: Policy,
}

impl Operation for Take {
    type Answer = Vec<Delivery>;

    /// Nobody outside is told what a power cut can undo.
    fn is_promise(&self) -> bool {
        true
    }

    async fn run(&self, tx: &mut Tx<'_>) -> Result<Vec<Delivery>, Fault> {
        let Self { limit, policy } = self;
        let now = tx.now;
        let called = tx.read(sqlx::query(CALLED).bind(now.0).bind(i64::from(*limit))).await?;
        let called = called.iter().map(|row| get(row, "id")).collect::<Result<Vec<i64>, _>>()?;
        if called.is_empty() {
            return Ok(Vec::new());
        }
        let ripe = sqlx::query(RIPE).bind(now.0).bind(called.clone()).bind(i64::from(policy.parallel));
        let ripe = tx.read(ripe).await?;
        let due = ripe.iter().map(|row| {
            let (delivery, endpoint) = columns::pair(row)?;
            Ok((delivery, endpoint, get(row, "busy")?))
        });
        let taken = take_due(due.collect::<Result<_, StoreError>>()?, *limit, policy, now);
        let ids: Vec<i64> = taken.iter().map(|delivery| delivery.id).collect();
        tx.write(sqlx::query(TAKE).bind(now.after(policy.lease).0).bind(ids)).await?;
        tx.write(refresh(called, policy, now)).await?;
        Ok(taken)
    }
}

/// `HookStore::settle`.
pub(in crate::store::postgres) struct Settle {
    pub(in crate::store::postgres) id: i64,
    pub(in crate::store::postgres) turn: i64,
    pub(in crate::store::postgres) report: Report,
    pub(in crate::store::postgres) policy: Policy,
}

impl Operation for Settle {
    type Answer = Option<Delivery>;

    async fn run(&self, tx: &mut Tx<'_>) -> Result<Option<Delivery>, Fault> {
        let now = tx.now;
        let Some((mut delivery, mut endpoint)) = find(tx, self.id).await? else { return Ok(None) };
        if delivery.turn != self.turn {
            return Ok(None);
        }
        let before = endpoint.clone();
        delivery.settle(&mut endpoint, &self.report, &self.policy, now);
        tx.write(save(&delivery)?).await?;
        if endpoint != before {
            tx.write(save_endpoint(&endpoint)).await?;
        }
        tx.write(open([delivery.task], now)).await?;
        tx.write(refresh(vec![endpoint.id.0], &self.policy, now)).await?;
        Ok(Some(delivery))
    }
}

/// `HookStore::redeliver`.
pub(in crate::store::postgres) struct Redeliver(pub(in crate::store::postgres) i64);

impl Operation for Redeliver {
    type Answer = (Delivery, Endpoint);

    fn is_promise(&self) -> bool {
        true
    }

    async fn run(&self, tx: &mut Tx<'_>) -> Result<Self::Answer, Fault> {
        let (mut delivery, endpoint) = find(tx, self.0).await?.ok_or(StoreError::NotFound)?;
        delivery.ask_again(tx.now);
        tx.write(save(&delivery)?).await?;
        tx.write(call(vec![endpoint.id.0])).await?;
        Ok((delivery, endpoint))
    }
}

/// `HookStore::enable`.
pub(in crate::store::postgres) struct Enable(pub(in crate::store::postgres) EndpointId);

impl Operation for Enable {
    type Answer = Endpoint;

    fn is_promise(&self) -> bool {
        true
    }

    async fn run(&self, tx: &mut Tx<'_>) -> Result<Endpoint, Fault> {
        tx.read(hold(vec![self.0.0])).await?;
        let found = tx.read(sqlx::query(FIND_ENDPOINT).bind(self.0.0)).await?;
        let mut endpoint = columns::endpoint(found.first().ok_or(StoreError::NotFound)?)?;
        endpoint.enable();
        tx.write(save_endpoint(&endpoint)).await?;
        tx.write(call(vec![endpoint.id.0])).await?;
        Ok(endpoint)
    }
}

/// Forgets those of these endpoints that no task has any more.
pub(super) fn forget(endpoints: Vec<i64>) -> Statement {
    sqlx::query(FORGET).bind(endpoints)
}

/// A message and its endpoint, which is held from now on.
async fn find(tx: &mut Tx<'_>, id: i64) -> Result<Option<(Delivery, Endpoint)>, Fault> {
    let endpoint = tx.read(sqlx::query(ENDPOINT_OF).bind(id)).await?;
    let Some(endpoint) = endpoint.first().map(|row| get::<i64>(row, "id")).transpose()? else { return Ok(None) };
    tx.read(hold(vec![endpoint])).await?;
    let found = tx.read(sqlx::query(FIND).bind(id)).await?;
    Ok(found.first().map(columns::pair).transpose()?)
}

fn refresh(endpoints: Vec<i64>, policy: &Policy, now: Timestamp) -> Statement {
    sqlx::query(REFRESH).bind(now.0).bind(i64::from(policy.failures)).bind(i64::from(policy.parallel)).bind(endpoints)
}

fn save(delivery: &Delivery) -> Result<Statement, StoreError> {
    Ok(sqlx::query(SAVE)
        .bind(delivery.id)
        .bind(delivery.state.as_str())
        .bind(delivery.due_at.map(|at| at.0))
        .bind(delivery.turn)
        .bind(delivery.sending)
        .bind(i64::from(delivery.failures))
        .bind(json(&delivery.tries)?))
}

fn save_endpoint(endpoint: &Endpoint) -> Statement {
    sqlx::query(SAVE_ENDPOINT)
        .bind(endpoint.id.0)
        .bind(i64::from(endpoint.failures))
        .bind(endpoint.not_before.map(|at| at.0))
        .bind(endpoint.disabled_at.map(|at| at.0))
}
