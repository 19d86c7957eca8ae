//! All that can happen to one task: two workers, a server, a network, accidents, and a client who changes his mind.

use std::{
    hash::{Hash, Hasher},
    rc::Rc,
    sync::Arc,
};

use super::{
    Flaw, ONE_ENDING,
    names::Names,
    search::{Keys, Protocol},
    server::{Generation, Server},
    steps::Step,
    time::{Leap, NOW},
    worker::{Doing, Ending, Worker},
};
use crate::{
    comfy_session::{Origin, flight::Flight},
    domain::{
        id::{BackendId, ClientId, WorkerId},
        task::{Change, Fence, Intent, Lease, Refusal, Release, Task, TaskState},
        time::Timestamp,
    },
    system::SessionSettings,
};

const LEASED: Timestamp = Timestamp(NOW.0 + 30_000);

/// Which world is searched.
#[derive(Debug)]
pub struct Rules {
    pub generation: Generation,
    /// What is wrong with the protocol.
    pub flaw: Option<Flaw>,
    /// Accidents, at most.
    pub accidents: u8,
    /// Wishes of the client, at most.
    pub wishes: u8,
    pub settings: SessionSettings,
    pub names: Names,
    pub task: Task,
    workers: [WorkerId; 2],
}

/// One moment. What does not change from one to the next is shared.
#[derive(Debug, Clone)]
pub struct World {
    /// The row in the store.
    pub task: Rc<Task>,
    workers: [Rc<Worker>; 2],
    pub server: Server,
    /// POSTs that were sent and have not arrived.
    pub post: Vec<i64>,
    /// Accidents that may still happen.
    pub accidents: u8,
    /// The client may still cancel, and ask again.
    pub wishes: u8,
    /// Reasons for one more execution each.
    pub evidence: usize,
    /// The row as a sweep saw it some time ago.
    pub seen: Option<Rc<Task>>,
    /// A promise that a write broke.
    pub fault: Option<&'static str>,
    /// Completions of this generation.
    completions: u8,
}

impl Rules {
    pub fn new(generation: Generation, accidents: u8, wishes: u8, flaw: Option<Flaw>) -> Self {
        let task = crate::domain::task::tests::new_task();
        Self {
            generation,
            flaw,
            accidents,
            wishes,
            settings: SessionSettings::default(),
            names: Names::of(task.id, generation),
            task,
            workers: [WorkerId::new("a:1"), WorkerId::new("b:1")],
        }
    }

    pub fn has(&self, flaw: Flaw) -> bool {
        self.flaw == Some(flaw)
    }
}

impl World {
    pub fn worker(&self, who: usize) -> &Worker {
        &self.workers[who]
    }

    pub fn worker_mut(&mut self, who: usize) -> &mut Worker {
        Rc::make_mut(&mut self.workers[who])
    }

    /// Whether this worker holds the lease, as the store sees it.
    pub fn is_holder(&self, rules: &Rules, who: usize) -> bool {
        self.task.lease.as_ref().is_some_and(|lease| lease.worker == rules.workers[who])
    }

    pub fn has_expired(&self) -> bool {
        self.task.lease.as_ref().is_some_and(|lease| lease.until <= NOW)
    }

    /// Whether the lease under which a worker has the task still is the task's.
    pub fn is_current(&self, who: usize) -> bool {
        self.worker(who).fence() == Some(self.task.fence) && self.task.lease.is_some() && !self.has_expired()
    }

    /// Whether no POST is on its way and none can be sent any more, but by somebody who holds the lease. The timing assumption of the
    /// whole protocol: this is so before the grace of an unclear POST is over.
    pub fn is_quiet(&self) -> bool {
        let may_send = |who: usize| {
            let worker = self.worker(who);
            let unsent = worker.flight.as_ref().is_some_and(Flight::is_unsent);
            worker.post.is_some() || worker.open && unsent && !self.is_current(who)
        };
        self.post.is_empty() && !(0..self.workers.len()).any(may_send)
    }

    pub fn pass(&mut self, leap: Leap) {
        for who in 0..2 {
            if self.worker(who).flight.is_some() {
                self.worker_mut(who).age(leap);
            }
        }
    }

    /// Takes the task and begins where it stands.
    pub fn take(&mut self, rules: &Rules, who: usize, change: Change, origin: Origin) {
        if self.write(rules, None, change).is_ok() {
            self.begin(rules, who, origin);
        }
    }

