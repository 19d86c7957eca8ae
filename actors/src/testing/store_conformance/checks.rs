//! The promises one by one, each with a name. They panic when a store breaks one.

use std::{collections::HashSet, sync::Arc, time::Duration};

use super::{
    Subject,
    fixtures::{LEASE, artifacts, claim, claim_of, error, keyed_task, lane, new_task, sweep, worker},
};
use crate::{
    domain::{
        event::{Event, Fact},
        id::{BackendId, PromptId, TaskId},
        lane::Lanes,
        order::Priority,
        task::{Change, Fence, Prompt, Refusal, Release, Task, TaskState},
        time::Timestamp,
    },
    ports::{
        clock::Clock,
        store::{Assignment, Changed, Created, Creation, NewTask, Query, Retention, StoreError, Sweep},
    },
    testing::TestClock,
};

/// A store without tasks, with a clock of its own.
pub(super) async fn fresh<F: Future<Output = Subject>>(
    open: &impl Fn(Arc<dyn Clock>) -> F,
) -> (Subject, Arc<TestClock>) {
    let clock = Arc::new(TestClock::default());
    (open(Arc::<TestClock>::clone(&clock)).await, clock)
}

impl Subject {
    pub(super) async fn add(&self, new: NewTask) -> TaskId {
        let id = new.id;
        self.tasks.create(new, None).await.unwrap();
        id
    }

    pub(super) async fn take(&self, count: usize) -> Vec<Assignment> {
        self.work.claim(claim(&worker("node", 1), count)).await.unwrap()
    }

    pub(super) async fn change(&self, task: &Task, change: Change) -> Task {
        self.work.apply(task.id, task.fence, change).await.unwrap()
    }

    /// A task whose prompt succeeded.
    async fn uploading(&self) -> Task {
        self.add(new_task(0)).await;
        let task = self.take(1).await.remove(0).task;
        let task = self.change(&task, Change::Accept { prompt: PromptId::of(task.id, 1) }).await;
        self.change(&task, Change::Plan { artifacts: artifacts(2, false) }).await
    }
}

fn ids(assignments: &[Assignment]) -> Vec<TaskId> {
    assignments.iter().map(|assignment| assignment.task.id).collect()
}

/// The least `(sort_key, id)` first, whatever the order of arrival; one task per slot, each meant for its slot's server.
pub async fn claims_follow_the_order<F: Future<Output = Subject>>(open: &impl Fn(Arc<dyn Clock>) -> F) {
    let (store, _) = fresh(open).await;
    let (older, newer) = (new_task(5), new_task(5));
    let second = store.add(older).await;
    let last = store.add(new_task(i64::MAX)).await;
    let third = store.add(newer).await;
    let first = store.add(new_task(-1)).await;
    let claimed = store.take(2).await;
    assert_eq!(ids(&claimed), [first, second]);
    let backends: Vec<_> = claimed.iter().map(|held| held.task.prompt.clone().unwrap().backend.to_string()).collect();
    assert_eq!(backends, ["http://gpu-0:8188", "http://gpu-1:8188"]);
    assert_eq!(ids(&store.take(9).await), [third, last]);
    assert!(store.take(1).await.is_empty());
}

/// A claimer that serves all lanes takes the least of their heads, every time.
pub async fn lanes_are_one_order<F: Future<Output = Subject>>(open: &impl Fn(Arc<dyn Clock>) -> F) {
    let (store, _) = fresh(open).await;
    let mut expected = Vec::new();
    for (sort_key, lane) in [(1, 7), (2, i64::MIN), (3, 7), (4, 0), (5, i64::MAX), (6, 0)] {
        expected.push(store.add(NewTask { lane: super::fixtures::lane(lane), ..new_task(sort_key) }).await);
    }
    let mut claimed = ids(&store.take(1).await);
    claimed.extend(ids(&store.take(4).await));
    claimed.extend(ids(&store.take(4).await));
    assert_eq!(claimed, expected);
}

