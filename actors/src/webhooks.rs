//! WebhookActor: tells receivers outside what happens to tasks, until they have heard it.
//!
//! - **Owns** the messages that this process is sending, nothing else. What is to be sent, when, and how often it failed is the outbox's.
//! - **Talks** to the outbox and to the receivers.
//! - **When it dies** what it was sending counts as lost after a while, and is sent again under the same id; nothing is forgotten.
//! - **Must never** decide what a try means, or send anything that a power cut could undo: both are the outbox's business.

use std::{sync::Arc, time::Duration};

use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort};
use tokio::{
    sync::broadcast::{self, error::RecvError},
    time::Instant,
};
use tracing::{debug, info, warn};

use crate::{
    board::Board,
    domain::{
        time::Timestamp,
        webhook::{Delivery, DeliveryState, Policy, Report},
    },
    kit::tasks::{Panicked, Tasks},
    metrics::Metrics,
    ports::{
        clock::Clock,
        hook_sender::HookSender,
        hook_store::{HookLevels, HookStore},
        store::{Changed, StoreError, TaskStore},
    },
    system::{Desk, Parts},
};

/// The backstop behind every wake-up: another process may have something to tell, or may have died over it.
const LOOK_AT_LEAST_EVERY: Duration = Duration::from_secs(5);
/// What is due and cannot be had is looked for again after this.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// How often what waits is counted, for people.
const COUNT_EVERY: Duration = Duration::from_secs(10);

/// What the actor hears.
#[derive(Debug)]
pub enum WebhookMsg {
    /// Something may be due.
    Look,
    /// What was due is taken.
    Looked(Result<Result<Look, StoreError>, Panicked>),
    /// A try ended: the message as it is now, if anybody knows.
    Sent(Result<Option<Delivery>, Panicked>),
    /// Time to count what waits.
    Count,
    /// It is counted.
    Counted(Result<Result<HookLevels, StoreError>, Panicked>),
    /// Take nothing more; answered when what is on its way has arrived, or not.
    Drain { reply: RpcReplyPort<()> },
}

/// What a look brings.
#[derive(Debug, Default)]
pub struct Look {
    /// To be sent now.
    taken: Vec<Delivery>,
    /// When to look again.
    next: Option<Timestamp>,
}

/// How messages are sent.
#[derive(Debug, Clone, Default)]
pub struct HookSettings {
    /// Messages on their way from this process at the same time.
    pub parallel: u32,
    /// When which is sent.
    pub policy: Policy,
}

/// Start data.
#[derive(Clone)]
pub struct WebhookArgs {
    /// The outbox.
    pub hooks: Arc<dyn HookStore>,
    /// What the messages are about.
    pub tasks: Arc<dyn TaskStore>,
    /// The way to the receivers.
    pub sender: Arc<dyn HookSender>,
    /// The time of day.
    pub clock: Arc<dyn Clock>,
    /// Where people see what waits.
    pub board: Board,
    /// What is counted and timed.
    pub metrics: Metrics,
    /// How to behave.
    pub settings: HookSettings,
}

impl WebhookArgs {
    /// What is there for it in a process.
    #[must_use]
    pub fn of(system: &Parts, desk: &Desk) -> Self {
        Self {
            hooks: desk.hooks.clone(),
            tasks: desk.store.clone(),
            sender: desk.hook_sender.clone(),
            clock: system.clock.clone(),
            board: system.board.clone(),
            metrics: system.metrics.clone(),
            settings: system.settings.webhooks.clone(),
        }
    }
}

/// The actor.
pub struct WebhookActor;

/// Its state.
pub struct State {
    args: WebhookArgs,
    tasks: Tasks,
    /// Messages on their way.
    sending: u32,
    looking: bool,
    /// Something happened during a look, perhaps too late for it.
    look_again: bool,
    /// When the timer for the next look fires.
    look_at: Option<Instant>,
    /// Nothing more is taken.
    stopping: bool,
    /// Who is told when nothing is on its way any more.
    waiting: Vec<RpcReplyPort<()>>,
}

