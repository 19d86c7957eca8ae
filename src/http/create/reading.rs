//! Reads a request to create a task, field by field, and notes everything that is wrong with it.

use std::{collections::BTreeSet, time::Duration};

use axum::http::HeaderValue;
use comfyd_actors::{
    bridge::{Start, TaskRequest},
    domain::{
        graph::{self, GraphFault, escape},
        lane::{Lane, Needs},
        options::{OutputOptions, StorageChoice, TaskOptions},
        order::Priority,
        time::Timestamp,
        workflow::{self, InputFault, Kind, type_of},
    },
    ports::store::{Idempotency, Payload},
};
use serde_json::{Map, Value, value::RawValue};

use super::Subject;
use crate::{
    config::{label, nearest},
    http::{
        body::{self, Fields},
        files::{Files, Terms},
        output_options,
        problem::{FieldFault, MAX_FAULTS, Problem},
        storage, webhook_url,
    },
    workflows::Found,
};

/// `workflow` is the first: where the path names it, the others are what is left.
const FIELDS: [&str; 15] = [
    "workflow",
    "inputs",
    "priority",
    "run_at",
    "delay",
    "max_attempts",
    "timeout",
    "no_progress_timeout",
    "metadata",
    "allow_partial",
    "previews",
    "output_options",
    "webhook_url",
    "storage",
    "labels",
];
/// Metadata is for labels, not for files.
const MAX_METADATA: usize = 64 << 10;
const MAX_ATTEMPTS: i64 = 100;
const MAX_LABELS: usize = 16;
/// Names that are compared with all others to guess what was meant.
const MAX_GUESSES: usize = 10;
/// A run that takes longer than this is hung.
const MAX_TIMEOUT: Duration = Duration::from_secs(30 * 24 * 3_600);
/// A task that is put off for longer was meant for another unit.
const MAX_DELAY: Duration = Duration::from_secs(366 * 24 * 3_600);

/// The fields of a request and what is wrong with them.
struct Reading<'a> {
    fields: Vec<(String, &'a RawValue)>,
    faults: Vec<FieldFault>,
    /// What the answer is when this is all that is wrong.
    alone: Option<Problem>,
    files: Files,
}

/// Reads the body and the `Idempotency-Key` of a creation: the task, and the files it refers to or brings.
///
/// # Errors
/// 400 or 422 with every fault; what was said of the workflow's name, when that is the only one.
pub fn parse(
    body: &[u8],
    key: Option<&HeaderValue>,
    subject: Subject,
    terms: Terms,
) -> Result<(TaskRequest, Files), Problem> {
    let files = Files::new(terms);
    let mut reading = Reading { fields: Fields::parse(body)?.0, faults: Vec::new(), alone: None, files };
    reading.check_names(matches!(subject, Subject::Path(_)));
    let key = key.and_then(|key| reading.key(key));
    let metadata = reading.metadata();
    let priority = reading.field("priority", priority).unwrap_or_default();
    let start = reading.start();
    let max_attempts = reading.field("max_attempts", max_attempts);
    let timeout = reading.field("timeout", timeout);
    let labels = reading.field("labels", labels).unwrap_or_default();
    let mut options = reading.options();
    let inputs = reading.inputs();
    let run = match subject {
        Subject::Body => reading.workflow(inputs),
        Subject::Named(Err(problem)) => reading.not_found(problem),
        Subject::Named(Ok(found)) | Subject::Path(found) => {
            options.workflow_version = Some(found.version);
            options.no_progress_timeout = options.no_progress_timeout.or(found.workflow.no_progress_timeout());
            reading.named(found, inputs)
        }
    };
    if let Some((_, graph, _)) = &run {
        reading.faults.extend(output_options::unknown_nodes(&options.output, graph));
    }
    options.files = reading.files.ids().cloned().collect();
    options.urls = reading.files.urls().clone();
    match (run, reading.faults.is_empty()) {
        (Some((workflow, graph, inputs)), true) => Ok((
            TaskRequest {
                tenant: 0,
                workflow,
                payload: Payload {
                    graph: graph.into(),
                    inputs: inputs.into(),
                    metadata: metadata.into(),
                    options: options.into(),
                },
                lane: Lane::of(Needs { labels, ..Needs::default() }),
                priority,
                start,
                max_attempts,
                timeout,
                idempotency: match key {
                    Some(key) => Some(Idempotency { key, body_sha256: body::fingerprint(body)? }),
                    None => None,
                },
            },
            reading.files,
        )),
        _ => Err(reading.problem()),
    }
}

