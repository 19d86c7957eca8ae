//! Whether the server is given work: the session's side of its breaker. Feeds it with what happens, and does what it says.
//!
//! A server in doubt takes nothing new, what only waits there is taken back, what runs there is followed to its end as ever. It gets work
//! again when something ran: a task of ours that is there, else a canary.

use std::time::Duration;

use ractor::ActorRef;
use tracing::{debug, info, warn};

use super::{SessionMsg, State, acts::class_of, canary::Canary, flight::Stop, phase::Phase};
use crate::{
    domain::{
        error::{ErrorCode, TaskError},
        health::{Breaker, Cause, Event, Health, Limits, Load, Turn, Vigil},
        id::TaskId,
        time::Timestamp,
    },
    kit::tasks::{Guard, Panicked},
    metrics::Loss,
    ports::comfy::{ComfyError, Wanted},
};

/// A connection that stood this long was a good one.
const STOOD: Duration = Duration::from_secs(10);

/// What is known of the server's health.
pub struct Care {
    breaker: Breaker,
    vigil: Vigil,
    /// Its queue is being looked at, or was looked at then.
    looked_at: Option<Timestamp>,
    looking: bool,
    /// The canary that is out. Dropping the guard leaves it to itself.
    canary: Option<(Wanted, Guard)>,
    /// When the connection was made.
    connected_at: Timestamp,
    /// What was shown last.
    shown: Health,
}

impl Care {
    /// Of a server against which nothing is known.
    pub fn new(limits: Limits) -> Self {
        Self {
            breaker: Breaker::new(limits),
            vigil: Vigil::default(),
            looked_at: None,
            looking: false,
            canary: None,
            connected_at: Timestamp(0),
            shown: Health::good(),
        }
    }
}

impl State {
    /// Whether nothing is known against the server.
    pub(super) fn is_well(&self) -> bool {
        self.care.breaker.is_closed()
    }

    /// Whether the server is given work.
    pub(super) fn takes_work(&self) -> bool {
        self.is_well() && matches!(self.phase, Phase::Online(_))
    }

    /// Something happened that says how well the server is.
    pub(super) fn note(&mut self, me: &ActorRef<SessionMsg>, event: Event) {
        let now = self.now();
        if matches!(event, Event::Unreachable(_)) {
            // It is followed no more; what became of it shows when the server is back.
            self.let_canary_go(me);
        }
        let turn = self.care.breaker.on(event, now, rand::random());
        self.show_health(now);
        let (backend, health) = (&self.backend, self.care.breaker.health(now));
        match turn {
            None => return,
            Some(Turn::Opened(cause)) => {
                warn!(%backend, cause = cause.as_str(), reason = health.reason, "the server is given no more tasks until it has proved that it runs something");
                self.system.metrics.breaker_opened(backend, cause);
                self.on_opened(me, cause);
            }
            Some(Turn::Closed) => info!(%backend, "the server runs prompts; it is given tasks again"),
        }
        self.tell_demand(me);
    }

    fn on_opened(&mut self, me: &ActorRef<SessionMsg>, cause: Cause) {
        if cause == Cause::Stuck {
            // Heard by whatever still listens there: memory that is full of models is what stalls most runs.
            let comfy = self.comfy.clone();
            self.tasks.run_unreported(async move { _ = comfy.free().await });
        }
        self.take_back_waiting(me);
    }

    /// What waits on a server that will not run it. One that is only out of reach may be running it: then nothing is known better.
    fn take_back_waiting(&mut self, me: &ActorRef<SessionMsg>) {
        let health = self.care.breaker.health(self.now());
        if health.cause.is_none_or(|cause| cause == Cause::Unreachable) {
            return;
        }
        let waiting = self.flights.iter().filter(|(_, (flight, _))| flight.is_prepared()).map(|(id, _)| *id);
        for id in waiting.collect::<Vec<_>>() {
            self.on_stop(me, id, Stop::Recall);
        }
    }

    /// What no event tells: pauses that are over, queues that do not move, runs that are silent.
    pub(super) fn take_care(&mut self, me: &ActorRef<SessionMsg>, now: Timestamp) {
        self.show_health(now);
        if !self.care.breaker.is_closed() {
            self.take_back_waiting(me);
        }
        if !matches!(self.phase, Phase::Online(_)) {
            return;
        }
        self.test_if_due(me, now);
        self.watch_queue(me, now);
        self.watch_runs(me, now);
    }

