//! Webhooks: who is told of what happens to a task, when a message that did not arrive is sent again, and when a receiver is left alone.
//!
//! What is to be told becomes a [`Delivery`] in the same transaction as the change it tells of. Those of one task are sent one after the
//! other, those to one endpoint a few at a time.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{error::TaskError, event::Stage, id::TaskId, retry::Backoff, time::Timestamp};

/// The space of the ids below. Any constant will do, but it must never change: they are stored.
const SPACE: Uuid = Uuid::from_u128(0x1f0c_a6d4_93b7_4e5f_8a27_5c60_d1e9_b384);
/// The newest tries that are kept in the log of a delivery: more than a schedule has, and then some that people asked for.
const TRIES_KEPT: usize = 20;
/// A receiver that asks for more time than this gets this.
const LONGEST_WAIT: Duration = Duration::from_secs(24 * 3_600);

/// Stages that somebody wants to be told of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Vec<Stage>", into = "Vec<Stage>")]
pub struct Events(u16);

impl Default for Events {
    /// The ends.
    fn default() -> Self {
        Stage::ALL.into_iter().filter(|stage| stage.is_final()).collect()
    }
}

impl Events {
    /// As it is stored.
    #[must_use]
    pub fn bits(self) -> i64 {
        self.0.into()
    }

    /// What was stored; what it does not know it leaves out.
    #[must_use]
    pub fn of_bits(bits: i64) -> Self {
        Stage::ALL.into_iter().filter(|stage| bits & i64::from(bit(*stage)) != 0).collect()
    }

    /// Whether this stage is one of them.
    #[must_use]
    pub fn contains(self, stage: Stage) -> bool {
        self.0 & bit(stage) != 0
    }
}

impl FromIterator<Stage> for Events {
    fn from_iter<T: IntoIterator<Item = Stage>>(stages: T) -> Self {
        Self(stages.into_iter().fold(0, |bits, stage| bits | bit(stage)))
    }
}

impl From<Vec<Stage>> for Events {
    fn from(stages: Vec<Stage>) -> Self {
        stages.into_iter().collect()
    }
}

impl From<Events> for Vec<Stage> {
    fn from(events: Events) -> Self {
        Stage::ALL.into_iter().filter(|stage| events.contains(*stage)).collect()
    }
}

/// Stored, so these never change.
fn bit(stage: Stage) -> u16 {
    1 << match stage {
        Stage::Scheduled => 0,
        Stage::Queued => 1,
        Stage::Preparing => 2,
        Stage::Executing => 3,
        Stage::Uploading => 4,
        Stage::Cancelling => 5,
        Stage::Completed => 6,
        Stage::Failed => 7,
        Stage::Cancelled => 8,
    }
}

/// The type of the message about a stage.
#[must_use]
pub fn event_type(stage: Stage) -> &'static str {
    match stage {
        Stage::Scheduled => "task.scheduled",
        Stage::Queued => "task.queued",
        Stage::Preparing => "task.preparing",
        Stage::Executing => "task.executing",
        Stage::Uploading => "task.uploading",
        Stage::Cancelling => "task.cancelling",
        Stage::Completed => "task.completed",
        Stage::Failed => "task.failed",
        Stage::Cancelled => "task.cancelled",
    }
}

/// Who is told of a task, as its client asked for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Webhook {
    /// Where to.
    pub url: String,
    /// Of what.
    #[serde(default)]
    pub events: Events,
}

/// Where messages go: the same for URLs that differ only behind the `?`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct EndpointId(pub i64);

/// What a task itself knows of its webhook.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hook {
    /// Where to.
    pub endpoint: EndpointId,
    /// Of what.
    pub events: Events,
}

impl Webhook {
    /// The URL without what tends to differ from task to task, and to be secret.
    #[must_use]
    pub fn endpoint_url(&self) -> &str {
        self.url.split(['?', '#']).next().unwrap_or_default()
    }

    /// What the task keeps of it.
    #[must_use]
    pub fn hook(&self) -> Hook {
        let (hash, _) = Uuid::new_v5(&SPACE, self.endpoint_url().as_bytes()).as_u64_pair();
        Hook { endpoint: EndpointId((hash >> 1).cast_signed()), events: self.events }
    }
}

/// How messages are sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// The pauses after each failed try. A message that failed once more than there are pauses is given up.
    pub schedule: Arc<[Duration]>,
    /// Most messages on their way to one endpoint.
    pub parallel: u32,
    /// Longest time a try can take: after this it is taken to be lost with its process, and made again.
    pub lease: Duration,
    /// After so many failures of an endpoint in a row that are its own fault it is tried with one message at a time ...
    pub failures: u32,
    /// ... and with pauses that grow.
    pub pause: Backoff,
}

