//! One operation's view of the store: what it read, and what it is going to write in one go.
//!
//! It reads what it needs, decides as any store does (`Task::apply`), and collects commands. The [commit](super::link::Link::commit) is made only
//! when nothing that was read and mattered has changed meanwhile; if it has, the operation runs again from the start.

use std::collections::{BTreeMap, BTreeSet};

use comfyd_actors::{
    domain::{
        artifact::Artifact,
        event::{Fact, Stage, facts},
        id::TaskId,
        lane::{ANYBODY, Lane},
        moment::Moment,
        options::TaskOptions,
        task::{ArtifactEdit, Change, Fence, Refusal, Task, TaskState},
        time::Timestamp,
        webhook::{Delivery, Endpoint, EndpointId},
    },
    ports::store::{Assignment, Changed, StoreError},
};
use redis::{FromRedisValue, Pipeline, ToRedisArgs};

use super::{
    keys::Keys,
    link::{Check, Command, Link},
    rows::{EventRow, Message, Row, corrupt, from_json, json, message_indexes, message_json},
};

/// Why an operation ended without an answer.
#[derive(Debug)]
pub(super) enum Fault {
    /// It failed.
    Failed(StoreError),
    /// What it read does not fit together: somebody changed it in between.
    Conflict,
}

impl<E: Into<StoreError>> From<E> for Fault {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

/// A task that was read, or is new.
struct Doc {
    /// As it is stored, with its revision. `None`: it is new.
    before: Option<(Row, i64)>,
    /// As it is now. `None`: it is deleted.
    row: Option<Row>,
    /// Something of it was changed, if not in its row.
    touched: bool,
}

/// What never changes of a task, and its artifacts.
#[derive(Clone)]
pub(super) struct Rest {
    pub(super) graph: String,
    pub(super) options: TaskOptions,
    pub(super) artifacts: Vec<Artifact>,
}

/// The view.
pub(super) struct Tx<'l> {
    link: &'l Link,
    /// The store's time.
    pub(super) now: Timestamp,
    /// The same, and whether it can be believed.
    pub(super) moment: Moment,
    docs: BTreeMap<TaskId, Doc>,
    checks: Vec<Check>,
    commands: Vec<Command>,
    changed: Vec<Changed>,
}

/// What is to be committed.
pub(super) struct Written {
    pub(super) checks: Vec<Check>,
    pub(super) commands: Vec<Command>,
    /// What listeners are to be told then.
    pub(super) changed: Vec<Changed>,
}

/// What [`Tx::rows`] reads of a task.
type Stored = (Option<i64>, Option<String>);
/// What [`Tx::load_whole`] reads of it besides.
type StoredRest = (Option<String>, Option<String>);

impl<'l> Tx<'l> {
    pub(super) fn new(link: &'l Link, moment: Moment) -> Self {
        Self {
            link,
            now: moment.now,
            moment,
            docs: BTreeMap::new(),
            checks: Vec::new(),
            commands: Vec::new(),
            changed: Vec::new(),
        }
    }

    pub(super) fn keys(&self) -> &'l Keys {
        &self.link.keys
    }

    /// Asks the server something, in one trip.
    pub(super) async fn ask<T: FromRedisValue>(&self, questions: &Pipeline) -> Result<T, StoreError> {
        self.link.ask(questions).await
    }

    /// Reads a field of a hash.
    pub(super) async fn field(&self, key: String, field: &str) -> Result<Option<String>, StoreError> {
        let (value,) = self.ask(redis::pipe().hget(key, field)).await?;
        Ok(value)
    }

    /// The commit is made only while this holds.
    pub(super) fn check(&mut self, key: String, field: impl Into<String>, value: Option<&str>) {
        self.checks.push((key, field.into(), value.map(|value| value.as_bytes().to_vec())));
    }

    /// Has the server do something with the commit.
    pub(super) fn write(&mut self, command: Words) {
        self.commands.push(command.0);
    }

    /// What is to be committed.
    pub(super) fn finish(mut self) -> Result<Written, StoreError> {
        for (id, doc) in std::mem::take(&mut self.docs) {
            self.save(id, doc)?;
        }
        Ok(Written { checks: self.checks, commands: self.commands, changed: self.changed })
    }
}

