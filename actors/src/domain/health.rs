//! Whether a backend may be given work: a circuit breaker, and the watch over a server on which our prompts only wait. Pure.
//!
//! ```text
//!             too many failures, or one sign that nothing will run there
//!   closed ------------------------------------------------------------> open
//!     ^                                                                    | its pause is over, or a new connection stands
//!     |  something ran                                                     v
//!     `----------------------------------------------------------- half open --> open, with twice the pause
//!                                                                        nothing ran
//! ```
//!
//! A server that answers HTTP proves nothing: one whose worker is dead answers and accepts prompts for ever (PROTOCOL.md 12.3). So only
//! an execution closes an open breaker: a prompt of ours that ends, or a canary, a tiny prompt whose only purpose is to be run.

use std::{collections::VecDeque, time::Duration};

use serde::{Deserialize, Serialize};

use super::{
    error::{ErrorCode, TaskError},
    failure::Class,
    id::PromptId,
    retry::Backoff,
    time::Timestamp,
};

/// When a breaker opens, and for how long. `[health]` in `config/default.toml` is the manual of these.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Failures to reach the server in a row.
    pub failures: u32,
    /// Percent of the prompts that ended within the window, if that were at least `tasks`, that failed by a fault of the server.
    pub percent: u32,
    /// The least number of prompts of which a share says something.
    pub tasks: usize,
    /// How far back prompts count, and failures belong together.
    pub window: Duration,
    /// The pause before a test, growing with each test that fails.
    pub pause: Backoff,
    /// How long a canary may take to run, once nothing else runs before it.
    pub canary: Duration,
    /// How long a server may leave prompts waiting while it runs none.
    pub idle: Duration,
    /// How long a server may run one and the same prompt of somebody else while ours waits behind it.
    pub blocked: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self {
            failures: 5,
            percent: 50,
            tasks: 10,
            window: seconds(300),
            pause: Backoff { base: seconds(10), cap: seconds(300) },
            canary: seconds(30),
            idle: seconds(10),
            blocked: seconds(3600),
        }
    }
}

/// Why a backend is given nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// It could not be reached, several times in a row.
    Unreachable,
    /// Too large a part of what ran there failed by its own fault.
    Failing,
    /// An error that only a restart heals: a broken CUDA context, for one.
    Fatal,
    /// It takes prompts and runs none.
    Zombie,
    /// A prompt made no progress, or did not stop when told to.
    Stuck,
}

impl Cause {
    /// Every one of them.
    pub const ALL: [Self; 5] = [Self::Unreachable, Self::Failing, Self::Fatal, Self::Zombie, Self::Stuck];

    /// The word in the API and in metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unreachable => "unreachable",
            Self::Failing => "failing",
            Self::Fatal => "fatal",
            Self::Zombie => "zombie",
            Self::Stuck => "stuck",
        }
    }
}

/// What the end of a prompt says about the server it ran on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sign {
    /// It executes: a success, or a failure that lies in the graph.
    Sound,
    /// It failed by the server's fault, which may pass.
    Faulty,
    /// It failed in a way that only a restart of the server heals; in words.
    Fatal(String),
}

impl Sign {
    /// What a task's error says about the server.
    #[must_use]
    pub fn of(error: &TaskError) -> Self {
        match (error.class, error.code) {
            (Class::BackendFault, _) => Self::Fatal(error.message.clone()),
            (Class::Transient, ErrorCode::BackendError | ErrorCode::OutputMissing) => Self::Faulty,
            _ => Self::Sound,
        }
    }
}

/// What happened on a backend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// No connection, no answer, or the connection broke; in words.
    Unreachable(String),
    /// A connection stands. It may be to a new process.
    Connected,
    /// A prompt of ours ended there.
    Ended(Sign),
    /// Something shows that nothing will run there for now; in words.
    Broken(Cause, String),
    /// The canary ran.
    Passed,
    /// The canary did not run; in words.
    Failed(String),
}

/// That something changed about whether the backend gets work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// It gets nothing from here on. What only waits there is taken back.
    Opened(Cause),
    /// It gets work again.
    Closed,
}

