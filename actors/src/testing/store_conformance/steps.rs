//! Random steps, and the calls they become.
//!
//! A step names tasks by their place among those made so far and fences by how stale they are, so that any part of a sequence is a sequence
//! too and can be shrunk. The world turns it into a call with real ids, the same for both stores.

use std::{fmt::Debug, sync::Arc, time::Duration};

use proptest::{collection::vec, option, prelude::*, sample::select};

use super::{
    Subject,
    fixtures::{self, artifacts, claim, claim_of, error, intent, worker},
    hook_checks::{HookCall, hook_call, some_webhook},
    workflow_checks::{WorkflowCall, workflow_call},
};
use crate::{
    domain::{
        event::Event,
        failure::Class,
        id::{BackendId, PromptId, TaskId, WorkerId},
        lane::Lanes,
        options::TaskOptions,
        order::{Ordering, Priority},
        task::{Change, Fence, Release, Task, TaskState},
        time::Timestamp,
        webhook::Webhook,
    },
    ports::{
        clock::Clock,
        store::{
            Assignment, Claim, Created, Creation, FailedQuery, Hold, Idempotency, NewTask, Pausable, Payload, Query,
            Retention, StoreError, TaskStore,
        },
    },
    testing::TestClock,
};

/// Steps of one sequence. Long enough for a task to fail, wait, be taken over and end.
const LONGEST: usize = 40;

#[derive(Debug, Clone)]
pub(super) enum Step {
    Create {
        new: NewTask,
        claim: Option<Claim>,
    },
    Claim(Claim),
    Apply {
        task: usize,
        stale_by: i64,
        change: Change,
    },
    /// The change that brings the task on: so that long lives are not left to luck.
    Proceed {
        task: usize,
    },
    Amend {
        task: usize,
        change: Change,
    },
    NoteRun {
        task: usize,
        stale_by: i64,
        nodes: u8,
    },
    SetPaused {
        what: Pausable,
        hold: Hold,
    },
    Renew {
        worker: WorkerId,
        lease: Duration,
        stale_by: i64,
    },
    Held(WorkerId),
    TakeOver(WorkerId),
    AdoptExpired {
        worker: WorkerId,
        limit: u32,
    },
    Promote {
        limit: u32,
    },
    NextScheduled,
    Prune {
        retention: Retention,
        limit: u32,
    },
    /// Those that ended before now, or were to.
    Unswept {
        state: TaskState,
        limit: u32,
    },
    NoteSwept {
        state: TaskState,
        task: usize,
    },
    Get {
        task: usize,
    },
    List {
        query: Query,
        before: Option<usize>,
    },
    Counts,
    Workflow(WorkflowCall),
    Hook(HookCall),
    Lanes,
    Depths,
    Events {
        task: Option<usize>,
        limit: u32,
    },
    Ahead {
        task: usize,
        limit: u32,
    },
    Advance(Duration),
    /// Sets the clock, and lets the stores notice.
    SetClock {
        by: i64,
        worker: WorkerId,
    },
}

pub(super) fn sequence() -> impl Strategy<Value = Vec<Step>> {
    vec(step(), 1..LONGEST)
}