    /// As the queue hands a held task to its session or to the uploads.
    pub fn begin(&mut self, rules: &Rules, who: usize, origin: Origin) {
        self.drop_work(who);
        let mut task = Task::clone(&self.task);
        if rules.has(Flaw::NoGrace) {
            // What nobody knows to have been accepted is taken for accepted: nothing of it can be on its way.
            task.prompt.iter_mut().for_each(|prompt| prompt.accepted |= origin == Origin::Expired);
        }
        let worker = self.worker_mut(who);
        (worker.open, worker.settling) = (true, None);
        if task.state == TaskState::Uploading {
            worker.uploading = Some(task);
        } else {
            worker.flight = Some(Flight::new(task, Arc::default(), origin, NOW, &rules.settings));
        }
    }

    /// The work on the task stops here. A POST that was about to be sent is not stopped.
    pub fn drop_work(&mut self, who: usize) {
        self.post.extend(self.worker(who).unsent());
        self.post.sort_unstable();
        let worker = self.worker_mut(who);
        (worker.flight, worker.uploading) = (None, None);
        (worker.post, worker.doing) = (None, Doing::Nothing);
    }

    /// The session or the uploads are done with it.
    pub fn settle(&mut self, who: usize, change: Change) {
        let worker = self.worker(who);
        let task = worker.flight.as_ref().map(|flight| &flight.task).or(worker.uploading.as_ref());
        let Some((fence, dispatch)) = task.map(|task| (task.fence, task.dispatch)) else { return };
        self.drop_work(who);
        self.worker_mut(who).settling = Some(Ending { fence, dispatch, change });
    }

    pub fn adoption(&self, rules: &Rules, who: usize) -> Change {
        Change::Adopt { worker: rules.workers[who].clone(), until: LEASED }
    }

    pub fn claim(&self, rules: &Rules, who: usize) -> Change {
        let intent = Intent { backend: BackendId::new("http://b"), client: ClientId::new("c") };
        Change::Claim { worker: rules.workers[who].clone(), until: LEASED, intent }
    }

    /// The store's one write: load, apply, save.
    pub fn write(&mut self, rules: &Rules, fence: Option<Fence>, change: Change) -> Result<(), Refusal> {
        let before = self.task.clone();
        let (mut task, mut fence) = (Task::clone(&before), fence);
        if rules.has(Flaw::NoFence) && fence.is_some() {
            // `UPDATE ... WHERE id = ?`: whoever writes is believed.
            fence = Some(task.fence);
            if !task.state.is_held() {
                task.state = TaskState::Executing;
            }
        }
        let reopens = matches!(change, Change::Reopen { .. });
        task.apply(fence, change, NOW)?;
        self.task = Rc::new(task);
        self.check_write(&before, reopens);
        Ok(())
    }

    /// What no write may do, whoever makes it.
    pub fn check_write(&mut self, before: &Task, reopens: bool) {
        let after = &self.task;
        self.completions = if reopens { 0 } else { self.completions + u8::from(after.state == TaskState::Completed) };
        let leaves_its_end = before.state.is_final() && after.state != before.state && !reopens;
        let cancelled = before.cancel_requested_at.is_some() && !reopens;
        let promises = [
            (ONE_ENDING, leaves_its_end || self.completions > 1 || reopens && before.state == TaskState::Completed),
            (super::CANCEL, cancelled && (after.state == TaskState::Completed || after.dispatch > before.dispatch)),
            (super::LEASE, after.state.is_held() != after.lease.is_some() || after.fence < before.fence),
        ];
        let broken = promises.into_iter().find(|(_, broken)| *broken).map(|(promise, _)| promise);
        self.fault = self.fault.or(broken);
    }

    /// The queue records an end. Whether the store took it or refused it, it is over for this worker.
    pub fn record_end(&mut self, rules: &Rules, ending: &Ending) {
        let completes = matches!(ending.change, Change::Complete { .. });
        let recorded = self.write(rules, Some(ending.fence), ending.change.clone()).is_ok();
        let is_true = self.server.succeeded(ending.dispatch) && ending.dispatch == self.task.dispatch;
        if recorded && completes && self.task.state == TaskState::Completed && !is_true {
            self.fault = self.fault.or(Some(super::MANIFEST));
        }
    }

    pub fn expire(&mut self, rules: &Rules) {
        if let Some(Lease { until, .. }) = &mut Rc::make_mut(&mut self.task).lease {
            *until = NOW;
        }
        for who in (0..2).filter(|who| self.is_holder(rules, *who)).collect::<Vec<_>>() {
            // It notices by its own clock, before anybody else may take the task.
            self.worker_mut(who).open = false;
        }
    }

