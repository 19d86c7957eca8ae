//! What is left on the server of tasks that went on without it, or ended: prompts to be stopped, and histories to be deleted.

use std::collections::VecDeque;

use ractor::ActorRef;
use tracing::debug;

use super::{SessionMsg, State, phase::Phase};
use crate::{
    domain::{id::PromptId, prompt::Sighting},
    ports::comfy::{ComfyTransport, Wanted},
};

/// Beyond this many the oldest are let go: they run for nothing, once, and their histories stay.
const MOST: usize = 1_000;

/// The leftovers. Lost with the process: all they cost is time on the server.
#[derive(Debug, Default)]
pub(super) struct Orphans {
    /// Perhaps there, and nobody wants them.
    unwanted: VecDeque<Wanted>,
    /// Over, with everything taken that is of use.
    read: VecDeque<PromptId>,
}

impl Orphans {
    /// The prompt's end is recorded: its history may go.
    pub(super) fn forget(&mut self, prompt: PromptId) {
        self.read.push_back(prompt);
        trim(&mut self.read);
    }

    /// These could not be stopped: it is tried again.
    pub(super) fn keep(&mut self, left: Vec<Wanted>) {
        self.unwanted.extend(left);
        trim(&mut self.unwanted);
    }
}

fn trim<T>(list: &mut VecDeque<T>) {
    let surplus = list.len().saturating_sub(MOST);
    list.drain(..surplus);
}

impl State {
    /// A task went on without its prompt, which may still be on the server.
    pub(super) fn disown(&mut self, me: &ActorRef<SessionMsg>, orphan: Wanted) {
        self.orphans.keep(vec![orphan]);
        self.stop_orphans(me);
    }

    /// Stops what nobody wants, when the server can be reached.
    pub(super) fn stop_orphans(&mut self, me: &ActorRef<SessionMsg>) {
        if self.orphans.unwanted.is_empty() || !matches!(self.phase, Phase::Online(_)) {
            return;
        }
        let (comfy, orphans) = (self.comfy.clone(), std::mem::take(&mut self.orphans.unwanted));
        let work = async move {
            let mut left = Vec::new();
            for orphan in orphans {
                if !is_stopped(comfy.as_ref(), &orphan).await {
                    left.push(orphan);
                }
            }
            left
        };
        self.tasks.run(me, work, |left| SessionMsg::OrphansStopped(left.unwrap_or_default()));
    }

    /// Lets the server forget what is over.
    pub(super) fn forget(&mut self) {
        if self.orphans.read.is_empty() || !matches!(self.phase, Phase::Online(_)) {
            return;
        }
        let (comfy, prompts) = (self.comfy.clone(), Vec::from(std::mem::take(&mut self.orphans.read)));
        self.tasks.run_unreported(async move {
            if let Err(error) = comfy.forget(&prompts).await {
                debug!(%error, "could not delete finished prompts from the server's history");
            }
        });
    }
}

/// False when the server did not hear of it. Looked for first: a server that gives ids of its own may have it under one we never heard.
async fn is_stopped(comfy: &dyn ComfyTransport, orphan: &Wanted) -> bool {
    match comfy.look(orphan).await {
        Ok(Sighting::Alive { prompt, .. }) => comfy.cancel(&prompt).await.is_ok(),
        Ok(Sighting::Ended(_) | Sighting::Absent) => true,
        Err(_) => false,
    }
}