/// A slot takes tasks of its lanes only, however long others wait; a slot that fits many gives way to a task that only it fits.
pub async fn a_slot_takes_what_it_serves<F: Future<Output = Subject>>(open: &impl Fn(Arc<dyn Clock>) -> F) {
    let (store, _) = fresh(open).await;
    let in_lane = |id, sort_key| NewTask { lane: lane(id), ..new_task(sort_key) };
    let nobodys = store.add(in_lane(9, 1)).await;
    let common = store.add(in_lane(0, 2)).await;
    let special = store.add(in_lane(7, 3)).await;
    let take = |slots| store.work.claim(claim_of(&worker("node", 1), slots));
    assert!(take(vec![Lanes::only([])]).await.unwrap().is_empty());
    assert!(take(vec![Lanes::only([5, 8])]).await.unwrap().is_empty());
    let claimed = take(vec![Lanes::only([0, 7]), Lanes::only([0])]).await.unwrap();
    let place = |held: &Assignment| (held.task.id, held.task.prompt.clone().unwrap().backend.to_string());
    let got: Vec<_> = claimed.iter().map(place).collect();
    assert_eq!(got, [(common, "http://gpu-1:8188".to_owned()), (special, "http://gpu-0:8188".to_owned())]);
    let waits: Vec<_> = store.tasks.waiting().await.unwrap().into_iter().collect();
    assert_eq!(waits, [(lane(9), 1)]);
    assert_eq!(store.work.lanes().await.unwrap(), [lane(7), lane(9)]);
    assert_eq!(store.tasks.get(nobodys).await.unwrap().needs, lane(9).needs);
    assert_eq!(store.tasks.get(common).await.unwrap().needs, lane(0).needs);
    assert_eq!(ids(&take(vec![Lanes::All]).await.unwrap()), [nobodys]);
}

/// A lane is known for as long as there are tasks of it.
pub async fn a_lane_goes_with_its_last_task<F: Future<Output = Subject>>(open: &impl Fn(Arc<dyn Clock>) -> F) {
    let (store, clock) = fresh(open).await;
    let hour = Duration::from_secs(3600);
    let retention = Retention { completed: hour, failed: hour, idempotency: hour, webhooks: hour };
    let id = store.add(NewTask { lane: lane(7), ..new_task(1) }).await;
    store.tasks.cancel(id).await.unwrap();
    assert!(store.work.lanes().await.unwrap().is_empty(), "of tasks that are not over");
    assert_eq!(store.tasks.get(id).await.unwrap().needs, lane(7).needs);
    clock.advance(hour);
    assert_eq!(store.tasks.prune(retention, 9).await.unwrap(), 1);
    // Another meaning of the same number shows that the first is forgotten.
    let other = lane(8).needs;
    let again = NewTask { lane: crate::domain::lane::Lane { id: 7, needs: other.clone() }, ..new_task(2) };
    let id = store.add(again).await;
    assert_eq!(store.tasks.get(id).await.unwrap().needs, other);
}

/// A task that comes back is not sent to the end of the queue.
pub async fn a_retry_keeps_its_place<F: Future<Output = Subject>>(open: &impl Fn(Arc<dyn Clock>) -> F) {
    let (store, clock) = fresh(open).await;
    let first = store.add(new_task(1)).await;
    let second = store.add(new_task(2)).await;
    let task = store.take(1).await.remove(0).task;
    let delay = Duration::from_secs(5);
    store.change(&task, Change::Retry { error: error(), delay }).await;
    assert_eq!(store.tasks.next_scheduled().await.unwrap(), Some(clock.now().after(delay)));
    clock.advance(Duration::from_millis(4_999));
    assert_eq!(store.tasks.promote(9).await.unwrap(), 0);
    clock.advance(Duration::from_millis(1));
    assert_eq!(store.tasks.promote(9).await.unwrap(), 1);
    assert_eq!(ids(&store.take(2).await), [first, second]);
}

