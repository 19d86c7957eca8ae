//! Messages to webhooks: taken, settled, asked for again.

use comfyd_actors::{
    domain::{
        time::Timestamp,
        webhook::{Delivery, Endpoint, EndpointId, Policy, Report, take_due},
    },
    ports::store::StoreError,
};

use crate::store::{
    columns,
    sqlite::{
        fault::Fault,
        outbox::{call, open_next},
        rows::{corrupt, get},
        statement::{Statement, query},
        tx::Tx,
        writer::Operation,
    },
};

/// Messages that are on their way to an endpoint.
macro_rules! sending {
    ($endpoint:literal) => {
        concat!(
            "FROM webhook_deliveries s INDEXED BY webhook_deliveries_sending WHERE s.endpoint = ",
            $endpoint,
            " AND s.sending = 1 AND s.due_at > ?"
        )
    };
}

/// Endpoints that have something to send. Those that turn out to have nothing are not called again before they do ([`REFRESH`]).
pub(in crate::store::sqlite) const CALLED: &str = "SELECT id FROM webhook_endpoints INDEXED BY webhook_endpoints_due
     WHERE due_at <= ? ORDER BY due_at, id LIMIT 0 + ?";

/// What is due of these endpoints: of each no more than may be on their way to it.
pub(in crate::store::sqlite) const RIPE: &str = concat!(
    "SELECT ",
    pair_columns!(),
    ", (SELECT count(*) ",
    sending!("e.id"),
    ") AS busy
     FROM json_each(?) c CROSS JOIN webhook_endpoints e ON e.id = c.value CROSS JOIN webhook_deliveries d
     WHERE d.id IN (SELECT h.id FROM webhook_deliveries h INDEXED BY webhook_deliveries_due
                    WHERE h.endpoint = e.id AND h.due_at <= ? ORDER BY h.due_at, h.id LIMIT 0 + ?)
     ORDER BY d.due_at, d.id"
);

const TAKE: &str = "UPDATE webhook_deliveries SET turn = turn + 1, sending = 1, due_at = ?
     WHERE id IN (SELECT value FROM json_each(?))";

