//! `/api/jobs*` of the current generation: pending, running and finished prompts in one view.

use std::collections::HashMap;

use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::{Map, Value as Json, json};
use uuid::Uuid;

use super::{Shared, json, read_body};
use crate::log::Outcome;
use crate::queue::{Prompt, Record, Running};
use crate::server::Server;

const STATUSES: [&str; 5] = ["pending", "in_progress", "completed", "failed", "cancelled"];

pub(super) async fn list(State(server): Shared, Query(query): Query<HashMap<String, String>>) -> Response {
    let filter = match Filter::parse(&query) {
        Ok(filter) => filter,
        Err(text) => return json(StatusCode::BAD_REQUEST, &json!({"error": text})),
    };
    let mut jobs: Vec<Map<String, Json>> = all(&server).into_iter().filter(|job| filter.admits(job)).collect();
    filter.sort(&mut jobs);
    let total = jobs.len();
    let end = filter.limit.map_or(total, |limit| filter.offset.saturating_add(limit).min(total));
    let shown: Vec<_> = jobs.into_iter().skip(filter.offset).take(end.saturating_sub(filter.offset)).collect();
    let pagination = json!({"offset": filter.offset, "limit": filter.limit, "total": total, "has_more": end < total});
    json(StatusCode::OK, &json!({"jobs": shown, "pagination": pagination}))
}

struct Filter {
    statuses: Option<Vec<String>>,
    workflow_id: Option<String>,
    by_duration: bool,
    ascending: bool,
    limit: Option<usize>,
    offset: usize,
}

impl Filter {
    fn parse(query: &HashMap<String, String>) -> Result<Self, String> {
        let given = |name: &str| query.get(name).map(String::as_str).filter(|text| !text.is_empty());
        let statuses: Option<Vec<String>> =
            given("status").map(|list| list.split(',').map(|status| status.trim().to_lowercase()).collect());
        let unknown: Vec<&str> =
            statuses.iter().flatten().map(String::as_str).filter(|status| !STATUSES.contains(status)).collect();
        if !unknown.is_empty() {
            let (unknown, known) = (unknown.join(", "), STATUSES.join(", "));
            return Err(format!("Invalid status value(s): {unknown}. Valid values: {known}"));
        }
        let by_duration = match given("sort_by") {
            None | Some("created_at") => false,
            Some("execution_duration") => true,
            Some(_) => return Err("sort_by must be 'created_at' or 'execution_duration'".to_owned()),
        };
        let ascending = match given("sort_order") {
            None | Some("desc") => false,
            Some("asc") => true,
            Some(_) => return Err("sort_order must be 'asc' or 'desc'".to_owned()),
        };
        let integer = |name: &str| {
            given(name).map(|text| text.parse::<i64>().map_err(|_| format!("{name} must be an integer"))).transpose()
        };
        let limit = match integer("limit")? {
            Some(limit) if limit < 1 => return Err("limit must be a positive integer".to_owned()),
            limit => limit.and_then(|limit| usize::try_from(limit).ok()),
        };
        let offset = integer("offset")?.and_then(|offset| usize::try_from(offset).ok()).unwrap_or(0);
        let workflow_id = given("workflow_id").map(str::to_owned);
        Ok(Self { statuses, workflow_id, by_duration, ascending, limit, offset })
    }

    fn admits(&self, job: &Map<String, Json>) -> bool {
        let has = |key: &str, wanted: &str| job.get(key).and_then(Json::as_str) == Some(wanted);
        self.statuses.as_ref().is_none_or(|statuses| statuses.iter().any(|status| has("status", status)))
            && self.workflow_id.as_ref().is_none_or(|workflow| has("workflow_id", workflow))
    }

    fn sort(&self, jobs: &mut [Map<String, Json>]) {
        let time = |job: &Map<String, Json>, key: &str| job.get(key).and_then(Json::as_u64).unwrap_or(0);
        jobs.sort_by_key(|job| {
            if self.by_duration {
                time(job, "execution_end_time").saturating_sub(time(job, "execution_start_time"))
            } else {
                time(job, "create_time")
            }
        });
        if !self.ascending {
            jobs.reverse();
        }
    }
}

pub(super) async fn one(State(server): Shared, Path(id): Path<String>) -> Response {
    let found = {
        let jobs = server.jobs();
        if let Some(running) = jobs.running.as_ref().filter(|running| running.prompt.id == id) {
            Some(with_details(of_running(running), &running.prompt, None))
        } else if let Some(prompt) = jobs.pending().find(|prompt| prompt.id == id) {
            Some(with_details(of_pending(prompt), prompt, None))
        } else {
            jobs.history.get(&id).map(|record| with_details(of_record(&record), &record.prompt, Some(&record)))
        }
    };
    match found {
        Some(job) => json(StatusCode::OK, &job),
        None => json(StatusCode::NOT_FOUND, &json!({"error": "Job not found"})),
    }
}

pub(super) async fn cancel(State(server): Shared, Path(id): Path<String>) -> Response {
    if Uuid::try_parse(&id).is_err() {
        return json(StatusCode::BAD_REQUEST, &json!({"error": "job_id must be a valid UUID"}));
    }
    let cancelled = cancel_one(&server, &id);
    json(StatusCode::OK, &json!({"cancelled": cancelled}))
}