/// Creation and claim are one step, and the claim takes the head of the order, not necessarily the new task.
pub async fn create_can_claim_at_once<F: Future<Output = Subject>>(open: &impl Fn(Arc<dyn Clock>) -> F) {
    let (store, _) = fresh(open).await;
    let waiting = store.add(new_task(1)).await;
    let new = new_task(2);
    let asked = claim(&worker("node", 1), 2);
    let Creation { created, claimed, durable } = store.tasks.create(new.clone(), Some(asked)).await.unwrap();
    durable.wait().await.unwrap();
    assert!(matches!(created, Created::New(task) if task.id == new.id && task.state == TaskState::Pending));
    assert_eq!(ids(&claimed), [waiting, new.id]);
    assert_eq!(claimed[1].graph, new.payload.graph);
    assert_eq!(claimed[1].task.state, TaskState::Dispatching);
}

/// Not even when nobody took the task yet.
pub async fn an_expired_lease_is_not_renewed<F: Future<Output = Subject>>(open: &impl Fn(Arc<dyn Clock>) -> F) {
    let (store, clock) = fresh(open).await;
    let me = worker("node", 1);
    store.add(new_task(1)).await;
    store.add(new_task(2)).await;
    let held: Vec<_> = store.take(2).await.iter().map(|held| (held.task.id, held.task.fence)).collect();
    clock.advance(LEASE - Duration::from_millis(1));
    store.tasks.cancel(held[0].0).await.unwrap();
    let renewed = store.work.renew(&me, LEASE, &held[..1]).await.unwrap();
    assert_eq!((renewed.len(), renewed[0].id, renewed[0].cancel_requested), (1, held[0].0, true));
    clock.advance(Duration::from_millis(1));
    let renewed = store.work.renew(&me, LEASE, &held).await.unwrap();
    assert_eq!(renewed.iter().map(|renewed| renewed.id).collect::<Vec<_>>(), [held[0].0]);
    let adopted = store.work.adopt_expired(&sweep(&worker("other", 1), 9)).await.unwrap();
    assert_eq!(ids(&adopted), [held[1].0]);
}

/// Whoever cannot reach the server of a task leaves it to others, until it is clear that nobody comes.
pub async fn a_task_is_adopted_by_who_reaches_its_server<F: Future<Output = Subject>>(
    open: &impl Fn(Arc<dyn Clock>) -> F,
) {
    let (store, clock) = fresh(open).await;
    let id = store.add(new_task(1)).await;
    store.take(1).await;
    let far = Sweep { backends: [BackendId::new("http://other:8188")].into(), ..sweep(&worker("far", 1), 9) };
    let near = sweep(&worker("near", 1), 9);
    clock.advance(LEASE);
    assert!(store.work.adopt_expired(&far).await.unwrap().is_empty(), "its server is not there");
    clock.advance(far.stranded_after - Duration::from_millis(1));
    assert!(store.work.adopt_expired(&far).await.unwrap().is_empty());
    clock.advance(Duration::from_millis(1));
    assert_eq!(ids(&store.work.adopt_expired(&far).await.unwrap()), [id], "nobody came");
    clock.advance(LEASE);
    assert_eq!(ids(&store.work.adopt_expired(&near).await.unwrap()), [id]);
}

/// Who lost a task writes nothing to it any more.
pub async fn a_stale_fence_is_refused<F: Future<Output = Subject>>(open: &impl Fn(Arc<dyn Clock>) -> F) {
    let (store, clock) = fresh(open).await;
    let task = store.uploading().await;
    clock.advance(LEASE);
    let adopted = store.work.adopt_expired(&sweep(&worker("other", 1), 1)).await.unwrap().remove(0);
    assert_eq!(adopted.artifacts, artifacts(2, false), "who adopts an upload learns what is to be stored");
    assert!(adopted.task.fence > task.fence);
    let late = Change::Complete { artifacts: artifacts(2, true) };
    let refused = store.work.apply(task.id, task.fence, late).await;
    assert!(matches!(refused, Err(StoreError::Refused(Refusal::Stale))), "{refused:?}");
    let record = store.tasks.get(task.id).await.unwrap();
    assert_eq!((record.task, record.artifacts), (adopted.task, adopted.artifacts));
    let unknown = store.work.apply(TaskId::new(), Fence(1), Change::HandOff).await;
    assert!(matches!(unknown, Err(StoreError::NotFound)), "{unknown:?}");
}

