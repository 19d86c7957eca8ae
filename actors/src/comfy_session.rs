//! ComfySessionActor: one ComfyUI server, its single WebSocket, and the tasks that run there.
//!
//! - **Owns** the connection's phase and a `Flight` per task on this backend.
//! - **Talks** to the queue (demand, endings), to the uploads (finished prompts), to its server through `ComfyTransport`.
//! - **When it dies** its successor connects afresh, announces itself, and the queue sends it the held tasks again; their prompts are looked for
//!   on the server, not repeated.
//! - **Must never** send a prompt twice, believe the socket, or wait for I/O in a handler.

mod acts;
mod canary;
mod care;
mod connection;
mod drain;
mod feed;
pub(crate) mod flight;
mod frames;
mod keeping;
mod orphans;
mod phase;
mod prepare;
mod room;
mod survey;
mod turn;
mod uploaded;

use std::collections::HashMap;

use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort};
use tracing::{debug, warn};

use care::Care;
use drain::Drain;
pub use flight::Origin;
use flight::{Act, Flight, Prepared, Stop, Unprepared};
use frames::{Frames, Outline};
use orphans::Orphans;
use phase::Phase;
use survey::Survey;
use uploaded::Uploaded;

use crate::{
    comfy_session::feed::{Feed, Word},
    domain::{
        artifact::StoredObject,
        catalogue::Catalogue,
        health::{Event, Load},
        id::{BackendId, ClientId, PromptId, TaskId},
        lane::Lanes,
        memory::Memory,
        prompt::{Abilities, Finished, Receipt, Sighting},
        task::{Change, Fence, Release},
        time::Timestamp,
    },
    kit::tasks::{Guard, Panicked, Tasks},
    metrics::Loss,
    ports::{
        comfy::{ComfyError, ComfyTransport, Signals, SubmitError, Wanted},
        store::Assignment,
    },
    queue::QueueMsg,
    system::System,
    uploads::transfer::Failure,
};

/// How often flights are looked over. Only for what no event tells: silences, timeouts, a history that is late.
const TICK: std::time::Duration = std::time::Duration::from_millis(100);
/// Demand is a level and is told again this often, in case a word was lost with a restart.
const DEMAND_EVERY_TICKS: u32 = 10;

/// What a session hears.
#[derive(Debug)]
pub enum SessionMsg {
    /// A task to run, or to find again. One it already has under the same fence is ignored.
    Run {
        /// The held task.
        assignment: Box<Assignment>,
        /// How it came here.
        origin: Origin,
        /// When it was taken: the deadline's stretch.
        stretch: u64,
    },
    /// A client wants the task stopped.
    Cancel { id: TaskId },
    /// Another backend is free: give back a prompt that only waits here, of one of these lanes.
    Recall { lanes: Lanes },
    /// The server is being drained and has had its time: what still is here goes elsewhere.
    MoveAway,
    /// A graph lacks something here: see whether that is still so. Answered when seen, or at once when it was looked just now.
    Survey { reply: RpcReplyPort<()> },
    /// The server told of its memory, or did not.
    Weighed(Option<Memory>),
    /// The server told what it has.
    Surveyed(Result<Result<Catalogue, ComfyError>, Panicked>),
    /// The lease under this fence is lost: stop all work on it, write nothing.
    Drop { id: TaskId, fence: Fence },
    /// The task's end is recorded: its prompt may leave the server's history.
    Forget { prompt: PromptId },
    /// Connect.
    Dial,
    /// The connection attempt ended.
    Dialed(Result<Result<Dialed, ComfyError>, Panicked>),
    /// The socket of this connection ended.
    SocketClosed {
        /// Which connection: the last word of an older one changes nothing.
        connection: u64,
        /// Why.
        reason: String,
    },
    /// A frame that matters.
    Heard(Word),
    /// A picture that came over the WebSocket is stored, or is not.
    FrameKept {
        /// The task.
        id: TaskId,
        /// Under which fence it came.
        fence: Fence,
        /// Which of its pictures.
        number: usize,
        /// What came of it.
        result: Box<Result<StoredObject, Failure>>,
    },
    /// An act ended.
    Done {
        /// The task.
        id: TaskId,
        /// Under which fence it was done.
        fence: Fence,
        /// What came of it.
        outcome: Result<Box<Outcome>, Panicked>,
    },
    /// The canary ran, or did not.
    Tested(Result<Event, Panicked>),
    /// The server's queue was looked at.
    LoadSeen(Result<Result<Load, ComfyError>, Panicked>),
    /// Something was sent to the server so that it tells everybody, at this moment; `None` when it could not be.
    CalledOut(Option<Timestamp>),
    /// Time to look around.
    Tick,
    /// The queue (re)started.
    QueueIsBack,
    /// Orphans were stopped, but for these.
    OrphansStopped(Vec<Wanted>),
    /// The process is about to stop: give back what was not sent. Answered when no answer to a prompt is awaited any more.
    Drain { reply: RpcReplyPort<()> },
}