fn step() -> impl Strategy<Value = Step> {
    let task = || any::<usize>();
    let limit = || 0_u32..4;
    prop_oneof![
        6 => (new_task(), option::weighted(0.5, some_claim())).prop_map(|(new, claim)| Step::Create { new, claim }),
        4 => some_claim().prop_map(Step::Claim),
        6 => (task(), stale_by(), change()).prop_map(|(task, stale_by, change)| Step::Apply { task, stale_by, change }),
        8 => task().prop_map(|task| Step::Proceed { task }),
        5 => (task(), wish()).prop_map(|(task, change)| Step::Amend { task, change }),
        1 => (task(), stale_by(), 0_u8..3).prop_map(|(task, stale_by, nodes)| Step::NoteRun { task, stale_by, nodes }),
        1 => (pausable(), hold()).prop_map(|(what, hold)| Step::SetPaused { what, hold }),
        3 => (some_worker(), seconds(60), stale_by())
            .prop_map(|(worker, lease, stale_by)| Step::Renew { worker, lease, stale_by }),
        1 => some_worker().prop_map(Step::Held),
        2 => some_worker().prop_map(Step::TakeOver),
        2 => (some_worker(), limit()).prop_map(|(worker, limit)| Step::AdoptExpired { worker, limit }),
        2 => limit().prop_map(|limit| Step::Promote { limit }),
        1 => Just(Step::NextScheduled),
        2 => (retention(), limit()).prop_map(|(retention, limit)| Step::Prune { retention, limit }),
        1 => (final_state(), limit()).prop_map(|(state, limit)| Step::Unswept { state, limit }),
        1 => (final_state(), task()).prop_map(|(state, task)| Step::NoteSwept { state, task }),
        1 => task().prop_map(|task| Step::Get { task }),
        3 => (query(), option::of(task())).prop_map(|(query, before)| Step::List { query, before }),
        1 => Just(Step::Counts),
        4 => workflow_call().prop_map(Step::Workflow),
        8 => hook_call().prop_map(Step::Hook),
        1 => Just(Step::Lanes),
        1 => Just(Step::Depths),
        2 => (option::of(task()), 0_u32..8).prop_map(|(task, limit)| Step::Events { task, limit }),
        2 => (task(), limit()).prop_map(|(task, limit)| Step::Ahead { task, limit }),
        4 => seconds(40).prop_map(Step::Advance),
        1 => (select(vec![-3_600_000, -20_000, -3_000, 3_000, 20_000, 3_600_000]), some_worker())
            .prop_map(|(by, worker)| Step::SetClock { by, worker }),
    ]
}

/// Few values of everything, so that equal keys, ids and times are common.
fn new_task() -> impl Strategy<Value = NewTask> {
    let idempotency = (select(vec!["a", "b"]), 0_u8..2)
        .prop_map(|(key, body)| Idempotency { key: key.into(), body_sha256: [body; 32] });
    let place = (0_u128..1 << 8, 0_i64..2, 0_i64..3, -2_i64..3);
    let rest =
        (option::of(select(vec!["txt2img", "o'clock"])), -100_i64..=100, 1..4_i32, option::of(1..9_u64), 0..5_i64);
    let run_after = option::weighted(0.2, -1_000..30_000_i64);
    let idempotency = option::weighted(0.3, idempotency);
    (place, rest, run_after, idempotency, some_webhook()).prop_map(|(place, rest, run_after, idempotency, webhook)| {
        let (id, tenant, lane, sort_key) = place;
        let (workflow, priority, max_attempts, timeout, created) = rest;
        let created_at = Timestamp(1_700_000_000_000 + created);
        NewTask {
            id: fixtures::id(id),
            tenant: if lane == fixtures::CAPPED_LANE { fixtures::tenant("acme").id() } else { tenant },
            lane: fixtures::lane(lane),
            workflow: workflow.map(str::to_owned),
            priority: Priority::new(priority).unwrap_or_default(),
            sort_key,
            max_attempts,
            timeout: timeout.map(Duration::from_secs),
            created_at,
            run_at: run_after.map(|ms| Timestamp(created_at.0 + ms)),
            payload: payload(id, webhook),
            idempotency,
        }
    })
}

fn payload(id: u128, webhook: Option<Webhook>) -> Payload {
    Payload {
        graph: format!("{{\"1\":{id}}}").into(),
        inputs: "{\"é\":1}".into(),
        metadata: "\"it's\"".into(),
        options: TaskOptions {
            allow_partial: id.is_multiple_of(2),
            workflow_version: (id > 9).then_some(3),
            webhook,
            ..TaskOptions::default()
        }
        .into(),
    }
}

fn some_worker() -> impl Strategy<Value = WorkerId> {
    (select(vec!["a", "a:b"]), 0..3_u32).prop_map(|(node, boot)| worker(node, boot))
}

