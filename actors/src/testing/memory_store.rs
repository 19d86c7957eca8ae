//! The reference store: maps behind one lock, every rule of the ports written in the plainest way. The conformance suite compares the
//! real stores with it, and tests of the actors use it instead of a database. Everything is lost with the process.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use tokio::sync::broadcast;

use self::{hooks::Outbox, inputs::Rows};
use crate::{
    domain::{
        artifact::Artifact,
        event::{Event, Fact, Stage, facts},
        id::{TaskId, WorkerId},
        input::InputId,
        lane::{ANYBODY, Head, Lane, Needs},
        moment::{ClockWatch, DATE_TRUSTED_AFTER, Moment},
        order::Priority,
        progress::NodeTiming,
        task::{ArtifactEdit, Change, Fence, Refusal, Task, TaskState},
        time::Timestamp,
    },
    ports::{
        clock::Clock,
        store::{
            Assignment, Changed, Claim, Counts, Created, Creation, Depth, Durable, FailedQuery, Hold, NewTask,
            Pausable, Pause, Payload, Query, Renewed, Retention, StoreError, Sweep, TaskRecord, TaskStore, WorkSource,
        },
        wire::Notice,
    },
};

mod hooks;
mod inputs;
mod wire;
mod workflows;

/// Committed changes a slow listener may be behind before it loses some.
const CHANGES_KEPT: usize = 4096;
/// Notices a slow listener may be behind before it loses some.
const NOTICES_KEPT: usize = 256;

/// A store without a disk.
pub struct MemoryStore {
    clock: Arc<dyn Clock>,
    shelf: Mutex<Shelf>,
    changes: broadcast::Sender<Changed>,
    heard: broadcast::Sender<Arc<Notice>>,
    down: AtomicBool,
}

#[derive(Default)]
struct Shelf {
    watch: ClockWatch,
    moment: Moment,
    tasks: BTreeMap<TaskId, Row>,
    inputs: Rows,
    keys: BTreeMap<(i64, String), Key>,
    workflows: workflows::Workflows,
    lanes: BTreeMap<i64, Arc<Needs>>,
    pauses: BTreeMap<Pausable, Pause>,
    /// Without their artifacts, which are looked up when they are read.
    events: Vec<Event>,
    newest_event: i64,
    outbox: Outbox,
    notices: wire::Notices,
    swept: BTreeMap<TaskState, (Timestamp, TaskId)>,
}

struct Row {
    task: Task,
    payload: Payload,
    artifacts: Vec<Artifact>,
    /// By URL.
    fetched: BTreeMap<String, InputId>,
    /// Of which dispatch.
    nodes: (i64, Vec<NodeTiming>),
}

struct Key {
    body_sha256: [u8; 32],
    task: TaskId,
    created_at: Timestamp,
}