/// The breaker of one backend.
#[derive(Debug, Clone)]
pub struct Breaker {
    limits: Limits,
    open: Option<Open>,
    /// Failures to reach it since something ran there.
    failures: u32,
    failed_at: Timestamp,
    /// The newest ends, and whether each was the server's fault.
    ends: VecDeque<(Timestamp, bool)>,
    /// Openings and failed tests since a task ran there soundly.
    openings: u32,
}

#[derive(Debug, Clone)]
struct Open {
    cause: Cause,
    why: String,
    since: Timestamp,
    /// When it may be tested; `None` = not before it can be reached.
    until: Option<Timestamp>,
}

/// A breaker as people see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// Whether it gets work.
    pub state: State,
    /// Why not.
    pub cause: Option<Cause>,
    /// The same in words.
    pub reason: Option<String>,
    /// Since when.
    pub since: Option<Timestamp>,
    /// When it is tested next, if that is known.
    pub test_at: Option<Timestamp>,
}

/// Whether a backend gets work.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// It does.
    #[default]
    Closed,
    /// It does not.
    Open,
    /// It does not, and is being tested.
    HalfOpen,
}

impl State {
    /// Every one of them.
    pub const ALL: [Self; 3] = [Self::Closed, Self::Open, Self::HalfOpen];

    /// The word in the API and in metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open => "open",
            Self::HalfOpen => "half_open",
        }
    }
}

impl Health {
    /// Of a backend against which nothing is known.
    #[must_use]
    pub fn good() -> Self {
        Self { state: State::Closed, cause: None, reason: None, since: None, test_at: None }
    }
}

/// Ends kept: what a share is taken of never takes more memory than this.
pub const MOST_ENDS: usize = 100;

impl Breaker {
    /// A closed one: nothing is known against the backend.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        let (ends, failed_at) = (VecDeque::new(), Timestamp(0));
        Self { limits, open: None, failures: 0, failed_at, ends, openings: 0 }
    }

    /// Whether the backend gets work.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.open.is_none()
    }

    /// Whether it is time for a canary.
    #[must_use]
    pub fn wants_test(&self, now: Timestamp) -> bool {
        self.open.as_ref().and_then(|open| open.until).is_some_and(|until| now >= until)
    }

    /// For people.
    #[must_use]
    pub fn health(&self, now: Timestamp) -> Health {
        let Some(open) = &self.open else { return Health::good() };
        Health {
            state: if self.wants_test(now) { State::HalfOpen } else { State::Open },
            cause: Some(open.cause),
            reason: Some(open.why.clone()),
            since: Some(open.since),
            test_at: open.until,
        }
    }

    /// Takes note of what happened. `draw` in 0..1 spreads the pauses of many.
    pub fn on(&mut self, event: Event, now: Timestamp, draw: f64) -> Option<Turn> {
        match event {
            Event::Unreachable(why) => self.on_unreachable(why, now),
            Event::Connected => {
                self.test_at(now);
                None
            }
            Event::Ended(sign) => self.on_ended(sign, now, draw),
            Event::Broken(cause, why) => self.open(cause, why, now, draw),
            Event::Passed => self.close(),
            Event::Failed(why) => {
                let pause = self.longer_pause(draw);
                if let Some(open) = &mut self.open {
                    open.why = why;
                    open.until = Some(now.after(pause));
                }
                None
            }
        }
    }

    fn on_unreachable(&mut self, why: String, now: Timestamp) -> Option<Turn> {
        // Failures long apart have nothing to do with each other.
        let together = now.since(self.failed_at) <= self.limits.window;
        self.failures = if together { self.failures.saturating_add(1) } else { 1 };
        self.failed_at = now;
        if let Some(open) = &mut self.open {
            open.until = None;
            return None;
        }
        if self.failures < self.limits.failures {
            return None;
        }
        self.open = Some(Open { cause: Cause::Unreachable, why, since: now, until: None });
        Some(Turn::Opened(Cause::Unreachable))
    }

    fn on_ended(&mut self, sign: Sign, now: Timestamp, draw: f64) -> Option<Turn> {
        self.failures = 0;
        let faulty = match sign {
            Sign::Fatal(why) => return self.open(Cause::Fatal, why, now, draw),
            Sign::Faulty => true,
            Sign::Sound => false,
        };
        match &self.open {
            // What ran may not have needed what is broken.
            Some(open) if faulty || open.cause == Cause::Fatal => None,
            Some(_) => self.close(),
            None => {
                self.note_end(faulty, now);
                if !faulty {
                    self.openings = 0;
                }
                let (faults, all) = (self.ends.iter().filter(|(_, faulty)| *faulty).count(), self.ends.len());
                let too_many = faults * 100 >= all * usize::try_from(self.limits.percent).unwrap_or(usize::MAX);
                if !faulty || all < self.limits.tasks || !too_many {
                    return None;
                }
                let why = format!("{faults} of the last {all} prompts there failed by the server's fault");
                self.open(Cause::Failing, why, now, draw)
            }
        }
    }

    fn note_end(&mut self, faulty: bool, now: Timestamp) {
        self.ends.push_back((now, faulty));
        let window = self.limits.window;
        while self.ends.len() > MOST_ENDS || self.ends.front().is_some_and(|(at, _)| now.since(*at) > window) {
            self.ends.pop_front();
        }
    }

    fn open(&mut self, cause: Cause, why: String, now: Timestamp, draw: f64) -> Option<Turn> {
        // What a broken device does to other runs is no other cause: only a test of the device may close it.
        if self.open.as_ref().is_some_and(|open| open.cause == cause || open.cause == Cause::Fatal) {
            return None;
        }
        let pause = self.longer_pause(draw);
        let since = self.open.as_ref().map_or(now, |open| open.since);
        self.open = Some(Open { cause, why, since, until: Some(now.after(pause)) });
        Some(Turn::Opened(cause))
    }

    fn close(&mut self) -> Option<Turn> {
        self.open.take()?;
        self.failures = 0;
        self.ends.clear();
        Some(Turn::Closed)
    }

    fn longer_pause(&mut self, draw: f64) -> Duration {
        self.openings = self.openings.saturating_add(1);
        self.limits.pause.delay_at_least_half(self.openings, draw)
    }

    fn test_at(&mut self, now: Timestamp) {
        if let Some(open) = &mut self.open {
            open.until = Some(open.until.map_or(now, |until| until.min(now)));
        }
    }
}

