//! The connection: dialling, losing it, noticing that it went deaf.

use futures_util::StreamExt;
use ractor::ActorRef;
use tracing::{debug, info, warn};

use super::{
    Dialed, SessionMsg, State,
    phase::{Connection, Phase},
    room,
};
use crate::{
    board::PhaseName,
    domain::{id::ClientId, memory::Memory, time::Timestamp},
    kit::tasks::Panicked,
    metrics::Loss,
    ports::comfy::ComfyError,
    queue::{Demand, QueueMsg},
};

impl State {
    pub(super) fn dial(&mut self, me: &ActorRef<SessionMsg>) {
        if !matches!(self.phase, Phase::Disconnected { .. }) {
            return;
        }
        self.set_phase(Phase::dialing, None);
        let client = ClientId::fresh(&self.system.settings.session.client_prefix, &self.system.worker);
        let comfy = self.comfy.clone();
        let work = async move {
            let abilities = comfy.check().await?;
            let signals = comfy.connect(&client).await?;
            Ok(Dialed { abilities, client, signals })
        };
        self.tasks.run(me, work, SessionMsg::Dialed);
    }

    pub(super) fn on_dialed(
        &mut self,
        me: &ActorRef<SessionMsg>,
        result: Result<Result<Dialed, ComfyError>, Panicked>,
    ) {
        match result {
            Ok(Ok(dialed)) => self.on_connected(me, dialed),
            Ok(Err(error)) => self.disconnect(me, Loss::Unreachable, &error.to_string()),
            Err(panicked) => self.disconnect(me, Loss::Unreachable, &panicked.to_string()),
        }
    }

    pub(super) fn on_connected(&mut self, me: &ActorRef<SessionMsg>, dialed: Dialed) {
        let Dialed { abilities, client, mut signals } = dialed;
        self.connections += 1;
        self.system.metrics.connected(&self.backend);
        self.status_owed_since = None;
        // A server that was away may have come back without its files.
        self.uploaded.clear();
        let (number, feed, to) = (self.connections, self.feed.clone(), me.clone());
        self.system.board.set_abilities(&self.backend, abilities);
        let reading = async move {
            while let Some(item) = signals.next().await {
                match item {
                    // A gone session needs no frames; its task is aborted with it.
                    Ok(signal) => _ = feed.take(signal).map(|word| to.cast(SessionMsg::Heard(word))),
                    Err(error) => return error.to_string(),
                }
            }
            "the server closed the connection".to_owned()
        };
        let reader = self.tasks.run_abortable(me, reading, move |result| SessionMsg::SocketClosed {
            connection: number,
            reason: result.unwrap_or_else(|panicked| panicked.to_string()),
        });
        self.set_phase(|_| Phase::Online(Connection { number, client, _reader: reader }), None);
        let now = self.now();
        self.flights.values_mut().for_each(|(flight, _)| flight.on_reconnected(now));
        self.stop_orphans(me);
        self.on_reached(me);
        self.advance_all(me);
        self.tell_demand(me);
        self.weigh(me);
        self.survey.doubt();
        self.survey_in_time(me);
    }

    pub(super) fn on_socket_closed(&mut self, me: &ActorRef<SessionMsg>, connection: u64, reason: &str) {
        if matches!(&self.phase, Phase::Online(open) if open.number == connection) {
            self.disconnect(me, Loss::Closed, reason);
        }
    }

    /// Not a crash: a state with a backoff. Prompts in flight are followed by asking over HTTP meanwhile.
    pub(super) fn disconnect(&mut self, me: &ActorRef<SessionMsg>, loss: Loss, reason: &str) {
        self.system.metrics.lost(&self.backend, loss);
        let now = self.now();
        self.status_owed_since = None;
        self.set_phase(|phase| phase.disconnected(now), Some(reason));
        self.flights.values_mut().for_each(|(flight, _)| flight.on_disconnected());
        self.on_unreached(me, loss, reason);
        let delay = self.system.settings.session.reconnect.delay_at_least_half(self.phase.failures(), rand::random());
        me.send_after(delay, || SessionMsg::Dial);
        self.tell_demand(me);
        self.give_back_unsent(me);
        self.advance_all(me);
    }

    pub(super) fn set_phase(&mut self, next: impl FnOnce(Phase) -> Phase, problem: Option<&str>) {
        let before = self.phase.name();
        let placeholder = Phase::Disconnected { failures: 0, since: self.now() };
        let old = std::mem::replace(&mut self.phase, placeholder);
        self.phase = next(old);
        let (after, backend) = (self.phase.name(), &self.backend);
        match (before, after, problem) {
            (PhaseName::Online, PhaseName::Disconnected, reason) => {
                warn!(%backend, reason, tasks = self.flights.len(), "lost the connection to ComfyUI; reconnecting");
            }
            (_, PhaseName::Disconnected, reason) => debug!(%backend, reason, "could not connect to ComfyUI"),
            (_, PhaseName::Online, _) => info!(%backend, connection = self.connections, "connected to ComfyUI"),
            _ => debug!(%backend, ?before, ?after, "phase"),
        }
        let (connections, in_flight) = (self.connections, self.flights.len());
        self.system.board.update_backend(&self.backend, |status| {
            status.phase = after;
            status.connections = connections;
            status.in_flight = in_flight;
            if after != PhaseName::Connecting {
                status.problem = problem.map(str::to_owned);
            }
        });
    }

    /// Every accepted prompt brings a `status` frame to everybody. If it does not come the socket is deaf: the server forgot our name,
    /// though it still answers pings (PROTOCOL.md 6.7).
    pub(super) fn check_hearing(&mut self, me: &ActorRef<SessionMsg>, now: Timestamp) {
        let Some(since) = self.status_owed_since else { return };
        if self.phase.client().is_none() {
            return;
        }
        if self.feed.last_status() >= since {
            self.status_owed_since = None;
        } else if now.since(since) >= self.system.settings.session.deaf_after {
            self.disconnect(me, Loss::Deaf, "the WebSocket went deaf: a prompt was accepted and no status frame came");
        }
    }

    /// Asks what memory it has: a task that does not fit elsewhere may fit here.
    fn weigh(&mut self, me: &ActorRef<SessionMsg>) {
        let comfy = self.comfy.clone();
        let told = |result: Result<_, Panicked>| SessionMsg::Weighed(result.ok().flatten());
        self.tasks.run(me, async move { room::look(&*comfy).await }, told);
    }

    /// Memory does not change with a connection, so one that says nothing now has what it had.
    pub(super) fn on_weighed(&mut self, me: &ActorRef<SessionMsg>, memory: Option<Memory>) {
        if memory.is_some() {
            self.memory = memory;
            self.tell_demand(me);
        }
    }

    pub(super) fn tell_demand(&self, me: &ActorRef<SessionMsg>) {
        let client = self.phase.client().filter(|_| self.takes_work()).cloned();
        let (backend, memory) = (self.backend.clone(), self.memory.map(|memory| memory.total));
        let demand = Demand { backend, epoch: me.get_id(), client, memory };
        self.system.slots.queue.cast(QueueMsg::Demand(demand));
    }
}
