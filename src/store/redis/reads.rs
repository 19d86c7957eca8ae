//! What needs no write. An index is read first, then the rows it names, so a row may have changed in between: it is shown as it is, or left
//! out when it does not fit any more.

use std::collections::{BTreeMap, BTreeSet};

use comfyd_actors::{
    domain::{
        event::{Event, Fact},
        id::{BackendId, TaskId},
        input::{Input, InputId},
        lane::{ANYBODY, Lane},
        order::Priority,
        task::{Task, TaskState},
        time::Timestamp,
        webhook::{Delivery, DeliveryState, Endpoint, EndpointId},
    },
    ports::{
        hook_store::{DeliveryQuery, HookLevels},
        store::{Counts, Depth, FailedQuery, Pause, Query, StoreError, TaskRecord},
    },
};

use super::{
    keys::{before, from, member, task_of},
    link::Link,
    ops,
    rows::{EventRow, InputRow, NodesRow, corrupt, from_json},
    tx::{read_artifacts, read_messages, read_rows},
};

/// Members of an index that are looked at in one trip, at least: some may not fit.
const PAGE: usize = 64;

/// Indexes to be read from their ends, and no further than so many tasks that fit.
struct Walk<'a, F> {
    indexes: Vec<String>,
    /// Bounds, as Redis writes them.
    least: Vec<u8>,
    greatest: Vec<u8>,
    limit: u32,
    fits: &'a F,
}

impl<F: Fn(&Task) -> bool> Walk<'_, F> {
    /// The tasks, by what they are sorted by in these indexes.
    async fn newest(
        self,
        link: &Link,
        sorted_by: impl Fn(&Task) -> (Timestamp, TaskId),
    ) -> Result<Vec<Task>, StoreError> {
        let limit = usize::try_from(self.limit).unwrap_or(usize::MAX);
        let mut all: BTreeMap<(Timestamp, TaskId), Task> = BTreeMap::new();
        for index in &self.indexes {
            let (mut found, mut greatest) = (0, self.greatest.clone());
            while found < limit {
                let page = PAGE.max(limit - found);
                let mut pipe = redis::pipe();
                pipe.zrevrangebylex_limit(index, &greatest, &self.least, 0, page.cast_signed());
                let (members,): (Vec<Vec<u8>>,) = link.ask(&pipe).await?;
                let ids: Vec<TaskId> = members.iter().filter_map(|member| task_of(member)).collect();
                let rows = read_rows(link, &ids).await?.into_iter().flatten();
                let fitting = rows.map(|(row, _)| row.task).filter(self.fits).take(limit - found);
                for task in fitting {
                    found += 1;
                    all.insert(sorted_by(&task), task);
                }
                match members.last() {
                    Some(last) if members.len() == page => greatest = [b"(", last.as_slice()].concat(),
                    _ => break,
                }
            }
        }
        Ok(all.into_values().rev().take(limit).collect())
    }
}

/// The bounds of what lies in a span of time and before a place.
fn bounds(
    since: Option<Timestamp>,
    until: Option<Timestamp>,
    place: Option<(Timestamp, TaskId)>,
) -> (Vec<u8>, Vec<u8>) {
    let least = since.map_or_else(|| b"-".to_vec(), from);
    let place = place.map(|(at, id)| [b"(", member(at.0, id).as_slice()].concat());
    let greatest = until.map(before).into_iter().chain(place).min();
    (least, greatest.unwrap_or_else(|| b"+".to_vec()))
}