/// Neither in the task nor in its artifacts, nor in what listeners hear.
pub async fn a_refused_change_leaves_no_trace<F: Future<Output = Subject>>(open: &impl Fn(Arc<dyn Clock>) -> F) {
    let (store, clock) = fresh(open).await;
    let task = store.uploading().await;
    let before = store.tasks.get(task.id).await.unwrap();
    let mut changes = store.tasks.changes();
    clock.advance(Duration::from_secs(1));
    let object = super::fixtures::object(7);
    for change in [
        Change::Store { index: 7, object },
        Change::Complete { artifacts: artifacts(1, false) },
        Change::Accept { prompt: PromptId::new("other") },
        Change::Plan { artifacts: Vec::new() },
    ] {
        let refused = store.work.apply(task.id, task.fence, change).await;
        assert!(matches!(refused, Err(StoreError::Refused(Refusal::WrongState))), "{refused:?}");
    }
    let after = store.tasks.get(task.id).await.unwrap();
    assert_eq!((after.task, after.artifacts), (before.task, before.artifacts));
    assert!(changes.try_recv().is_err());
}

/// The same key and body: the first task, as it is now. Another body: a mistake. Another tenant: another key.
pub async fn a_repeated_request_finds_its_task<F: Future<Output = Subject>>(open: &impl Fn(Arc<dyn Clock>) -> F) {
    let (store, _) = fresh(open).await;
    let first = store.add(keyed_task("key", 1)).await;
    store.tasks.cancel(first).await.unwrap();
    let asked = || Some(claim(&worker("node", 1), 1));
    let Creation { created, claimed, .. } = store.tasks.create(keyed_task("key", 1), asked()).await.unwrap();
    assert!(matches!(created, Created::Replayed(task) if task.id == first && task.state == TaskState::Cancelled));
    assert!(claimed.is_empty());
    let other = store.tasks.create(keyed_task("key", 2), asked()).await.unwrap();
    assert!(matches!(other.created, Created::KeyReused));
    let theirs = store.tasks.create(NewTask { tenant: 1, ..keyed_task("key", 2) }, None).await.unwrap();
    assert!(matches!(theirs.created, Created::New(_)));
    assert_eq!(store.tasks.list(Query { limit: 9, ..Query::default() }).await.unwrap().len(), 2);
}

/// A key past its time, or whose task is gone, makes a new task.
pub async fn pruning_forgets_keys<F: Future<Output = Subject>>(open: &impl Fn(Arc<dyn Clock>) -> F) {
    let (store, clock) = fresh(open).await;
    let hours = |hours: u64| Duration::from_secs(hours * 3600);
    let retention = Retention { completed: hours(2), failed: hours(4), idempotency: hours(3), webhooks: hours(1) };
    let ended = store.add(keyed_task("ended", 1)).await;
    let alive = store.add(keyed_task("alive", 1)).await;
    store.tasks.cancel(ended).await.unwrap();
    clock.advance(hours(2) - Duration::from_millis(1));
    assert_eq!(store.tasks.prune(retention, 9).await.unwrap(), 0);
    clock.advance(Duration::from_millis(1));
    assert_eq!(store.tasks.prune(retention, 9).await.unwrap(), 1);
    assert!(matches!(store.tasks.get(ended).await, Err(StoreError::NotFound)));
    let again = |key| store.tasks.create(keyed_task(key, 1), None);
    assert!(matches!(again("ended").await.unwrap().created, Created::New(_)));
    assert!(matches!(again("alive").await.unwrap().created, Created::Replayed(task) if task.id == alive));
    clock.advance(hours(1));
    assert_eq!(store.tasks.prune(retention, 1).await.unwrap(), 1);
    assert_eq!(store.tasks.prune(retention, 9).await.unwrap(), 1);
    assert!(matches!(again("alive").await.unwrap().created, Created::New(_)));
    assert!(store.tasks.get(alive).await.is_ok(), "a task outlives its key");
}

