//! What a batch has changed and not written yet.
//!
//! Most operations change a task or two, and what they do cannot break a rule of the tables: [`Task::apply`] has refused it before. Their
//! results are kept here as values and written for the whole batch together. A task that three operations of a batch changed is
//! saved once, as it is in the end.

use comfyd_actors::{
    domain::{artifact::Artifact, error::TaskError, event::Fact, id::TaskId, task::Task, time::Timestamp},
    ports::store::StoreError,
};
use serde::Serialize;

use super::{
    outbox::{self, DeliveryRow},
    rows::{self, corrupt},
    statement::{Statement, query},
};

/// Tasks saved in one trip: each has a statement of its own, and every number of them is a text to be prepared and kept.
const SAVES_PER_TRIP: usize = 8;

// Rows travel as one JSON array, so that the text of a statement is the same however many there are.

/// In a query of several statements the arguments of all of them follow one another.
const REPLACE_ARTIFACTS: &str = "DELETE FROM task_outputs WHERE task_id IN (SELECT unhex(value) FROM json_each(?));
     INSERT INTO task_outputs (task_id, idx, node_id, kind, filename, subfolder, folder_type, text, target, object_key, content_type,
                               bytes, sha256, facts)
     SELECT unhex(value ->> '$[0]'), value ->> '$[1].index', value ->> '$[1].node_id', value ->> '$[1].kind',
            value ->> '$[1].source.filename', value ->> '$[1].source.subfolder', value ->> '$[1].source.type',
            value ->> '$[1].source.text', value ->> '$[1].object.target', value ->> '$[1].object.key', value ->> '$[1].object.content_type',
            value ->> '$[1].object.bytes', value ->> '$[1].object.sha256', value -> '$[1].object.facts'
     FROM json_each(?)";

/// An output told before is not told again.
const TELL: &str = "INSERT INTO task_events (task_id, at, dispatch, attempt, stage, error, output)
     SELECT unhex(value ->> 0), value ->> 1, value ->> 2, value ->> 3, value ->> 4, value ->> 5, value ->> 6
     FROM json_each(?) WHERE true ORDER BY key ON CONFLICT DO NOTHING";

/// Of the newest run only.
const NOTE_RUNS: &str = "INSERT INTO task_nodes (task_id, dispatch, nodes)
     SELECT unhex(value ->> 0), value ->> 1, value ->> 2 FROM json_each(?)
     WHERE EXISTS (SELECT 1 FROM tasks WHERE id = unhex(value ->> 0) AND dispatch = value ->> 1) ORDER BY key
     ON CONFLICT (task_id) DO UPDATE SET dispatch = excluded.dispatch, nodes = excluded.nodes";

/// A row of `task_events` without its number: task, time, dispatch, attempt, stage, error, output.
#[derive(Debug, Serialize)]
struct EventRow(String, i64, i64, i32, Option<&'static str>, Option<TaskError>, Option<u32>);

/// A row of `task_nodes`.
#[derive(Debug, Serialize)]
struct RunRow(String, i64, String);

/// Rows to be written, the newest of each.
#[derive(Debug, Default)]
pub(super) struct Unwritten {
    /// In the order in which they changed first.
    tasks: Vec<Task>,
    artifacts: Vec<(TaskId, Vec<Artifact>)>,
    events: Vec<EventRow>,
    runs: Vec<RunRow>,
    deliveries: Vec<DeliveryRow>,
    /// When the newest of these came into being.
    posted_at: Timestamp,
}

impl Unwritten {
    /// The row of a task changed.
    pub(super) fn save(&mut self, task: Task) {
        match self.tasks.iter_mut().find(|other| other.id == task.id) {
            Some(earlier) => *earlier = task,
            None => self.tasks.push(task),
        }
    }

    /// The whole list of a task's artifacts changed.
    pub(super) fn replace_artifacts(&mut self, id: TaskId, artifacts: Vec<Artifact>) {
        self.artifacts.retain(|(other, _)| *other != id);
        self.artifacts.push((id, artifacts));
    }

    /// Something happened to a task that people may want to hear of.
    pub(super) fn tell(&mut self, task: &Task, fact: Fact, at: Timestamp) {
        if let Some(delivery) = DeliveryRow::of(task, &fact, at) {
            self.deliveries.push(delivery);
            self.posted_at = at;
        }
        let (stage, error, output) = match fact {
            Fact::Output { index, .. } => (None, None, Some(index)),
            Fact::Stage { stage, error, .. } => (Some(stage.as_str()), error, None),
        };
        self.events.push(EventRow(hex(task.id), at.0, task.dispatch, task.attempt, stage, error, output));
    }

    /// What the nodes of a run took, as JSON.
    pub(super) fn note_run(&mut self, id: TaskId, dispatch: i64, nodes: String) {
        self.runs.push(RunRow(hex(id), dispatch, nodes));
    }

    /// Adds what came later.
    pub(super) fn append(&mut self, later: &mut Self) {
        later.tasks.drain(..).for_each(|task| self.save(task));
        later.artifacts.drain(..).for_each(|(id, artifacts)| self.replace_artifacts(id, artifacts));
        self.events.append(&mut later.events);
        self.runs.append(&mut later.runs);
        self.deliveries.append(&mut later.deliveries);
        self.posted_at = self.posted_at.max(later.posted_at);
    }

    /// Leaves nothing to write.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// Statements that write all of it, in groups that may travel together. Nothing is left.
    ///
    /// # Errors
    /// `Corrupt` when something cannot be made into JSON.
    pub(super) fn take(&mut self) -> Result<Vec<Vec<Statement>>, StoreError> {
        let Self { tasks, artifacts, events, runs, deliveries, posted_at } = std::mem::take(self);
        let saves = tasks.iter().map(rows::save).collect::<Result<Vec<_>, _>>()?;
        let mut groups: Vec<Vec<_>> = saves.chunks(SAVES_PER_TRIP).map(<[_]>::to_vec).collect();
        let mut bulk = groups.pop().unwrap_or_default();
        if !artifacts.is_empty() {
            let ids: Vec<_> = artifacts.iter().map(|(id, _)| hex(*id)).collect();
            let list = artifacts.iter().zip(&ids).flat_map(|((_, list), id)| list.iter().map(move |one| (id, one)));
            let (list, ids) = (json(&list.collect::<Vec<_>>())?, json(&ids)?);
            bulk.push(query(REPLACE_ARTIFACTS).bind(ids).bind(list));
        }
        if !events.is_empty() {
            bulk.push(query(TELL).bind(json(&events)?));
        }
        if !runs.is_empty() {
            bulk.push(query(NOTE_RUNS).bind(json(&runs)?));
        }
        if !deliveries.is_empty() {
            bulk.extend(outbox::post(&deliveries, posted_at)?);
        }
        groups.push(bulk);
        groups.retain(|group| !group.is_empty());
        Ok(groups)
    }
}

fn hex(id: TaskId) -> String {
    id.0.simple().to_string()
}

fn json(rows: &impl Serialize) -> Result<String, StoreError> {
    serde_json::to_string(rows).map_err(corrupt)
}