fn some_claim() -> impl Strategy<Value = Claim> {
    let lanes = prop_oneof![
        1 => Just(Lanes::All),
        2 => prop::collection::btree_set(0_i64..3, 0..4).prop_map(Lanes::only),
    ];
    let alike = (lanes.clone(), 0..4_usize).prop_map(|(lanes, slots)| vec![lanes; slots]);
    let caps =
        option::of(0_u32..3).prop_map(|cap| cap.map(|cap| fixtures::capped([("acme", cap)])).unwrap_or_default());
    (some_worker(), prop_oneof![alike, vec(lanes, 0..4)], caps)
        .prop_map(|(worker, slots, caps)| Claim { caps, ..claim_of(&worker, slots) })
}

fn seconds(most: u64) -> impl Strategy<Value = Duration> {
    (0..=most).prop_map(Duration::from_secs)
}

/// Mostly right; sometimes older, sometimes from the future.
fn stale_by() -> impl Strategy<Value = i64> {
    select(vec![0, 0, 0, 0, 0, 0, 1, -1])
}

fn retention() -> impl Strategy<Value = Retention> {
    let long = || seconds(60);
    (long(), long(), long(), long()).prop_map(|(completed, failed, idempotency, webhooks)| Retention {
        completed,
        failed,
        idempotency,
        webhooks,
    })
}

fn final_state() -> impl Strategy<Value = TaskState> {
    select(final_states().collect::<Vec<_>>())
}

fn final_states() -> impl Iterator<Item = TaskState> {
    TaskState::ALL.into_iter().filter(|state| state.is_final())
}

fn query() -> impl Strategy<Value = Query> {
    let states = vec(select(TaskState::ALL.to_vec()), 0..4);
    let backend = option::weighted(0.2, select(vec!["http://gpu-0:8188", "http://gpu-1:8188"]));
    let created = || option::weighted(0.3, (0..5_i64).prop_map(|ms| Timestamp(1_700_000_000_000 + ms)));
    let workflow = option::of(select(vec!["txt2img", "none"]));
    (states, workflow, backend, created(), created(), 0..5_u32).prop_map(
        |(states, workflow, backend, created_from, created_until, limit)| Query {
            states,
            workflow: workflow.map(str::to_owned),
            backend: backend.map(BackendId::new),
            created_from,
            created_until,
            before: None,
            limit,
        },
    )
}

fn hold() -> impl Strategy<Value = Hold> {
    select(vec![Hold::Resume, Hold::Pause, Hold::Drain { move_at: None }, Hold::Drain { move_at: Some(Timestamp(7)) }])
}

fn pausable() -> impl Strategy<Value = Pausable> {
    select(vec![Pausable::Queue, Pausable::Backend(BackendId::new("http://gpu-0:8188"))])
}

/// What a client may want.
fn wish() -> impl Strategy<Value = Change> {
    let ordering = select(vec![Ordering::Aged, Ordering::Strict]);
    prop_oneof![
        Just(Change::Cancel),
        (-100_i64..=100, ordering.clone()).prop_map(|(level, ordering)| Change::Reprioritize {
            priority: Priority::new(level).unwrap_or_default(),
            ordering
        }),
        ordering.prop_map(|ordering| Change::Reopen { ordering }),
        some_worker().prop_map(|worker| Change::ReopenUploads { worker }),
    ]
}

