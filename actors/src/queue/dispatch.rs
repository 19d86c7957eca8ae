//! Work for backends: who takes what, and who gives it back.

use ractor::{ActorId, ActorRef};
use tokio::time::Instant;
use tracing::{debug, error, warn};

use super::{
    Demand, Held, QueueMsg, RECALL_AFTER, State, Whereabouts,
    matching::{Place, free_places, surplus, to_recall},
};
use crate::{
    comfy_session::{Origin, SessionMsg},
    domain::{
        id::{BackendId, TaskId},
        lane::Lanes,
        task::{Change, Intent, Release, Task, TaskState},
    },
    kit::{slot::Slot, tasks::Panicked},
    ports::store::{Assignment, Claim, ClaimSlot, StoreError},
    uploads::UploadsMsg,
};

impl State {
    pub(super) fn on_demand(&mut self, me: &ActorRef<QueueMsg>, demand: Demand) {
        let backend = demand.backend.clone();
        let before = self.sessions.insert(backend, demand.clone());
        if before.is_none_or(|before| before.epoch != demand.epoch) {
            // A new session knows nothing of what its predecessor had.
            self.recover(me);
        }
        self.fill(me);
    }

    pub(super) fn on_uploads_open(&mut self, me: &ActorRef<QueueMsg>, epoch: ActorId, open: bool) {
        self.uploads_open = open;
        if self.uploads.replace(epoch) != Some(epoch) {
            self.recover(me);
        }
        self.fill(me);
    }

    pub(super) fn on_moved(&mut self, me: &ActorRef<QueueMsg>, id: TaskId, to: Whereabouts) {
        let Some(held) = self.held.get_mut(&id) else { return };
        let before = std::mem::replace(&mut held.at, to);
        match before {
            Whereabouts::Backend => {
                let backend = held.backend.clone();
                let goes_on = self.held.values().any(|held| held.at == Whereabouts::Backend && held.backend == backend);
                self.paces.entry(backend).or_default().ran(goes_on, Instant::now());
                self.fill(me);
            }
            Whereabouts::Ran => self.fill(me),
            Whereabouts::Uploads | Whereabouts::Settling => held.at = before,
        }
    }

    pub(super) fn on_wake(&mut self, me: &ActorRef<QueueMsg>) {
        self.dry.clear();
        self.gaps.tasks_wait(Instant::now());
        self.woken = self.claiming;
        self.fill(me);
    }

    pub(super) fn on_woken_elsewhere(&mut self, me: &ActorRef<QueueMsg>) {
        self.read_lanes(me);
        self.on_wake(me);
    }

    /// Takes tasks for all free places, if there may be any.
    pub(super) fn fill(&mut self, me: &ActorRef<QueueMsg>) {
        let places = self.places();
        self.watch_gaps(&places);
        if self.claiming {
            return;
        }
        let mut slots = self.places_to_fill(&places);
        slots.retain(|slot| !self.dry.contains(&slot.lanes));
        if slots.is_empty() {
            if !surplus(&places).is_empty() || self.find_recall(places).is_some() {
                me.send_after(RECALL_AFTER, || QueueMsg::ConsiderRecall);
            }
            return;
        }
        self.claiming = true;
        let claim = self.keep(slots);
        let kept = claim.slots.iter().map(|slot| (slot.intent.backend.clone(), slot.lanes.clone())).collect();
        let (source, stretch) = (self.system.source.clone(), self.system.deadline.stretch());
        let work = async move { source.claim(claim).await };
        self.tasks.run(me, work, move |result| QueueMsg::Claimed { kept, stretch, result });
    }

    pub(super) fn on_claimed(
        &mut self,
        me: &ActorRef<QueueMsg>,
        kept: Vec<(BackendId, Lanes)>,
        stretch: u64,
        result: Result<Result<Vec<Assignment>, StoreError>, Panicked>,
    ) {
        self.claiming = false;
        self.release_places(kept.iter().map(|(backend, _)| backend.clone()));
        self.take_on(me, kept, stretch, result);
        self.hand_over_when_done(me);
    }

