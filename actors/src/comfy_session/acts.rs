//! Doing what a flight says: questions and wishes to the server, and what is told to the queue, the uploads and the store.

use std::{collections::HashMap, sync::Arc};

use ractor::ActorRef;
use tracing::debug;

use super::{Outcome, SessionMsg, State, flight::Act, frames::Outline, prepare::Preparation, room};
use crate::{
    domain::{
        artifact::Artifact,
        id::{ClientId, PromptId, TaskId},
        progress::NodeTiming,
        task::{Change, Fence, Refusal},
    },
    kit::tasks::Panicked,
    ports::{
        comfy::{Submission, Wanted},
        store::{Assignment, StoreError},
    },
    posts::{Answer, Awaited},
    queue::QueueMsg,
    uploads::UploadsMsg,
};

impl State {
    pub(super) fn perform(&mut self, me: &ActorRef<SessionMsg>, id: TaskId, act: Act) {
        let Some((flight, graph)) = self.flights.get(&id) else { return };
        let (comfy, began, fence) = (self.comfy.clone(), self.now(), flight.task.fence);
        if matches!(act, Act::Look(_) | Act::ReadHistory(_)) && flight.awaits_word() {
            self.system.metrics.silent(&self.backend);
        }
        let done =
            move |outcome: Result<Outcome, Panicked>| SessionMsg::Done { id, fence, outcome: outcome.map(Box::new) };
        match act {
            Act::Prepare => {
                let (feed, prompt) = (self.feed.clone(), flight.prompt());
                let preparation = Preparation {
                    system: self.system.clone(),
                    comfy,
                    task: id,
                    graph: graph.clone(),
                    options: flight.options.clone(),
                    known: self.uploaded.known(&flight.options.files),
                    report: move |sent, total| feed.handing_over(&prompt, sent, total),
                };
                let work = async move { Outcome::Prepared(preparation.run().await) };
                let guard = self.tasks.run_abortable(me, work, done);
                self.preparing.insert(id, guard);
            }
            Act::MakeRoom => {
                let patience = self.system.settings.session.free_wait;
                debug!(task.id = %id, backend = %self.backend, "freeing the server's memory for the task");
                let work = async move {
                    room::make(&*comfy, patience).await;
                    Outcome::RoomMade
                };
                let guard = self.tasks.run_abortable(me, work, done);
                self.preparing.insert(id, guard);
            }
            Act::Submit => {
                let client = self.phase.client().cloned().unwrap_or_else(|| ClientId::new(""));
                let (prompt, dispatch) = (flight.prompt(), flight.task.dispatch);
                let graph = flight.graph().unwrap_or_else(|| graph.clone());
                let previews = flight.options.previews || self.system.settings.session.previews;
                let submission = Submission { task: id, dispatch, prompt, client, graph, previews };
                let post = async move { comfy.submit(&submission).await };
                let answer = self.system.posts.begin(&flight.task, began, post);
                self.await_answer(me, id, fence, answer);
            }
            Act::Look(wanted) => {
                let work = async move { Outcome::Looked { began, result: comfy.look(&wanted).await } };
                self.tasks.run(me, work, done);
            }
            Act::ReadHistory(prompt) => {
                let work = async move { Outcome::History(comfy.history(&prompt).await) };
                self.tasks.run(me, work, done);
            }
            Act::Stop(prompt) => {
                let work = async move { Outcome::StopAsked { heard: comfy.cancel(&prompt).await.is_ok() } };
                self.tasks.run(me, work, done);
            }
            Act::Withdraw(prompt) => {
                let work = async move { Outcome::StopAsked { heard: comfy.withdraw(&prompt).await.is_ok() } };
                self.tasks.run(me, work, done);
            }
            Act::Plan(artifacts) => self.hand_to_uploads(id, artifacts),
            Act::Settle { change, orphan } => {
                self.on_stopped(me, id, orphan.is_some());
                self.settle(me, id, change, orphan);
            }
        }
    }