impl MemoryStore {
    /// An empty store.
    #[must_use]
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self {
            clock,
            shelf: Mutex::default(),
            changes: broadcast::Sender::new(CHANGES_KEPT),
            heard: broadcast::Sender::new(NOTICES_KEPT),
            down: AtomicBool::new(false),
        }
    }

    /// Makes every call fail with `Unavailable`, or work again.
    pub fn set_down(&self, down: bool) {
        self.down.store(down, Ordering::SeqCst);
    }

    fn now(&self) -> Timestamp {
        self.clock.now()
    }

    fn open(&self) -> Result<MutexGuard<'_, Shelf>, StoreError> {
        if self.down.load(Ordering::SeqCst) {
            return Err(StoreError::Unavailable("the memory store was told to be down".into()));
        }
        let mut shelf = self.shelf.lock().unwrap_or_else(PoisonError::into_inner);
        shelf.look(self.clock.as_ref());
        Ok(shelf)
    }

    fn tell(&self, task: &Task, was: Option<TaskState>) {
        let _ = self.changes.send(Changed::of(task, was));
    }

    /// Load, apply, save: either all of it or nothing.
    fn change(
        &self,
        shelf: &mut Shelf,
        id: TaskId,
        fence: Option<Fence>,
        change: Change,
    ) -> Result<Assignment, StoreError> {
        let row = shelf.tasks.get_mut(&id).ok_or(StoreError::NotFound)?;
        let mut task = row.task.clone();
        let (before, now) = (Stage::of(&task), self.clock.now());
        let lane = change.new_lane().cloned();
        let edit = task.apply(fence, change, now)?;
        let facts = facts(Some(before), &task, &edit);
        match edit {
            ArtifactEdit::Keep => {}
            ArtifactEdit::Replace(artifacts) => row.artifacts = artifacts,
            ArtifactEdit::Stored(index, object) => {
                let planned = row.artifacts.iter_mut().find(|artifact| artifact.index == index);
                planned.ok_or(Refusal::WrongState)?.object = Some(object);
            }
        }
        let was = std::mem::replace(&mut row.task, task).state;
        self.tell(&row.task, Some(was));
        let assignment = row.assignment();
        if let Some(lane) = lane.filter(|lane| lane.id != ANYBODY) {
            shelf.lanes.entry(lane.id).or_insert(lane.needs);
        }
        shelf.write_down(&assignment.task, now, facts);
        Ok(assignment)
    }

    /// Makes the same change to many tasks that are known to accept it.
    fn change_all(&self, shelf: &mut Shelf, ids: Vec<TaskId>, change: &Change) -> Result<Vec<Assignment>, StoreError> {
        ids.into_iter().map(|id| self.change(shelf, id, None, change.clone())).collect()
    }

    fn claim_from(&self, shelf: &mut Shelf, claim: &Claim) -> Result<Vec<Assignment>, StoreError> {
        let heads = shelf.sorted(|task| task.state == TaskState::Pending, |task| (task.sort_key, task.id));
        let heads: Vec<Head> = heads.into_iter().filter_map(|id| shelf.head(id)).collect();
        let mut running: BTreeMap<i64, u64> = BTreeMap::new();
        for row in shelf.tasks.values().filter(|row| row.task.state.is_held()) {
            *running.entry(row.task.tenant).or_default() += 1;
        }
        let taken = claim.take(&heads, &running, self.clock.now());
        taken.into_iter().map(|(id, change)| self.change(shelf, id, None, change)).collect()
    }
}

impl Row {
    fn assignment(&self) -> Assignment {
        Assignment {
            task: self.task.clone(),
            graph: self.payload.graph.clone(),
            options: self.payload.options.clone(),
            artifacts: self.artifacts.clone(),
        }
    }
}

impl Shelf {
    /// When the clock was set back, what shall happen after a time is brought back with it.
    fn look(&mut self, clock: &dyn Clock) {
        let step;
        (self.moment, step) = self.watch.look(clock.now(), clock.steady());
        let Some(back) = step.filter(|step| *step < 0) else { return };
        self.outbox.set_back(back);
        for Row { task, .. } in self.tasks.values_mut() {
            let waits_for_a_retry = task.error.is_some();
            let until = task.lease.as_mut().map(|lease| &mut lease.until);
            let run_at = task.run_at.as_mut().filter(|_| waits_for_a_retry);
            until.into_iter().chain(run_at).for_each(|at| at.0 = at.0.saturating_add(back));
        }
    }

    /// The files that tasks need which are not over.
    fn needed(&self) -> BTreeSet<InputId> {
        let unfinished = self.tasks.values().filter(|row| !row.task.state.is_final());
        unfinished.flat_map(|row| row.payload.options.files.iter().chain(row.fetched.values()).cloned()).collect()
    }

    /// The ids of the tasks that fit, in the order of their keys.
    fn sorted<K: Ord>(&self, fits: impl Fn(&Task) -> bool, key: impl Fn(&Task) -> K) -> Vec<TaskId> {
        let mut tasks: Vec<&Task> = self.tasks.values().map(|row| &row.task).filter(|task| fits(task)).collect();
        tasks.sort_by_key(|task| key(task));
        tasks.into_iter().map(|task| task.id).collect()
    }

    fn head(&self, id: TaskId) -> Option<Head> {
        self.tasks.get(&id).map(|row| Head { task: id, lane: row.task.lane, tenant: row.task.tenant })
    }

    /// How many tasks there are of each lane that has any such, but for lane 0.
    fn lanes(&self, fits: impl Fn(&Task) -> bool) -> Vec<(Lane, u64)> {
        let count = |id: i64| self.tasks.values().filter(|row| row.task.lane == id && fits(&row.task)).count() as u64;
        let counted = self.lanes.iter().map(|(id, needs)| (Lane { id: *id, needs: needs.clone() }, count(*id)));
        counted.filter(|(_, tasks)| *tasks > 0).collect()
    }