impl Actor for WebhookActor {
    type Msg = WebhookMsg;
    type State = State;
    type Arguments = WebhookArgs;

    async fn pre_start(&self, me: ActorRef<WebhookMsg>, args: WebhookArgs) -> Result<State, ActorProcessingErr> {
        me.send_interval(LOOK_AT_LEAST_EVERY, || WebhookMsg::Look);
        me.send_interval(COUNT_EVERY, || WebhookMsg::Count);
        let changes = args.tasks.changes();
        let mut state = State {
            args,
            tasks: Tasks::default(),
            sending: 0,
            looking: false,
            look_again: false,
            look_at: None,
            stopping: false,
            waiting: Vec::new(),
        };
        state.listen(&me, changes);
        me.cast(WebhookMsg::Look)?;
        me.cast(WebhookMsg::Count)?;
        Ok(state)
    }

    async fn handle(
        &self,
        me: ActorRef<WebhookMsg>,
        message: WebhookMsg,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            WebhookMsg::Look => state.look(&me),
            WebhookMsg::Looked(result) => state.on_looked(&me, result),
            WebhookMsg::Sent(result) => state.on_sent(&me, result),
            WebhookMsg::Count => state.count(&me),
            WebhookMsg::Counted(result) => state.on_counted(result),
            WebhookMsg::Drain { reply } => state.drain(reply),
        }
        Ok(())
    }
}

impl State {
    /// Something to tell is heard of at once.
    fn listen(&mut self, me: &ActorRef<WebhookMsg>, mut changes: broadcast::Receiver<Changed>) {
        let me = me.clone();
        self.tasks.run_unreported(async move {
            loop {
                match changes.recv().await {
                    Ok(changed) if !changed.hooked => {}
                    Ok(_) | Err(RecvError::Lagged(_)) => {
                        if me.cast(WebhookMsg::Look).is_err() {
                            return;
                        }
                    }
                    Err(RecvError::Closed) => return,
                }
            }
        });
    }

    /// Takes what is due, as far as there is room. One look at a time; what comes meanwhile is worth another one.
    fn look(&mut self, me: &ActorRef<WebhookMsg>) {
        let room = self.args.settings.parallel.saturating_sub(self.sending);
        if room == 0 || self.stopping {
            return;
        }
        if std::mem::replace(&mut self.looking, true) {
            self.look_again = true;
            return;
        }
        let args = self.args.clone();
        self.tasks.run(me, async move { take_due(&args, room).await }, WebhookMsg::Looked);
    }

    fn on_looked(&mut self, me: &ActorRef<WebhookMsg>, result: Result<Result<Look, StoreError>, Panicked>) {
        self.looking = false;
        match result.map_err(|panicked| panicked.to_string()).and_then(|look| look.map_err(|error| error.to_string())) {
            Ok(Look { taken, next }) => {
                self.look_again |= !taken.is_empty();
                taken.into_iter().for_each(|delivery| self.send(me, delivery));
                if let Some(at) = next {
                    self.arm(me, at);
                }
            }
            // The next look catches up.
            Err(error) => debug!(error, "could not look for messages to webhooks"),
        }
        if std::mem::take(&mut self.look_again) {
            self.look(me);
        }
        self.answer_drain();
    }

    /// One timer for the earliest due time; a later one is armed when that fired.
    fn arm(&mut self, me: &ActorRef<WebhookMsg>, at: Timestamp) {
        let delay = at.since(self.args.clock.now());
        let delay = if delay.is_zero() { LOOK_AGAIN } else { delay };
        let due = Instant::now() + delay;
        let armed = self.look_at.is_some_and(|armed| armed > Instant::now() && armed <= due);
        if !armed && delay < LOOK_AT_LEAST_EVERY {
            self.look_at = Some(due);
            me.send_after(delay, || WebhookMsg::Look);
        }
    }

