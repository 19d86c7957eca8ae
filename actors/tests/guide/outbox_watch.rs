//! Says when a webhook has not heard for an hour, so that somebody looks before its messages are given up.
//!
//! Owns nothing · nobody talks to it · when it dies, the next one counts anew · it must never send or settle a message.

use std::{sync::Arc, time::Duration};

use comfyd_actors::{
    kit::tasks::{Panicked, Tasks},
    ports::{
        clock::Clock,
        hook_store::{HookLevels, HookStore},
        store::StoreError,
    },
};
use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::sync::watch;

/// Rare enough to cost nothing, often enough for a person.
const EVERY: Duration = Duration::from_secs(60);
/// Four tries of the usual schedule: this is no hiccup any more.
const OVERDUE: Duration = Duration::from_secs(3600);

#[derive(Debug)]
pub enum OutboxWatchMsg {
    /// Time to count.
    Tick,
    /// It is counted, or counting panicked.
    Counted(Result<Result<HookLevels, StoreError>, Panicked>),
}

#[derive(Clone)]
pub struct OutboxWatchArgs {
    pub hooks: Arc<dyn HookStore>,
    pub clock: Arc<dyn Clock>,
    /// Whether something is overdue, for whoever wants to see it.
    pub overdue: watch::Sender<bool>,
}

pub struct OutboxWatchActor;

pub struct State {
    args: OutboxWatchArgs,
    tasks: Tasks,
}

impl Actor for OutboxWatchActor {
    type Msg = OutboxWatchMsg;
    type State = State;
    type Arguments = OutboxWatchArgs;

    async fn pre_start(
        &self,
        me: ActorRef<OutboxWatchMsg>,
        args: OutboxWatchArgs,
    ) -> Result<State, ActorProcessingErr> {
        me.send_interval(EVERY, || OutboxWatchMsg::Tick);
        me.cast(OutboxWatchMsg::Tick)?;
        Ok(State { args, tasks: Tasks::default() })
    }

    async fn handle(
        &self,
        me: ActorRef<OutboxWatchMsg>,
        message: OutboxWatchMsg,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            OutboxWatchMsg::Tick => state.count(&me),
            OutboxWatchMsg::Counted(outcome) => state.on_counted(outcome),
        }
        Ok(())
    }
}

impl State {
    /// Counts beside the mailbox. Exactly one `Counted` comes back.
    fn count(&mut self, me: &ActorRef<OutboxWatchMsg>) {
        let hooks = Arc::clone(&self.args.hooks);
        self.tasks.run(me, async move { hooks.levels().await }, OutboxWatchMsg::Counted);
    }

    fn on_counted(&self, outcome: Result<Result<HookLevels, StoreError>, Panicked>) {
        let levels = match outcome {
            Ok(Ok(levels)) => levels,
            // An outage is no crash: the next tick catches up.
            Ok(Err(error)) => return tracing::debug!(%error, "could not count what waits for webhooks"),
            Err(panicked) => return tracing::error!(%panicked, "could not count what waits for webhooks"),
        };
        let overdue = levels.oldest.is_some_and(|oldest| self.args.clock.now().since(oldest) > OVERDUE);
        if self.args.overdue.send_replace(overdue) != overdue {
            tracing::warn!(overdue, messages = levels.pending, "a webhook has not heard for an hour, or has again");
        }
    }
}