/// When endpoints are looked at next: when the first message is due or, while as many as may be are on their way, when the first of those
/// is taken to be lost.
pub(in crate::store::sqlite) const REFRESH: &str = concat!(
    "UPDATE webhook_endpoints SET due_at = CASE WHEN disabled_at IS NULL THEN max(coalesce(not_before, 0), CASE
         WHEN (SELECT count(*) ",
    sending!("webhook_endpoints.id"),
    ") >= CASE WHEN failures >= ? THEN 1 ELSE ? END
         THEN (SELECT s.due_at ",
    sending!("webhook_endpoints.id"),
    " ORDER BY s.due_at LIMIT 1)
         ELSE ",
    first_due!(),
    " END) END WHERE id IN (SELECT value FROM json_each(?))"
);

const FIND: &str = concat!(
    "SELECT ",
    pair_columns!(),
    " FROM webhook_deliveries d CROSS JOIN webhook_endpoints e ON e.id = d.endpoint WHERE d.id = ?"
);

const FIND_ENDPOINT: &str = concat!("SELECT ", endpoint_columns!(), " FROM webhook_endpoints e WHERE e.id = ?");

const SAVE: &str =
    "UPDATE webhook_deliveries SET state = ?, due_at = ?, turn = ?, sending = ?, failures = ?, tries = ? WHERE id = ?";

const SAVE_ENDPOINT: &str = "UPDATE webhook_endpoints SET failures = ?, not_before = ?, disabled_at = ? WHERE id = ?";

/// Of tasks that are gone, unless others have them too.
const FORGET: &str = "DELETE FROM webhook_endpoints WHERE id IN (SELECT value FROM json_each(?))
     AND NOT EXISTS (SELECT 1 FROM tasks t INDEXED BY tasks_hook WHERE t.hook_endpoint = webhook_endpoints.id)";

/// `HookStore::take`.
pub(in crate::store::sqlite) struct Take {
    pub(in crate::store::sqlite) limit: u32,
    pub(in crate::store::sqlite) policy: Policy,
}

impl Operation for Take {
    type Answer = Vec<Delivery>;

    /// Nobody outside is told what a power cut can undo.
    fn is_promise(&self) -> bool {
        true
    }

    async fn run(self, tx: &mut Tx<'_>) -> Result<Vec<Delivery>, Fault> {
        let Self { limit, policy } = self;
        let now = tx.now;
        let called = tx.fetch(query(CALLED).bind(now.0).bind(limit)).await?;
        let called = called.iter().map(|row| get(row, "id")).collect::<Result<Vec<i64>, _>>()?;
        if called.is_empty() {
            return Ok(Vec::new());
        }
        let ripe = query(RIPE).bind(now.0).bind(list(&called)?).bind(now.0).bind(policy.parallel);
        let ripe = tx.fetch(ripe).await?;
        let due = ripe.iter().map(|row| {
            let (delivery, endpoint) = columns::pair(row)?;
            Ok((delivery, endpoint, get(row, "busy")?))
        });
        let taken = take_due(due.collect::<Result<_, StoreError>>()?, limit, &policy, now);
        let ids: Vec<i64> = taken.iter().map(|delivery| delivery.id).collect();
        tx.write(query(TAKE).bind(now.after(policy.lease).0).bind(list(&ids)?));
        tx.write(refresh(&called, &policy, now)?);
        Ok(taken)
    }
}

/// `HookStore::settle`.
pub(in crate::store::sqlite) struct Settle {
    pub(in crate::store::sqlite) id: i64,
    pub(in crate::store::sqlite) turn: i64,
    pub(in crate::store::sqlite) report: Report,
    pub(in crate::store::sqlite) policy: Policy,
}

impl Operation for Settle {
    type Answer = Option<Delivery>;

    async fn run(self, tx: &mut Tx<'_>) -> Result<Option<Delivery>, Fault> {
        let Self { id, turn, report, policy } = self;
        let found = tx.fetch(query(FIND).bind(id)).await?;
        let Some((mut delivery, mut endpoint)) = found.first().map(columns::pair).transpose()? else { return Ok(None) };
        if delivery.turn != turn {
            return Ok(None);
        }
        let before = endpoint.clone();
        delivery.settle(&mut endpoint, &report, &policy, tx.now);
        tx.write(save(&delivery)?);
        if endpoint != before {
            tx.write(save_endpoint(&endpoint));
        }
        tx.write(open_next(delivery.task, tx.now)?);
        tx.write(refresh(&[endpoint.id.0], &policy, tx.now)?);
        Ok(Some(delivery))
    }
}

/// `HookStore::redeliver`.
pub(in crate::store::sqlite) struct Redeliver(pub(in crate::store::sqlite) i64);

impl Operation for Redeliver {
    type Answer = (Delivery, Endpoint);

    fn is_promise(&self) -> bool {
        true
    }

    async fn run(self, tx: &mut Tx<'_>) -> Result<Self::Answer, Fault> {
        let found = tx.fetch(query(FIND).bind(self.0)).await?;
        let (mut delivery, endpoint) = columns::pair(found.first().ok_or(StoreError::NotFound)?)?;
        delivery.ask_again(tx.now);
        tx.write(save(&delivery)?);
        tx.write(call(&[endpoint.id.0])?);
        Ok((delivery, endpoint))
    }
}

/// `HookStore::enable`.
pub(in crate::store::sqlite) struct Enable(pub(in crate::store::sqlite) EndpointId);

impl Operation for Enable {
    type Answer = Endpoint;

    fn is_promise(&self) -> bool {
        true
    }

    async fn run(self, tx: &mut Tx<'_>) -> Result<Endpoint, Fault> {
        let found = tx.fetch(query(FIND_ENDPOINT).bind(self.0.0)).await?;
        let mut endpoint = columns::endpoint(found.first().ok_or(StoreError::NotFound)?)?;
        endpoint.enable();
        tx.write(save_endpoint(&endpoint));
        tx.write(call(&[endpoint.id.0])?);
        Ok(endpoint)
    }
}

/// Forgets those of these endpoints that no task has any more.
pub(super) fn forget(endpoints: &[i64]) -> Result<Statement, StoreError> {
    Ok(query(FORGET).bind(list(endpoints)?))
}

fn refresh(endpoints: &[i64], policy: &Policy, now: Timestamp) -> Result<Statement, StoreError> {
    Ok(query(REFRESH).bind(now.0).bind(policy.failures).bind(policy.parallel).bind(now.0).bind(list(endpoints)?))
}

fn save(delivery: &Delivery) -> Result<Statement, StoreError> {
    Ok(query(SAVE)
        .bind(delivery.state.as_str())
        .bind(delivery.due_at.map(|at| at.0))
        .bind(delivery.turn)
        .bind(delivery.sending)
        .bind(delivery.failures)
        .bind(serde_json::to_string(&delivery.tries).map_err(corrupt)?)
        .bind(delivery.id))
}

fn save_endpoint(endpoint: &Endpoint) -> Statement {
    query(SAVE_ENDPOINT)
        .bind(endpoint.failures)
        .bind(endpoint.not_before.map(|at| at.0))
        .bind(endpoint.disabled_at.map(|at| at.0))
        .bind(endpoint.id.0)
}

fn list(ids: &[i64]) -> Result<String, StoreError> {
    serde_json::to_string(ids).map_err(corrupt)
}