impl Default for Policy {
    /// The schedule of Standard Webhooks: ten tries over three days.
    fn default() -> Self {
        let (minutes, hours) = (|n: u64| Duration::from_secs(n * 60), |n: u64| Duration::from_secs(n * 3_600));
        Self {
            schedule: [
                Duration::from_secs(5),
                minutes(5),
                minutes(30),
                hours(2),
                hours(5),
                hours(10),
                hours(14),
                hours(20),
                hours(24),
            ]
            .into(),
            parallel: 4,
            lease: Duration::from_secs(30),
            failures: 5,
            pause: Backoff { base: Duration::from_secs(10), cap: minutes(5) },
        }
    }
}

/// How far a message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DeliveryState {
    /// To be sent, first or again.
    Pending,
    /// The receiver has it.
    Delivered,
    /// Given up.
    Failed,
}

impl DeliveryState {
    /// Every state.
    pub const ALL: [Self; 3] = [Self::Pending, Self::Delivered, Self::Failed];

    /// The word, in the API and in databases.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Delivered => "delivered",
            Self::Failed => "failed",
        }
    }

    /// The state a word means.
    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == word)
    }
}

/// One message.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Delivery {
    /// Its number: messages of one task are sent in this order.
    pub id: i64,
    /// The task it is about.
    pub task: TaskId,
    /// Where it goes.
    pub endpoint: EndpointId,
    /// When what it tells of happened.
    pub at: Timestamp,
    /// The stage that began then.
    pub stage: Stage,
    /// The task's generation then.
    pub generation: i32,
    /// Its attempt then.
    pub attempt: i32,
    /// Why it failed, when that is what it tells.
    pub error: Option<TaskError>,
    /// How far it is.
    pub state: DeliveryState,
    /// When it is sent (again). `None`: it waits for an earlier one of its task, or is over.
    pub due_at: Option<Timestamp>,
    /// How often it was taken to be sent. Who took it names this: only the last one's report counts.
    pub turn: i64,
    /// It is being sent; `due_at` is when that is taken to be lost.
    pub sending: bool,
    /// Tries that failed since it was last asked for.
    pub failures: u32,
    /// The newest tries, oldest first.
    pub tries: Vec<Try>,
}

/// One try, for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Try {
    /// When it began.
    pub at: Timestamp,
    /// How long it took, in milliseconds.
    pub ms: i64,
    /// What the receiver answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// Why there was no answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// What a receiver says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// What it asks for before the next message.
    pub retry_after: Option<Duration>,
}

/// What came of a try.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    /// When it began.
    pub at: Timestamp,
    /// How long it took.
    pub took: Duration,
    /// The answer, or in words why there is none.
    pub answer: Result<Answer, String>,
    /// A draw in 0..1.
    pub draw: f64,
}

impl Report {
    fn is_success(&self) -> bool {
        self.answer.as_ref().is_ok_and(|answer| (200..300).contains(&answer.status))
    }

    /// The receiver wants nothing more, ever.
    fn is_gone(&self) -> bool {
        self.answer.as_ref().is_ok_and(|answer| answer.status == 410)
    }

    /// The next message would fare no better: nobody is there, it has a fault of its own, or more than it can take. Any other refusal is
    /// about this message.
    fn is_down(&self) -> bool {
        self.answer.as_ref().map_or(true, |answer| answer.status >= 500 || answer.status == 429)
    }

    fn retry_after(&self) -> Option<Duration> {
        let wait = self.answer.as_ref().ok().and_then(|answer| answer.retry_after);
        wait.map(|wait| wait.min(LONGEST_WAIT))
    }
}

/// A receiver.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// Its id.
    pub id: EndpointId,
    /// Its address, without what is behind the `?`.
    pub url: String,
    /// Failures in a row that were its own fault.
    pub failures: u32,
    /// It is left alone until then.
    pub not_before: Option<Timestamp>,
    /// Since when it wants nothing more (410). Messages wait until somebody enables it.
    pub disabled_at: Option<Timestamp>,
}

impl Endpoint {
    /// One nothing is known of.
    #[must_use]
    pub fn new(webhook: &Webhook) -> Self {
        let (id, url) = (webhook.hook().endpoint, webhook.endpoint_url().to_owned());
        Self { id, url, failures: 0, not_before: None, disabled_at: None }
    }

    /// How many messages may be on their way to it at the same time.
    #[must_use]
    pub fn parallel(&self, policy: &Policy) -> u32 {
        match self.disabled_at {
            Some(_) => 0,
            None if self.failures >= policy.failures => 1,
            None => policy.parallel,
        }
    }

    /// Somebody says that it is well again.
    pub fn enable(&mut self) {
        (self.failures, self.not_before, self.disabled_at) = (0, None, None);
    }