impl Link {
    pub(super) async fn get(&self, id: TaskId) -> Result<TaskRecord, StoreError> {
        const FIELDS: &[&str] = &["row", "inputs", "metadata", "options", "nodes"];
        type Fields = (Option<String>, Option<String>, Option<String>, Option<String>, Option<String>);
        let (fields, artifacts): (Fields, BTreeMap<u32, String>) =
            self.ask(redis::pipe().atomic().hmget(self.keys.task(id), FIELDS).hgetall(self.keys.artifacts(id))).await?;
        let (Some(row), Some(inputs), Some(metadata), Some(options), nodes) = fields else {
            return Err(StoreError::NotFound);
        };
        let task = from_json::<super::rows::Row>(&row)?.task;
        let needs = match task.lane {
            ANYBODY => None,
            lane => self.ask::<(Option<String>,)>(redis::pipe().hget(self.keys.lanes(), lane)).await?.0,
        };
        let nodes: Option<NodesRow> = nodes.as_deref().map(from_json).transpose()?;
        Ok(TaskRecord {
            inputs: inputs.into(),
            metadata: metadata.into(),
            options: from_json(&options)?,
            needs: needs.as_deref().map(from_json).transpose()?.unwrap_or_default(),
            artifacts: read_artifacts(artifacts)?,
            nodes: nodes.filter(|row| row.dispatch == task.dispatch).map(|row| row.nodes).unwrap_or_default(),
            task,
        })
    }

    pub(super) async fn list(&self, query: &Query) -> Result<Vec<Task>, StoreError> {
        let fits = |task: &Task| {
            let there = |backend: &BackendId| task.prompt.as_ref().is_some_and(|prompt| prompt.backend == *backend);
            (query.states.is_empty() || query.states.contains(&task.state))
                && (query.workflow.is_none() || query.workflow == task.workflow)
                && query.backend.as_ref().is_none_or(|backend| task.state.is_held() && there(backend))
        };
        let states: BTreeSet<TaskState> = query.states.iter().copied().collect();
        let held = TaskState::ALL.into_iter().filter(|state| state.is_held());
        let indexes = match &query.workflow {
            // As few tasks are held as there are backends.
            _ if query.backend.is_some() => held.map(|state| self.keys.of_state(state)).collect(),
            Some(workflow) => vec![self.keys.of_workflow(workflow)],
            None if states.is_empty() => vec![self.keys.all()],
            None => states.into_iter().map(|state| self.keys.of_state(state)).collect(),
        };
        let (least, greatest) = bounds(query.created_from, query.created_until, query.before);
        let walk = Walk { indexes, least, greatest, limit: query.limit, fits: &fits };
        walk.newest(self, |task| (task.created_at, task.id)).await
    }

    pub(super) async fn failed(&self, query: &FailedQuery) -> Result<Vec<Task>, StoreError> {
        let fits = |task: &Task| {
            let class = task.error.as_ref().map(|error| error.class);
            task.state == TaskState::Failed
                && (query.classes.is_empty() || class.is_some_and(|class| query.classes.contains(&class)))
                && (query.workflow.is_none() || query.workflow == task.workflow)
        };
        let mut classes = query.classes.clone();
        classes.sort_unstable();
        classes.dedup();
        let indexes = match classes.as_slice() {
            [] => vec![self.keys.finished(TaskState::Failed)],
            classes => classes.iter().map(|class| self.keys.failed(*class)).collect(),
        };
        let (least, greatest) = bounds(query.failed_from, query.failed_until, query.before);
        let walk = Walk { indexes, least, greatest, limit: query.limit, fits: &fits };
        walk.newest(self, |task| (task.finished_at.unwrap_or_default(), task.id)).await
    }

    /// The lanes that are in this hash of counters, by id, and how many tasks each has there.
    async fn counted_lanes(&self, counters: String) -> Result<Vec<Lane>, StoreError> {
        let (counts, needs): (BTreeMap<i64, u64>, BTreeMap<i64, String>) =
            self.ask(redis::pipe().hgetall(counters).hgetall(self.keys.lanes())).await?;
        let lane = |id| Some(from_json(needs.get(&id)?).map(|needs| Lane { id, needs }));
        counts.into_keys().filter_map(lane).collect()
    }

    pub(super) async fn lanes(&self) -> Result<Vec<Lane>, StoreError> {
        self.counted_lanes(self.keys.lane_unfinished()).await
    }