/// Tasks.
impl Tx<'_> {
    /// Reads rows of tasks, as far as they are there, with their revisions.
    async fn rows(&self, ids: &[TaskId]) -> Result<Vec<Option<(Row, i64)>>, StoreError> {
        read_rows(self.link, ids).await
    }

    /// One task, if it is there.
    pub(super) async fn find(&mut self, id: TaskId) -> Result<Option<Task>, StoreError> {
        Ok(self.find_many(&[id]).await?.pop())
    }

    /// One task.
    pub(super) async fn load(&mut self, id: TaskId) -> Result<Task, StoreError> {
        self.find(id).await?.ok_or(StoreError::NotFound)
    }

    /// Several tasks, as far as they are there.
    pub(super) async fn find_many(&mut self, ids: &[TaskId]) -> Result<Vec<Task>, StoreError> {
        let unknown: Vec<TaskId> = ids.iter().copied().filter(|id| !self.docs.contains_key(id)).collect();
        let rows = self.rows(&unknown).await?;
        self.keep(unknown.into_iter().zip(rows));
        Ok(ids.iter().filter_map(|id| self.row(*id)).map(|row| row.task.clone()).collect())
    }

    /// Reads whole tasks, as far as they are there: what a holder needs of them.
    pub(super) async fn load_whole(&mut self, ids: &[TaskId]) -> Result<BTreeMap<TaskId, Rest>, StoreError> {
        if ids.is_empty() {
            return Ok(BTreeMap::new());
        }
        let mut pipe = redis::pipe();
        pipe.atomic();
        for id in ids {
            let key = self.keys().task(*id);
            pipe.hmget(&key, &["v", "row"]).hmget(&key, &["graph", "options"]).hgetall(self.keys().artifacts(*id));
        }
        let found: Vec<redis::Value> = self.ask(&pipe).await?;
        let mut rest = BTreeMap::new();
        for (id, parts) in ids.iter().zip(found.chunks(3)) {
            let [row, payload, artifacts] = parts else { continue };
            let Some(row) = read_row(convert(row)?)? else { continue };
            let (graph, options): StoredRest = convert(payload)?;
            let (Some(graph), Some(options)) = (graph, options) else { return Err(corrupt("a task has no payload")) };
            let artifacts = read_artifacts(convert(artifacts)?)?;
            rest.insert(*id, Rest { graph, options: from_json(&options)?, artifacts });
            self.keep([(*id, Some(row))]);
        }
        Ok(rest)
    }

    fn keep(&mut self, found: impl IntoIterator<Item = (TaskId, Option<(Row, i64)>)>) {
        for (id, found) in found {
            if let Some((row, revision)) = found {
                let doc = || Doc { before: Some((row.clone(), revision)), row: Some(row), touched: false };
                self.docs.entry(id).or_insert_with(doc);
            }
        }
    }

    /// A task as it is now.
    pub(super) fn row(&self, id: TaskId) -> Option<&Row> {
        self.docs.get(&id)?.row.as_ref()
    }

    /// The same, to be changed in a way that nobody is told of. It counts as changed, so that the commit is made only on top of what was
    /// read of it.
    pub(super) fn touch(&mut self, id: TaskId) -> Option<&mut Row> {
        let doc = self.docs.get_mut(&id)?;
        doc.touched = true;
        doc.row.as_mut()
    }

    /// A new task, which must not be there.
    pub(super) fn insert(&mut self, row: Row) {
        let task = row.task.clone();
        self.docs.insert(task.id, Doc { before: None, row: Some(row), touched: true });
        self.tell(&task, None);
    }

    /// New tasks that wait for their turn.
    pub(super) fn new_heads(&self) -> impl Iterator<Item = &Task> {
        let new = self.docs.values().filter(|doc| doc.before.is_none()).filter_map(|doc| doc.row.as_ref());
        new.map(|row| &row.task).filter(|task| task.state == TaskState::Pending)
    }

    /// Applies a change to a task that was read.
    pub(super) async fn change(&mut self, id: TaskId, fence: Option<Fence>, change: Change) -> Result<Task, Fault> {
        let Some(row) = self.row(id) else { return Err(StoreError::NotFound.into()) };
        let mut task = row.task.clone();
        let (was, before, lane) = (task.state, Stage::of(&task), change.new_lane().cloned());
        let edit = task.apply(fence, change, self.now).map_err(StoreError::from)?;
        if let Some(lane) = lane {
            self.introduce_lane(&lane)?;
        }
        self.write_down(&task, Some(before), &edit)?;
        self.edit_artifacts(id, edit).await?;
        if let Some(row) = self.touch(id) {
            row.task = task.clone();
        }
        self.tell(&task, Some(was));
        Ok(task)
    }

    async fn edit_artifacts(&mut self, id: TaskId, edit: ArtifactEdit) -> Result<(), StoreError> {
        let key = self.keys().artifacts(id);
        match edit {
            ArtifactEdit::Keep => {}
            ArtifactEdit::Replace(artifacts) => {
                self.write(words("DEL").arg(&key));
                for artifact in artifacts {
                    self.write(words("HSET").arg(&key).arg(artifact.index).arg(json(&artifact)?));
                }
            }
            ArtifactEdit::Stored(index, object) => {
                let planned = self.field(key.clone(), &index.to_string()).await?.ok_or(Refusal::WrongState)?;
                let artifact = Artifact { object: Some(object), ..from_json(&planned)? };
                self.write(words("HSET").arg(&key).arg(index).arg(json(&artifact)?));
            }
        }
        Ok(())
    }

    /// Has it known what a lane stands for. Lane 0 needs nothing.
    pub(super) fn introduce_lane(&mut self, lane: &Lane) -> Result<(), StoreError> {
        if lane.id != ANYBODY {
            self.write(words("HSETNX").arg(self.keys().lanes()).arg(lane.id).arg(json(&*lane.needs)?));
        }
        Ok(())
    }

    /// Makes events and messages of what happened to a task just now: it stood at `before`.
    pub(super) fn write_down(
        &mut self,
        task: &Task,
        before: Option<Stage>,
        edit: &ArtifactEdit,
    ) -> Result<(), StoreError> {
        for fact in facts(before, task, edit) {
            self.write_message(task, &fact)?;
            let output = match fact {
                Fact::Output { dispatch, index } => format!("{dispatch}:{index}"),
                Fact::Stage { .. } => String::new(),
            };
            let event = EventRow { task: task.id, workflow: task.workflow.clone(), at: self.now, fact };
            self.write(words("@event").arg(task.id.0.simple().to_string()).arg(output).arg(json(&event)?));
        }
        Ok(())
    }

    fn write_message(&mut self, task: &Task, fact: &Fact) -> Result<(), StoreError> {
        let Fact::Stage { stage, attempt, error } = fact else { return Ok(()) };
        let Some(hook) = task.hook.filter(|hook| hook.events.contains(*stage)) else { return Ok(()) };
        let new = Delivery::new(0, task.id, hook.endpoint, self.now, *stage);
        let new = Delivery { generation: task.generation, attempt: *attempt, error: error.clone(), ..new };
        let message = words("@message").arg(task.id.0.simple().to_string()).arg(hook.endpoint.0).arg(self.now.0);
        self.write(message.arg(message_json(&new)?));
        Ok(())
    }

    /// Has listeners told of it after the commit; it stood at `was` before.
    pub(super) fn tell(&mut self, task: &Task, was: Option<TaskState>) {
        self.changed.push(Changed::of(task, was));
    }

    /// Deletes a task that was read, with all that is its own but for its messages.
    pub(super) fn delete(&mut self, id: TaskId, events: &[String]) {
        if let Some(doc) = self.docs.get_mut(&id) {
            doc.row = None;
            doc.touched = true;
        }
        let keys = self.keys();
        for some in events.chunks(1000) {
            let remove = words("XDEL").arg(keys.events());
            self.write(some.iter().fold(remove, |remove, seq| remove.arg(format!("{seq}-0"))));
        }
        self.write(
            words("DEL")
                .arg(keys.task(id))
                .arg(keys.artifacts(id))
                .arg(keys.events_of(id))
                .arg(keys.told(id))
                .arg(keys.fetched(id)),
        );
    }

    /// Writes the difference between what a task was and what it is.
    fn save(&mut self, id: TaskId, doc: Doc) -> Result<(), StoreError> {
        let Doc { before, row, touched } = doc;
        if !touched {
            return Ok(());
        }
        let (before, revision) = before.map_or((None, None), |(row, revision)| (Some(row), Some(revision)));
        let (keys, hash) = (self.keys(), self.keys().task(id));
        self.check(hash.clone(), "v", revision.map(|revision| revision.to_string()).as_deref());
        if let Some(row) = &row {
            let next = revision.unwrap_or(0).wrapping_add(1);
            self.write(words("HSET").arg(&hash).arg("v").arg(next).arg("row").arg(json(row)?));
        }
        let indexes = |row: &Option<Row>| row.as_ref().map(|row| row.indexes(keys)).unwrap_or_default();
        let (old, new) = (indexes(&before), indexes(&row));
        for (key, member) in old.difference(&new) {
            self.write(words("ZREM").arg(key).arg(member.as_slice()));
        }
        for (key, member) in new.difference(&old) {
            self.write(words("ZADD").arg(key).arg(0).arg(member.as_slice()));
        }
        let counted = |row: &Option<Row>| row.as_ref().map(|row| row.counted(keys)).unwrap_or_default();
        let (old, new) = (counted(&before), counted(&row));
        self.count(&old, &new);
        Ok(())
    }

    /// Counts a task where it is now, and no more where it was. What nobody is counted for any more is forgotten.
    fn count(&mut self, old: &BTreeSet<(String, String)>, new: &BTreeSet<(String, String)>) {
        let keys = self.keys();
        for (key, field) in new.difference(old) {
            self.write(words("HINCRBY").arg(key).arg(field).arg(1));
        }
        for (key, field) in old.difference(new) {
            let last = if *key == keys.lane_tasks() {
                vec![words("HDEL").arg(keys.lanes()).arg(field)]
            } else if *key == keys.endpoint_tasks() {
                vec![words("HDEL").arg(keys.endpoints()).arg(field), words("ZREM").arg(keys.calls()).arg(field)]
            } else {
                Vec::new()
            };
            self.write(words("@count").arg(key).arg(field).arg(-1).arg(last.len()));
            last.into_iter().for_each(|command| self.write(command));
        }
    }

    /// A task as its holder needs it.
    pub(super) fn assignment(&self, id: TaskId, rest: &Rest) -> Option<Assignment> {
        let Rest { graph, options, artifacts } = rest.clone();
        let task = self.row(id)?.task.clone();
        Some(Assignment { task, graph: graph.into(), options: options.into(), artifacts })
    }
}