fn change() -> impl Strategy<Value = Change> {
    let until = || (0..90_000_i64).prop_map(|ms| Timestamp(1_700_000_000_000 + ms));
    prop_oneof![
        (some_worker(), until()).prop_map(|(worker, until)| Change::Claim {
            worker,
            until,
            intent: intent("http://gpu-9:8188")
        }),
        (some_worker(), until()).prop_map(|(worker, until)| Change::Adopt { worker, until }),
        until().prop_map(|until| Change::Renew { until }),
        Just(Change::HandOff),
        Just(Change::Accept { prompt: PromptId::new("another-id") }),
        (0..3_u32).prop_map(|count| Change::Plan { artifacts: artifacts(count, false) }),
        (0..3_u32).prop_map(|index| Change::Store { index, object: fixtures::object(index) }),
        (0..3_u32, any::<bool>()).prop_map(|(count, stored)| Change::Complete { artifacts: artifacts(count, stored) }),
        Just(Change::Fail { error: error() }),
        seconds(30).prop_map(|delay| Change::Retry { error: error(), delay }),
        (seconds(30), option::of(select(vec![0, 7, 9]).prop_map(fixtures::lane)))
            .prop_map(|(delay, lane)| Change::Cramped { error: error(), delay, lane }),
        any::<bool>().prop_map(|blamed| Change::Elsewhere { error: error(), blamed }),
        (seconds(30), 0..3_u32, any::<bool>(), any::<bool>()).prop_map(|(delay, count, stored, retryable)| {
            let error = if retryable { error() } else { error().permanent() };
            Change::Unstored { error, delay, artifacts: artifacts(count, stored) }
        }),
        select(vec![Release::Recalled, Release::ServerDied, Release::Interrupted, Release::Cancelled])
            .prop_map(Change::Release),
        Just(Change::Promote),
        wish(),
    ]
}

/// A step with real ids and fences.
#[derive(Debug, Clone)]
pub(super) enum Call {
    Create { new: NewTask, claim: Option<Claim> },
    Claim(Claim),
    Apply { id: TaskId, fence: Fence, change: Change },
    Amend(TaskId, Change),
    NoteRun { id: TaskId, dispatch: i64, nodes: u8 },
    SetPaused { what: Pausable, hold: Hold },
    Pauses,
    Renew { worker: WorkerId, lease: Duration, held: Vec<(TaskId, Fence)> },
    Held(WorkerId),
    TakeOver(WorkerId),
    AdoptExpired { worker: WorkerId, limit: u32 },
    Promote { limit: u32 },
    NextScheduled,
    Prune { retention: Retention, limit: u32 },
    Unswept { state: TaskState, until: Timestamp, limit: u32 },
    NoteSwept { state: TaskState, last: (Timestamp, TaskId) },
    Get(TaskId),
    List(Query),
    Failed(FailedQuery),
    Counts,
    Workflow(WorkflowCall),
    Hook(HookCall),
    Waiting,
    Lanes,
    Depths,
    Events { of: Option<TaskId>, limit: u32 },
    Ahead { id: TaskId, limit: u32 },
}

/// The ids in play.
#[derive(Debug, Default)]
pub(super) struct World {
    ids: Vec<TaskId>,
}