    pub(super) async fn waiting(&self) -> Result<Vec<(Lane, u64)>, StoreError> {
        let lanes = self.lanes().await?;
        let ids: Vec<i64> = lanes.iter().map(|lane| lane.id).collect();
        let waiting = self.queued(&ids).await?;
        Ok(lanes.into_iter().zip(waiting).filter(|(_, tasks)| *tasks > 0).collect())
    }

    /// How many tasks wait in each of these lanes.
    async fn queued(&self, lanes: &[i64]) -> Result<Vec<u64>, StoreError> {
        if lanes.is_empty() {
            return Ok(Vec::new());
        }
        let mut pipe = redis::pipe();
        for lane in lanes {
            pipe.zcard(self.keys.queue(*lane));
        }
        self.ask(&pipe).await
    }

    /// All lanes that have tasks which are not over, and lane 0.
    async fn all_lanes(&self) -> Result<Vec<i64>, StoreError> {
        let (mut lanes,): (Vec<i64>,) = self.ask(redis::pipe().hkeys(self.keys.lane_unfinished())).await?;
        lanes.push(ANYBODY);
        Ok(lanes)
    }

    pub(super) async fn counts(&self) -> Result<Counts, StoreError> {
        let pending = self.queued(&self.all_lanes().await?).await?.into_iter().sum();
        let (scheduled, held) = self.ask(redis::pipe().zcard(self.keys.scheduled()).zcard(self.keys.leases())).await?;
        Ok(Counts { scheduled, pending, held })
    }

    pub(super) async fn crowd(&self, lanes: &BTreeSet<i64>, limit: u32) -> Result<u32, StoreError> {
        if lanes.is_empty() {
            return Ok(0);
        }
        let lanes: Vec<i64> = lanes.iter().copied().collect();
        let (counts,): (Vec<Option<u64>>,) = self.ask(redis::pipe().hmget(self.keys.lane_waiting(), &lanes)).await?;
        let waiting: u64 = counts.into_iter().flatten().sum();
        Ok(u32::try_from(waiting).unwrap_or(u32::MAX).min(limit))
    }

    pub(super) async fn depths(&self) -> Result<Vec<Depth>, StoreError> {
        let priorities = || (Priority::MIN.level()..=Priority::MAX.level()).filter_map(Priority::new);
        let mut pipe = redis::pipe();
        for priority in priorities() {
            let key = self.keys.depth(priority);
            pipe.zcard(&key).zrange(&key, 0, 0);
        }
        let found: Vec<redis::Value> = self.ask(&pipe).await?;
        let mut depths = Vec::new();
        for (priority, parts) in priorities().zip(found.chunks(2)) {
            let [waiting, oldest] = parts else { continue };
            let oldest: Vec<Vec<u8>> = super::tx::convert(oldest)?;
            if let Some(oldest) = oldest.first() {
                let oldest =
                    super::keys::number_of(oldest).ok_or_else(|| corrupt("a place among the waiting is none"))?;
                depths.push(Depth { priority, waiting: super::tx::convert(waiting)?, oldest: Timestamp(oldest) });
            }
        }
        Ok(depths)
    }

    pub(super) async fn pauses(&self) -> Result<Vec<Pause>, StoreError> {
        let (rows,): (BTreeMap<String, String>,) = self.ask(redis::pipe().hgetall(self.keys.pauses())).await?;
        ops::pauses(&rows)
    }

    pub(super) async fn events(&self, of: Option<TaskId>, after: i64, limit: u32) -> Result<Vec<Event>, StoreError> {
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let rows = match of {
            Some(id) => self.events_of(id, after, limit).await?,
            None => self.events_after(after, limit).await?,
        };
        let mut events = Vec::with_capacity(rows.len());
        for (seq, text) in rows {
            let EventRow { task, workflow, at, fact } = from_json(&text)?;
            events.push(Event { seq, task, workflow, at, fact, artifact: None });
        }
        self.add_artifacts(&mut events).await?;
        Ok(events)
    }

