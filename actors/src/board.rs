//! What the actors let everybody see: progress, phases, restarts. Written by its owner, read without a mailbox.
//!
//! A picture, not the truth: it is lost with the process, and nothing is ever decided from it.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    domain::{
        eta::Durations,
        health::{Health, State},
        id::{BackendId, TaskId},
        interest::Interest,
        progress::Progress,
        prompt::Abilities,
        task::Task,
    },
    kit::pulse::Pulse,
    ports::{hook_store::HookLevels, store::Pause},
    watch::{FAR, Place, Run, Watch},
};

/// The board. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Board(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    contents: Mutex<Contents>,
    watch: Watch,
    pulse: Pulse,
}

#[derive(Debug, Default)]
struct Contents {
    progress: HashMap<TaskId, (Run, Progress)>,
    backends: BTreeMap<BackendId, BackendStatus>,
    elsewhere: BTreeMap<BackendId, Elsewhere>,
    company: usize,
    deaf: bool,
    restarts: BTreeMap<String, u64>,
    pauses: Vec<Pause>,
    webhooks: HookLevels,
    durations: Durations,
    ending: Ending,
}

/// How near the end of the process is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Ending {
    #[default]
    No,
    Announced,
    Begun,
}

/// A backend as `/api/status` shows it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BackendStatus {
    /// What the session is doing.
    pub phase: PhaseName,
    /// Why it is not online, in words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// Whether the server has `/api/jobs`.
    pub jobs_api: bool,
    /// Tasks of ours on it.
    pub in_flight: usize,
    /// Prompts that run or wait there, those of others included, as it told last.
    pub queue_remaining: u64,
    /// Connections opened since the start of the process.
    pub connections: u64,
    /// Node classes it has; `None` while it has not told.
    pub nodes: Option<usize>,
    /// Whether it is given work.
    pub health: Health,
}

/// A backend of another process, as that told last.
#[derive(Debug, Clone, PartialEq)]
pub struct Elsewhere {
    /// The process it is a server of.
    pub consumer: String,
    /// Its machine's name.
    pub node: String,
    /// What its session is doing.
    pub status: BackendStatus,
    /// ComfyUI's own `/system_stats`.
    pub stats: Option<Value>,
}

/// A session's phase, in a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PhaseName {
    /// Not reachable; tries again by itself.
    Disconnected,
    /// Asks for health, opens the socket.
    Connecting,
    /// Takes work.
    Online,
    /// Crashed too often; left alone for a while.
    Quarantined,
}

impl BackendStatus {
    /// Whether it is given work, unless somebody paused it.
    #[must_use]
    pub fn takes_work(&self) -> bool {
        self.phase == PhaseName::Online && self.health.state == State::Closed
    }

    /// A backend nobody has tried yet.
    #[must_use]
    pub fn unknown() -> Self {
        Self {
            phase: PhaseName::Connecting,
            problem: None,
            jobs_api: false,
            in_flight: 0,
            queue_remaining: 0,
            connections: 0,
            nodes: None,
            health: Health::good(),
        }
    }
}

impl Board {
    /// Whether the process gets round to its work.
    #[must_use]
    pub fn pulse(&self) -> &Pulse {
        &self.0.pulse
    }

    /// The newest progress of a running task. Of one that runs in another process it is told from here on, for a while.
    #[must_use]
    pub fn progress(&self, task: &Task) -> Option<Progress> {
        let here = self.progress_here(task.id);
        if here.is_none() && self.company() > 0 { self.0.watch.glance(task.id, task.fence) } else { here }
    }

    /// As [`Self::progress`], of a task that runs in this process.
    #[must_use]
    pub fn progress_here(&self, task: TaskId) -> Option<Progress> {
        self.lock().progress.get(&task).map(|(_, progress)| progress.clone())
    }

    /// Overwrites a task's progress.
    pub fn set_progress(&self, run: &Run, progress: Progress) {
        self.0.watch.show_progress(run, &progress);
        self.lock().progress.insert(run.task, (run.clone(), progress));
    }

    /// Has those who watch from other processes told again what they want to see, as far as it runs here.
    pub fn tell_again(&self, interest: &Interest) {
        // Under the lock, so that nothing is told of a run that is over.
        for (run, progress) in self.lock().progress.values().filter(|(run, _)| interest.wants(run.task)) {
            self.0.watch.tell_again(run, progress, interest.wants_previews(run.task));
        }
    }

    /// The task runs no more.
    pub fn clear_progress(&self, task: TaskId) {
        self.lock().progress.remove(&task);
        self.0.watch.forget(task);
    }

    /// Who watches tasks.
    #[must_use]
    pub fn watch(&self) -> &Watch {
        &self.0.watch
    }