/// Messages.
impl Tx<'_> {
    /// Messages, as far as they are there.
    pub(super) async fn messages(&self, ids: &[i64]) -> Result<Vec<Message>, StoreError> {
        read_messages(self.link, ids).await
    }

    /// An endpoint, if it is there, and what it was read from.
    pub(super) async fn endpoint(&self, id: EndpointId) -> Result<Option<(Endpoint, String)>, StoreError> {
        let found = self.field(self.keys().endpoints(), &id.0.to_string()).await?;
        found.map(|text| Ok((from_json(&text)?, text))).transpose()
    }

    /// Saves what changed about an endpoint.
    pub(super) fn save_endpoint(&mut self, before: &str, endpoint: &Endpoint) -> Result<(), StoreError> {
        let (key, field) = (self.keys().endpoints(), endpoint.id.0.to_string());
        self.check(key.clone(), field.clone(), Some(before));
        self.write(words("HSET").arg(key).arg(field).arg(json(endpoint)?));
        Ok(())
    }

    /// Saves what changed about a message; `None` when it is deleted.
    pub(super) fn save_message(&mut self, before: &Message, after: Option<&Delivery>) -> Result<(), StoreError> {
        let (keys, id) = (self.keys(), before.delivery.id);
        self.check(keys.messages(), id.to_string(), Some(&before.text));
        match after {
            Some(after) => self.write(words("HSET").arg(keys.messages()).arg(id).arg(message_json(after)?)),
            None => self.write(words("HDEL").arg(keys.messages()).arg(id)),
        }
        let due_at = after.and_then(|after| after.due_at);
        match due_at {
            due_at if due_at == before.delivery.due_at => {}
            Some(at) => self.write(words("HSET").arg(keys.due()).arg(id).arg(at.0)),
            None => self.write(words("HDEL").arg(keys.due()).arg(id)),
        }
        let old = message_indexes(keys, &before.delivery);
        let new = after.map(|after| message_indexes(keys, after)).unwrap_or_default();
        for key in old.keys().filter(|key| !new.contains_key(*key)) {
            self.write(words("ZREM").arg(key).arg(id));
        }
        for (key, score) in new.iter().filter(|(key, score)| old.get(*key) != Some(score)) {
            self.write(words("ZADD").arg(key).arg(*score).arg(id));
        }
        Ok(())
    }
}