    pub(super) fn await_answer(&mut self, me: &ActorRef<SessionMsg>, id: TaskId, fence: Fence, answer: Awaited) {
        let outcome = |Answer { began, result }| result.map(|result| Box::new(Outcome::Submitted { began, result }));
        let report = move |answered: Result<Answer, Panicked>| SessionMsg::Done {
            id,
            fence,
            outcome: answered.and_then(outcome),
        };
        self.tasks.run(me, answer, report);
    }

    pub(super) fn settle(&mut self, me: &ActorRef<SessionMsg>, id: TaskId, change: Change, orphan: Option<PromptId>) {
        let Some((flight, _)) = self.remove(id) else { return };
        if let Some(prompt) = orphan {
            self.disown(me, Wanted { prompt, task: id, dispatch: flight.task.dispatch });
        }
        let (fence, prompt) = (flight.task.fence, flight.prompt());
        self.system.slots.queue.cast(QueueMsg::Settle { id, fence, change: Box::new(change), prompt: Some(prompt) });
    }

    /// The server has it, whether it said so or was seen or heard to.
    pub(super) fn on_accepted(&mut self, me: &ActorRef<SessionMsg>, id: TaskId, prompt: PromptId) {
        let Some((flight, graph)) = self.flights.get(&id) else { return };
        if prompt != PromptId::of(id, flight.task.dispatch) {
            self.feed.follow(prompt.clone(), &flight.task, Outline::of(graph, &flight.options.output));
        }
        self.record_acceptance(me, id, flight.task.fence, prompt);
    }

    /// Evidence, after the effect. Nobody waits for it: losing it costs a look at the server.
    fn record_acceptance(&mut self, me: &ActorRef<SessionMsg>, id: TaskId, fence: Fence, prompt: PromptId) {
        let (source, me) = (self.system.source.clone(), me.clone());
        self.tasks.run_unreported(async move {
            let change = Change::Accept { prompt };
            if let Err(StoreError::Refused(Refusal::Stale)) = source.apply(id, fence, change).await {
                let _ = me.cast(SessionMsg::Drop { id, fence });
            }
        });
    }

    /// Its files are stored while the plan is being recorded: nobody waits for that evidence, because without it a successor finds the
    /// prompt in the server's history and stores the same files under the same keys.
    fn hand_to_uploads(&mut self, id: TaskId, artifacts: Vec<Artifact>) {
        let Some((flight, graph)) = self.remove(id) else { return };
        let (task, options) = (flight.task, flight.options);
        let plan = Change::Plan { artifacts: artifacts.clone() };
        let (source, fence) = (self.system.source.clone(), task.fence);
        self.system.slots.queue.cast(QueueMsg::Uploading { id });
        let assignment = Box::new(Assignment { task, graph, options, artifacts });
        self.system.slots.uploads.cast(UploadsMsg::Begin { assignment });
        // Should the lease be lost, the record of the end is refused as well.
        self.tasks.run_unreported(async move { _ = source.apply(id, fence, plan).await });
    }

    /// A picture for people, so nobody waits for it: what each node took.
    pub(super) fn note_run(&mut self, id: TaskId, dispatch: i64, mut nodes: Vec<NodeTiming>, graph: Arc<str>) {
        if nodes.is_empty() {
            return;
        }
        let source = self.system.source.clone();
        self.tasks.run_unreported(async move {
            name_classes(&mut nodes, &graph);
            if let Err(error) = source.note_run(id, dispatch, nodes).await {
                debug!(task.id = %id, %error, "could not note what each node took");
            }
        });
    }
}

/// Fills in the classes of nodes that the graph knows.
fn name_classes(nodes: &mut [NodeTiming], graph: &str) {
    let mut classes = classes(graph);
    for node in nodes {
        node.class_type = classes.remove(&node.node_id);
    }
}

/// The class of a node, if the graph has it.
pub(super) fn class_of(graph: &str, node: &str) -> Option<String> {
    classes(graph).remove(node)
}

fn classes(graph: &str) -> HashMap<String, String> {
    #[derive(serde::Deserialize)]
    struct Node {
        class_type: String,
    }
    let nodes: HashMap<String, Node> = serde_json::from_str(graph).unwrap_or_default();
    nodes.into_iter().map(|(id, node)| (id, node.class_type)).collect()
}
