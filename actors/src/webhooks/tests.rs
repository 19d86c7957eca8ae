//! The actor with receivers that do as they are told, in time that passes as fast as nothing happens.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Mutex,
};

use async_trait::async_trait;
use tokio::task::JoinHandle;

use super::*;
use crate::{
    domain::{
        event::Stage,
        id::TaskId,
        options::TaskOptions,
        webhook::{Answer, Webhook},
    },
    kit::slot::Slot,
    ports::{
        hook_store::DeliveryQuery,
        store::{NewTask, Payload, TaskRecord},
    },
    testing::{MemoryStore, store_conformance::fixtures::new_task},
};

const HOUR: Duration = Duration::from_secs(3_600);
const DAY: Duration = Duration::from_secs(86_400);

/// Follows the time of the test.
struct PausedClock(Instant);

impl Clock for PausedClock {
    fn now(&self) -> Timestamp {
        Timestamp(1_700_000_000_000).after(self.0.elapsed())
    }

    fn steady(&self) -> Timestamp {
        self.now()
    }
}

/// How a receiver answers at a moment.
type Mood = Box<dyn Fn(Duration, &Delivery) -> Result<u16, String> + Send + Sync>;

/// Receivers, and all that they heard.
struct Receivers {
    start: Instant,
    mood: Mood,
    /// How long each try takes.
    takes: Duration,
    heard: Mutex<Vec<(TaskId, Stage, Duration)>>,
    tried: Mutex<u32>,
    busy: Mutex<(u32, u32)>,
}

#[async_trait]
impl HookSender for Receivers {
    async fn send(&self, delivery: &Delivery, record: &TaskRecord) -> Result<Answer, String> {
        assert_eq!(delivery.task, record.task.id);
        {
            let mut busy = self.busy.lock().unwrap();
            busy.0 += 1;
            busy.1 = busy.1.max(busy.0);
        }
        tokio::time::sleep(self.takes).await;
        self.busy.lock().unwrap().0 -= 1;
        *self.tried.lock().unwrap() += 1;
        let at = self.start.elapsed();
        let status = (self.mood)(at, delivery)?;
        if (200..300).contains(&status) {
            self.heard.lock().unwrap().push((delivery.task, delivery.stage, at));
        }
        Ok(Answer { status, retry_after: None })
    }
}

/// An actor with its outbox and its receivers.
struct World {
    store: Arc<MemoryStore>,
    receivers: Arc<Receivers>,
    slot: Slot<WebhookMsg>,
    args: WebhookArgs,
    running: JoinHandle<()>,
}

impl World {
    async fn new(
        takes: Duration,
        mood: impl Fn(Duration, &Delivery) -> Result<u16, String> + Send + Sync + 'static,
    ) -> Self {
        let start = Instant::now();
        let clock: Arc<dyn Clock> = Arc::new(PausedClock(start));
        let store = Arc::new(MemoryStore::new(clock.clone()));
        let receivers = Receivers {
            start,
            mood: Box::new(mood),
            takes,
            heard: Mutex::default(),
            tried: Mutex::default(),
            busy: Mutex::default(),
        };
        let receivers = Arc::new(receivers);
        let args = WebhookArgs {
            hooks: store.clone(),
            tasks: store.clone(),
            sender: receivers.clone(),
            clock,
            board: Board::default(),
            metrics: Metrics::new().unwrap(),
            settings: HookSettings { parallel: 32, policy: Policy::default() },
        };
        let (actor, running) = WebhookActor::spawn(None, WebhookActor, args.clone()).await.unwrap();
        let slot = Slot::default();
        slot.fill(actor);
        Self { store, receivers, slot, args, running }
    }

    /// Dies, and is started again.
    async fn dies(&mut self) {
        self.slot.get().unwrap().kill();
        (&mut self.running).await.unwrap();
        let (actor, running) = WebhookActor::spawn(None, WebhookActor, self.args.clone()).await.unwrap();
        self.slot.fill(actor);
        self.running = running;
    }

    /// A task that is cancelled at once, which makes two messages.
    async fn task(&self, url: &str) -> TaskId {
        let events = [Stage::Queued, Stage::Cancelled].into_iter().collect();
        let options = TaskOptions { webhook: Some(Webhook { url: url.to_owned(), events }), ..TaskOptions::default() };
        let new = new_task(0);
        let id = new.id;
        let new = NewTask { payload: Payload { options: options.into(), ..new.payload }, ..new };
        self.store.create(new, None).await.unwrap();
        self.store.cancel(id).await.unwrap();
        id
    }

    /// Waits until nothing waits.
    async fn all_delivered(&self) {
        while self.store.levels().await.unwrap().pending > 0 {
            tokio::time::sleep(Duration::from_secs(10)).await;
        }
    }

    fn heard(&self) -> Vec<(TaskId, Stage, Duration)> {
        self.receivers.heard.lock().unwrap().clone()
    }