    /// What an idempotency key that was seen before leads to.
    fn repeated(&self, new: &NewTask) -> Option<Created> {
        let idempotency = new.idempotency.as_ref()?;
        let key = self.keys.get(&(new.tenant, idempotency.key.clone()))?;
        if key.body_sha256 != idempotency.body_sha256 {
            return Some(Created::KeyReused);
        }
        self.tasks.get(&key.task).map(|row| Created::Replayed(row.task.clone()))
    }

    fn paused(&self) -> Vec<Pause> {
        self.pauses.values().cloned().collect()
    }

    fn write_down(&mut self, task: &Task, at: Timestamp, facts: Vec<Fact>) {
        for fact in facts {
            let told = |event: &Event| event.task == task.id && event.fact == fact;
            if matches!(fact, Fact::Output { .. }) && self.events.iter().any(told) {
                continue;
            }
            self.outbox.tell(task, &fact, at);
            self.newest_event += 1;
            let (seq, task, workflow) = (self.newest_event, task.id, task.workflow.clone());
            self.events.push(Event { seq, task, workflow, at, fact, artifact: None });
        }
    }

    /// The output an event is about, if its run still counts.
    fn artifact(&self, event: &Event) -> Option<Artifact> {
        let row = self.tasks.get(&event.task)?;
        let Fact::Output { dispatch, index } = event.fact else { return None };
        let found = row.artifacts.iter().find(|artifact| artifact.index == index && artifact.object.is_some())?;
        (row.task.dispatch == dispatch).then(|| found.clone())
    }

    fn insert(&mut self, new: NewTask, now: Timestamp) -> Result<Task, StoreError> {
        if self.tasks.contains_key(&new.id) {
            return Err(StoreError::Corrupt(format!("task {} exists already", new.id)));
        }
        if let Some(idempotency) = new.idempotency.clone() {
            let key = Key { body_sha256: idempotency.body_sha256, task: new.id, created_at: new.created_at };
            self.keys.insert((new.tenant, idempotency.key), key);
        }
        let task = new.first_state();
        if task.lane != ANYBODY {
            self.lanes.entry(task.lane).or_insert(new.lane.needs);
        }
        if let Some(webhook) = &new.payload.options.webhook {
            self.outbox.introduce(webhook);
        }
        let (payload, artifacts, fetched) = (new.payload, Vec::new(), BTreeMap::new());
        let row = Row { task: task.clone(), payload, artifacts, fetched, nodes: (0, Vec::new()) };
        self.tasks.insert(task.id, row);
        self.write_down(&task, now, facts(None, &task, &ArtifactEdit::Keep));
        Ok(task)
    }
}

fn lease_until(task: &Task) -> Option<Timestamp> {
    task.lease.as_ref().map(|lease| lease.until)
}

fn is_held_by(task: &Task, fits: impl Fn(&WorkerId) -> bool) -> bool {
    task.lease.as_ref().is_some_and(|lease| fits(&lease.worker))
}

fn up_to(limit: u32) -> usize {
    usize::try_from(limit).unwrap_or(usize::MAX)
}

#[async_trait]
impl TaskStore for MemoryStore {
    async fn create(&self, new: NewTask, claim: Option<Claim>) -> Result<Creation, StoreError> {
        let mut shelf = self.open()?;
        if let Some(created) = shelf.repeated(&new) {
            return Ok(Creation { created, claimed: Vec::new(), durable: Durable::now() });
        }
        let task = shelf.insert(new, self.clock.now())?;
        self.tell(&task, None);
        let claimed = claim.map_or_else(|| Ok(Vec::new()), |claim| self.claim_from(&mut shelf, &claim))?;
        Ok(Creation { created: Created::New(task), claimed, durable: Durable::now() })
    }

    async fn amend(&self, id: TaskId, change: Change) -> Result<Task, StoreError> {
        let mut shelf = self.open()?;
        match shelf.tasks.get(&id) {
            Some(row) if row.task.fulfils(&change) => Ok(row.task.clone()),
            _ => self.change(&mut shelf, id, None, change).map(|assignment| assignment.task),
        }
    }