    fn take_on(
        &mut self,
        me: &ActorRef<QueueMsg>,
        kept: Vec<(BackendId, Lanes)>,
        stretch: u64,
        result: Result<Result<Vec<Assignment>, StoreError>, Panicked>,
    ) {
        match result {
            Ok(Ok(assignments)) => {
                if !std::mem::take(&mut self.woken) {
                    self.dry.extend(left_empty(kept, &assignments));
                }
                self.waiting.left(assignments.len() as u64);
                self.assign_all(me, assignments, Origin::Claimed, stretch);
                if !self.dry.is_empty() {
                    self.gaps.none_waits();
                }
                self.fill(me);
            }
            // Dispatch is held; the next tick asks again.
            Ok(Err(error)) => {
                self.doubtful = true;
                debug!(%error, "could not claim tasks");
            }
            Err(Panicked) => {
                self.doubtful = true;
                error!("a claim panicked");
            }
        }
    }

    /// Whether a claim or a reading back is under way, that may bring tasks.
    pub(super) fn awaits_tasks(&self) -> bool {
        self.recovering || self.kept.values().any(|kept| *kept > 0)
    }

    /// Slots for every free place, best first. None while something else comes first.
    pub(super) fn places_to_fill(&self, places: &[Place]) -> Vec<ClaimSlot> {
        let held_up = !self.recovered || self.recovering || !self.uploads_open || self.drain.has_begun();
        if held_up || self.pauses.stop_all() {
            return Vec::new();
        }
        let free = free_places(places);
        free.into_iter()
            .filter_map(|backend| {
                let client = self.sessions.get(&backend)?.client.clone()?;
                let lanes = self.lanes_of(&backend);
                Some(ClaimSlot { intent: Intent { backend, client }, lanes })
            })
            .collect()
    }

    pub(super) fn places(&self) -> Vec<Place> {
        let now = Instant::now();
        self.sessions
            .iter()
            .map(|(backend, demand)| {
                let there =
                    self.held.values().filter(|held| held.at == Whereabouts::Backend && held.backend == *backend);
                let tasks: Vec<i64> = there.map(|held| held.lane).collect();
                let kept = self.kept.get(backend).copied().unwrap_or(0);
                let pace = self.paces.get(backend).copied().unwrap_or_default();
                let online = demand.client.is_some() && self.is_up(demand) && !self.pauses.stop(backend);
                Place {
                    backend: backend.clone(),
                    online,
                    occupied: tasks.len() + kept,
                    lanes: self.lanes_of(backend),
                    tasks,
                    ahead: pace.ahead(self.system.settings.prepare_ahead, now),
                }
            })
            .collect()
    }

    /// Whether the session that said so still lives: one that died, perhaps for a whole quarantine, takes nothing.
    pub(super) fn is_up(&self, demand: &Demand) -> bool {
        let session = self.system.slots.sessions.get(&demand.backend).and_then(Slot::get);
        session.is_some_and(|session| session.get_id() == demand.epoch)
    }

    pub(super) fn keep(&mut self, slots: Vec<ClaimSlot>) -> Claim {
        for slot in &slots {
            *self.kept.entry(slot.intent.backend.clone()).or_default() += 1;
        }
        let caps = self.system.settings.tenants.caps();
        Claim { worker: self.system.worker.clone(), lease: self.system.settings.lease, slots, caps }
    }

    pub(super) fn release_places(&mut self, backends: impl IntoIterator<Item = BackendId>) {
        for backend in backends {
            if let Some(kept) = self.kept.get_mut(&backend) {
                *kept = kept.saturating_sub(1);
            }
        }
    }

    /// Nothing waits, one backend has nothing to do, another has a prompt prepared: that one moves over. And what was sent ahead to a backend
    /// that is not fast any more comes back into the order.
    pub(super) fn recall(&mut self) {
        if self.claiming || !self.recovered || self.drain.has_begun() {
            return;
        }
        let places = self.places();
        let surplus = surplus(&places);
        if let Some((backend, lanes)) = self.find_recall(places) {
            debug!(%backend, "recalling a prepared prompt for an idle backend");
            self.tell_session(&backend, SessionMsg::Recall { lanes });
        }
        for backend in surplus {
            debug!(%backend, "taking back a prompt that was sent ahead");
            self.tell_session(&backend, SessionMsg::Recall { lanes: Lanes::All });
        }
    }

    /// Who should give a task back, and of which lanes: those of a backend that is idle and for which nothing waits.
    fn find_recall(&self, mut places: Vec<Place>) -> Option<(BackendId, Lanes)> {
        places.iter_mut().filter(|place| place.occupied == 0).for_each(|place| {
            place.online &= self.dry.contains(&place.lanes);
        });
        to_recall(&places)
    }