    /// A task ended: the next ones will take as long.
    pub fn learn(&self, task: &Task) {
        self.lock().durations.learn(task);
    }

    /// Whether any task taught how long they take.
    #[must_use]
    pub fn has_learned(&self) -> bool {
        self.lock().durations.of(None).is_some()
    }

    /// What a waiting task can expect with `ahead` tasks before it.
    #[must_use]
    pub fn place(&self, workflow: Option<&str>, ahead: u32) -> Place {
        let contents = self.lock();
        let others = contents.elsewhere.values().map(|other| &other.status);
        let online = contents.backends.values().chain(others).filter(|backend| backend.takes_work()).count();
        let servers = u32::try_from(online).unwrap_or(u32::MAX);
        // How many more there are than were counted nobody knows.
        let eta = (ahead < FAR).then(|| contents.durations.until_done(workflow, ahead, servers)).flatten();
        Place { ahead, eta }
    }

    /// Until a running task is expected to be done.
    #[must_use]
    pub fn remaining(&self, workflow: Option<&str>, elapsed: Duration, percent: u8) -> Option<Duration> {
        self.lock().durations.remaining(workflow, elapsed, percent)
    }

    /// All backends.
    #[must_use]
    pub fn backends(&self) -> BTreeMap<BackendId, BackendStatus> {
        self.lock().backends.clone()
    }

    /// Those of other processes.
    #[must_use]
    pub fn elsewhere(&self) -> BTreeMap<BackendId, Elsewhere> {
        self.lock().elsewhere.clone()
    }

    /// Notes which backends other processes have.
    pub fn set_elsewhere(&self, backends: BTreeMap<BackendId, Elsewhere>) {
        self.lock().elsewhere = backends;
    }

    /// How many other processes run tasks.
    #[must_use]
    pub fn company(&self) -> usize {
        self.lock().company
    }

    /// Notes how many other processes run tasks.
    pub fn set_company(&self, processes: usize) {
        self.lock().company = processes;
    }

    /// Whether other processes run tasks and nothing is heard of what they do: it is found by looking alone.
    #[must_use]
    pub fn is_deaf(&self) -> bool {
        let contents = self.lock();
        contents.deaf && contents.company > 0
    }

    /// Notes that nothing is heard of what other processes do.
    pub fn set_deaf(&self) {
        self.lock().deaf = true;
    }

    /// Alters one backend's entry.
    pub fn update_backend(&self, backend: &BackendId, update: impl FnOnce(&mut BackendStatus)) {
        update(self.lock().backends.entry(backend.clone()).or_insert_with(BackendStatus::unknown));
    }

    /// Notes what a backend can do.
    pub fn set_abilities(&self, backend: &BackendId, abilities: Abilities) {
        self.update_backend(backend, |status| status.jobs_api = abilities.jobs);
    }

    /// Restarts per actor since the start of the process.
    #[must_use]
    pub fn restarts(&self) -> BTreeMap<String, u64> {
        self.lock().restarts.clone()
    }

    /// Notes how often an actor was restarted.
    pub fn set_restarts(&self, actor: &str, restarts: u64) {
        self.lock().restarts.insert(actor.to_owned(), restarts);
    }

    /// What takes nothing new.
    #[must_use]
    pub fn pauses(&self) -> Vec<Pause> {
        self.lock().pauses.clone()
    }

    /// Notes what takes nothing new.
    pub fn set_pauses(&self, pauses: &[Pause]) {
        pauses.clone_into(&mut self.lock().pauses);
    }

    /// What waits for webhooks, as it was counted last.
    #[must_use]
    pub fn webhooks(&self) -> HookLevels {
        self.lock().webhooks
    }

    /// Notes what waits for webhooks.
    pub fn set_webhooks(&self, levels: HookLevels) {
        self.lock().webhooks = levels;
    }

    /// Whether the process is about to stop: whoever can go elsewhere should.
    #[must_use]
    pub fn is_leaving(&self) -> bool {
        self.lock().ending != Ending::No
    }

    /// Says that the process is about to stop. Nothing else changes yet.
    pub fn set_leaving(&self) {
        let mut contents = self.lock();
        contents.ending = contents.ending.max(Ending::Announced);
    }

    /// Whether the process is stopping and takes no new tasks.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.lock().ending == Ending::Begun
    }

    /// From here on no new tasks are taken.
    pub fn set_draining(&self) {
        self.lock().ending = Ending::Begun;
    }

    /// Every critical section here is a few instructions that cannot panic half-way, so a poisoned lock is still good.
    fn lock(&self) -> MutexGuard<'_, Contents> {
        self.0.contents.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