    /// Makes one try, beside the mailbox.
    fn send(&mut self, me: &ActorRef<WebhookMsg>, delivery: Delivery) {
        self.sending += 1;
        let args = self.args.clone();
        self.tasks.run(me, async move { try_once(&args, delivery).await }, WebhookMsg::Sent);
    }

    fn on_sent(&mut self, me: &ActorRef<WebhookMsg>, result: Result<Option<Delivery>, Panicked>) {
        self.sending = self.sending.saturating_sub(1);
        match result {
            Ok(Some(delivery)) => self.note(&delivery),
            // It counts as lost after a while, and is sent again.
            Ok(None) => debug!("nobody knows what became of a message to a webhook"),
            Err(panicked) => warn!(%panicked, "failed to send a message to a webhook"),
        }
        self.look(me);
        self.answer_drain();
    }

    fn note(&self, delivery: &Delivery) {
        let Delivery { id, task, state, failures, at, .. } = delivery;
        let result = match state {
            DeliveryState::Delivered => "delivered",
            DeliveryState::Failed => "given_up",
            DeliveryState::Pending => "failed",
        };
        let last = delivery.tries.last();
        let (status, error) = (last.and_then(|last| last.status), last.and_then(|last| last.error.as_deref()));
        match state {
            DeliveryState::Delivered => debug!(delivery = id, task.id = %task, "a webhook has its message"),
            DeliveryState::Pending => {
                info!(delivery = id, task.id = %task, status, error, failures, "a webhook did not take its message; it is sent again");
            }
            DeliveryState::Failed => {
                warn!(delivery = id, task.id = %task, status, error, failures, "a message to a webhook is given up; it can be redelivered");
            }
        }
        let ended = last.map(|last| last.at.after(Duration::from_millis(last.ms.unsigned_abs())));
        self.args.metrics.hook_tried(result, ended.map_or(Duration::ZERO, |ended| ended.since(*at)));
    }

    fn count(&mut self, me: &ActorRef<WebhookMsg>) {
        let hooks = self.args.hooks.clone();
        self.tasks.run(me, async move { hooks.levels().await }, WebhookMsg::Counted);
    }

    fn on_counted(&self, result: Result<Result<HookLevels, StoreError>, Panicked>) {
        if let Ok(Ok(levels)) = result {
            self.args.board.set_webhooks(levels);
        }
    }

    fn drain(&mut self, reply: RpcReplyPort<()>) {
        self.stopping = true;
        self.waiting.push(reply);
        self.answer_drain();
    }

    fn answer_drain(&mut self) {
        if self.sending == 0 && !self.looking {
            self.waiting.drain(..).for_each(|reply| _ = reply.send(()));
        }
    }
}

/// Most of the time there is nothing to take, and a read costs others nothing.
async fn take_due(args: &WebhookArgs, room: u32) -> Result<Look, StoreError> {
    let next = args.hooks.next_due().await?;
    if next.is_none_or(|at| at > args.clock.now()) {
        return Ok(Look { taken: Vec::new(), next });
    }
    let taken = args.hooks.take(room, &args.settings.policy).await?;
    let next = if taken.is_empty() { args.hooks.next_due().await? } else { None };
    Ok(Look { taken, next })
}

/// Sends a message and notes what came of it. `None`: it was taken by somebody else, or the store is away.
async fn try_once(args: &WebhookArgs, delivery: Delivery) -> Option<Delivery> {
    let record = args.tasks.get(delivery.task).await.ok()?;
    let (at, begun) = (args.clock.now(), args.clock.steady());
    let answer = args.sender.send(&delivery, &record).await;
    let report = Report { at, took: args.clock.steady().since(begun), answer, draw: rand::random() };
    args.hooks.settle(delivery.id, delivery.turn, report, &args.settings.policy).await.ok()?
}

#[cfg(test)]
#[cfg(feature = "testing")]
mod tests;
