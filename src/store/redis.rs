//! A task store that many machines share: a Redis server.
//!
//! - Every write is one script (`commit.lua`) that writes all of it or nothing, and only when what was read before is still as it was
//!   (`tx`). Whoever was slower runs again; a commit whose answer was lost is sent again and made once (`link`).
//! - Times are the server's, so all processes agree on leases.
//! - What changed is published with the commit, and heard of by the other processes (`news`); whoever misses it looks in the store.
//!
//! The server keeps everything in memory, and what it promises about the disk is its configuration's: `open` looks at that.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use comfyd_actors::{
    domain::{
        event::Event,
        id::{TaskId, WorkerId},
        input::{About, Input, InputId},
        lane::Lane,
        moment::{ClockWatch, Moment},
        progress::NodeTiming,
        task::{Change, Fence, Task},
        time::Timestamp,
        webhook::{Delivery, Endpoint, EndpointId, Policy, Report},
    },
    metrics::Metrics,
    ports::{
        clock::Clock,
        hook_store::{DeliveryQuery, HookLevels, HookStore},
        input_store::InputStore,
        store::{
            Assignment, Changed, Claim, Counts, Creation, Depth, FailedQuery, Hold, NewTask, Pausable, Pause, Query,
            Renewed, Retention, StoreError, Sweep, TaskRecord, TaskStore, WorkSource,
        },
        wire::Notice,
    },
};
use tokio::{
    sync::broadcast,
    time::{Instant, sleep},
};
use tracing::warn;
use uuid::Uuid;

use self::{
    keys::Keys,
    link::{Link, Outcome, some_of},
    ops::{
        AdoptExpired, Amend, Apply, Check, ClaimHeads, Create, Enable, Forget, GiveUp, Held, Keep, NoteFetched,
        NoteRun, Operation, Promote, Prune, Redeliver, Refresh, Renew, Reserve, SetBack, SetPaused, Settle, Take,
        TakeOver,
    },
    tx::{Fault, Tx, Written, words},
};

mod keys;
mod link;
mod news;
mod open;
mod ops;
mod reads;
mod rows;
mod tx;
mod wire;
mod workflows;

pub use self::open::{Durability, OpenError, RedisConfig, ServerReport, look};

/// How often an operation runs when others change what it read: with every run somebody else got further, so that many runs mean hundreds
/// of processes that want the same.
const RUNS: u32 = 64;
/// Pauses between runs are drawn from up to this much more each time.
const STEP_ASIDE: Duration = Duration::from_millis(1);
/// An answer about the time that took longer says little about the clock.
const PROMPT: Duration = Duration::from_secs(1);

/// Committed changes a slow listener may be behind before it is told that it lost some.
const CHANGES_KEPT: usize = 4096;
/// Notices a slow listener may be behind before it loses some.
const NOTICES_KEPT: usize = 256;

/// Whose time counts.
pub enum Time {
    /// The server's. The clock here only shows how much time passes.
    Server(Arc<dyn Clock>),
    /// This clock's, for tests.
    Given(Arc<dyn Clock>),
}

/// The store.
pub struct RedisStore {
    link: Link,
    client: redis::Client,
    time: Time,
    watch: Mutex<ClockWatch>,
    /// Tells what this process published from what others did.
    origin: Uuid,
    changes: broadcast::Sender<Changed>,
    heard: broadcast::Sender<Arc<Notice>>,
    was_clean: bool,
    /// Where writes are timed, when somebody wants it.
    metrics: OnceLock<Metrics>,
}

impl RedisStore {
    /// Connects, and sees that the server can be trusted with tasks.
    ///
    /// # Errors
    /// [`OpenError`] says what is wrong with the server, and what to do.
    pub async fn open(config: RedisConfig, time: Time) -> Result<Arc<Self>, OpenError> {
        let client = config.client()?;
        let (link, was_clean) = open::open(&client, Keys::new(&config.prefix)).await?;
        Ok(Arc::new(Self {
            link,
            client,
            time,
            watch: Mutex::default(),
            origin: Uuid::new_v4(),
            changes: broadcast::Sender::new(CHANGES_KEPT),
            heard: broadcast::Sender::new(NOTICES_KEPT),
            was_clean,
            metrics: OnceLock::new(),
        }))
    }

    /// Times its writes from now on, for good.
    pub fn observe(&self, metrics: Metrics) {
        let _ = self.metrics.set(metrics);
    }

    /// False when the server may have lost the last it was told: it was started again since somebody used it, and does not keep every write
    /// on the disk before it answers.
    #[must_use]
    pub fn was_clean(&self) -> bool {
        self.was_clean
    }

    /// Runs an operation until nobody comes between.
    async fn write<O: Operation>(&self, operation: O) -> Result<O::Answer, StoreError> {
        let begun = Instant::now();
        let moment = self.moment().await?;
        let answer = self.write_at(&operation, moment).await;
        if let Some(metrics) = self.metrics.get() {
            metrics.written(begun.elapsed());
        }
        answer
    }