    /// The one thing an attempt that has to be made again costs when it is nobody's fault.
    pub fn release() -> Change {
        Change::Release(Release::Recalled)
    }

    /// Forgets what can make no difference any more, so that worlds with one future are one. Not while writes of others are believed.
    pub fn tidy(&mut self, rules: &Rules) {
        for who in 0..2 {
            if rules.has(Flaw::NoFence) {
                continue;
            }
            let newest = Some(self.task.fence).filter(|_| self.task.state.is_held());
            let worker = self.worker(who);
            // Whatever it writes is refused.
            let stale = worker.fence().filter(|fence| Some(*fence) != newest);
            let is_dangerous = worker.is_dangerous();
            let in_vain = |(fence, _): &&(Fence, Change)| Some(*fence) != newest;
            let mut refused: Vec<_> = worker.writes.iter().filter(in_vain).cloned().collect();
            refused.extend(stale.map(|fence| (fence, Self::release())));
            if refused.iter().any(|(fence, change)| self.takes(*fence, change)) {
                self.fault = self.fault.or(Some(super::FENCE));
            }
            if stale.is_some() && !is_dangerous {
                let worker = self.worker_mut(who);
                (worker.flight, worker.post, worker.doing) = (None, None, Doing::Nothing);
                (worker.uploading, worker.settling) = (None, None);
            }
            if !refused.is_empty() {
                self.worker_mut(who).writes.retain(|(fence, _)| Some(*fence) == newest);
            }
            let is_looking = matches!(self.worker(who).doing, Doing::Look { .. });
            if self.worker(who).flight.is_some() {
                self.worker_mut(who).flight.iter_mut().for_each(|flight| flight.simplify(is_looking));
            }
        }
    }

    /// Whether the store would take this write.
    fn takes(&self, fence: Fence, change: &Change) -> bool {
        Task::clone(&self.task).apply(Some(fence), change.clone(), NOW).is_ok()
    }

    fn hash_task(&self, rules: &Rules, task: &Task, hasher: &mut Keys) {
        let prompt = task.prompt.as_ref().map(|prompt| (rules.names.number(&prompt.id), prompt.accepted));
        let expired = task.lease.as_ref().map(|lease| lease.until <= NOW);
        (task.state, task.uploads_only, task.dispatch, task.attempt, task.poison, expired, prompt).hash(hasher);
        (task.generation, task.cancel_requested_at.is_some(), task.uploading_at.is_some()).hash(hasher);
    }

    fn key_of(&self, rules: &Rules, who: usize) -> u64 {
        let mut hasher = Keys::default();
        self.is_holder(rules, who).hash(&mut hasher);
        self.worker(who).hash(&rules.names, self.task.fence, &mut hasher);
        hasher.finish()
    }
}

impl Protocol for Rules {
    type State = World;
    type Step = Step;

    fn start(&self) -> World {
        World {
            task: Rc::new(self.task.clone()),
            workers: Default::default(),
            server: Server::default(),
            post: Vec::new(),
            accidents: self.accidents,
            wishes: self.wishes,
            evidence: 0,
            seen: None,
            fault: None,
            completions: 0,
        }
    }

    fn next(&self, world: &World) -> Vec<(Step, World)> {
        super::steps::all(self, world)
    }

    fn key(&self, world: &World) -> u64 {
        let mut hasher = Keys::default();
        world.hash_task(self, &world.task, &mut hasher);
        if let Some(seen) = &world.seen {
            (seen.fence == world.task.fence).hash(&mut hasher);
            world.hash_task(self, seen, &mut hasher);
        }
        (&world.server, &world.post, world.accidents, world.wishes).hash(&mut hasher);
        (world.evidence, world.fault, world.completions).hash(&mut hasher);
        // The workers are alike: which of the two is which does not matter.
        let (a, b) = (world.key_of(self, 0), world.key_of(self, 1));
        (a.min(b), a.max(b)).hash(&mut hasher);
        hasher.finish()
    }

    fn broken(&self, world: &World) -> Option<&'static str> {
        let runs_again = world.server.executions() > 1 + world.evidence;
        let sent_again = world.server.took_twice() && !self.has(Flaw::BlindRepost);
        world.fault.or(runs_again.then_some(super::ONE_EXECUTION)).or(sent_again.then_some(super::ONE_POST))
    }

    fn is_over(&self, world: &World) -> bool {
        world.task.state.is_final()
    }

    fn is_sure(&self, step: Step) -> bool {
        step.is_sure()
    }
}