/// The workflow's name, the graph and the inputs, the latter two as JSON text.
type Run = (Option<String>, String, String);

impl<'a> Reading<'a> {
    fn raw(&self, name: &str) -> Option<&'a RawValue> {
        self.fields.iter().find(|(field, _)| field == name).map(|(_, raw)| *raw)
    }

    /// Where the path names the workflow, the body must not.
    fn check_names(&mut self, in_path: bool) {
        let mut seen = std::collections::HashSet::new();
        let known = &FIELDS[usize::from(in_path)..];
        for (name, _) in &self.fields {
            let pointer = format!("/{}", escape(name));
            if !known.contains(&name.as_str()) {
                if self.faults.len() == MAX_FAULTS {
                    break;
                }
                let fault =
                    FieldFault::at(pointer, "there is no such field").suggesting(nearest(name, known.iter().copied()));
                self.faults.push(fault);
            } else if !seen.insert(name) {
                self.faults.push(FieldFault::at(pointer, "this field is there twice"));
            }
        }
    }

    fn key(&mut self, header: &HeaderValue) -> Option<String> {
        let good = |key: &&str| (1..=255).contains(&key.len()) && key.bytes().all(|b| b.is_ascii_graphic());
        let key = header.to_str().ok().filter(good).map(str::to_owned);
        if key.is_none() {
            self.faults.push(FieldFault::header("Idempotency-Key", "expected 1 to 255 visible ASCII characters"));
        }
        key
    }

    /// A small field; null is as good as not there.
    fn field<T>(&mut self, name: &str, read: impl Fn(&Value) -> Result<T, String>) -> Option<T> {
        let pointer = format!("/{name}");
        let read_at = |value: Value| read(&value).map_err(|detail| FieldFault::at(&pointer, detail));
        match body::value(&pointer, self.raw(name)?) {
            Ok(Value::Null) => None,
            value => value.and_then(read_at).map_err(|fault| self.faults.push(fault)).ok(),
        }
    }

    fn start(&mut self) -> Option<Start> {
        let (at, after) = (self.field("run_at", run_at), self.field("delay", delay));
        if at.is_some() && after.is_some() {
            let detail = "either `run_at` or `delay`: both say when the task may run";
            self.faults.push(FieldFault::at("/delay", detail));
        }
        at.or(after)
    }

    fn options(&mut self) -> TaskOptions {
        let policy = self.files.terms.policy.clone();
        TaskOptions {
            allow_partial: self.field("allow_partial", truth).unwrap_or_default(),
            previews: self.field("previews", truth).unwrap_or_default(),
            no_progress_timeout: self.field("no_progress_timeout", timeout),
            output: self.output_options(),
            webhook: self.field("webhook_url", |value| webhook_url::read(value, &policy)),
            storage: self.storage(),
            ..TaskOptions::default()
        }
    }

    fn storage(&mut self) -> StorageChoice {
        let choice = self.field("storage", storage::read).unwrap_or_default();
        let unknown = self.files.terms.targets.as_ref().and_then(|targets| storage::unknown(targets, &choice));
        self.faults.extend(unknown);
        choice
    }

    fn output_options(&mut self) -> OutputOptions {
        let Some(raw) = self.raw("output_options").filter(|raw| raw.get() != "null") else {
            return OutputOptions::default();
        };
        let read = body::object("/output_options", raw).map_err(|fault| vec![fault]);
        read.and_then(|fields| output_options::read(&fields))
            .map_err(|faults| self.faults.extend(faults))
            .unwrap_or_default()
    }

    /// Kept as the client wrote it.
    fn metadata(&mut self) -> &'a str {
        let Some(raw) = self.raw("metadata").filter(|raw| raw.get() != "null") else { return "{}" };
        if raw.get().len() > MAX_METADATA {
            let detail = format!("larger than {MAX_METADATA} bytes");
            self.faults.push(FieldFault::at("/metadata", detail));
        } else if let Err(fault) = body::object("/metadata", raw) {
            self.faults.push(fault);
        }
        raw.get()
    }

    fn inputs(&mut self) -> Map<String, Value> {
        let Some(raw) = self.raw("inputs").filter(|raw| raw.get() != "null") else { return Map::new() };
        body::object("/inputs", raw).map_err(|fault| self.faults.push(fault)).unwrap_or_default()
    }

    fn workflow(&mut self, inputs: Map<String, Value>) -> Option<Run> {
        let Some(raw) = self.raw("workflow") else {
            let detail = "required: the name of a workflow, or a graph in ComfyUI's API format";
            self.faults.push(FieldFault::at("/workflow", detail));
            return None;
        };
        match body::value("/workflow", raw) {
            Ok(graph @ Value::Object(_)) => self.graph(raw, graph, inputs),
            Ok(other) => {
                let detail = format!("expected the name of a workflow or a graph, found {}", type_of(&other));
                self.faults.push(FieldFault::at("/workflow", detail));
                None
            }
            Err(fault) => {
                self.faults.push(fault);
                None
            }
        }
    }

    fn not_found(&mut self, problem: Problem) -> Option<Run> {
        self.faults.extend(problem.errors().iter().cloned());
        self.alone = Some(problem);
        None
    }

    fn named(&mut self, found: Found, mut inputs: Map<String, Value>) -> Option<Run> {
        let Found { name, workflow, .. } = found;
        let kind = |is_it: &dyn Fn(&workflow::Input) -> bool| {
            let input = workflow.inputs().iter().find(|input| is_it(input));
            input.map(|input| input.kind).filter(|kind| kind.is_file())
        };
        if !self.take_files(&mut inputs, |name| kind(&|input| input.name == name)) {
            return None;
        }
        match workflow.apply(inputs, rand::random) {
            Ok(mut applied) => {
                self.take_graph(&mut applied.graph, |node, field| {
                    kind(&|input| input.node == node && input.field == field)
                });
                Some((Some(name), applied.graph.to_string(), Value::Object(applied.inputs).to_string()))
            }
            Err(faults) => {
                let names: Vec<&str> = workflow.inputs().iter().map(|input| input.name.as_str()).collect();
                self.input_faults(faults, &names);
                None
            }
        }
    }

    /// A graph without inputs is kept as the client wrote it, so that no number in it changes by being read and written.
    fn graph(&mut self, raw: &RawValue, mut graph: Value, mut inputs: Map<String, Value>) -> Option<Run> {
        if let Err(faults) = graph::check(&graph) {
            let at = |GraphFault { pointer, detail }| FieldFault::at(format!("/workflow{pointer}"), detail);
            self.faults.extend(faults.into_iter().map(at));
            return None;
        }
        let terms = self.files.terms.clone();
        let takes = |name: &str| workflow::field_at(&graph, name).and_then(|(node, field)| terms.kind_of(node, field));
        if !self.take_files(&mut inputs, takes) {
            return None;
        }
        let applied = workflow::apply_raw(&mut graph, &inputs);
        let brought = self.take_graph(&mut graph, |_, _| None);
        if inputs.is_empty() && !brought {
            return Some((None, raw.get().to_owned(), "{}".to_owned()));
        }
        if let Err(faults) = applied {
            let addresses: Vec<String> =
                graph.as_object().map(|nodes| workflow::addresses(nodes).collect()).unwrap_or_default();
            self.input_faults(faults, &addresses.iter().map(String::as_str).collect::<Vec<_>>());
            return None;
        }
        Some((None, graph.to_string(), serde_json::to_string(&inputs).ok()?))
    }

    /// Inputs that stand for files become references; `takes` tells what kind an input is of. False when there are faults.
    fn take_files(&mut self, inputs: &mut Map<String, Value>, takes: impl Fn(&str) -> Option<Kind>) -> bool {
        let before = self.faults.len();
        for (name, value) in inputs {
            let loads = takes(name);
            if let Err(fault) = self.files.take_input(name, value, loads) {
                self.faults.push(fault);
            }
        }
        self.faults.len() == before
    }

    /// So do fields of the graph itself; tells whether there were any.
    fn take_graph(&mut self, graph: &mut Value, takes: impl Fn(&str, &str) -> Option<Kind>) -> bool {
        self.files.take_graph(graph, takes).map_err(|faults| self.faults.extend(faults)).unwrap_or_default()
    }

    fn input_faults(&mut self, faults: Vec<InputFault>, known: &[&str]) {
        self.faults.extend(faults.into_iter().enumerate().map(|(index, fault)| {
            // Comparing thousands of names with thousands of others would be a gift to whoever wants us busy.
            let guess = fault.unknown && index < MAX_GUESSES;
            let suggestion = if guess { nearest(&fault.name, known.iter().copied()) } else { None };
            FieldFault::at(format!("/inputs/{}", escape(&fault.name)), fault.detail).suggesting(suggestion)
        }));
    }

    fn problem(self) -> Problem {
        match self.alone {
            Some(problem) if self.faults.len() == problem.errors().len() => problem,
            _ => Problem::invalid(self.faults),
        }
    }
}