    /// Every task told what it had to, once, and in order.
    fn in_order(&self, tasks: &BTreeSet<TaskId>) {
        let mut told: BTreeMap<TaskId, Vec<Stage>> = BTreeMap::new();
        for (task, stage, _) in self.heard() {
            told.entry(task).or_default().push(stage);
        }
        assert_eq!(told.keys().copied().collect::<BTreeSet<_>>(), *tasks);
        for (task, stages) in told {
            assert_eq!(stages, [Stage::Queued, Stage::Cancelled], "{task}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_happens_is_told_at_once() {
    let world = World::new(Duration::from_millis(1), |_, _| Ok(204)).await;
    let task = world.task("https://a.example/x?secret=1").await;
    world.all_delivered().await;
    world.in_order(&[task].into());
    assert!(world.heard().iter().all(|(_, _, at)| *at < Duration::from_millis(100)), "{:?}", world.heard());
}

/// The figure of the issue: a day without a receiver, and tasks all day long.
#[tokio::test(start_paused = true)]
async fn a_receiver_that_is_down_for_a_day_hears_everything_in_order() {
    let up = |at: Duration, _: &Delivery| if at < DAY { Err("connection refused".to_owned()) } else { Ok(200) };
    let world = World::new(Duration::from_millis(20), up).await;
    let mut tasks = BTreeSet::new();
    for _ in 0..200 {
        tasks.insert(world.task("https://a.example/x").await);
        tokio::time::sleep(DAY / 200).await;
    }
    world.all_delivered().await;
    world.in_order(&tasks);
    let last = world.heard().iter().map(|(_, _, at)| *at).max().unwrap();
    // Who was tried just before waits for its own pause; all others come as soon as the receiver is found to be back.
    assert!(last < DAY * 2, "{last:?}");
    let tried = *world.receivers.tried.lock().unwrap();
    assert!(tried < 400 + 2 * 24 * 60, "left alone while it was down: tried {tried} times");
    let waited = world.heard().iter().filter(|(_, _, at)| *at < DAY + HOUR).count();
    assert!(waited > 350, "most of it within the hour: {waited}");
}

#[tokio::test(start_paused = true)]
async fn a_slow_receiver_keeps_no_other_waiting() {
    let world = World::new(Duration::from_secs(1), |_, _| Ok(200)).await;
    let mut slow = BTreeSet::new();
    for _ in 0..40 {
        slow.insert(world.task("https://slow.example/x").await);
    }
    let other = world.task("https://quick.example/x").await;
    world.all_delivered().await;
    let of =
        |task: TaskId| world.heard().into_iter().filter(|heard| heard.0 == task).map(|heard| heard.2).max().unwrap();
    assert!(of(other) < Duration::from_secs(4), "{:?}", of(other));
    assert!(world.receivers.busy.lock().unwrap().1 <= 5, "four at a time, and one for the other");
    let last = slow.iter().map(|task| of(*task)).max().unwrap();
    assert!(last < Duration::from_secs(40), "80 messages, four at a time: {last:?}");
}

#[tokio::test(start_paused = true)]
async fn what_it_was_sending_when_it_died_is_sent_again() {
    let mut world = World::new(Duration::from_secs(10), |_, _| Ok(200)).await;
    let task = world.task("https://a.example/x").await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    world.dies().await;
    world.all_delivered().await;
    world.in_order(&[task].into());
    let [queued, _] = world.heard().try_into().unwrap();
    assert!(queued.2 >= Duration::from_secs(40), "when it counts as lost: {:?}", queued.2);
    let log = world.store.deliveries(DeliveryQuery { limit: 9, ..DeliveryQuery::default() }).await.unwrap();
    assert_eq!(log.iter().map(|(delivery, _)| delivery.turn).collect::<Vec<_>>(), [1, 2]);
}

#[tokio::test(start_paused = true)]
async fn an_outage_of_the_store_loses_nothing() {
    let world = World::new(Duration::from_secs(1), |_, _| Ok(200)).await;
    let task = world.task("https://a.example/x").await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    world.store.set_down(true);
    tokio::time::sleep(HOUR).await;
    world.store.set_down(false);
    world.all_delivered().await;
    let told: Vec<_> = world.heard().into_iter().map(|(id, stage, _)| (id, stage)).collect();
    assert_eq!(
        told,
        [Stage::Queued, Stage::Queued, Stage::Cancelled].map(|stage| (task, stage)),
        "once more than needed"
    );
}

#[tokio::test(start_paused = true)]
async fn the_end_of_the_process_waits_for_what_is_on_its_way() {
    let world = World::new(Duration::from_secs(3), |_, _| Ok(200)).await;
    world.task("https://a.example/x").await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    world.slot.ask(|reply| WebhookMsg::Drain { reply }, Duration::from_secs(9)).await.unwrap();
    assert_eq!(world.heard().iter().map(|heard| heard.1).collect::<Vec<_>>(), [Stage::Queued]);
    tokio::time::sleep(HOUR).await;
    assert_eq!(world.heard().len(), 1, "nothing more is taken");
}

/// What is due later is sent when it is due, not when somebody happens to look.
#[tokio::test(start_paused = true)]
async fn another_try_comes_when_it_is_due() {
    let tries = Arc::new(Mutex::new(Vec::new()));
    let log = tries.clone();
    let mood = move |at: Duration, delivery: &Delivery| {
        log.lock().unwrap().push(at);
        Ok(if delivery.failures < 2 { 500 } else { 200 })
    };
    let world = World::new(Duration::ZERO, mood).await;
    let events = [Stage::Queued].into_iter().collect();
    let webhook = Some(Webhook { url: "https://a.example/x".to_owned(), events });
    let new = new_task(0);
    let options = TaskOptions { webhook, ..TaskOptions::default() };
    world
        .store
        .create(NewTask { payload: Payload { options: options.into(), ..new.payload }, ..new }, None)
        .await
        .unwrap();
    world.all_delivered().await;
    let tries = tries.lock().unwrap().clone();
    let pauses: Vec<u64> = tries.windows(2).map(|pair| (pair[1] - pair[0]).as_secs()).collect();
    assert!(pauses.len() == 2 && (5..=6).contains(&pauses[0]) && (300..=335).contains(&pauses[1]), "{pauses:?}");
}