impl World {
    /// What a step means now. `None`: nothing to call.
    pub(super) async fn resolve(&mut self, step: &Step, reference: &Subject, clock: &Arc<TestClock>) -> Option<Call> {
        Some(match step.clone() {
            Step::Create { new, claim } => {
                if !self.ids.contains(&new.id) {
                    self.ids.push(new.id);
                }
                Call::Create { new, claim }
            }
            Step::Claim(claim) => Call::Claim(claim),
            Step::Apply { task, stale_by, change } => {
                let id = self.pick(task)?;
                let fence = current(reference, id).await.map_or(0, |task| task.fence.0) - stale_by;
                Call::Apply { id, fence: Fence(fence), change }
            }
            Step::Proceed { task } => self.proceed(task, reference, clock).await?,
            Step::Amend { task, change } => Call::Amend(self.pick(task)?, change),
            Step::NoteRun { task, stale_by, nodes } => {
                let id = self.pick(task)?;
                let dispatch = current(reference, id).await.map_or(0, |task| task.dispatch) - stale_by;
                Call::NoteRun { id, dispatch, nodes }
            }
            Step::SetPaused { what, hold } => Call::SetPaused { what, hold },
            Step::Renew { worker, lease, stale_by } => {
                Call::Renew { worker, lease, held: self.fences(reference, stale_by).await }
            }
            Step::Held(worker) => Call::Held(worker),
            Step::TakeOver(worker) => Call::TakeOver(worker),
            Step::AdoptExpired { worker, limit } => Call::AdoptExpired { worker, limit },
            Step::Promote { limit } => Call::Promote { limit },
            Step::NextScheduled => Call::NextScheduled,
            Step::Prune { retention, limit } => Call::Prune { retention, limit },
            Step::Unswept { state, limit } => Call::Unswept { state, until: clock.now(), limit },
            Step::NoteSwept { state, task } => {
                let task = current(reference, self.pick(task)?).await?;
                Call::NoteSwept { state, last: (task.finished_at?, task.id) }
            }
            Step::Get { task } => Call::Get(self.pick(task)?),
            Step::List { mut query, before } => {
                query.before = self.cursor(before, reference).await;
                Call::List(query)
            }
            Step::Counts => Call::Counts,
            Step::Workflow(call) => Call::Workflow(call),
            Step::Hook(call) => Call::Hook(call),
            Step::Lanes => Call::Lanes,
            Step::Depths => Call::Depths,
            Step::Events { task, limit } => Call::Events { of: task.and_then(|task| self.pick(task)), limit },
            Step::Ahead { task, limit } => Call::Ahead { id: self.pick(task)?, limit },
            Step::SetClock { by, worker } => {
                clock.set_by(by);
                // The stores must look at the same moments to see the same steps.
                Call::Held(worker)
            }
            Step::Advance(step) => {
                clock.advance(step);
                return None;
            }
        })
    }

    /// The calls that show everything there is.
    pub(super) fn everything(&self) -> Vec<Call> {
        let all = Query { limit: 1000, ..Query::default() };
        let last = [
            Call::List(all),
            Call::Failed(FailedQuery { limit: 1000, ..FailedQuery::default() }),
            Call::Failed(FailedQuery { classes: Class::ALL[2..].to_vec(), limit: 3, ..FailedQuery::default() }),
            Call::Counts,
            Call::Depths,
            Call::Waiting,
            Call::Lanes,
            Call::NextScheduled,
            Call::Pauses,
            Call::Workflow(WorkflowCall::Published),
            Call::Hook(HookCall::Show),
            Call::Events { of: None, limit: 1000 },
        ];
        let ended = |state| Call::Unswept { state, until: Timestamp(i64::MAX), limit: 1000 };
        let last = last.into_iter().chain(final_states().map(ended));
        let each = |id: &TaskId| [Call::Get(*id), Call::Events { of: Some(*id), limit: 1000 }];
        self.ids.iter().flat_map(each).chain(last).collect()
    }

    fn pick(&self, place: usize) -> Option<TaskId> {
        self.ids.get(place.checked_rem(self.ids.len())?).copied()
    }

    async fn proceed(&self, place: usize, reference: &Subject, clock: &Arc<TestClock>) -> Option<Call> {
        let record = reference.tasks.get(self.pick(place)?).await.ok()?;
        let task = record.task;
        let change = match task.state {
            TaskState::Dispatching => Change::Accept { prompt: PromptId::of(task.id, task.dispatch) },
            TaskState::Executing => Change::Plan { artifacts: artifacts(2, false) },
            TaskState::Uploading => match record.artifacts.iter().find(|artifact| artifact.object.is_none()) {
                Some(missing) => Change::Store { index: missing.index, object: fixtures::object(missing.index) },
                None => Change::Complete { artifacts: record.artifacts },
            },
            TaskState::Scheduled => {
                clock.advance(task.run_at?.since(clock.now()));
                return Some(Call::Promote { limit: 1 });
            }
            _ => return Some(Call::Claim(claim(&worker("a", 1), 1))),
        };
        Some(Call::Apply { id: task.id, fence: task.fence, change })
    }

    async fn fences(&self, reference: &Subject, stale_by: i64) -> Vec<(TaskId, Fence)> {
        let mut held = Vec::new();
        for id in self.ids.iter().rev() {
            if let Some(task) = current(reference, *id).await {
                held.push((*id, Fence(task.fence.0 - stale_by)));
            }
        }
        held
    }