    async fn events_after(&self, after: i64, limit: usize) -> Result<Vec<(i64, String)>, StoreError> {
        if limit == 0 {
            return Ok(Vec::new());
        }
        let mut pipe = redis::pipe();
        let start = format!("({}-0", after.max(0));
        pipe.cmd("XRANGE").arg(self.keys.events()).arg(start).arg("+").arg("COUNT").arg(limit);
        let (entries,): (Vec<StreamEntry>,) = self.ask(&pipe).await?;
        entries.into_iter().map(read_event).collect()
    }

    async fn events_of(&self, id: TaskId, after: i64, limit: usize) -> Result<Vec<(i64, String)>, StoreError> {
        let (numbers,): (Vec<i64>,) = self.ask(redis::pipe().lrange(self.keys.events_of(id), 0, -1)).await?;
        let wanted: Vec<i64> = numbers.into_iter().filter(|seq| *seq > after).take(limit).collect();
        if wanted.is_empty() {
            return Ok(Vec::new());
        }
        let mut pipe = redis::pipe();
        for seq in wanted {
            let entry = format!("{seq}-0");
            pipe.cmd("XRANGE").arg(self.keys.events()).arg(&entry).arg(&entry);
        }
        let entries: Vec<Vec<StreamEntry>> = self.ask(&pipe).await?;
        entries.into_iter().flatten().map(read_event).collect()
    }

    /// The outputs events are about, if their runs still count.
    async fn add_artifacts(&self, events: &mut [Event]) -> Result<(), StoreError> {
        let mut wanted = Vec::new();
        let mut pipe = redis::pipe();
        for (place, event) in events.iter().enumerate() {
            if let Fact::Output { dispatch, index } = event.fact {
                wanted.push((place, dispatch));
                pipe.hget(self.keys.task(event.task), "row").hget(self.keys.artifacts(event.task), index);
            }
        }
        if wanted.is_empty() {
            return Ok(());
        }
        let found: Vec<Option<String>> = self.ask(&pipe).await?;
        for ((place, dispatch), parts) in wanted.into_iter().zip(found.chunks(2)) {
            if let [Some(row), Some(artifact)] = parts
                && from_json::<super::rows::Row>(row)?.task.dispatch == dispatch
                && let Some(event) = events.get_mut(place)
            {
                let artifact: comfyd_actors::domain::artifact::Artifact = from_json(artifact)?;
                event.artifact = Some(artifact).filter(|artifact| artifact.object.is_some());
            }
        }
        Ok(())
    }

    pub(super) async fn newest_event(&self) -> Result<i64, StoreError> {
        let (newest,): (Option<i64>,) = self.ask(redis::pipe().hget(self.keys.meta(), "events")).await?;
        Ok(newest.unwrap_or(0))
    }

    pub(super) async fn ahead(&self, id: TaskId, limit: u32) -> Result<Option<u32>, StoreError> {
        let rows = read_rows(self, &[id]).await?;
        let row = rows.into_iter().flatten().next().map(|(row, _)| row);
        let Some(task) = row.map(|row| row.task).filter(|task| task.state == TaskState::Pending) else {
            return Ok(None);
        };
        let place = [b"(", member(task.sort_key, task.id).as_slice()].concat();
        let mut pipe = redis::pipe();
        for lane in self.all_lanes().await? {
            pipe.cmd("ZLEXCOUNT").arg(self.keys.queue(lane)).arg("-").arg(&place);
        }
        let ahead: Vec<u64> = self.ask(&pipe).await?;
        Ok(Some(u32::try_from(ahead.into_iter().sum::<u64>()).unwrap_or(u32::MAX).min(limit)))
    }