    async fn get(&self, id: TaskId) -> Result<TaskRecord, StoreError> {
        let shelf = self.open()?;
        let row = shelf.tasks.get(&id).ok_or(StoreError::NotFound)?;
        Ok(TaskRecord {
            task: row.task.clone(),
            inputs: row.payload.inputs.clone(),
            metadata: row.payload.metadata.clone(),
            options: row.payload.options.clone(),
            needs: shelf.lanes.get(&row.task.lane).cloned().unwrap_or_default(),
            artifacts: row.artifacts.clone(),
            nodes: if row.nodes.0 == row.task.dispatch { row.nodes.1.clone() } else { Vec::new() },
        })
    }

    async fn list(&self, query: Query) -> Result<Vec<Task>, StoreError> {
        let shelf = self.open()?;
        let fits = |task: &Task| {
            (query.states.is_empty() || query.states.contains(&task.state))
                && (query.workflow.is_none() || query.workflow == task.workflow)
                && query.backend.as_ref().is_none_or(|backend| {
                    let there = task.prompt.as_ref().is_some_and(|prompt| prompt.backend == *backend);
                    there && task.state.is_held()
                })
                && query.created_from.is_none_or(|from| task.created_at >= from)
                && query.created_until.is_none_or(|until| task.created_at < until)
                && query.before.is_none_or(|before| (task.created_at, task.id) < before)
        };
        let ids = shelf.sorted(fits, |task| (task.created_at, task.id));
        let newest = ids.iter().rev().take(up_to(query.limit));
        Ok(newest.filter_map(|id| shelf.tasks.get(id)).map(|row| row.task.clone()).collect())
    }

    async fn failed(&self, query: FailedQuery) -> Result<Vec<Task>, StoreError> {
        let shelf = self.open()?;
        let class = |task: &Task| task.error.as_ref().map(|error| error.class);
        let fits = |task: &Task| {
            let ended = task.finished_at.map(|at| (at, task.id));
            task.state == TaskState::Failed
                && (query.classes.is_empty() || class(task).is_some_and(|class| query.classes.contains(&class)))
                && (query.workflow.is_none() || query.workflow == task.workflow)
                && query.failed_from.is_none_or(|from| task.finished_at >= Some(from))
                && query.failed_until.is_none_or(|until| task.finished_at < Some(until))
                && query.before.is_none_or(|before| ended < Some(before))
        };
        let ids = shelf.sorted(fits, |task| (task.finished_at, task.id));
        let newest = ids.iter().rev().take(up_to(query.limit));
        Ok(newest.filter_map(|id| shelf.tasks.get(id)).map(|row| row.task.clone()).collect())
    }

    async fn counts(&self) -> Result<Counts, StoreError> {
        let mut counts = Counts::default();
        for row in self.open()?.tasks.values() {
            match row.task.state {
                TaskState::Scheduled => counts.scheduled += 1,
                TaskState::Pending => counts.pending += 1,
                state if state.is_held() => counts.held += 1,
                _ => {}
            }
        }
        Ok(counts)
    }

    async fn waiting(&self) -> Result<Vec<(Lane, u64)>, StoreError> {
        Ok(self.open()?.lanes(|task| task.state == TaskState::Pending))
    }

    async fn crowd(&self, lanes: BTreeSet<i64>, limit: u32) -> Result<u32, StoreError> {
        let shelf = self.open()?;
        let waits = |task: &Task| matches!(task.state, TaskState::Pending | TaskState::Scheduled);
        let counted = |task: &Task| task.lane != ANYBODY && lanes.contains(&task.lane) && waits(task);
        let crowd = shelf.tasks.values().filter(|row| counted(&row.task)).take(up_to(limit)).count();
        Ok(u32::try_from(crowd).unwrap_or(limit))
    }

    async fn depths(&self) -> Result<Vec<Depth>, StoreError> {
        let mut depths: BTreeMap<Priority, Depth> = BTreeMap::new();
        for Task { priority, queued_at, state, .. } in self.open()?.tasks.values().map(|row| &row.task) {
            if *state == TaskState::Pending {
                let first = Depth { priority: *priority, waiting: 0, oldest: *queued_at };
                let depth = depths.entry(*priority).or_insert(first);
                depth.waiting += 1;
                depth.oldest = depth.oldest.min(*queued_at);
            }
        }
        Ok(depths.into_values().collect())
    }

    async fn pauses(&self) -> Result<Vec<Pause>, StoreError> {
        Ok(self.open()?.paused())
    }

