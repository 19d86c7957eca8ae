//! `/history`.

use std::collections::HashMap;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::Value as Json;

use super::queue::is_true;
use super::{Shared, json, read_body, trouble};
use crate::log::EventKind;
use crate::queue::Record;

/// Results keyed by prompt id, oldest first.
struct Entries(Vec<Arc<Record>>);

impl Serialize for Entries {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|record| (&record.prompt.id, &**record)))
    }
}

pub(super) async fn list(State(server): Shared, Query(query): Query<HashMap<String, String>>) -> Response {
    let number = |name: &str| query.get(name).map(|text| text.trim().parse::<i64>()).transpose();
    let (Ok(max_items), Ok(offset)) = (number("max_items"), number("offset")) else {
        return trouble();
    };
    let all = server.jobs().history.all();
    json(StatusCode::OK, &Entries(window(all, max_items, offset)))
}

/// The newest `max_items`, or as many from the `offset`-th oldest on.
fn window(all: Vec<Arc<Record>>, max_items: Option<i64>, offset: Option<i64>) -> Vec<Arc<Record>> {
    let count = max_items.map_or(all.len(), |count| usize::try_from(count).unwrap_or(0));
    let start = match (offset, max_items) {
        (Some(offset), _) if offset >= 0 => usize::try_from(offset).unwrap_or(usize::MAX),
        (_, Some(_)) => all.len().saturating_sub(count),
        _ => 0,
    };
    all.into_iter().skip(start).take(count).collect()
}

pub(super) async fn one(State(server): Shared, Path(id): Path<String>) -> Response {
    let record = server.jobs().history.get(&id);
    json(StatusCode::OK, &Entries(record.into_iter().collect()))
}

pub(super) async fn change(State(server): Shared, body: Body) -> Response {
    let body = match read_body(&server, body).await {
        Ok(body) => body,
        Err(response) => return response,
    };
    let Ok(Json::Object(request)) = serde_json::from_slice(&body) else {
        return trouble();
    };
    if request.get("clear").is_some_and(is_true) {
        for prompt_id in server.jobs().history.clear() {
            server.log.push(EventKind::HistoryDeleted { prompt_id });
        }
    }
    if let Some(ids) = request.get("delete") {
        let Some(ids) = ids.as_array() else { return trouble() };
        for id in ids.iter().filter_map(Json::as_str) {
            if server.jobs().history.remove(id) {
                server.log.push(EventKind::HistoryDeleted { prompt_id: id.to_owned() });
            }
        }
    }
    StatusCode::OK.into_response()
}