/// Each state has its own place in the order of ends, which is never given up for an earlier one.
pub async fn ends_are_swept_in_order<F: Future<Output = Subject>>(open: &impl Fn(Arc<dyn Clock>) -> F) {
    let (store, clock) = fresh(open).await;
    let mut ended = Vec::new();
    for number in 1..=3 {
        let id = store.add(new_task(number)).await;
        ended.push(store.tasks.cancel(id).await.unwrap());
        // The last two end at the same time.
        clock.advance(Duration::from_millis(u64::from(number == 1)));
    }
    ended.sort_by_key(|task| (task.finished_at, task.id));
    let last = |task: &Task| (task.finished_at.unwrap(), task.id);
    let left = async |until: Timestamp, limit| {
        let left = store.tasks.unswept(TaskState::Cancelled, until, limit).await.unwrap();
        left.iter().map(|task| task.id).collect::<Vec<_>>()
    };
    let order: Vec<_> = ended.iter().map(|task| task.id).collect();
    let (now, end) = (clock.now(), clock.now().after(Duration::from_millis(1)));
    assert_eq!(left(end, 9).await, order);
    assert_eq!(left(now, 9).await, order[..1], "those that end now did not end before now");
    assert_eq!(left(end, 2).await, order[..2]);
    store.tasks.note_swept(TaskState::Cancelled, last(&ended[1])).await.unwrap();
    assert_eq!(left(end, 9).await, order[2..]);
    store.tasks.note_swept(TaskState::Cancelled, last(&ended[0])).await.unwrap();
    assert_eq!(left(end, 9).await, order[2..], "whoever was slower does not set it back");
    store.tasks.note_swept(TaskState::Failed, last(&ended[2])).await.unwrap();
    assert_eq!(left(end, 9).await, order[2..], "of another state");
}

/// Every committed change, in order, with the state it led to; nothing for what was refused.
pub async fn changes_are_told<F: Future<Output = Subject>>(open: &impl Fn(Arc<dyn Clock>) -> F) {
    let (store, _) = fresh(open).await;
    let mut changes = store.tasks.changes();
    let new = new_task(1);
    let id = new.id;
    let asked = claim(&worker("node", 1), 1);
    let Creation { claimed, .. } = store.tasks.create(new, Some(asked)).await.unwrap();
    store.tasks.cancel(id).await.unwrap();
    let error = error();
    store.change(&claimed[0].task, Change::Fail { error }).await;
    store.tasks.cancel(id).await.unwrap();
    let told: Vec<Changed> = std::iter::from_fn(|| changes.try_recv().ok()).collect();
    let changed = |was, state, cancelling| Changed {
        id,
        was,
        state,
        priority: Priority::default(),
        cancelling,
        hooked: false,
        of_tenant: false,
        here: true,
    };
    let expected = [
        changed(None, TaskState::Pending, false),
        changed(Some(TaskState::Pending), TaskState::Dispatching, false),
        changed(Some(TaskState::Dispatching), TaskState::Dispatching, true),
        changed(Some(TaskState::Dispatching), TaskState::Cancelled, false),
    ];
    assert_eq!(told, expected);
}

impl Subject {
    /// What happened after `after`, without what the facts are about.
    async fn facts(&self, of: TaskId, after: i64) -> Vec<(i64, String)> {
        let short = |event: Event| match event.fact {
            Fact::Stage { stage, error, .. } if error.is_some() => (event.seq, format!("{stage}!")),
            Fact::Stage { stage, .. } => (event.seq, stage.to_string()),
            Fact::Output { index, .. } => (event.seq, format!("{index}:{}", event.artifact.is_some())),
        };
        self.tasks.events(Some(of), after, 100).await.unwrap().into_iter().map(short).collect()
    }

    async fn words(&self, of: TaskId) -> Vec<String> {
        self.facts(of, 0).await.into_iter().map(|(_, word)| word).collect()
    }
}