/// A connection that stands.
pub struct Dialed {
    abilities: Abilities,
    client: ClientId,
    signals: Signals,
}

impl std::fmt::Debug for Dialed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Dialed").field("client", &self.client).finish_non_exhaustive()
    }
}

/// What came of an act.
#[derive(Debug)]
pub enum Outcome {
    /// The graph's files are on the server, or are not.
    Prepared(Result<Prepared, Unprepared>),
    /// The server freed its memory, or did not in time.
    RoomMade,
    /// The POST ended, having begun at `began`.
    Submitted { began: Timestamp, result: Result<Receipt, SubmitError> },
    /// The look ended, having begun at `began`.
    Looked { began: Timestamp, result: Result<Sighting, ComfyError> },
    /// The history was read.
    History(Result<Option<Finished>, ComfyError>),
    /// The server was asked to stop the prompt, and said that it heard, or did not.
    StopAsked { heard: bool },
}

/// Start data.
pub struct SessionArgs {
    /// Ports, settings, peers.
    pub system: System,
    /// Which backend.
    pub backend: BackendId,
    /// Its transport.
    pub comfy: std::sync::Arc<dyn ComfyTransport>,
}

/// One session. Stateless: all is in [`State`].
pub struct ComfySessionActor;

/// The session's state.
pub struct State {
    system: System,
    backend: BackendId,
    comfy: std::sync::Arc<dyn ComfyTransport>,
    phase: Phase,
    connections: u64,
    flights: HashMap<TaskId, (Flight, std::sync::Arc<str>)>,
    /// Files on their way to the server, or memory being freed there; dropping a guard ends that.
    preparing: HashMap<TaskId, Guard>,
    uploaded: Uploaded,
    feed: Feed,
    /// Pictures being stored, by task; dropping a guard gives one up.
    keeping: HashMap<TaskId, Vec<Guard>>,
    survey: Survey,
    /// What its device has, as of the newest connection.
    memory: Option<Memory>,
    care: Care,
    /// Since when an accepted prompt's status frame is awaited.
    status_owed_since: Option<Timestamp>,
    orphans: Orphans,
    drain: Drain,
    tasks: Tasks,
    ticks: u32,
}

impl Actor for ComfySessionActor {
    type Msg = SessionMsg;
    type State = State;
    type Arguments = SessionArgs;

    async fn pre_start(&self, me: ActorRef<SessionMsg>, args: SessionArgs) -> Result<State, ActorProcessingErr> {
        let SessionArgs { system, backend, comfy } = args;
        let feed = Feed::new(system.board.clone(), system.clock.clone());
        let care = Care::new(system.settings.session.health);
        let mut tasks = Tasks::default();
        tasks.follow(&me, system.slots.queue.watch(), || SessionMsg::QueueIsBack);
        me.send_interval(TICK, || SessionMsg::Tick);
        me.cast(SessionMsg::Dial)?;
        Ok(State {
            phase: Phase::Disconnected { failures: 0, since: system.clock.steady() },
            system,
            backend,
            comfy,
            connections: 0,
            flights: HashMap::new(),
            preparing: HashMap::new(),
            uploaded: Uploaded::default(),
            feed,
            keeping: HashMap::new(),
            survey: Survey::default(),
            memory: None,
            care,
            status_owed_since: None,
            orphans: Orphans::default(),
            drain: Drain::default(),
            tasks,
            ticks: 0,
        })
    }

