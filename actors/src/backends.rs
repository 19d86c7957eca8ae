//! BackendSupervisor: one session per ComfyUI server, each with a restart budget of its own.
//!
//! A session that spends its budget is quarantined, and the others go on: one odd server must not take the service down. Supervises and
//! does nothing else.

use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef, SupervisionEvent};
use tracing::{error, warn};

use crate::{
    board::PhaseName,
    comfy_session::{ComfySessionActor, SessionArgs},
    domain::id::BackendId,
    kit::{
        budget::Decision,
        children::{Children, Exit},
    },
    system::System,
};

/// What the supervisor hears.
#[derive(Debug)]
pub enum BackendsMsg {
    /// (Re)start this session.
    Start(BackendId),
    /// Its quarantine is over.
    Pardon(BackendId),
}

/// The supervisor of the sessions.
pub struct BackendSupervisor;

/// Its state.
pub struct State {
    system: System,
    children: Children<BackendId>,
}

impl Actor for BackendSupervisor {
    type Msg = BackendsMsg;
    type State = State;
    type Arguments = System;

    async fn pre_start(&self, me: ActorRef<BackendsMsg>, system: System) -> Result<State, ActorProcessingErr> {
        for backend in system.backends.keys() {
            me.cast(BackendsMsg::Start(backend.clone()))?;
        }
        let children = Children::new(system.settings.restarts);
        Ok(State { system, children })
    }

    async fn handle(
        &self,
        me: ActorRef<BackendsMsg>,
        message: BackendsMsg,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            BackendsMsg::Start(backend) => state.start(&me, backend).await,
            BackendsMsg::Pardon(backend) => state.pardon(&me, backend).await,
        }
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        me: ActorRef<BackendsMsg>,
        event: SupervisionEvent,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        if let Some(exit) = state.children.on_event(&event) {
            state.on_exit(&me, exit);
        }
        Ok(())
    }
}

impl State {
    async fn start(&mut self, me: &ActorRef<BackendsMsg>, backend: BackendId) {
        let Some(comfy) = self.system.backends.get(&backend).cloned() else { return };
        let args = SessionArgs { system: self.system.clone(), backend: backend.clone(), comfy };
        match ComfySessionActor::spawn_linked(None, ComfySessionActor, args, me.get_cell()).await {
            Ok((session, _)) => {
                self.children.started(backend.clone(), &session.get_cell());
                if let Some(slot) = self.system.slots.sessions.get(&backend) {
                    slot.fill(session);
                }
            }
            Err(error) => {
                let exit = self.children.failed_to_start(backend, error.to_string());
                self.on_exit(me, exit);
            }
        }
    }

    fn on_exit(&mut self, me: &ActorRef<BackendsMsg>, exit: Exit<BackendId>) {
        let Exit { key: backend, reason, decision } = exit;
        if let Some(slot) = self.system.slots.sessions.get(&backend) {
            slot.empty();
        }
        let name = format!("session {backend}");
        self.system.board.set_restarts(&name, self.children.restarts(&backend));
        self.system.metrics.restarted(&name);
        match decision {
            Decision::Restart { after } => {
                warn!(%backend, reason, ?after, "a session died; restarting it");
                self.system.board.update_backend(&backend, |status| {
                    status.phase = PhaseName::Disconnected;
                    status.problem = Some(format!("its session died: {reason}"));
                });
                me.send_after(after, move || BackendsMsg::Start(backend));
            }
            Decision::GiveUp => self.quarantine(me, backend, &reason),
        }
    }

    fn quarantine(&self, me: &ActorRef<BackendsMsg>, backend: BackendId, reason: &str) {
        let quarantine: Duration = self.system.settings.quarantine;
        error!(%backend, reason, ?quarantine, "a session died too often; its backend is left alone for a while");
        self.system.board.update_backend(&backend, |status| {
            status.phase = PhaseName::Quarantined;
            status.problem = Some(format!("its session died too often, the last time of: {reason}"));
        });
        me.send_after(quarantine, move || BackendsMsg::Pardon(backend));
    }

    async fn pardon(&mut self, me: &ActorRef<BackendsMsg>, backend: BackendId) {
        self.children.pardon(backend.clone());
        self.start(me, backend).await;
    }
}