    /// What is there already is as good a test as any.
    fn test_if_due(&mut self, me: &ActorRef<SessionMsg>, now: Timestamp) {
        let occupied = self.flights.values().any(|(flight, _)| flight.occupies_backend());
        if self.care.canary.is_some() || occupied || !self.care.breaker.wants_test(now) {
            return;
        }
        let Some(client) = self.phase.client().cloned() else { return };
        let canary = Canary::new(client, rand::random());
        let (wanted, limits) = (canary.wanted(), self.system.settings.session.health);
        debug!(backend = %self.backend, prompt = %wanted.prompt, "testing whether the server runs anything");
        let comfy = self.comfy.clone();
        let work = async move { canary.run(&*comfy, limits).await };
        let guard = self.tasks.run_abortable(me, work, SessionMsg::Tested);
        self.care.canary = Some((wanted, guard));
    }

    pub(super) fn on_tested(&mut self, me: &ActorRef<SessionMsg>, result: Result<Event, Panicked>) {
        let Some((canary, _)) = self.care.canary.take() else { return };
        self.orphans.forget(canary.prompt);
        let event = result.unwrap_or_else(|panicked| Event::Failed(panicked.to_string()));
        self.system.metrics.tested(&self.backend, event == Event::Passed);
        if let Event::Failed(reason) = &event {
            warn!(backend = %self.backend, reason, "the server did not pass its test; it is tested again later");
        }
        self.note(me, event);
    }

    fn let_canary_go(&mut self, me: &ActorRef<SessionMsg>) {
        if let Some((canary, _)) = self.care.canary.take() {
            self.disown(me, canary);
        }
    }

    /// Prompts of ours that only wait, on a server that runs none of ours: does it run anything at all?
    fn watch_queue(&mut self, me: &ActorRef<SessionMsg>, now: Timestamp) {
        let limits = self.system.settings.session.health;
        let waits = self.flights.values().any(|(flight, _)| flight.is_prepared() && !flight.is_unsent())
            && !self.flights.values().any(|(flight, _)| flight.is_running());
        let due = self.care.looked_at.is_none_or(|at| now.since(at) >= Vigil::every(&limits));
        if !self.care.vigil.wait(waits, now, &limits) || !due || self.care.looking {
            return;
        }
        (self.care.looking, self.care.looked_at) = (true, Some(now));
        let comfy = self.comfy.clone();
        self.tasks.run(me, async move { comfy.load().await }, SessionMsg::LoadSeen);
    }

    pub(super) fn on_load_seen(
        &mut self,
        me: &ActorRef<SessionMsg>,
        result: Result<Result<Load, ComfyError>, Panicked>,
    ) {
        self.care.looking = false;
        let Ok(Ok(load)) = result else { return };
        let (now, limits) = (self.now(), self.system.settings.session.health);
        if let Some(event) = self.care.vigil.saw(load, now, &limits) {
            self.note(me, event);
        }
    }

    /// Runs that show no progress: first we make sure that we would hear of it, then they are stopped.
    fn watch_runs(&mut self, me: &ActorRef<SessionMsg>, now: Timestamp) {
        let settings = self.system.settings.session.clone();
        let mut listen = false;
        let mut stalled = Vec::new();
        for (id, (flight, graph)) in &mut self.flights {
            if flight.grows_quiet(now, settings.quiet_after) {
                listen = true;
                self.system.metrics.quiet(&self.backend);
                let node = self.feed.node(&flight.prompt());
                warn!(task.id = %id, backend = %self.backend, node, "the run has shown no progress for a while");
            }
            if let Some(limit) = flight.stalled(now, &settings) {
                let node = self.feed.node(&flight.prompt());
                let class = node.as_deref().and_then(|node| class_of(graph, node));
                stalled.push((*id, stuck(limit, node, class)));
            }
        }
        for (id, error) in stalled {
            warn!(task.id = %id, backend = %self.backend, reason = error.message, "the run is stuck; stopping it");
            self.system.metrics.stuck(&self.backend);
            self.on_stop(me, id, Stop::Stuck(error));
        }
        if listen {
            self.test_hearing(me);
        }
    }