    async fn handle(
        &self,
        me: ActorRef<SessionMsg>,
        message: SessionMsg,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            SessionMsg::Run { assignment, origin, stretch } => state.on_run(&me, *assignment, origin, stretch),
            SessionMsg::Cancel { id } => state.on_stop(&me, id, Stop::Client),
            SessionMsg::Recall { lanes } => state.on_recall(&me, &lanes),
            SessionMsg::MoveAway => state.on_move_away(&me),
            SessionMsg::Survey { reply } => state.on_survey(&me, reply),
            SessionMsg::Weighed(memory) => state.on_weighed(&me, memory),
            SessionMsg::Surveyed(result) => state.on_surveyed(result),
            SessionMsg::Drop { id, fence } => state.drop_flight(id, fence),
            SessionMsg::Forget { prompt } => state.orphans.forget(prompt),
            SessionMsg::Dial => state.dial(&me),
            SessionMsg::Dialed(result) => state.on_dialed(&me, result),
            SessionMsg::SocketClosed { connection, reason } => state.on_socket_closed(&me, connection, &reason),
            SessionMsg::Heard(word) => state.on_heard(&me, word),
            SessionMsg::FrameKept { id, fence, number, result } => state.on_frame_kept(&me, id, fence, number, *result),
            SessionMsg::Done { id, fence, outcome } => state.on_done(&me, id, fence, outcome),
            SessionMsg::Tested(result) => state.on_tested(&me, result),
            SessionMsg::LoadSeen(result) => state.on_load_seen(&me, result),
            SessionMsg::CalledOut(began) => state.on_called_out(began),
            SessionMsg::Tick => state.on_tick(&me),
            SessionMsg::QueueIsBack => state.tell_demand(&me),
            SessionMsg::OrphansStopped(left) => state.orphans.keep(left),
            SessionMsg::Drain { reply } => state.drain(&me, reply),
        }
        Ok(())
    }
}

/// The flights.
impl State {
    fn on_run(&mut self, me: &ActorRef<SessionMsg>, assignment: Assignment, origin: Origin, stretch: u64) {
        let Assignment { task, graph, options, .. } = assignment;
        let (id, fence) = (task.id, task.fence);
        if self.flights.get(&id).is_some_and(|(flight, _)| flight.task.fence >= fence) {
            return;
        }
        debug!(task.id = %id, task.dispatch = task.dispatch, ?origin, "took on the task");
        let outline = Outline::of(&graph, &options.output);
        let mut flight = Flight::new(task, options, origin, self.now(), &self.system.settings.session);
        flight.frames = Frames::new(!outline.senders.is_empty());
        flight.stretch = stretch;
        let answer = self
            .system
            .posts
            .of(&flight.task)
            .filter(|_| flight.may_be_answered(self.now(), &self.system.settings.session));
        self.feed.follow(flight.prompt(), &flight.task, outline);
        self.flights.insert(id, (flight, graph));
        if let Some(answer) = answer {
            // It was sent by a session that died.
            self.await_answer(me, id, fence, answer);
        }
        if !self.takes_work() || self.drain.has_begun() {
            self.give_back_unsent(me);
        }
        self.advance(me, id);
    }

    fn on_stop(&mut self, me: &ActorRef<SessionMsg>, id: TaskId, stop: Stop) {
        let now = self.now();
        if let Some((flight, _)) = self.flights.get_mut(&id) {
            flight.request_stop(stop, now);
            self.advance(me, id);
        }
    }

    fn on_move_away(&mut self, me: &ActorRef<SessionMsg>) {
        for id in self.flights.keys().copied().collect::<Vec<_>>() {
            self.on_stop(me, id, Stop::Move);
        }
    }

    fn on_recall(&mut self, me: &ActorRef<SessionMsg>, lanes: &Lanes) {
        let fits = |flight: &Flight| flight.is_prepared() && lanes.contains(flight.task.lane);
        let prepared = self.flights.values().filter(|(flight, _)| fits(flight));
        // The one that came last is the least urgent, and the furthest from running.
        if let Some(id) = prepared.map(|(flight, _)| (flight.task.started_at, flight.task.id)).max().map(|(_, id)| id) {
            self.on_stop(me, id, Stop::Recall);
        }
    }