/// A command being put together.
pub(super) struct Words(Command);

/// Begins a command.
pub(super) fn words(name: &str) -> Words {
    Words(vec![name.as_bytes().to_vec()])
}

impl Words {
    /// Adds a word.
    pub(super) fn arg(mut self, word: impl ToRedisArgs) -> Self {
        word.write_redis_args(&mut self.0);
        self
    }

    /// The command.
    pub(super) fn done(self) -> Command {
        self.0
    }
}

/// Reads rows of tasks, as far as they are there, with their revisions.
pub(super) async fn read_rows(link: &Link, ids: &[TaskId]) -> Result<Vec<Option<(Row, i64)>>, StoreError> {
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    let mut pipe = redis::pipe();
    for id in ids {
        pipe.hmget(link.keys.task(*id), &["v", "row"]);
    }
    let found: Vec<Stored> = link.ask(&pipe).await?;
    found.into_iter().map(read_row).collect()
}

fn read_row((revision, row): Stored) -> Result<Option<(Row, i64)>, StoreError> {
    let Some((revision, row)) = revision.zip(row) else { return Ok(None) };
    Ok(Some((from_json(&row)?, revision)))
}

/// Reads artifacts, in their order.
pub(super) fn read_artifacts(found: BTreeMap<u32, String>) -> Result<Vec<Artifact>, StoreError> {
    found.into_values().map(|text| from_json(&text)).collect()
}

/// Reads messages, as far as they are there, in the order of their numbers.
pub(super) async fn read_messages(link: &Link, ids: &[i64]) -> Result<Vec<Message>, StoreError> {
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    let (texts, due): (Vec<Option<String>>, Vec<Option<i64>>) =
        link.ask(redis::pipe().atomic().hmget(link.keys.messages(), ids).hmget(link.keys.due(), ids)).await?;
    let found = ids.iter().zip(texts.into_iter().zip(due));
    found.filter_map(|(id, (text, due))| text.map(|text| Message::read(*id, text, due))).collect()
}

/// Reads a part of an answer.
pub(super) fn convert<T: FromRedisValue>(value: &redis::Value) -> Result<T, StoreError> {
    redis::from_redis_value_ref(value).map_err(corrupt)
}
