//! Rows of messages to webhooks and of their receivers, and how they come into being.

use comfyd_actors::{
    domain::{error::TaskError, event::Fact, id::TaskId, task::Task, time::Timestamp, webhook::Webhook},
    ports::store::StoreError,
};
use serde::Serialize;

use super::{
    rows::corrupt,
    statement::{Statement, query},
};

/// The first message that may be sent to an endpoint.
macro_rules! first_due {
    () => {
        "(SELECT f.due_at FROM webhook_deliveries f INDEXED BY webhook_deliveries_due
          WHERE f.endpoint = webhook_endpoints.id AND f.due_at IS NOT NULL ORDER BY f.due_at LIMIT 1)"
    };
}

const INTRODUCE: &str = "INSERT OR IGNORE INTO webhook_endpoints (id, url) VALUES (?, ?)";

const POST: &str = "INSERT INTO webhook_deliveries (task_id, endpoint, at, stage, generation, attempt, error)
     SELECT unhex(value ->> 0), value ->> 1, value ->> 2, value ->> 3, value ->> 4, value ->> 5, value ->> 6
     FROM json_each(?) WHERE true ORDER BY key";

pub(super) const OPEN: &str = "UPDATE webhook_deliveries SET due_at = ? WHERE due_at IS NULL AND id IN (
         SELECT (SELECT p.id FROM webhook_deliveries p INDEXED BY webhook_deliveries_pending
                 WHERE p.task_id = unhex(t.value) AND p.state = 'pending' ORDER BY p.id LIMIT 1)
         FROM json_each(?) t)";

/// Whether as many as may be are on their way already is seen by who looks.
pub(super) const CALL: &str = concat!(
    "UPDATE webhook_endpoints SET due_at = CASE WHEN disabled_at IS NULL THEN max(coalesce(not_before, 0), ",
    first_due!(),
    ") END WHERE id IN (SELECT value FROM json_each(?))"
);

/// A row of `webhook_deliveries`: task, endpoint, time, stage, generation, attempt, error.
#[derive(Debug, Serialize)]
pub(super) struct DeliveryRow(String, i64, i64, &'static str, i32, i32, Option<TaskError>);

impl DeliveryRow {
    /// The message a fact is worth, if anybody wants to be told of it.
    pub(super) fn of(task: &Task, fact: &Fact, at: Timestamp) -> Option<Self> {
        let Fact::Stage { stage, attempt, error } = fact else { return None };
        let hook = task.hook.filter(|hook| hook.events.contains(*stage))?;
        let id = task.id.0.simple().to_string();
        Some(Self(id, hook.endpoint.0, at.0, stage.as_str(), task.generation, *attempt, error.clone()))
    }
}

/// Takes note of where a new task's messages go.
pub(super) fn introduce(webhook: &Webhook) -> Statement {
    query(INTRODUCE).bind(webhook.hook().endpoint.0).bind(webhook.endpoint_url())
}

/// Writes new messages, and has the first of each task sent.
pub(super) fn post(rows: &[DeliveryRow], now: Timestamp) -> Result<[Statement; 3], StoreError> {
    let tasks: Vec<&str> = rows.iter().map(|row| row.0.as_str()).collect();
    let endpoints: Vec<i64> = rows.iter().map(|row| row.1).collect();
    Ok([query(POST).bind(json(rows)?), open(&tasks, now)?, call(&endpoints)?])
}

/// The first pending message of each of these tasks is due.
fn open(tasks: &[&str], now: Timestamp) -> Result<Statement, StoreError> {
    Ok(query(OPEN).bind(now.0).bind(json(tasks)?))
}

/// The next message of a task is due.
pub(super) fn open_next(task: TaskId, now: Timestamp) -> Result<Statement, StoreError> {
    open(&[&task.0.simple().to_string()], now)
}

/// Has these endpoints looked at when something is due for them.
pub(super) fn call(endpoints: &[i64]) -> Result<Statement, StoreError> {
    Ok(query(CALL).bind(json(endpoints)?))
}

fn json<T: Serialize + ?Sized>(list: &T) -> Result<String, StoreError> {
    serde_json::to_string(list).map_err(corrupt)
}