/// With the change, in its order, to be read from any place on; of one task or of all.
pub async fn what_happens_is_written_down<F: Future<Output = Subject>>(open: &impl Fn(Arc<dyn Clock>) -> F) {
    let (store, clock) = fresh(open).await;
    let task = store.uploading().await;
    let other = store.add(new_task(7)).await;
    clock.advance(Duration::from_secs(1));
    store.change(&task, Change::Renew { until: clock.now() }).await;
    store.change(&task, Change::Fail { error: error() }).await;
    let refused = store.work.apply(task.id, task.fence, Change::HandOff).await;
    assert!(refused.is_err());
    let facts = store.facts(task.id, 0).await;
    let words: Vec<_> = facts.iter().map(|(_, word)| word.as_str()).collect();
    assert_eq!(words, ["queued", "preparing", "executing", "uploading", "failed!"]);
    assert_eq!(store.facts(task.id, facts[2].0).await, facts[3..]);
    assert_eq!(store.words(other).await, ["queued"]);
    let all = store.tasks.events(None, facts[3].0, 100).await.unwrap();
    assert_eq!(all.iter().map(|event| event.task).collect::<Vec<_>>(), [other, task.id]);
    assert_eq!(all[1].at, clock.now());
    assert_eq!(store.tasks.newest_event().await.unwrap(), all[1].seq);
    assert_eq!(store.tasks.events(None, 0, 2).await.unwrap().len(), 2);
    assert!(store.facts(TaskId::new(), 0).await.is_empty());
}

/// By its own record or by the manifest, and before the end; another run makes others.
pub async fn an_output_is_told_once_per_run<F: Future<Output = Subject>>(open: &impl Fn(Arc<dyn Clock>) -> F) {
    let (store, _) = fresh(open).await;
    let task = store.uploading().await;
    store.change(&task, Change::Store { index: 1, object: super::fixtures::object(1) }).await;
    assert_eq!(store.words(task.id).await[4..], ["1:true"]);
    store.change(&task, Change::Release(Release::Recalled)).await;
    let task = store.take(1).await.remove(0).task;
    assert_eq!(
        store.words(task.id).await[4..],
        ["1:false", "queued", "preparing"],
        "what a given up run made is nobody's"
    );
    store.change(&task, Change::Plan { artifacts: artifacts(2, false) }).await;
    store.change(&task, Change::Store { index: 1, object: super::fixtures::object(1) }).await;
    store.change(&task, Change::Complete { artifacts: artifacts(2, true) }).await;
    let told = ["executing", "uploading", "1:true", "0:true", "completed"];
    assert_eq!(store.words(task.id).await[7..], told, "nobody recorded that it was accepted, and it ran all the same");
}

/// Not even when everything is deleted: somebody may have read up to there.
pub async fn event_numbers_are_never_given_twice<F: Future<Output = Subject>>(open: &impl Fn(Arc<dyn Clock>) -> F) {
    let (store, _) = fresh(open).await;
    assert_eq!(store.tasks.newest_event().await.unwrap(), 0);
    let gone = store.add(new_task(0)).await;
    store.tasks.cancel(gone).await.unwrap();
    let newest = store.facts(gone, 0).await[1].0;
    let none = Duration::ZERO;
    store.tasks.prune(Retention { completed: none, failed: none, idempotency: none, webhooks: none }, 9).await.unwrap();
    assert!(store.tasks.events(None, 0, 9).await.unwrap().is_empty());
    assert_eq!(store.tasks.newest_event().await.unwrap(), newest);
    let next = store.add(new_task(0)).await;
    assert!(store.facts(next, 0).await[0].0 > newest);
}