    pub(super) async fn unswept(
        &self,
        state: TaskState,
        until: Timestamp,
        limit: u32,
    ) -> Result<Vec<Task>, StoreError> {
        let (swept,): (Option<String>,) = self.ask(redis::pipe().hget(self.keys.swept(), state.as_str())).await?;
        let least = match swept.as_deref().map(from_json::<(Timestamp, TaskId)>).transpose()? {
            Some((at, id)) => [b"(", member(at.0, id).as_slice()].concat(),
            None => b"-".to_vec(),
        };
        let limit = isize::try_from(limit).unwrap_or(isize::MAX);
        let mut pipe = redis::pipe();
        pipe.zrangebylex_limit(self.keys.finished(state), least, before(until), 0, limit);
        let (found,): (Vec<Vec<u8>>,) = self.ask(&pipe).await?;
        let ids: Vec<TaskId> = found.iter().filter_map(|member| task_of(member)).collect();
        let rows = read_rows(self, &ids).await?;
        Ok(rows.into_iter().flatten().map(|(row, _)| row.task).filter(|task| task.state == state).collect())
    }

    pub(super) async fn next_scheduled(&self) -> Result<Option<Timestamp>, StoreError> {
        let (first,): (Vec<Vec<u8>>,) = self.ask(redis::pipe().zrange(self.keys.scheduled(), 0, 0)).await?;
        Ok(first.first().and_then(|member| super::keys::number_of(member)).map(Timestamp))
    }

    pub(super) async fn input(&self, id: &InputId) -> Result<Input, StoreError> {
        self.find_input(id).await?.ok_or(StoreError::NotFound)
    }

    async fn find_input(&self, id: &InputId) -> Result<Option<Input>, StoreError> {
        let (key,): (Option<String>,) = self.ask(redis::pipe().hget(self.keys.input_objects(), id.as_str())).await?;
        let Some(key) = key else { return Ok(None) };
        let (row,): (Option<String>,) = self.ask(redis::pipe().hget(self.keys.inputs(), &key)).await?;
        let row: Option<InputRow> = row.as_deref().map(from_json).transpose()?;
        Ok(row.and_then(|row| row.input(&key)).filter(|input| input.id == *id))
    }

    pub(super) async fn fetched(&self, task: TaskId) -> Result<BTreeMap<String, Input>, StoreError> {
        let (found,): (BTreeMap<String, String>,) = self.ask(redis::pipe().hgetall(self.keys.fetched(task))).await?;
        let mut inputs = BTreeMap::new();
        for (url, id) in found {
            let id = InputId::parse(&id).ok_or_else(|| corrupt("a hash is not one"))?;
            if let Some(input) = self.find_input(&id).await? {
                inputs.insert(url, input);
            }
        }
        Ok(inputs)
    }
}

/// Messages.
impl Link {
    /// As it is noted: a call may come too early, and is put right by who follows it.
    pub(super) async fn next_due(&self) -> Result<Option<Timestamp>, StoreError> {
        let (first,): (Vec<(String, i64)>,) =
            self.ask(redis::pipe().zrange_withscores(self.keys.calls(), 0, 0)).await?;
        Ok(first.first().map(|(_, at)| Timestamp(*at)))
    }

