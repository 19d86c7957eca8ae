//! The log of messages to webhooks, and their receivers.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Path, Query, State},
    http::StatusCode,
};
use comfyd_actors::{
    domain::{
        time::Timestamp,
        webhook::{Delivery, DeliveryState, Endpoint, EndpointId, Try, event_type},
    },
    ports::{
        hook_store::{DeliveryQuery, HookLevels},
        store::StoreError,
    },
};
use serde::Serialize;
use utoipa::ToSchema;

use super::{
    Service,
    problem::{FieldFault, Problem, ProblemBody, each_parameter},
    tasks::{PAGE, parse_limit},
};
use crate::config::nearest;

const PARAMETERS: [&str; 5] = ["task_id", "endpoint_id", "status", "limit", "cursor"];
const ENDPOINT_PARAMETERS: [&str; 2] = ["limit", "cursor"];

/// A message to a webhook, as the log has it.
#[derive(Debug, Serialize, ToSchema)]
pub struct DeliveryView {
    /// Its number: messages of one task are sent in this order.
    pub delivery_id: i64,
    /// What the receiver knows it by (the header `webhook-id`), the same however often it is sent.
    pub webhook_id: String,
    /// The task it is about.
    pub task_id: String,
    /// What it tells.
    #[serde(rename = "type")]
    #[schema(example = "task.completed")]
    pub kind: &'static str,
    /// When that happened.
    #[schema(format = DateTime)]
    pub timestamp: String,
    /// `pending`, `delivered`, or `failed`: given up after the last try.
    #[schema(example = "delivered")]
    pub status: &'static str,
    /// When it is sent next. Null: it is over, or waits for an earlier message of its task, or its receiver is disabled.
    #[schema(format = DateTime)]
    pub next_try_at: Option<String>,
    /// Its newest tries, oldest first.
    pub tries: Vec<TryView>,
    /// Where it goes.
    pub endpoint: EndpointView,
}

/// A try to deliver a message.
#[derive(Debug, Serialize, ToSchema)]
pub struct TryView {
    /// When it began.
    #[schema(format = DateTime)]
    pub at: String,
    /// How long it took, in milliseconds.
    pub ms: i64,
    /// The receiver's HTTP status; null when it did not answer.
    pub status: Option<u16>,
    /// Why not.
    pub error: Option<String>,
}

/// A receiver of messages: what `webhook_url`s have in common that differ only behind the `?`.
#[derive(Debug, Serialize, ToSchema)]
pub struct EndpointView {
    /// Its id.
    pub endpoint_id: String,
    /// Its address, without what is behind the `?`.
    #[schema(example = "https://app.example.org/hooks/comfyd")]
    pub url: String,
    /// Failures in a row by its own fault: no answer, 5xx, or 429.
    pub failures: u32,
    /// It is left alone until then.
    #[schema(format = DateTime)]
    pub not_before: Option<String>,
    /// Since when it gets nothing, because it answered 410. What is meant for it waits until somebody enables it.
    #[schema(format = DateTime)]
    pub disabled_at: Option<String>,
}

/// One page of messages.
#[derive(Debug, Serialize, ToSchema)]
pub struct DeliveryPage {
    /// Newest first.
    pub deliveries: Vec<DeliveryView>,
    /// Send it as `cursor` to get the next page; null on the last one.
    pub next_cursor: Option<String>,
}

/// One page of receivers.
#[derive(Debug, Serialize, ToSchema)]
pub struct EndpointPage {
    /// By id.
    pub endpoints: Vec<EndpointView>,
    /// Send it as `cursor` to get the next page; null on the last one.
    pub next_cursor: Option<String>,
}

/// What waits for webhooks.
#[derive(Debug, Serialize, ToSchema)]
pub struct WebhooksView {
    /// Messages that are not delivered yet.
    pub pending: u64,
    /// Of when the oldest of them tells.
    #[schema(format = DateTime)]
    pub oldest: Option<String>,
    /// Receivers that failed the last time.
    pub failing: u64,
    /// Receivers that answered 410, and get nothing until somebody enables them.
    pub disabled: u64,
}

