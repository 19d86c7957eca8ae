//! A task store that many machines share: a Redis server.
//!
//! - Every write is one script (`commit.lua`) that writes all of it or nothing, and only when what was read before is still as it was
//!   (`tx`). Whoever was slower runs again; a commit whose answer was lost is sent again and made once (`link`).
//! - Times are the server's, so all processes agree on leases.
//! - What changed is published with the commit, and heard of by the other processes (`news`); whoever misses it looks in the store.
//!
//! The server keeps everything in memory, and what it promises about the disk is its configuration's: `open` looks at that.

use std::{
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::Duration,
};

use comfyd_actors::{
    domain::{
        moment::{ClockWatch, Moment},
        time::Timestamp,
    },
    metrics::Metrics,
    ports::{
        clock::Clock,
        store::{Changed, StoreError},
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
    ops::{Operation, SetBack},
    tx::{Fault, Tx, Written, words},
};
use super::{CHANGES_KEPT, NOTICES_KEPT};

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

serve_ports!(RedisStore, link);