pub(super) async fn cancel_many(State(server): Shared, body: Body) -> Response {
    let body = match read_body(&server, body).await {
        Ok(body) => body,
        Err(response) => return response,
    };
    let bad = |text: &str| json(StatusCode::BAD_REQUEST, &json!({"error": text}));
    let Ok(request) = serde_json::from_slice::<Json>(&body) else {
        return bad("Invalid JSON body");
    };
    let ids = request.get("job_ids").and_then(Json::as_array).filter(|ids| !ids.is_empty());
    let Some(ids) = ids else {
        return bad("job_ids must be a non-empty list");
    };
    let ids: Option<Vec<&str>> = ids.iter().map(|id| id.as_str().filter(|id| Uuid::try_parse(id).is_ok())).collect();
    let Some(ids) = ids else {
        return bad("job_ids must be valid UUIDs");
    };
    // Not `any`: every job is to be cancelled, not only the first.
    let cancelled = ids.iter().filter(|id| cancel_one(&server, id)).count() > 0;
    json(StatusCode::OK, &json!({"cancelled": cancelled}))
}

/// Interrupts the job if it runs, else takes it out of the queue.
fn cancel_one(server: &Server, id: &str) -> bool {
    server.interrupt(Some(id)) || server.delete_pending(&[id.to_owned()])
}

fn all(server: &Server) -> Vec<Map<String, Json>> {
    let jobs = server.jobs();
    let finished = jobs.history.all();
    let running = jobs.running.iter().map(of_running);
    let pending = jobs.pending().map(|prompt| of_pending(prompt));
    finished.iter().map(|record| of_record(record)).chain(running).chain(pending).collect()
}

fn base(prompt: &Prompt, status: &str, outputs: usize, previewable: usize) -> Map<String, Json> {
    let mut job = Map::new();
    job.insert("id".to_owned(), json!(prompt.id));
    job.insert("status".to_owned(), json!(status));
    job.insert("priority".to_owned(), json!(prompt.number));
    job.insert("create_time".to_owned(), json!(prompt.create_time));
    job.insert("outputs_count".to_owned(), json!(outputs));
    job.insert("previewable_outputs_count".to_owned(), json!(previewable));
    let info = prompt.extra_data.value("extra_pnginfo");
    if let Some(workflow) = info.as_ref().and_then(|info| info.pointer("/workflow/id")).filter(|id| !id.is_null()) {
        job.insert("workflow_id".to_owned(), workflow.clone());
    }
    job
}

fn of_pending(prompt: &Prompt) -> Map<String, Json> {
    base(prompt, "pending", 0, 0)
}

fn of_running(running: &Running) -> Map<String, Json> {
    base(&running.prompt, "in_progress", 0, 0)
}

fn of_record(record: &Record) -> Map<String, Json> {
    let status = match record.outcome {
        Outcome::Success => "completed",
        Outcome::Error => "failed",
        Outcome::Interrupted => "cancelled",
    };
    let outputs = outputs_of(record);
    let counted = outputs.iter().filter(|output| !is_text(output)).count();
    let previewable: Vec<&Json> = outputs.iter().filter(|output| is_previewable(output)).collect();
    let mut job = base(&record.prompt, status, counted, previewable.len());
    job.insert("execution_start_time".to_owned(), json!(record.started));
    job.insert("execution_end_time".to_owned(), json!(record.ended));
    let saved = |output: &&&Json| output.get("type").and_then(Json::as_str) == Some("output");
    let text = outputs.iter().find(|output| is_text(output));
    if let Some(preview) = previewable.iter().find(saved).or(previewable.first()).copied().or(text) {
        job.insert("preview_output".to_owned(), preview.clone());
    }
    if let Some((_, error)) = record.messages.iter().find(|(kind, _)| *kind == "execution_error") {
        job.insert("execution_error".to_owned(), error.clone());
    }
    job
}

/// Every output item, files and texts, with the node and the key it stands under.
fn outputs_of(record: &Record) -> Vec<Json> {
    let mut items = Vec::new();
    for (node, output) in &record.outputs {
        for (media, list) in output.as_object().into_iter().flatten() {
            for item in list.as_array().into_iter().flatten() {
                let mut item = match item {
                    Json::Object(_) => item.clone(),
                    Json::String(text) if media == "text" => json!({"content": text}),
                    _ => continue,
                };
                item["nodeId"] = json!(node);
                item["mediaType"] = json!(media);
                items.push(item);
            }
        }
    }
    items
}

fn is_text(output: &Json) -> bool {
    output.get("mediaType").and_then(Json::as_str) == Some("text")
}

/// By the key, or by an ending the web interface can show.
fn is_previewable(output: &Json) -> bool {
    let text = |key: &str| output.get(key).and_then(Json::as_str).unwrap_or_default();
    matches!(text("mediaType"), "images" | "video" | "audio" | "3d")
        || [".txt", ".md", ".json"].iter().any(|ending| text("filename").ends_with(ending))
}

fn with_details(mut job: Map<String, Json>, prompt: &Prompt, record: Option<&Record>) -> Map<String, Json> {
    if let Some(record) = record {
        job.insert("outputs".to_owned(), record.outputs());
        job.insert("execution_status".to_owned(), record.status());
    } else {
        job.insert("outputs".to_owned(), json!({}));
    }
    // Both came in as JSON, so they can be read again.
    let graph: Json = serde_json::from_str(prompt.text.get()).unwrap_or_default();
    job.insert("workflow".to_owned(), json!({"prompt": graph, "extra_data": prompt.extra_data}));
    job
}