/// What runs and waits on a server, prompts of others included, as its queue tells.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Load {
    /// What runs: one prompt, or none.
    pub running: Vec<PromptId>,
    /// How many wait.
    pub pending: usize,
}

/// Watches a server on which prompts of ours wait while none of ours runs.
#[derive(Debug, Clone, Default)]
pub struct Vigil {
    waiting_since: Option<Timestamp>,
    /// What runs there, and since when that was so at each look.
    seen: Option<(Timestamp, Vec<PromptId>)>,
}

impl Vigil {
    /// Whether ours only wait; tells whether the server's queue is to be looked at.
    pub fn wait(&mut self, waits: bool, now: Timestamp, limits: &Limits) -> bool {
        if !waits {
            *self = Self::default();
            return false;
        }
        now.since(*self.waiting_since.get_or_insert(now)) >= Self::every(limits)
    }

    /// Time between two looks.
    #[must_use]
    pub fn every(limits: &Limits) -> Duration {
        (limits.idle / 4).min(Duration::from_secs(2))
    }

    /// What a look showed: whether that has gone on for too long.
    pub fn saw(&mut self, load: Load, now: Timestamp, limits: &Limits) -> Option<Event> {
        let Load { running, pending } = load;
        if pending == 0 {
            self.seen = None;
            return None;
        }
        let idle = running.is_empty();
        let since = match &self.seen {
            Some((since, before)) if *before == running => *since,
            _ => {
                self.seen = Some((now, running));
                return None;
            }
        };
        let lasts = now.since(since);
        let seconds = lasts.as_secs();
        if idle && lasts >= limits.idle {
            let why = format!("for {seconds} s it had prompts waiting and ran none: its worker is dead; restart it");
            return Some(Event::Broken(Cause::Zombie, why));
        }
        if !idle && lasts >= limits.blocked {
            let why = format!("for {seconds} s it has run one prompt that is not ours while ours waits behind it");
            return Some(Event::Broken(Cause::Stuck, why));
        }
        None
    }
}

#[cfg(test)]
mod tests;