    async fn write_at<O: Operation>(&self, operation: &O, mut moment: Moment) -> Result<O::Answer, StoreError> {
        for run in 0..RUNS {
            if run > 0 {
                sleep(some_of(STEP_ASIDE * run)).await;
                moment.now = self.look_at_the_clock().await?.0;
            }
            let mut tx = Tx::new(&self.link, moment);
            let answer = match operation.run(&mut tx).await {
                Ok(answer) => answer,
                Err(Fault::Conflict) => continue,
                Err(Fault::Failed(error)) => return Err(error),
            };
            let Written { checks, mut commands, changed } = tx.finish()?;
            if commands.is_empty() {
                return Ok(answer);
            }
            commands.extend(self.announcement(&changed)?);
            if self.link.commit(&checks, &commands).await? == Outcome::Done {
                for change in changed {
                    // Nobody listens: nobody needs it.
                    let _ = self.changes.send(change);
                }
                return Ok(answer);
            }
        }
        Err(StoreError::Unavailable("others kept changing what this write was decided from".into()))
    }

    /// The store's time. When its clock was set back, what depends on it is brought back first.
    async fn moment(&self) -> Result<Moment, StoreError> {
        let (now, steady, prompt) = self.look_at_the_clock().await?;
        let (before, moment, step) = {
            let mut watch = self.watch.lock().unwrap_or_else(PoisonError::into_inner);
            let before = *watch;
            let mut looked = before;
            let (moment, step) = looked.look(now, steady);
            if prompt || step.is_none() {
                *watch = looked;
            }
            (before, moment, step.filter(|_| prompt))
        };
        let Some(step) = step else { return Ok(moment) };
        warn!(milliseconds = step, "the clock of the task store was set; no task changes hands until that has settled");
        if step < 0
            && let Err(error) = self.write_at(&SetBack { step, origin: self.origin.to_string() }, moment).await
        {
            // The next one notices it again.
            *self.watch.lock().unwrap_or_else(PoisonError::into_inner) = before;
            return Err(error);
        }
        Ok(moment)
    }

    /// The time of day, the steady clock's, and whether they were read at the same time.
    async fn look_at_the_clock(&self) -> Result<(Timestamp, Timestamp, bool), StoreError> {
        match &self.time {
            Time::Given(clock) => Ok((clock.now(), clock.steady(), true)),
            Time::Server(clock) => {
                let asked = clock.steady();
                let ((seconds, micros),): ((i64, i64),) = self.link.ask(redis::pipe().cmd("TIME")).await?;
                let steady = clock.steady();
                Ok((Timestamp(seconds * 1000 + micros / 1000), steady, steady.since(asked) < PROMPT))
            }
        }
    }
}

#[async_trait]
impl TaskStore for RedisStore {
    async fn create(&self, new: NewTask, claim: Option<Claim>) -> Result<Creation, StoreError> {
        self.write(Create { new, claim }).await
    }

    async fn amend(&self, id: TaskId, change: Change) -> Result<Task, StoreError> {
        self.write(Amend { id, change }).await
    }

    async fn get(&self, id: TaskId) -> Result<TaskRecord, StoreError> {
        self.link.get(id).await
    }

    async fn list(&self, query: Query) -> Result<Vec<Task>, StoreError> {
        self.link.list(&query).await
    }

    async fn failed(&self, query: FailedQuery) -> Result<Vec<Task>, StoreError> {
        self.link.failed(&query).await
    }

    async fn counts(&self) -> Result<Counts, StoreError> {
        self.link.counts().await
    }

    async fn waiting(&self) -> Result<Vec<(Lane, u64)>, StoreError> {
        self.link.waiting().await
    }

    async fn depths(&self) -> Result<Vec<Depth>, StoreError> {
        self.link.depths().await
    }

    async fn pauses(&self) -> Result<Vec<Pause>, StoreError> {
        self.link.pauses().await
    }

    async fn set_paused(&self, what: Pausable, hold: Hold) -> Result<Vec<Pause>, StoreError> {
        self.write(SetPaused { what, hold }).await
    }

    async fn check(&self) -> Result<(), StoreError> {
        self.write(Check).await
    }

    async fn events(&self, of: Option<TaskId>, after: i64, limit: u32) -> Result<Vec<Event>, StoreError> {
        self.link.events(of, after, limit).await
    }

    async fn newest_event(&self) -> Result<i64, StoreError> {
        self.link.newest_event().await
    }

    async fn ahead(&self, id: TaskId, limit: u32) -> Result<Option<u32>, StoreError> {
        self.link.ahead(id, limit).await
    }