    async fn cursor(&self, before: Option<usize>, reference: &Subject) -> Option<(Timestamp, TaskId)> {
        let task = current(reference, self.pick(before?)?).await?;
        Some((task.created_at, task.id))
    }
}

async fn current(reference: &Subject, id: TaskId) -> Option<Task> {
    reference.tasks.get(id).await.ok().map(|record| record.task)
}

impl Call {
    /// Makes the call; the answer as text, which is how all kinds of them are compared.
    pub(super) async fn make(&self, Subject { tasks, work, workflows, hooks, .. }: &Subject) -> Answer {
        match self.clone() {
            Self::Create { new, claim } => answer(create_durably(&**tasks, new, claim).await),
            Self::Claim(claim) => answer(work.claim(claim).await),
            Self::Apply { id, fence, change } => answer(work.apply(id, fence, change).await),
            Self::Amend(id, Change::Cancel) => answer(tasks.cancel(id).await),
            Self::Amend(id, change) => answer(tasks.amend(id, change).await),
            Self::NoteRun { id, dispatch, nodes } => answer(work.note_run(id, dispatch, fixtures::nodes(nodes)).await),
            Self::SetPaused { what, hold } => answer(tasks.set_paused(what, hold).await),
            Self::Pauses => answer(tasks.pauses().await),
            Self::Renew { worker, lease, held } => answer(work.renew(&worker, lease, &held).await),
            Self::Held(worker) => answer(work.held(&worker).await),
            Self::TakeOver(worker) => answer(work.take_over(&worker, fixtures::LEASE).await),
            Self::AdoptExpired { worker, limit } => answer(work.adopt_expired(&fixtures::sweep(&worker, limit)).await),
            Self::Promote { limit } => answer(tasks.promote(limit).await),
            Self::NextScheduled => answer(tasks.next_scheduled().await),
            Self::Prune { retention, limit } => answer(tasks.prune(retention, limit).await),
            Self::Unswept { state, until, limit } => answer(tasks.unswept(state, until, limit).await),
            Self::NoteSwept { state, last } => answer(tasks.note_swept(state, last).await),
            Self::Get(id) => answer(tasks.get(id).await),
            Self::List(query) => answer(tasks.list(query).await),
            Self::Failed(query) => answer(tasks.failed(query).await),
            Self::Counts => answer(Ok((tasks.counts().await, tasks.crowd([0, 1, 2].into(), 3).await))),
            Self::Workflow(call) => call.make(&**workflows).await,
            Self::Hook(call) => call.make(&**hooks).await,
            Self::Waiting => answer(tasks.waiting().await),
            Self::Lanes => answer(work.lanes().await),
            Self::Depths => answer(tasks.depths().await),
            // Numbers may be left out, so they are not compared; their order is that of the answer.
            Self::Events { of, limit } => answer(tasks.events(of, 0, limit).await.map(|events| {
                assert!(events.is_sorted_by(|a, b| a.seq < b.seq), "events come in order: {events:#?}");
                events.into_iter().map(|event| Event { seq: 0, ..event }).collect::<Vec<_>>()
            })),
            Self::Ahead { id, limit } => answer(tasks.ahead(id, limit).await),
        }
    }
}

async fn create_durably(
    tasks: &dyn TaskStore,
    new: NewTask,
    claim: Option<Claim>,
) -> Result<(Created, Vec<Assignment>), StoreError> {
    let Creation { created, claimed, durable } = tasks.create(new, claim).await?;
    durable.wait().await?;
    Ok((created, claimed))
}

/// An answer that prints as it is written.
#[derive(PartialEq)]
pub(super) struct Answer(String);

impl Debug for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// The words of a `Corrupt` are the store's own.
pub(super) fn answer<T: Debug>(result: Result<T, StoreError>) -> Answer {
    Answer(match result {
        Err(StoreError::Corrupt(_)) => "Err(Corrupt)".into(),
        result => format!("{result:#?}"),
    })
}