    pub(super) async fn deliveries(&self, query: &DeliveryQuery) -> Result<Vec<(Delivery, Endpoint)>, StoreError> {
        let limit = usize::try_from(query.limit).unwrap_or(usize::MAX);
        // Whichever narrows it down the most.
        let index = match (query.task, query.endpoint, query.state) {
            (Some(task), ..) => self.keys.log_of_task(task),
            (None, Some(endpoint), _) => self.keys.log_of_endpoint(endpoint),
            (None, None, Some(state)) => self.keys.log_of_state(state.as_str()),
            (None, None, None) => self.keys.log(),
        };
        let fits = |delivery: &Delivery| {
            query.task.is_none_or(|task| delivery.task == task)
                && query.endpoint.is_none_or(|endpoint| delivery.endpoint == endpoint)
                && query.state.is_none_or(|state| delivery.state == state)
        };
        let (mut found, mut before) = (Vec::new(), query.before);
        while found.len() < limit {
            let page = PAGE.max(limit - found.len());
            let greatest = before.map_or_else(|| "+inf".to_owned(), |before| format!("({before}"));
            let mut pipe = redis::pipe();
            pipe.zrevrangebyscore_limit(&index, greatest, "-inf", 0, page.cast_signed());
            let (ids,): (Vec<i64>,) = self.ask(&pipe).await?;
            let messages = read_messages(self, &ids).await?.into_iter().map(|message| message.delivery);
            found.extend(messages.filter(fits).take(limit - found.len()));
            before = ids.last().copied();
            if ids.len() < page {
                break;
            }
        }
        let endpoints = self.endpoints_of(&found).await?;
        let pair = |delivery: Delivery| Some((endpoints.get(&delivery.endpoint)?.clone(), delivery));
        Ok(found.into_iter().filter_map(pair).map(|(endpoint, delivery)| (delivery, endpoint)).collect())
    }

    async fn endpoints_of(&self, deliveries: &[Delivery]) -> Result<BTreeMap<EndpointId, Endpoint>, StoreError> {
        let ids: BTreeSet<i64> = deliveries.iter().map(|delivery| delivery.endpoint.0).collect();
        if ids.is_empty() {
            return Ok(BTreeMap::new());
        }
        let ids: Vec<i64> = ids.into_iter().collect();
        let (found,): (Vec<Option<String>>,) = self.ask(redis::pipe().hmget(self.keys.endpoints(), &ids)).await?;
        let endpoints = found.into_iter().flatten().map(|text| from_json(&text));
        endpoints.map(|endpoint: Result<Endpoint, _>| endpoint.map(|endpoint| (endpoint.id, endpoint))).collect()
    }

    async fn all_endpoints(&self) -> Result<BTreeMap<EndpointId, Endpoint>, StoreError> {
        let (found,): (BTreeMap<i64, String>,) = self.ask(redis::pipe().hgetall(self.keys.endpoints())).await?;
        found.into_iter().map(|(id, text)| Ok((EndpointId(id), from_json(&text)?))).collect()
    }

    /// Walks over all of them: there are as many as clients have receivers.
    pub(super) async fn endpoints(&self, after: Option<EndpointId>, limit: u32) -> Result<Vec<Endpoint>, StoreError> {
        let all = self.all_endpoints().await?.into_iter();
        let later = all.filter(|(id, _)| Some(*id) > after).map(|(_, endpoint)| endpoint);
        Ok(later.take(usize::try_from(limit).unwrap_or(usize::MAX)).collect())
    }

    pub(super) async fn hook_levels(&self) -> Result<HookLevels, StoreError> {
        let pending = self.keys.log_of_state(DeliveryState::Pending.as_str());
        let (pending, oldest): (u64, Vec<(String, i64)>) =
            self.ask(redis::pipe().zcard(pending).zrange_withscores(self.keys.untold(), 0, 0)).await?;
        let endpoints = self.all_endpoints().await?;
        let count = |fits: fn(&Endpoint) -> bool| endpoints.values().filter(|endpoint| fits(endpoint)).count() as u64;
        Ok(HookLevels {
            pending,
            oldest: oldest.first().map(|(_, at)| Timestamp(*at)),
            disabled: count(|endpoint| endpoint.disabled_at.is_some()),
            failing: count(|endpoint| endpoint.failures > 0),
        })
    }
}

/// An entry of the stream: its id, and its fields and values in turn.
type StreamEntry = (String, Vec<String>);

fn read_event((id, fields): StreamEntry) -> Result<(i64, String), StoreError> {
    let seq = id.split('-').next().and_then(|seq| seq.parse().ok()).ok_or_else(|| corrupt("an event has no number"))?;
    let text = fields.into_iter().nth(1).ok_or_else(|| corrupt("an event is empty"))?;
    Ok((seq, text))
}