/// Reads a priority, as a number or a word.
pub fn priority(value: &Value) -> Result<Priority, String> {
    let wanted = "expected low, normal, high or a whole number from -100 to 100";
    match value {
        Value::String(word) => word.parse(),
        Value::Number(number) => number.as_i64().and_then(Priority::new).ok_or_else(|| wanted.to_owned()),
        other => Err(format!("{wanted}, found {}", type_of(other))),
    }
}

fn truth(value: &Value) -> Result<bool, String> {
    value.as_bool().ok_or_else(|| "expected true or false".to_owned())
}

fn labels(value: &Value) -> Result<BTreeSet<String>, String> {
    let expected = || format!("expected a list of at most {MAX_LABELS} labels");
    let list = value.as_array().filter(|list| list.len() <= MAX_LABELS).ok_or_else(expected)?;
    list.iter().map(|item| label(item.as_str().ok_or_else(expected)?)).collect()
}

fn max_attempts(value: &Value) -> Result<i32, String> {
    let number = value.as_i64().filter(|n| (1..=MAX_ATTEMPTS).contains(n)).and_then(|n| i32::try_from(n).ok());
    number.ok_or_else(|| format!("expected a whole number from 1 to {MAX_ATTEMPTS}"))
}

fn run_at(value: &Value) -> Result<Start, String> {
    let moment = value.as_str().and_then(Timestamp::parse);
    moment.map(Start::At).ok_or_else(|| {
        "expected a moment as text in RFC 3339 with its offset, such as \"2030-01-01T08:00:00+01:00\"".to_owned()
    })
}

fn delay(value: &Value) -> Result<Start, String> {
    let delay = duration(value)?;
    if delay > MAX_DELAY { Err("expected at most 366 days".to_owned()) } else { Ok(Start::After(delay)) }
}

fn duration(value: &Value) -> Result<Duration, String> {
    let text = value.as_str().ok_or("expected a duration as text, such as \"90s\" or \"1h 30m\"")?;
    humantime::parse_duration(text).map_err(|error| format!("{error}; write \"90s\" or \"1h 30m\""))
}

/// A duration that may be zero.
pub fn at_most(value: &Value, most: Duration) -> Result<Duration, String> {
    let duration = duration(value)?;
    if duration > most { Err(format!("expected at most {}", humantime::format_duration(most))) } else { Ok(duration) }
}

fn timeout(value: &Value) -> Result<Duration, String> {
    let duration = duration(value)?;
    if duration.is_zero() || duration > MAX_TIMEOUT {
        return Err("expected more than nothing and at most 30 days".to_owned());
    }
    Ok(duration)
}
