//! Asking the server what it can run: when it comes online, on a slow timer, and when a graph was found that nobody can run, because
//! somebody may just have installed what it lacks.

use std::time::Duration;

use ractor::{ActorRef, RpcReplyPort};
use tracing::{debug, info, warn};

use super::{SessionMsg, State, phase::Phase};
use crate::{
    domain::{catalogue::Catalogue, time::Timestamp},
    kit::tasks::Panicked,
    ports::comfy::ComfyError,
};

/// Requests that wait for one answer. More than that get none and go by what is known.
const MAX_WAITING: usize = 1_000;
/// Shortest pause between two questions that nobody waits for: the server stands still for each, and a connection may come and go.
const AGAIN: Duration = Duration::from_secs(5);

/// How far the session is with it.
#[derive(Debug, Default)]
pub struct Survey {
    /// When the server was last asked.
    asked: Option<Timestamp>,
    under_way: bool,
    /// It did not answer, or it may have been started anew since.
    doubtful: bool,
    waiting: Vec<RpcReplyPort<()>>,
}

impl Survey {
    /// A new connection, perhaps to a new process that has something else.
    pub fn doubt(&mut self) {
        self.doubtful = true;
    }
}

impl State {
    /// Somebody misses something: looks again, unless that was done just now.
    pub(super) fn on_survey(&mut self, me: &ActorRef<SessionMsg>, reply: RpcReplyPort<()>) {
        let recheck = self.system.settings.session.nodes_recheck;
        let is_fresh = self.survey.asked.is_some_and(|asked| self.now().since(asked) < recheck);
        if self.survey.waiting.len() < MAX_WAITING && (self.survey.under_way || !is_fresh && self.ask_for_nodes(me)) {
            self.survey.waiting.push(reply);
        } else {
            _ = reply.send(());
        }
    }

    /// Looks again when it is time.
    pub(super) fn survey_in_time(&mut self, me: &ActorRef<SessionMsg>) {
        let pause = if self.survey.doubtful { AGAIN } else { self.system.settings.session.nodes_refresh };
        if self.survey.asked.is_none_or(|asked| self.now().since(asked) >= pause) {
            self.ask_for_nodes(me);
        }
    }

    fn ask_for_nodes(&mut self, me: &ActorRef<SessionMsg>) -> bool {
        let may = self.system.settings.validate && matches!(self.phase, Phase::Online(_));
        if !may || self.survey.under_way {
            return false;
        }
        self.survey.under_way = true;
        self.survey.asked = Some(self.now());
        let comfy = self.comfy.clone();
        self.tasks.run(me, async move { comfy.object_info().await }, SessionMsg::Surveyed);
        true
    }

    pub(super) fn on_surveyed(&mut self, result: Result<Result<Catalogue, ComfyError>, Panicked>) {
        let backend = &self.backend;
        self.survey.under_way = false;
        self.survey.doubtful = !matches!(result, Ok(Ok(_)));
        match result {
            Ok(Ok(catalogue)) => {
                let nodes = catalogue.len();
                debug!(%backend, nodes, "asked the server what it has");
                self.system.catalogues.learn(backend, catalogue);
                let mut first = false;
                self.system.board.update_backend(backend, |status| first = status.nodes.replace(nodes).is_none());
                if first {
                    info!(%backend, nodes, "the server told what it has; graphs are validated for it");
                }
            }
            Ok(Err(error)) => {
                warn!(%backend, %error, "the server did not tell what it has; what was known of it stands");
            }
            Err(panicked) => warn!(%backend, %panicked, "could not read what the server has"),
        }
        for reply in self.survey.waiting.drain(..) {
            _ = reply.send(());
        }
    }
}
