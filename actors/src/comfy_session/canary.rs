//! The canary: a prompt of sixteen by sixteen pixels whose only purpose is to be run.
//!
//! `GET` answers of a server whose worker is dead, or whose GPU context is broken, look as always. So a server that is in doubt has to
//! execute something before it is given a task: a picture is made, blurred (the smallest work that ComfyUI does on its GPU without any
//! model) and shown. Its colour is drawn, else a server would answer from its cache without running anything.

use std::{sync::Arc, time::Duration};

use serde_json::json;
use tokio::time::{Instant, sleep};

use crate::{
    domain::{
        health::{Event, Limits},
        id::{ClientId, PromptId, TaskId},
        prompt::{Outcome, Sighting},
    },
    ports::comfy::{ComfyTransport, Submission, SubmitError, Wanted},
};

/// First and longest pause between two looks: it runs within milliseconds where all is well.
const LOOKS: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));

/// A canary and who waits for it.
pub(super) struct Canary {
    submission: Submission,
}

impl Canary {
    /// One that nobody sent before. `draw` is its colour.
    pub(super) fn new(client: ClientId, draw: u32) -> Self {
        let task = TaskId::new();
        let graph = json!({
            "1": {"class_type": "EmptyImage", "inputs": {"width": 16, "height": 16, "batch_size": 1, "color": draw & 0xFF_FFFF}},
            "2": {"class_type": "ImageBlur", "inputs": {"image": ["1", 0], "blur_radius": 1, "sigma": 1.0}},
            "3": {"class_type": "PreviewImage", "inputs": {"images": ["2", 0]}},
        });
        let graph: Arc<str> = graph.to_string().into();
        Self {
            submission: Submission { task, dispatch: 1, prompt: PromptId::of(task, 1), client, graph, previews: false },
        }
    }

    /// What the server knows it by.
    pub(super) fn wanted(&self) -> Wanted {
        let Submission { task, dispatch, prompt, .. } = self.submission.clone();
        Wanted { prompt, task, dispatch }
    }

    /// Sends it and waits until it ran or did not. It may take as long as `limits.canary` without anything moving: waiting behind
    /// somebody else's prompts is not its fault as long as those come and go.
    pub(super) async fn run(self, comfy: &dyn ComfyTransport, limits: Limits) -> Event {
        let mut wanted = self.wanted();
        match comfy.submit(&self.submission).await {
            Ok(receipt) => wanted.prompt = receipt.prompt,
            Err(SubmitError::NotSent(why)) => return Event::Unreachable(why),
            // Without its nodes nothing can be tried; then a task has to be the test.
            Err(SubmitError::Refused { message, .. }) => {
                tracing::warn!(backend = %comfy.id(), message, "the server refuses the test prompt; a task will be its test");
                return Event::Passed;
            }
            Err(SubmitError::Failed(_) | SubmitError::Unknown(_)) => {}
        }
        let event = Self::follow(comfy, &wanted, limits).await;
        if event != Event::Passed {
            // It must not run later, when nobody waits for it. A server that does not hear this forgets it with its restart.
            _ = comfy.cancel(&wanted.prompt).await;
        }
        event
    }

    /// Sends it and takes it back at once; tells whether the server had it.
    pub(super) async fn call_out(self, comfy: &dyn ComfyTransport) -> bool {
        let Ok(receipt) = comfy.submit(&self.submission).await else { return false };
        _ = comfy.cancel(&receipt.prompt).await;
        true
    }

    async fn follow(comfy: &dyn ComfyTransport, wanted: &Wanted, limits: Limits) -> Event {
        let (mut pause, longest) = LOOKS;
        let (mut moved_at, mut before) = (Instant::now(), None);
        loop {
            sleep(pause).await;
            pause = (pause * 2).min(longest);
            let seen = match comfy.look(wanted).await {
                Ok(Sighting::Ended(finished)) => return verdict(finished.outcome),
                Ok(Sighting::Alive { running: true, .. }) => Some(vec![wanted.prompt.clone()]),
                // How many wait says nothing: others go on sending to a dead server too.
                Ok(Sighting::Alive { running: false, .. }) => {
                    comfy.load().await.map_or_else(|_| before.clone(), |load| Some(load.running))
                }
                // Its history may be late, or the answer to its POST was lost with it.
                Ok(Sighting::Absent) | Err(_) => before.clone(),
            };
            if seen != before {
                (moved_at, before) = (Instant::now(), seen);
            }
            if moved_at.elapsed() >= limits.canary {
                let limit = humantime::format_duration(limits.canary);
                return Event::Failed(format!("a test prompt was not executed within {limit}"));
            }
        }
    }
}

fn verdict(outcome: Outcome) -> Event {
    match outcome {
        Outcome::Success => Event::Passed,
        Outcome::Failed(error) => Event::Failed(format!("a test prompt failed there: {}", error.message)),
        Outcome::Interrupted => Event::Failed("somebody interrupted the test prompt".to_owned()),
    }
}