    fn on_heard(&mut self, me: &ActorRef<SessionMsg>, word: Word) {
        let now = self.now();
        let prompt = word.prompt();
        let Some((flight, _)) = self.flights.values_mut().find(|(flight, _)| flight.prompt() == *prompt) else {
            return;
        };
        let id = flight.task.id;
        match word {
            Word::Running(_) => flight.on_running(now),
            Word::Over { written, .. } => {
                let first = flight.occupies_backend();
                flight.on_end_heard(written, now);
                if first {
                    self.tell_ran(id);
                }
            }
            Word::Frame { node, picture, .. } => self.on_frame(me, id, &node, picture),
        }
        self.advance(me, id);
        self.send_next(me);
    }

    /// The backend is free for the next task, though this one is not finished.
    fn tell_ran(&self, id: TaskId) {
        self.system.slots.queue.cast(QueueMsg::Ran { id });
    }

    fn on_done(
        &mut self,
        me: &ActorRef<SessionMsg>,
        id: TaskId,
        fence: Fence,
        outcome: Result<Box<Outcome>, Panicked>,
    ) {
        let now = self.now();
        let settings = &self.system.settings.session;
        let Some((flight, _)) = self.flights.get_mut(&id).filter(|(flight, _)| flight.task.fence == fence) else {
            return;
        };
        let occupied = flight.occupies_backend();
        match outcome.map(|outcome| *outcome) {
            Ok(Outcome::Prepared(result)) => {
                if let Ok(prepared) = &result {
                    self.uploaded.remember(prepared.names.clone());
                }
                flight.on_prepared(result, now, &self.system.settings.uploads, rand::random());
                self.preparing.remove(&id);
            }
            Ok(Outcome::RoomMade) => {
                flight.on_room_made();
                self.preparing.remove(&id);
            }
            Ok(Outcome::Submitted { began, result }) => {
                flight.on_submitted(result, now, settings);
                self.on_posted(me, id, began);
            }
            Ok(Outcome::Looked { began, result }) => flight.on_looked(result, began, now),
            Ok(Outcome::History(result)) => flight.on_history(result, now),
            Ok(Outcome::StopAsked { heard }) => flight.on_stop_asked(heard, now),
            Err(Panicked) => flight.on_interrupted(now, settings),
        }
        if occupied && self.flights.get(&id).is_some_and(|(flight, _)| !flight.occupies_backend()) {
            self.tell_ran(id);
        }
        self.advance(me, id);
        self.send_next(me);
    }

    fn send_next(&mut self, me: &ActorRef<SessionMsg>) {
        if let Some(next) = self.next_to_send() {
            self.advance(me, next);
        }
        self.answer_drain();
    }

    fn next_to_send(&self) -> Option<TaskId> {
        turn::next(self.flights.values().map(|(flight, _)| flight))
    }

    fn on_posted(&mut self, me: &ActorRef<SessionMsg>, id: TaskId, began: Timestamp) {
        let Some((flight, _)) = self.flights.get(&id) else { return };
        if flight.is_stale() {
            self.uploaded.clear();
        } else if flight.task.prompt.as_ref().is_some_and(|prompt| prompt.accepted) {
            self.status_owed_since.get_or_insert(began);
        } else if flight.was_not_sent() && matches!(self.phase, Phase::Online(_)) {
            self.disconnect(me, Loss::Unsent, "a prompt could not be sent");
        }
    }

    fn drop_flight(&mut self, id: TaskId, fence: Fence) {
        if self.flights.get(&id).is_some_and(|(flight, _)| flight.task.fence == fence) && self.remove(id).is_some() {
            warn!(task.id = %id, "the lease is lost; the work on the task stops here");
        }
    }