/// List messages to webhooks
///
/// Newest first, the delivered ones included. They are deleted with their task.
#[utoipa::path(
    get, path = "/api/webhooks/deliveries", tag = "webhooks", operation_id = "webhook_deliveries",
    params(
        ("task_id" = Option<String>, Query, description = "Only about this task"),
        ("endpoint_id" = Option<String>, Query, description = "Only to this receiver"),
        ("status" = Option<String>, Query, description = "Only these: `pending`, `delivered` or `failed`", example = "failed"),
        ("limit" = Option<u32>, Query, description = "Messages per page", minimum = 1, maximum = 200, example = 50),
        ("cursor" = Option<String>, Query, description = "`next_cursor` of the page before")
    ),
    responses(
        (status = 200, description = "A page", body = DeliveryPage),
        (status = 400, description = "Not a query", body = ProblemBody, content_type = "application/problem+json"),
        (status = 422, description = "Faulty parameters, all of them listed", body = ProblemBody, content_type = "application/problem+json"),
        (status = 503, description = "The task store is away", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub async fn deliveries(
    State(service): State<Arc<Service>>,
    Query(parameters): Query<Vec<(String, String)>>,
) -> Result<Json<DeliveryPage>, Problem> {
    let mut query = parse_query(&parameters)?;
    let limit = query.limit as usize;
    // One more than asked for tells whether there is a next page.
    query.limit += 1;
    let found = service.bridge.deliveries(query).await?;
    let more = found.len() > limit;
    let deliveries: Vec<_> = found.into_iter().take(limit).map(DeliveryView::of).collect();
    let next_cursor = deliveries.last().filter(|_| more).map(|last| last.delivery_id.to_string());
    Ok(Json(DeliveryPage { deliveries, next_cursor }))
}

/// Send a message again
///
/// At once and with all its tries, whatever became of it: delivered or given up. The receiver knows it by the same `webhook-id`. It is not
/// held to the order of its task. When the receiver is disabled it waits until that is enabled.
#[utoipa::path(
    post, path = "/api/webhooks/deliveries/{delivery_id}/redeliver", tag = "webhooks", operation_id = "redeliver",
    params(("delivery_id" = String, Path, description = "As the log has it")),
    responses(
        (status = 202, description = "It is sent", body = DeliveryView),
        (status = 404, description = "No such message", body = ProblemBody, content_type = "application/problem+json"),
        (status = 503, description = "The task store is away", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub async fn redeliver(
    State(service): State<Arc<Service>>,
    Path(id): Path<String>,
) -> Result<(StatusCode, Json<DeliveryView>), Problem> {
    let none = || {
        Problem::new(
            StatusCode::NOT_FOUND,
            "delivery_not_found",
            "there is no message with this id; they go with their tasks",
        )
    };
    let id = id.parse().map_err(|_| none())?;
    let asked = service.bridge.redeliver(id).await.map_err(|error| absent(error, none))?;
    tracing::info!(delivery = id, "a message to a webhook is sent again by request");
    Ok((StatusCode::ACCEPTED, Json(DeliveryView::of(asked))))
}

/// List receivers of messages
///
/// Every receiver that a task which is still kept named.
#[utoipa::path(
    get, path = "/api/webhooks/endpoints", tag = "webhooks", operation_id = "webhook_endpoints",
    params(
        ("limit" = Option<u32>, Query, description = "Receivers per page", minimum = 1, maximum = 200, example = 50),
        ("cursor" = Option<String>, Query, description = "`next_cursor` of the page before")
    ),
    responses(
        (status = 200, description = "A page", body = EndpointPage),
        (status = 400, description = "Not a query", body = ProblemBody, content_type = "application/problem+json"),
        (status = 422, description = "Faulty parameters, all of them listed", body = ProblemBody, content_type = "application/problem+json"),
        (status = 503, description = "The task store is away", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub async fn endpoints(
    State(service): State<Arc<Service>>,
    Query(parameters): Query<Vec<(String, String)>>,
) -> Result<Json<EndpointPage>, Problem> {
    let (mut after, mut limit) = (None, PAGE);
    let faults = each_parameter(&parameters, &ENDPOINT_PARAMETERS, |name, value| {
        match name {
            "limit" => limit = parse_limit(value)?,
            _ => after = Some(parse_endpoint(value)?),
        }
        Ok(())
    });
    if !faults.is_empty() {
        return Err(Problem::invalid(faults));
    }
    let found = service.bridge.hook_endpoints(after, limit + 1).await?;
    let more = found.len() > limit as usize;
    let endpoints: Vec<_> = found.into_iter().take(limit as usize).map(EndpointView::of).collect();
    let next_cursor = endpoints.last().filter(|_| more).map(|last| last.endpoint_id.clone());
    Ok(Json(EndpointPage { endpoints, next_cursor }))
}

/// Enable a receiver
///
/// One that answered 410, or is left alone because it failed, gets what waited for it. May be repeated.
#[utoipa::path(
    post, path = "/api/webhooks/endpoints/{endpoint_id}/enable", tag = "webhooks", operation_id = "enable_webhook_endpoint",
    params(("endpoint_id" = String, Path, description = "As the log has it")),
    responses(
        (status = 200, description = "It is enabled", body = EndpointView),
        (status = 404, description = "No such receiver", body = ProblemBody, content_type = "application/problem+json"),
        (status = 503, description = "The task store is away", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub async fn enable(
    State(service): State<Arc<Service>>,
    Path(id): Path<String>,
) -> Result<Json<EndpointView>, Problem> {
    let none = || {
        Problem::new(
            StatusCode::NOT_FOUND,
            "endpoint_not_found",
            "there is no receiver with this id; they go with their last task",
        )
    };
    let id = parse_endpoint(&id).map_err(|_| none())?;
    let endpoint = service.bridge.enable_endpoint(id).await.map_err(|error| absent(error, none))?;
    tracing::info!(endpoint = write_endpoint(id), "a receiver of messages is enabled by request");
    Ok(Json(EndpointView::of(endpoint)))
}

/// What is not there is no task here.
fn absent(error: StoreError, none: impl Fn() -> Problem) -> Problem {
    if matches!(error, StoreError::NotFound) { none() } else { error.into() }
}

fn parse_query(parameters: &[(String, String)]) -> Result<DeliveryQuery, Problem> {
    let mut query = DeliveryQuery { limit: PAGE, ..DeliveryQuery::default() };
    let faults = each_parameter(parameters, &PARAMETERS, |name, value| {
        match name {
            "task_id" => query.task = Some(value.parse().map_err(|_| FieldFault::parameter(name, "not a task's id"))?),
            "endpoint_id" => query.endpoint = Some(parse_endpoint(value)?),
            "status" => query.state = Some(parse_state(value)?),
            "limit" => query.limit = parse_limit(value)?,
            _ => query.before = Some(value.parse().map_err(|_| FieldFault::parameter(name, "not a cursor of ours"))?),
        }
        Ok(())
    });
    if faults.is_empty() { Ok(query) } else { Err(Problem::invalid(faults)) }
}

fn parse_state(word: &str) -> Result<DeliveryState, FieldFault> {
    let known = DeliveryState::ALL.map(DeliveryState::as_str);
    DeliveryState::parse(word).ok_or_else(|| {
        let detail = format!("`{word}` is no status of a message; there are {}", known.join(", "));
        FieldFault::parameter("status", detail).suggesting(nearest(word, known))
    })
}

/// In hexadecimal, because programs that read JSON keep numbers of this size in part.
fn write_endpoint(id: EndpointId) -> String {
    format!("{:016x}", id.0)
}

fn parse_endpoint(text: &str) -> Result<EndpointId, FieldFault> {
    let id = i64::from_str_radix(text, 16).ok().map(EndpointId).filter(|id| write_endpoint(*id) == text);
    id.ok_or_else(|| FieldFault::parameter("", "not a receiver's id: take `endpoint_id` as it is"))
}

impl DeliveryView {
    fn of((delivery, endpoint): (Delivery, Endpoint)) -> Self {
        let endpoint = EndpointView::of(endpoint);
        let next = delivery.due_at.filter(|_| endpoint.disabled_at.is_none());
        Self {
            delivery_id: delivery.id,
            webhook_id: delivery.message_id(),
            task_id: delivery.task.to_string(),
            kind: event_type(delivery.stage),
            timestamp: delivery.at.rfc3339(),
            status: delivery.state.as_str(),
            next_try_at: next.map(Timestamp::rfc3339),
            tries: delivery.tries.into_iter().map(TryView::of).collect(),
            endpoint,
        }
    }
}

impl TryView {
    fn of(Try { at, ms, status, error }: Try) -> Self {
        Self { at: at.rfc3339(), ms, status, error }
    }
}

impl EndpointView {
    fn of(Endpoint { id, url, failures, not_before, disabled_at }: Endpoint) -> Self {
        let time = |at: Option<Timestamp>| at.map(Timestamp::rfc3339);
        Self {
            endpoint_id: write_endpoint(id),
            url,
            failures,
            not_before: time(not_before),
            disabled_at: time(disabled_at),
        }
    }
}

impl WebhooksView {
    /// Of what was counted.
    #[must_use]
    pub fn of(HookLevels { pending, oldest, disabled, failing }: HookLevels) -> Self {
        Self { pending, oldest: oldest.map(Timestamp::rfc3339), failing, disabled }
    }
}
