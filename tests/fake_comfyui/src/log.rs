//! What happened, in order: tests and checkers read it instead of guessing from timing.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

/// How the execution of a prompt ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    Success,
    Error,
    Interrupted,
}

/// One thing that happened. As JSON the variant is in `event`: `{"event": "started", "prompt_id": ...}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum EventKind {
    /// A `POST /prompt` is here, and nothing is decided yet.
    PostArrived,
    /// A `POST /prompt` was decided. `task` is `extra_data.comfyd.task`.
    Posted { prompt_id: String, client_id: Option<String>, task: Option<String>, accepted: bool },
    /// The worker began a prompt.
    Started { prompt_id: String, task: Option<String> },
    /// A node told a step, in a frame that is about to be sent.
    Stepped { prompt_id: String, value: u64 },
    /// A prompt waits at the gate, inside its first node.
    Gated { prompt_id: String },
    /// A prompt ended; its history is written unless a fault delays it.
    Finished { prompt_id: String, outcome: Outcome },
    /// The history entry of a prompt became visible.
    Recorded { prompt_id: String },
    /// A pending prompt was removed from the queue.
    Deleted { prompt_id: String },
    /// An interrupt reached the running prompt.
    Interrupted { prompt_id: String },
    /// The worker freed memory: results it would have reused, and the models too, or models alone.
    Freed { models: bool, results: bool },
    /// A history entry was deleted.
    HistoryDeleted { prompt_id: String },
    /// A file was asked for and found.
    Viewed { filename: String },
    /// An upload arrived; its body is yet to be read.
    UploadBegun,
    /// A file was uploaded under this final name.
    Uploaded { filename: String },
    /// A WebSocket was opened.
    SocketOpened { client_id: String },
    /// A WebSocket ended, whoever ended it.
    SocketClosed { client_id: String },
    /// A client negotiated feature flags on its socket.
    FlagsNegotiated { client_id: String },
    /// The server went down with everything it had in memory.
    WentDown,
    /// The server is up again after going down.
    Restarted,
}

/// An entry of the log.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// Position since the server was made, from 0; never reused.
    pub seq: u64,
    /// Monotonic time since the server was made, in microseconds.
    pub at_us: u64,
    /// Wall clock, in milliseconds since 1970.
    pub wall_ms: u64,
    /// What happened.
    #[serde(flatten)]
    pub kind: EventKind,
}

/// The worker's share of idle time, for benchmarks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct IdleTime {
    /// Prompts started since the last reset.
    pub executions: u64,
    /// Microseconds between the first start and the last finish.
    pub span_us: u64,
    /// Microseconds of that span in which nothing ran.
    pub idle_us: u64,
}

impl IdleTime {
    /// Idle time as a part of the span, between 0 and 1.
    pub fn share(&self) -> f64 {
        if self.span_us == 0 { 0.0 } else { self.idle_us as f64 / self.span_us as f64 }
    }
}

#[derive(Debug, Default)]
struct Busy {
    executions: u64,
    first_start: Option<Instant>,
    last_finish: Option<Instant>,
    idle: Duration,
}

#[derive(Debug)]
struct Ring {
    events: VecDeque<Event>,
    next: u64,
    executions: u64,
    busy: Busy,
}

/// The bounded, ordered log of one server. It survives the server's restarts.
#[derive(Debug)]
pub(crate) struct Log {
    began: Instant,
    capacity: usize,
    ring: Mutex<Ring>,
    grown: watch::Sender<u64>,
}

impl Log {
    pub fn new(capacity: usize) -> Self {
        let ring = Ring { events: VecDeque::new(), next: 0, executions: 0, busy: Busy::default() };
        Self { began: Instant::now(), capacity: capacity.max(1), ring: Mutex::new(ring), grown: watch::Sender::new(0) }
    }

    pub fn push(&self, kind: EventKind) {
        let mut ring = self.lock();
        let now = Instant::now();
        account(&mut ring, &kind, now);
        let event = Event {
            seq: ring.next,
            at_us: micros(now.saturating_duration_since(self.began)),
            wall_ms: wall_ms(),
            kind,
        };
        ring.next += 1;
        if ring.events.len() == self.capacity {
            ring.events.pop_front();
        }
        ring.events.push_back(event);
        let next = ring.next;
        drop(ring);
        self.grown.send_replace(next);
    }

    /// The events kept, from position `since` on.
    pub fn since(&self, since: u64) -> Vec<Event> {
        let ring = self.lock();
        ring.events.range(skipped(&ring, since)..).cloned().collect()
    }

    /// Waits for the first event at or after position `since` that `wanted` accepts.
    pub async fn wait_from(&self, mut since: u64, wanted: impl Fn(&Event) -> bool) -> Event {
        let mut grown = self.grown.subscribe();
        loop {
            grown.borrow_and_update();
            {
                let ring = self.lock();
                if let Some(event) = ring.events.range(skipped(&ring, since)..).find(|event| wanted(event)) {
                    return event.clone();
                }
                since = ring.next;
            }
            if grown.changed().await.is_err() {
                // The sender lives in `self`, so this cannot happen while the wait is polled.
                std::future::pending::<()>().await;
            }
        }
    }

    /// Prompts started since the server was made.
    pub fn total_executions(&self) -> u64 {
        self.lock().executions
    }

    /// The position the next event will get.
    pub fn position(&self) -> u64 {
        self.lock().next
    }

    pub fn idle_time(&self) -> IdleTime {
        let ring = self.lock();
        let busy = &ring.busy;
        let span = match (busy.first_start, busy.last_finish) {
            (Some(start), Some(finish)) => finish.saturating_duration_since(start),
            _ => Duration::ZERO,
        };
        IdleTime { executions: busy.executions, span_us: micros(span), idle_us: micros(busy.idle) }
    }

    pub fn reset_idle_time(&self) {
        self.lock().busy = Busy::default();
    }

    pub fn clear(&self) {
        self.lock().events.clear();
    }

    fn lock(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How many of the kept events come before position `since`.
fn skipped(ring: &Ring, since: u64) -> usize {
    let first = ring.next - ring.events.len() as u64;
    usize::try_from(since.saturating_sub(first)).unwrap_or(usize::MAX).min(ring.events.len())
}

fn account(ring: &mut Ring, kind: &EventKind, now: Instant) {
    match kind {
        EventKind::Started { .. } => {
            ring.executions += 1;
            ring.busy.executions += 1;
            ring.busy.first_start.get_or_insert(now);
            if let Some(finish) = ring.busy.last_finish {
                ring.busy.idle += now.saturating_duration_since(finish);
            }
        }
        EventKind::Finished { .. } if ring.busy.first_start.is_some() => ring.busy.last_finish = Some(now),
        _ => {}
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// The wall clock in milliseconds since 1970, the unit of every timestamp in the protocol.
pub(crate) fn wall_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
