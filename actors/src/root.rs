//! RootSupervisor: starts the tree top-down, restarts what dies, drains it bottom-up.
//!
//! - **Owns** the children in start order and a restart budget for each.
//! - **Talks** to nobody but its children; `app` asks it to shut down.
//! - **When a budget is spent** it fails, and the process ends with a status that makes the container restart it. Nothing is lost by that: the
//!   store is the truth, and the next process adopts what runs.
//! - **Must never** do I/O, sleep, or know what a task is.

use std::{sync::Arc, time::Duration};

use futures_util::{FutureExt, future::BoxFuture};
use ractor::{Actor, ActorCell, ActorProcessingErr, ActorRef, SpawnErr, SupervisionEvent};
use tracing::{error, info, warn};

use crate::{
    backends::BackendSupervisor,
    http::{HttpActor, HttpMsg},
    janitor::JanitorActor,
    kit::{
        budget::Decision,
        children::{Children, Exit},
        service::ServiceActor,
        slot::Slot,
        tasks::{Panicked, Tasks},
    },
    queue::{QueueActor, QueueMsg},
    system::System,
    uploads::UploadSupervisor,
    webhooks::{WebhookActor, WebhookArgs, WebhookMsg},
};

/// Beyond a drain's own patience, how long its answer may take before the process stops without it.
const DRAIN_SLACK: Duration = Duration::from_secs(5);

/// What the root hears.
#[derive(Debug)]
pub enum RootMsg {
    /// (Re)start this child.
    Start(&'static str),
    /// Drain and stop the whole tree; the root's own end is the answer.
    Shutdown,
    /// All children are drained.
    Drained(Result<(), Panicked>),
}

/// Starts one child under the root.
type Start = Arc<dyn Fn(ActorCell) -> BoxFuture<'static, Result<ActorCell, SpawnErr>> + Send + Sync>;

struct Child {
    name: &'static str,
    start: Start,
    /// Forgets the child's address.
    clear: Arc<dyn Fn() + Send + Sync>,
}

/// The root.
pub struct RootSupervisor;

/// Its state.
pub struct State {
    system: System,
    plan: Vec<Child>,
    children: Children<&'static str>,
    stopping: bool,
    tasks: Tasks,
}

impl Actor for RootSupervisor {
    type Msg = RootMsg;
    type State = State;
    type Arguments = System;

    async fn pre_start(&self, me: ActorRef<RootMsg>, system: System) -> Result<State, ActorProcessingErr> {
        let plan = start_order(&system);
        for child in &plan {
            me.cast(RootMsg::Start(child.name))?;
        }
        let children = Children::new(system.settings.restarts);
        Ok(State { system, plan, children, stopping: false, tasks: Tasks::default() })
    }

    async fn handle(
        &self,
        me: ActorRef<RootMsg>,
        message: RootMsg,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            RootMsg::Start(name) => state.start(&me, name).await?,
            RootMsg::Shutdown => state.shutdown(&me),
            RootMsg::Drained(result) => state.on_drained(&me, result),
        }
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        me: ActorRef<RootMsg>,
        event: SupervisionEvent,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        match state.children.on_event(&event) {
            Some(exit) if !state.stopping => state.on_exit(&me, exit),
            _ => Ok(()),
        }
    }
}

/// The whole tree, in start order: nobody is served before those it needs are there.
fn start_order(system: &System) -> Vec<Child> {
    let slots = &system.slots;
    let shared = || {
        let system = system.clone();
        move || system.clone()
    };
    let services = system.services.iter().filter_map(|(name, factory)| {
        let (slot, factory) = (slots.services.get(name)?, factory.clone());
        Some(child(name, slot, || ServiceActor, move || factory.clone()))
    });
    let workers = system.role.runs_tasks().then(|| {
        [
            child("uploads", &slots.uploads, || UploadSupervisor, shared()),
            child("backends", &slots.backends, || BackendSupervisor, shared()),
        ]
    });
    let webhooks = system.desk.as_ref().map(|desk| {
        let args = WebhookArgs::of(system, desk);
        child("webhooks", &slots.webhooks, || WebhookActor, move || args.clone())
    });
    services
        .chain([child("queue", &slots.queue, || QueueActor, shared())])
        .chain(workers.into_iter().flatten())
        .chain(webhooks)
        .chain([
            child("janitor", &slots.janitor, || JanitorActor, shared()),
            child("http", &slots.http, || HttpActor, shared()),
        ])
        .collect()
}