    async fn set_paused(&self, what: Pausable, hold: Hold) -> Result<Vec<Pause>, StoreError> {
        let mut shelf = self.open()?;
        if hold == Hold::Resume {
            shelf.pauses.remove(&what);
        } else {
            let new = Pause { what: what.clone(), since: self.clock.now(), move_at: None };
            let pause = shelf.pauses.entry(what).or_insert(new);
            if let Hold::Drain { move_at } = hold {
                pause.move_at = move_at;
            }
        }
        Ok(shelf.paused())
    }

    async fn check(&self) -> Result<(), StoreError> {
        self.open().map(drop)
    }

    async fn events(&self, of: Option<TaskId>, after: i64, limit: u32) -> Result<Vec<Event>, StoreError> {
        let shelf = self.open()?;
        let wanted = shelf.events.iter().filter(|event| event.seq > after && of.is_none_or(|id| event.task == id));
        let wanted = wanted.take(up_to(limit));
        Ok(wanted.map(|event| Event { artifact: shelf.artifact(event), ..event.clone() }).collect())
    }

    async fn newest_event(&self) -> Result<i64, StoreError> {
        Ok(self.open()?.newest_event)
    }

    async fn ahead(&self, id: TaskId, limit: u32) -> Result<Option<u32>, StoreError> {
        let shelf = self.open()?;
        let Some(row) = shelf.tasks.get(&id).filter(|row| row.task.state == TaskState::Pending) else {
            return Ok(None);
        };
        let place = |task: &Task| (task.sort_key, task.id);
        let before = |task: &Task| task.state == TaskState::Pending && place(task) < place(&row.task);
        let ahead = shelf.tasks.values().filter(|row| before(&row.task)).take(up_to(limit)).count();
        Ok(Some(u32::try_from(ahead).unwrap_or(u32::MAX)))
    }

    async fn promote(&self, limit: u32) -> Result<u32, StoreError> {
        let mut shelf = self.open()?;
        let now = self.clock.now();
        let mut ids = shelf.sorted(|task| task.run_at.is_some_and(|at| at <= now), |task| (task.run_at, task.id));
        ids.truncate(up_to(limit));
        let promoted = self.change_all(&mut shelf, ids, &Change::Promote)?;
        Ok(u32::try_from(promoted.len()).unwrap_or(u32::MAX))
    }

    async fn next_scheduled(&self) -> Result<Option<Timestamp>, StoreError> {
        Ok(self.open()?.tasks.values().filter_map(|row| row.task.run_at).min())
    }

    async fn prune(&self, retention: Retention, limit: u32) -> Result<u32, StoreError> {
        let mut shelf = self.open()?;
        let Moment { now, .. } = shelf.moment;
        if !shelf.moment.is_settled(DATE_TRUSTED_AFTER) {
            return Ok(0);
        }
        let past = |since: Timestamp, kept: Duration| since <= now.before(kept);
        let due = |task: &Task| {
            let kept = if task.state == TaskState::Failed { retention.failed } else { retention.completed };
            let untold = shelf.outbox.needs(task.id, now.before(retention.webhooks));
            task.finished_at.is_some_and(|at| past(at, kept)) && !untold
        };
        let mut gone = shelf.sorted(due, |task| (task.finished_at, task.id));
        gone.truncate(up_to(limit));
        for id in &gone {
            shelf.tasks.remove(id);
            shelf.events.retain(|event| event.task != *id);
            shelf.keys.retain(|_, key| key.task != *id);
        }
        let hooked = shelf.tasks.values().filter_map(|row| row.task.hook).map(|hook| hook.endpoint);
        let hooked: Vec<_> = hooked.collect();
        shelf.outbox.forget(&gone, hooked.into_iter());
        let inhabited: BTreeSet<i64> = shelf.tasks.values().map(|row| row.task.lane).collect();
        shelf.lanes.retain(|id, _| inhabited.contains(id));
        let old = shelf.keys.iter().filter(|(_, key)| past(key.created_at, retention.idempotency));
        let mut old: Vec<_> = old.map(|(name, key)| (key.created_at, name.clone())).collect();
        old.sort();
        old.truncate(up_to(limit) - gone.len());
        for (_, name) in &old {
            shelf.keys.remove(name);
        }
        Ok(u32::try_from(gone.len() + old.len()).unwrap_or(u32::MAX))
    }