/// Over all lanes, and only for who waits.
pub async fn a_place_in_the_queue_is_counted_so_far<F: Future<Output = Subject>>(open: &impl Fn(Arc<dyn Clock>) -> F) {
    let (store, _) = fresh(open).await;
    let mut waiting = Vec::new();
    for place in 0..6 {
        waiting.push(store.add(NewTask { lane: lane(place % 2), ..new_task(place / 3) }).await);
    }
    for (place, id) in (0..).zip(&waiting) {
        assert_eq!(store.tasks.ahead(*id, 9).await.unwrap(), Some(place));
        assert_eq!(store.tasks.ahead(*id, 2).await.unwrap(), Some(place.min(2)));
    }
    store.take(1).await;
    assert_eq!(store.tasks.ahead(waiting[0], 9).await.unwrap(), None);
    assert_eq!(store.tasks.ahead(waiting[5], 9).await.unwrap(), Some(4));
    assert_eq!(store.tasks.ahead(TaskId::new(), 9).await.unwrap(), None);
}

/// A node's next incarnation takes over at once; another node, whatever it is called, waits for the lease to end.
pub async fn only_the_same_node_takes_over<F: Future<Output = Subject>>(open: &impl Fn(Arc<dyn Clock>) -> F) {
    let (store, _) = fresh(open).await;
    let id = store.add(new_task(1)).await;
    let earlier = store.take(1).await.remove(0).task;
    for stranger in [worker("nod", 1), worker("node:1", 1), worker("other", 1), worker("node", 1)] {
        assert!(store.work.take_over(&stranger, LEASE).await.unwrap().is_empty(), "{stranger}");
        assert!(store.work.adopt_expired(&sweep(&stranger, 9)).await.unwrap().is_empty());
    }
    let me = worker("node", 2);
    let taken = store.work.take_over(&me, LEASE).await.unwrap();
    assert_eq!(ids(&taken), [id]);
    assert_eq!(taken[0].task.fence, Fence(earlier.fence.0 + 1));
    // Who adopts a prompt cannot know whether it was sent.
    let adopted = earlier.prompt.map(|prompt| Prompt { client: None, ..prompt });
    assert_eq!(taken[0].task.prompt, adopted);
    assert_eq!(ids(&store.work.held(&me).await.unwrap()), [id]);
    assert!(store.work.held(&worker("node", 1)).await.unwrap().is_empty());
}

/// However many ask at the same time.
pub async fn two_claimers_never_share_a_task<F: Future<Output = Subject>>(open: &impl Fn(Arc<dyn Clock>) -> F) {
    const TASKS: usize = 40;
    let (store, _) = fresh(open).await;
    for sort_key in 0..40 {
        store.add(new_task(sort_key)).await;
    }
    let claimers = (0..8).map(|boot| {
        let work = Arc::clone(&store.work);
        tokio::spawn(async move {
            let mut mine = Vec::new();
            loop {
                let claimed = work.claim(claim(&worker("node", boot), 3)).await.unwrap();
                if claimed.is_empty() {
                    return mine;
                }
                mine.extend(ids(&claimed));
            }
        })
    });
    let claimers: Vec<_> = claimers.collect();
    let mut all = Vec::new();
    for claimer in claimers {
        all.extend(claimer.await.unwrap());
    }
    assert_eq!((all.len(), all.iter().collect::<HashSet<_>>().len()), (TASKS, TASKS));
}

/// Following the pages newest first shows every task once, those of one moment included.
pub async fn pages_miss_nothing<F: Future<Output = Subject>>(open: &impl Fn(Arc<dyn Clock>) -> F) {
    let (store, _) = fresh(open).await;
    let mut made = Vec::new();
    for place in 0..10 {
        let created_at = Timestamp(1_700_000_000_000 + place / 4);
        made.push(store.add(NewTask { created_at, ..new_task(0) }).await);
    }
    store.tasks.cancel(made[3]).await.unwrap();
    made.reverse();
    let mut seen = Vec::new();
    let mut query = Query { limit: 3, ..Query::default() };
    loop {
        let page = store.tasks.list(query.clone()).await.unwrap();
        let Some(last) = page.last() else { break };
        query.before = Some((last.created_at, last.id));
        seen.extend(page.iter().map(|task| task.id));
    }
    assert_eq!(seen, made);
    let over = Query { states: vec![TaskState::Failed, TaskState::Cancelled], limit: 9, ..Query::default() };
    assert_eq!(store.tasks.list(over).await.unwrap().len(), 1);
}