/// How to start an actor under the root, as often as it takes, and to keep its address current.
fn child<A: Actor>(
    name: &'static str,
    slot: &Slot<A::Msg>,
    actor: fn() -> A,
    args: impl Fn() -> A::Arguments + Send + Sync + 'static,
) -> Child {
    let (fill, clear) = (slot.clone(), slot.clone());
    let start: Start = Arc::new(move |root| {
        let (fill, args) = (fill.clone(), args());
        async move {
            let (actor, _) = A::spawn_linked(None, actor(), args, root).await?;
            fill.fill(actor.clone());
            Ok(actor.get_cell())
        }
        .boxed()
    });
    Child { name, start, clear: Arc::new(move || clear.empty()) }
}

impl State {
    async fn start(&mut self, me: &ActorRef<RootMsg>, name: &'static str) -> Result<(), ActorProcessingErr> {
        let Some(child) = self.plan.iter().find(|child| child.name == name && !self.stopping) else { return Ok(()) };
        match (child.start)(me.get_cell()).await {
            Ok(cell) => {
                self.children.started(name, &cell);
                Ok(())
            }
            Err(error) => {
                let exit = self.children.failed_to_start(name, error.to_string());
                self.on_exit(me, exit)
            }
        }
    }

    fn on_exit(&mut self, me: &ActorRef<RootMsg>, exit: Exit<&'static str>) -> Result<(), ActorProcessingErr> {
        let Exit { key: name, reason, decision } = exit;
        if let Some(child) = self.plan.iter().find(|child| child.name == name) {
            (child.clear)();
        }
        self.system.board.set_restarts(name, self.children.restarts(&name));
        self.system.metrics.restarted(name);
        match decision {
            Decision::Restart { after } => {
                warn!(actor = name, reason, ?after, "an actor died; restarting it");
                me.send_after(after, move || RootMsg::Start(name));
                Ok(())
            }
            Decision::GiveUp => {
                error!(
                    actor = name,
                    reason, "an actor died too often; the process ends and whoever runs it starts it again"
                );
                Err(format!("{name} died too often, the last time of: {reason}").into())
            }
        }
    }

    /// No new work, then what is held is handed over, then no more requests: somebody answers as long as there is anything to tell.
    fn shutdown(&mut self, me: &ActorRef<RootMsg>) {
        if std::mem::replace(&mut self.stopping, true) {
            return;
        }
        info!("stopping: no new tasks are taken, prompts that run are left to the next process");
        self.system.board.set_draining();
        let system = self.system.clone();
        let work = async move {
            let patience = system.settings.drain + DRAIN_SLACK;
            // An actor that cannot answer is skipped: leases expire, and the store has all that was promised.
            let _ = system.slots.queue.ask(|reply| QueueMsg::Drain { reply }, patience).await;
            // How those ended that were nearly done is told as well.
            let _ = system.slots.webhooks.ask(|reply| WebhookMsg::Drain { reply }, patience).await;
            let _ = system.slots.http.ask(|reply| HttpMsg::Drain { reply }, patience).await;
        };
        self.tasks.run(me, work, RootMsg::Drained);
    }

    fn on_drained(&mut self, me: &ActorRef<RootMsg>, result: Result<(), Panicked>) {
        if result.is_err() {
            error!("draining panicked; stopping without it");
        }
        me.stop(Some("shutdown".to_owned()));
    }
}