    /// What the janitor took over. Nobody sends its prompts again.
    pub(super) fn on_adopted(&mut self, me: &ActorRef<QueueMsg>, assignments: Vec<Assignment>) {
        self.assign_all(me, assignments, Origin::Expired, self.system.deadline.stretch());
    }

    pub(super) fn assign_all(
        &mut self,
        me: &ActorRef<QueueMsg>,
        assignments: Vec<Assignment>,
        origin: Origin,
        stretch: u64,
    ) {
        if self.drain.is_over() {
            let arrived = assignments.iter().map(|Assignment { task, .. }| (task.id, task.fence)).collect();
            return self.let_go(me, arrived);
        }
        for mut assignment in assignments {
            if self.cancelled_early.remove(&assignment.task.id) {
                assignment.task.cancel_requested_at.get_or_insert(self.system.clock.now());
            }
            self.assign(me, assignment, origin, stretch);
        }
    }

    /// Notes which backends have nothing to do though they could.
    fn watch_gaps(&mut self, places: &[Place]) {
        let now = Instant::now();
        for place in places {
            let kept = self.kept.get(&place.backend).copied().unwrap_or(0);
            let idle = place.online && place.occupied == kept && !self.pauses.stop_all();
            self.gaps.saw(&place.backend, idle, now);
        }
    }

    /// Hands a held task to whoever works on it in its state. Whoever has it already ignores it.
    pub(super) fn assign(&mut self, me: &ActorRef<QueueMsg>, assignment: Assignment, origin: Origin, stretch: u64) {
        let task = &assignment.task;
        let (id, fence) = (task.id, task.fence);
        let Some(backend) = task.prompt.as_ref().map(|prompt| prompt.backend.clone()) else {
            return self.settle(me, id, fence, Change::Release(Release::Recalled), None);
        };
        if !self.system.backends.contains_key(&backend) {
            warn!(task.id = %id, %backend, "the task's backend is not configured any more; it runs elsewhere");
            return self.settle(me, id, fence, Change::Release(Release::Recalled), None);
        }
        let uploading = task.state == TaskState::Uploading;
        let known = self.held.get(&id).filter(|held| held.fence == fence);
        let at = match known.map(|held| held.at) {
            Some(Whereabouts::Settling) => return,
            _ if uploading => Whereabouts::Uploads,
            known => known.unwrap_or(Whereabouts::Backend),
        };
        if origin == Origin::Claimed
            && known.is_none()
            && let Some(gap) = self.gaps.given(&backend, Instant::now())
        {
            self.system.metrics.dispatched(&backend, gap);
        }
        let origin = if origin == Origin::Resumed && self.was_never_sent(task) { Origin::Claimed } else { origin };
        let origin = known.and_then(|held| held.untold).unwrap_or(origin);
        let stretch = known.map_or(stretch, |held| held.stretch);
        let (attempt, ooms, created_at, lane) = (task.attempt, task.ooms, task.created_at, task.lane);
        let assignment = Box::new(assignment);
        let told = if uploading {
            self.system.slots.uploads.cast(UploadsMsg::Begin { assignment })
        } else {
            let unsure = self.system.settings.unclean_start && created_at < self.system.started_at;
            let origin = if origin == Origin::Claimed && unsure { Origin::ClaimedUnsure } else { origin };
            self.tell_session(&backend, SessionMsg::Run { assignment, origin, stretch })
        };
        let untold = (!told).then_some(origin);
        self.held.insert(id, Held { fence, lane, attempt, ooms, backend, at, stretch, untold });
    }

    /// Whether the task is here because somebody died between its claim and its POST.
    fn was_never_sent(&self, task: &Task) -> bool {
        task.is_intended_by(&self.system.worker) && self.system.posts.of(task).is_none()
    }

    /// False when the session is down and the message lost; its successor's first demand makes up for it.
    pub(super) fn tell_session(&self, backend: &BackendId, message: SessionMsg) -> bool {
        self.system.slots.sessions.get(backend).is_some_and(|slot| slot.cast(message))
    }
}

/// What the slots served that got no task: of those lanes there is none.
fn left_empty(mut kept: Vec<(BackendId, Lanes)>, assignments: &[Assignment]) -> Vec<Lanes> {
    for backend in assignments.iter().filter_map(|held| Some(&held.task.prompt.as_ref()?.backend)) {
        if let Some(filled) = kept.iter().position(|(kept, _)| kept == backend) {
            kept.swap_remove(filled);
        }
    }
    kept.into_iter().map(|(_, lanes)| lanes).collect()
}