    async fn promote(&self, limit: u32) -> Result<u32, StoreError> {
        self.write(Promote { limit }).await
    }

    async fn next_scheduled(&self) -> Result<Option<Timestamp>, StoreError> {
        self.link.next_scheduled().await
    }

    async fn prune(&self, retention: Retention, limit: u32) -> Result<u32, StoreError> {
        self.write(Prune { retention, limit }).await
    }

    fn changes(&self) -> broadcast::Receiver<Changed> {
        self.changes.subscribe()
    }
}

#[async_trait]
impl WorkSource for RedisStore {
    async fn claim(&self, claim: Claim) -> Result<Vec<Assignment>, StoreError> {
        self.write(ClaimHeads(claim)).await
    }

    async fn apply(&self, id: TaskId, fence: Fence, change: Change) -> Result<Task, StoreError> {
        self.write(Apply { id, fence, change }).await
    }

    async fn note_run(&self, id: TaskId, dispatch: i64, nodes: Vec<NodeTiming>) -> Result<(), StoreError> {
        self.write(NoteRun { id, dispatch, nodes }).await
    }

    async fn renew(
        &self,
        worker: &WorkerId,
        lease: Duration,
        held: &[(TaskId, Fence)],
    ) -> Result<Vec<Renewed>, StoreError> {
        self.write(Renew { worker: worker.clone(), lease, held: held.to_vec() }).await
    }

    async fn lanes(&self) -> Result<Vec<Lane>, StoreError> {
        self.link.lanes().await
    }

    async fn held(&self, worker: &WorkerId) -> Result<Vec<Assignment>, StoreError> {
        self.write(Held(worker.clone())).await
    }

    async fn take_over(&self, worker: &WorkerId, lease: Duration) -> Result<Vec<Assignment>, StoreError> {
        self.write(TakeOver { worker: worker.clone(), lease }).await
    }

    async fn adopt_expired(&self, sweep: &Sweep) -> Result<Vec<Assignment>, StoreError> {
        self.write(AdoptExpired(sweep.clone())).await
    }
}

#[async_trait]
impl InputStore for RedisStore {
    async fn reserve(&self, key: &str, patience: Duration) -> Result<(), StoreError> {
        self.write(Reserve { key: key.to_owned(), patience }).await
    }

    async fn keep(&self, key: &str, id: &InputId, about: &About, keep: Duration) -> Result<Input, StoreError> {
        self.write(Keep { key: key.to_owned(), id: id.clone(), about: about.clone(), keep }).await
    }

    async fn refresh(&self, ids: &[InputId], keep: Duration) -> Result<Vec<Input>, StoreError> {
        self.write(Refresh { ids: ids.to_vec(), keep }).await
    }

    async fn find(&self, id: &InputId) -> Result<Input, StoreError> {
        self.link.input(id).await?.ok_or(StoreError::NotFound)
    }

    async fn note_fetched(&self, task: TaskId, url: &str, id: &InputId) -> Result<(), StoreError> {
        self.write(NoteFetched { task, url: url.to_owned(), id: id.clone() }).await
    }

    async fn fetched(&self, task: TaskId) -> Result<BTreeMap<String, Input>, StoreError> {
        self.link.fetched(task).await
    }

    async fn give_up(&self, limit: u32) -> Result<Vec<String>, StoreError> {
        self.write(GiveUp { limit }).await
    }

    async fn forget(&self, keys: &[String]) -> Result<(), StoreError> {
        self.write(Forget(keys.to_vec())).await
    }
}

#[async_trait]
impl HookStore for RedisStore {
    async fn next_due(&self) -> Result<Option<Timestamp>, StoreError> {
        self.link.next_due().await
    }

    async fn take(&self, limit: u32, policy: &Policy) -> Result<Vec<Delivery>, StoreError> {
        self.write(Take { limit, policy: policy.clone() }).await
    }

    async fn settle(
        &self,
        id: i64,
        turn: i64,
        report: Report,
        policy: &Policy,
    ) -> Result<Option<Delivery>, StoreError> {
        self.write(Settle { id, turn, report, policy: policy.clone() }).await
    }

    async fn deliveries(&self, query: DeliveryQuery) -> Result<Vec<(Delivery, Endpoint)>, StoreError> {
        self.link.deliveries(&query).await
    }

    async fn redeliver(&self, id: i64) -> Result<(Delivery, Endpoint), StoreError> {
        self.write(Redeliver(id)).await
    }

    async fn endpoints(&self, after: Option<EndpointId>, limit: u32) -> Result<Vec<Endpoint>, StoreError> {
        self.link.endpoints(after, limit).await
    }

    async fn enable(&self, id: EndpointId) -> Result<Endpoint, StoreError> {
        self.write(Enable(id)).await
    }

    async fn levels(&self) -> Result<HookLevels, StoreError> {
        self.link.levels().await
    }
}