    /// Puts a tiny prompt into the server's queue and takes it out again: that brings everybody a `status` frame. If it does not come to
    /// us, the silence is ours, and `check_hearing` makes a new connection.
    fn test_hearing(&mut self, me: &ActorRef<SessionMsg>) {
        let Some(client) = self.phase.client().cloned().filter(|_| self.status_owed_since.is_none()) else { return };
        let (comfy, began) = (self.comfy.clone(), self.now());
        let work = async move {
            let canary = Canary::new(client, rand::random());
            let sent = canary.call_out(&*comfy).await;
            sent.then_some(began)
        };
        self.tasks.run(me, work, |began| SessionMsg::CalledOut(began.ok().flatten()));
    }

    pub(super) fn on_called_out(&mut self, began: Option<Timestamp>) {
        if let Some(began) = began.filter(|_| self.phase.client().is_some()) {
            self.status_owed_since.get_or_insert(began);
        }
    }

    /// What the end of a task that was told to stop says about its server. `defied` when the prompt is still there.
    pub(super) fn on_stopped(&mut self, me: &ActorRef<SessionMsg>, id: TaskId, defied: bool) {
        let Some((flight, _)) = self.flights.get(&id) else { return };
        let why = match (defied && flight.heard_stop(), flight.is_stuck()) {
            (true, _) => {
                let grace = humantime::format_duration(self.system.settings.session.stop_grace);
                format!("task {id} did not stop within {grace} when told to; nothing else runs there until it does")
            }
            (false, true) => format!("task {id} got stuck there"),
            (false, false) => return,
        };
        self.note(me, Event::Broken(Cause::Stuck, why));
    }

    /// A connection stands.
    pub(super) fn on_reached(&mut self, me: &ActorRef<SessionMsg>) {
        self.care.connected_at = self.now();
        self.note(me, Event::Connected);
    }

    /// A connection could not be made, or ended. One that stood for a while was no failure to reach the server: proxies end those that are
    /// quiet.
    pub(super) fn on_unreached(&mut self, me: &ActorRef<SessionMsg>, loss: Loss, reason: &str) {
        if is_failure(loss, self.now().since(self.care.connected_at)) {
            self.note(me, Event::Unreachable(reason.to_owned()));
        }
    }

    fn show_health(&mut self, now: Timestamp) {
        let health = self.care.breaker.health(now);
        if health == self.care.shown {
            return;
        }
        self.care.shown = health.clone();
        let health = self.by_the_wall(health, now);
        self.system.board.update_backend(&self.backend, |status| status.health = health);
    }

    /// What is measured means nothing to people.
    fn by_the_wall(&self, health: Health, now: Timestamp) -> Health {
        let wall = self.system.clock.now();
        let shown = |at: Timestamp| if at >= now { wall.after(at.since(now)) } else { wall.before(now.since(at)) };
        Health { since: health.since.map(shown), test_at: health.test_at.map(shown), ..health }
    }
}

/// Whether the end of a connection that stood for so long is a failure to reach the server.
fn is_failure(loss: Loss, stood: Duration) -> bool {
    match loss {
        // Our own trouble: it answers pings.
        Loss::Deaf => false,
        Loss::Closed => stood < STOOD,
        Loss::Unreachable | Loss::Unsent => true,
    }
}

fn stuck(limit: Duration, node: Option<String>, class: Option<String>) -> TaskError {
    let place = node.as_ref().map_or_else(String::new, |node| format!(" in node {node}"));
    let limit = humantime::format_duration(limit);
    TaskError {
        node_id: node,
        class_type: class,
        ..TaskError::new(
            ErrorCode::Stuck,
            format!(
                "the run was interrupted because it showed no sign of progress for {limit}{place}. If that is its nature, create the \
                 task with a longer `no_progress_timeout`"
            ),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proxy_that_ends_quiet_connections_shuts_no_server() {
        let second = Duration::from_secs(1);
        let found = [Loss::Closed, Loss::Deaf, Loss::Unreachable, Loss::Unsent].map(|loss| is_failure(loss, STOOD));
        assert_eq!(found, [false, false, true, true]);
        assert!(is_failure(Loss::Closed, STOOD - second) && !is_failure(Loss::Deaf, second));
    }
}