    /// Learns from a try.
    fn learn(&mut self, report: &Report, policy: &Policy, now: Timestamp) {
        if !report.is_down() {
            self.failures = 0;
            self.not_before = None;
        } else {
            self.failures = self.failures.saturating_add(1);
            if let Some(beyond) = self.failures.checked_sub(policy.failures) {
                self.not_before = Some(now.after(policy.pause.delay_at_least_half(beyond + 1, report.draw)));
            }
        }
        if let Some(wait) = report.retry_after().filter(|_| !report.is_success()) {
            self.not_before = self.not_before.max(Some(now.after(wait)));
        }
        if report.is_gone() {
            self.disabled_at = Some(now);
        }
    }
}

impl Delivery {
    /// What a task has to tell of a stage that begins. It waits for its turn. The store gives it its number.
    #[must_use]
    pub fn new(id: i64, task: TaskId, endpoint: EndpointId, at: Timestamp, stage: Stage) -> Self {
        Self {
            id,
            task,
            endpoint,
            at,
            stage,
            generation: 1,
            attempt: 1,
            error: None,
            state: DeliveryState::Pending,
            due_at: None,
            turn: 0,
            sending: false,
            failures: 0,
            tries: Vec::new(),
        }
    }

    /// The id by which receivers know a message they have had before: never given twice, whatever becomes of the database.
    #[must_use]
    pub fn message_id(&self) -> String {
        format!("msg_{}_{}", self.task.0.simple(), self.id)
    }

    /// Somebody sends it now.
    pub fn take(&mut self, policy: &Policy, now: Timestamp) {
        self.turn += 1;
        self.sending = true;
        self.due_at = Some(now.after(policy.lease));
    }

    /// Whether it is on its way, as far as anybody can know.
    #[must_use]
    pub fn is_sending(&self, now: Timestamp) -> bool {
        self.sending && self.due_at.is_some_and(|lost| lost > now)
    }

    /// Somebody wants it sent, whatever became of it: with all tries, and at once. One that waits for an earlier one of its task goes on
    /// waiting.
    pub fn ask_again(&mut self, now: Timestamp) {
        let waits = self.state == DeliveryState::Pending && self.due_at.is_none();
        self.state = DeliveryState::Pending;
        self.failures = 0;
        self.sending = false;
        // Whoever sends it now reports to nobody.
        self.turn += 1;
        self.due_at = if waits { None } else { Some(now) };
    }

    /// What follows a try, for the message and its receiver.
    pub fn settle(&mut self, endpoint: &mut Endpoint, report: &Report, policy: &Policy, now: Timestamp) {
        let (status, error) = match &report.answer {
            Ok(answer) => (Some(answer.status), None),
            Err(error) => (None, Some(error.clone())),
        };
        let ms = super::time::millis(report.took);
        self.tries.push(Try { at: report.at, ms, status, error });
        self.tries.drain(..self.tries.len().saturating_sub(TRIES_KEPT));
        self.sending = false;
        endpoint.learn(report, policy, now);
        if report.is_success() {
            self.state = DeliveryState::Delivered;
            self.due_at = None;
            return;
        }
        if report.is_gone() {
            // Held back with all others to this endpoint, until somebody enables it.
            self.due_at = Some(now);
            return;
        }
        self.failures = self.failures.saturating_add(1);
        let pause = usize::try_from(self.failures - 1).ok().and_then(|place| policy.schedule.get(place));
        match pause {
            Some(pause) => {
                // Never early; a little late, so that those who failed together do not come back together.
                let pause = pause.mul_f64(1.0 + report.draw.clamp(0.0, 1.0) / 10.0);
                self.due_at = Some(now.after(report.retry_after().map_or(pause, |wait| wait.max(pause))));
            }
            None => {
                self.state = DeliveryState::Failed;
                self.due_at = None;
            }
        }
    }
}

/// Takes those of the messages that are due that may be sent now, at most `limit`: they come in their order, each with its endpoint and how
/// many were on their way there before.
#[must_use]
pub fn take_due(due: Vec<(Delivery, Endpoint, i64)>, limit: u32, policy: &Policy, now: Timestamp) -> Vec<Delivery> {
    let mut room: BTreeMap<EndpointId, i64> = BTreeMap::new();
    let mut taken = Vec::new();
    for (mut delivery, endpoint, busy) in due {
        let room = room.entry(endpoint.id).or_insert_with(|| i64::from(endpoint.parallel(policy)) - busy);
        if *room > 0 && taken.len() < limit as usize {
            *room -= 1;
            delivery.take(policy, now);
            taken.push(delivery);
        }
    }
    taken
}

#[cfg(test)]
mod tests;