    fn remove(&mut self, id: TaskId) -> Option<(Flight, std::sync::Arc<str>)> {
        let (flight, graph) = self.flights.remove(&id)?;
        self.keeping.remove(&id);
        self.preparing.remove(&id);
        let mut nodes = self.feed.unfollow(&PromptId::of(id, flight.task.dispatch));
        nodes.extend(self.feed.unfollow(&flight.prompt()));
        self.note_run(id, flight.task.dispatch, nodes, graph.clone());
        Some((flight, graph))
    }

    fn advance_all(&mut self, me: &ActorRef<SessionMsg>) {
        for id in self.flights.keys().copied().collect::<Vec<_>>() {
            self.advance(me, id);
        }
    }

    fn advance(&mut self, me: &ActorRef<SessionMsg>, id: TaskId) {
        let now = self.now();
        let is_next = self.next_to_send() == Some(id);
        let Some((flight, _)) = self.flights.get_mut(&id) else { return };
        let deadline = &self.system.deadline;
        if !deadline.is_open() {
            // Somebody else may hold it by now, and not even a stop would be ours to send.
            return;
        }
        if flight.is_unsent() && !deadline.is_open_since(flight.stretch) {
            // We were frozen since we took it. When it is still ours, giving it back costs nothing.
            return self.settle(me, id, Change::Release(Release::Recalled), None);
        }
        let online = matches!(self.phase, Phase::Online(_)) && !self.drain.has_begun();
        if flight.is_ready() && !is_next {
            return;
        }
        if let Some(word) = self.feed.last_word(&flight.prompt()) {
            flight.on_word(word, &self.system.settings.session);
        }
        let (evidence, sign) = (flight.take_evidence(), flight.take_sign());
        let act = flight.next(now, online, &self.system.settings.session);
        if let Some(prompt) = evidence {
            self.on_accepted(me, id, prompt);
        }
        // Before the end is told: a server that broke gets nothing in its place.
        let was_well = self.is_well();
        if let Some(sign) = sign {
            self.note(me, Event::Ended(sign));
        }
        if let Some(act) = act {
            self.perform(me, id, if was_well { act } else { act.without_blame() });
        }
    }

    fn on_tick(&mut self, me: &ActorRef<SessionMsg>) {
        let now = self.now();
        self.ticks = self.ticks.wrapping_add(1);
        if self.ticks.is_multiple_of(DEMAND_EVERY_TICKS) {
            self.tell_demand(me);
            self.stop_orphans(me);
            let (in_flight, queue_remaining) = (self.flights.len(), self.feed.queue_remaining());
            self.system.board.update_backend(&self.backend, |status| {
                status.in_flight = in_flight;
                status.queue_remaining = queue_remaining;
            });
        }
        self.survey_in_time(me);
        self.check_hearing(me, now);
        self.take_care(me, now);
        self.give_up_if_lost(me, now);
        self.advance_all(me);
        self.forget();
        self.answer_drain();
    }

    /// A backend that stays away gives its tasks up. Only when there is another: else they wait for it, which costs nothing.
    fn give_up_if_lost(&mut self, me: &ActorRef<SessionMsg>, now: Timestamp) {
        let Some(since) = self.phase.offline_since() else { return };
        let patience = self.system.settings.session.backend_lost_after;
        if now.since(since) < patience || self.system.backends.len() < 2 {
            return;
        }
        for id in self.flights.keys().copied().collect::<Vec<_>>() {
            let Some((flight, _)) = self.flights.get(&id) else { continue };
            if let Some(Act::Settle { change, orphan }) = flight.give_up() {
                warn!(task.id = %id, backend = %self.backend, "the backend stays unreachable; the task goes elsewhere");
                self.settle(me, id, change, orphan);
            }
        }
    }

    /// What was not sent need not wait for this backend: another may be free, or another process.
    fn give_back_unsent(&mut self, me: &ActorRef<SessionMsg>) {
        let unsent: Vec<_> =
            self.flights.iter().filter(|(_, (flight, _))| flight.is_unsent()).map(|(id, _)| *id).collect();
        for id in unsent {
            self.settle(me, id, Change::Release(Release::Recalled), None);
        }
    }

    /// Everything in a session is measured: the time of day may be set meanwhile.
    fn now(&self) -> Timestamp {
        self.system.clock.steady()
    }
}