    async fn unswept(&self, state: TaskState, until: Timestamp, limit: u32) -> Result<Vec<Task>, StoreError> {
        let shelf = self.open()?;
        let end = |task: &Task| task.finished_at.filter(|_| task.state == state).map(|at| (at, task.id));
        let swept = shelf.swept.get(&state).copied();
        let due = |task: &Task| end(task).is_some_and(|end| end.0 < until && swept.is_none_or(|swept| end > swept));
        let ids = shelf.sorted(due, end);
        let tasks = ids.iter().filter_map(|id| shelf.tasks.get(id)).map(|row| row.task.clone());
        Ok(tasks.take(up_to(limit)).collect())
    }

    async fn note_swept(&self, state: TaskState, last: (Timestamp, TaskId)) -> Result<(), StoreError> {
        let mut shelf = self.open()?;
        let swept = shelf.swept.entry(state).or_insert(last);
        *swept = last.max(*swept);
        Ok(())
    }

    fn changes(&self) -> broadcast::Receiver<Changed> {
        self.changes.subscribe()
    }
}

#[async_trait]
impl WorkSource for MemoryStore {
    async fn claim(&self, claim: Claim) -> Result<Vec<Assignment>, StoreError> {
        let mut shelf = self.open()?;
        self.claim_from(&mut shelf, &claim)
    }

    async fn apply(&self, id: TaskId, fence: Fence, change: Change) -> Result<Task, StoreError> {
        let mut shelf = self.open()?;
        self.change(&mut shelf, id, Some(fence), change).map(|assignment| assignment.task)
    }

    async fn note_run(&self, id: TaskId, dispatch: i64, nodes: Vec<NodeTiming>) -> Result<(), StoreError> {
        let mut shelf = self.open()?;
        if let Some(row) = shelf.tasks.get_mut(&id).filter(|row| row.task.dispatch == dispatch) {
            row.nodes = (dispatch, nodes);
        }
        Ok(())
    }

    async fn renew(
        &self,
        worker: &WorkerId,
        lease: Duration,
        held: &[(TaskId, Fence)],
    ) -> Result<Vec<Renewed>, StoreError> {
        let mut shelf = self.open()?;
        let Moment { now, .. } = shelf.moment;
        let mut renewed = Vec::new();
        for &(id, fence) in held {
            let Some(row) = shelf.tasks.get(&id) else { continue };
            if !row.task.lease.as_ref().is_some_and(|held| held.may_be_renewed(worker, lease, shelf.moment)) {
                continue;
            }
            if let Ok(kept) = self.change(&mut shelf, id, Some(fence), Change::Renew { until: now.after(lease) }) {
                renewed.push(Renewed { id, cancel_requested: kept.task.is_cancelling() });
            }
        }
        Ok(renewed)
    }

    async fn lanes(&self) -> Result<Vec<Lane>, StoreError> {
        Ok(self.open()?.lanes(|task| !task.state.is_final()).into_iter().map(|(lane, _)| lane).collect())
    }

    async fn held(&self, worker: &WorkerId) -> Result<Vec<Assignment>, StoreError> {
        let shelf = self.open()?;
        let mine = |task: &Task| is_held_by(task, |holder| holder == worker);
        let ids = shelf.sorted(mine, |task| (task.sort_key, task.id));
        Ok(ids.iter().filter_map(|id| shelf.tasks.get(id)).map(Row::assignment).collect())
    }

    async fn take_over(&self, worker: &WorkerId, lease: Duration) -> Result<Vec<Assignment>, StoreError> {
        let mut shelf = self.open()?;
        let earlier = |task: &Task| is_held_by(task, |holder| holder != worker && holder.node() == worker.node());
        let ids = shelf.sorted(earlier, |task| (task.sort_key, task.id));
        let adopt = Change::Adopt { worker: worker.clone(), until: self.clock.now().after(lease) };
        self.change_all(&mut shelf, ids, &adopt)
    }

    async fn adopt_expired(&self, sweep: &Sweep) -> Result<Vec<Assignment>, StoreError> {
        let mut shelf = self.open()?;
        let Moment { now, .. } = shelf.moment;
        if !shelf.moment.is_settled(sweep.lease) {
            return Ok(Vec::new());
        }
        let mut ids = shelf.sorted(|task| sweep.takes(task, now), |task| (lease_until(task), task.id));
        ids.truncate(up_to(sweep.limit));
        let adopt = Change::Adopt { worker: sweep.worker.clone(), until: now.after(sweep.lease) };
        self.change_all(&mut shelf, ids, &adopt)
    }
}
