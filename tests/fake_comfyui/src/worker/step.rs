//! What a running node sees of the server: its inputs, its clock, and the way to report progress.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value as Json;
use tokio_util::sync::CancellationToken;

use crate::frames::{self, Amount, NodeState, Preview};
use crate::graph::validate::{float, int};
use crate::graph::{Input, Node};
use crate::log::EventKind;
use crate::nodes::{Failure, Images, Stop, Value};
use crate::queue::Prompt;
use crate::server::Server;

/// One node at work.
pub(crate) struct Step<'a> {
    pub server: &'a Arc<Server>,
    pub prompt: &'a Arc<Prompt>,
    pub node: &'a Node,
    /// The values on the node's links, by input name.
    pub inputs: HashMap<String, Value>,
    pub interrupt: &'a CancellationToken,
    /// What is left of the configured time of this prompt.
    pub time_left: &'a mut Duration,
    /// The `progress_state` lines; the last one is this node's.
    pub states: &'a mut Vec<NodeState>,
}

impl Step<'_> {
    /// An integer input. Validation has seen it, so the fallback only serves inputs that are optional or linked.
    pub fn int(&self, name: &str, fallback: i64) -> i64 {
        self.literal(name).and_then(int).map_or(fallback, |value| i64::try_from(value).unwrap_or(i64::MAX))
    }

    /// An integer input of the whole unsigned range.
    pub fn seed(&self, name: &str) -> u64 {
        self.literal(name).and_then(int).and_then(|value| u64::try_from(value).ok()).unwrap_or(0)
    }

    /// A side of a picture or a count: at least 1, at most `max`.
    pub fn size(&self, name: &str, fallback: u32, max: u32) -> u32 {
        u32::try_from(self.int(name, i64::from(fallback)).clamp(1, i64::from(max))).unwrap_or(max)
    }

    pub fn float(&self, name: &str, fallback: f64) -> f64 {
        self.literal(name).and_then(float).unwrap_or(fallback)
    }

    pub fn flag(&self, name: &str, fallback: bool) -> bool {
        match self.literal(name) {
            Some(Json::Bool(flag)) => *flag,
            Some(value) => float(value).map_or(fallback, |number| number != 0.0),
            None => fallback,
        }
    }

    pub fn text(&self, name: &str) -> String {
        match (self.inputs.get(name), self.literal(name)) {
            (Some(Value::Text(text)), _) => text.to_string(),
            (_, Some(Json::String(text))) => text.clone(),
            (_, Some(other)) => other.to_string(),
            _ => String::new(),
        }
    }

    pub fn images(&self, name: &str) -> Result<Images, Stop> {
        match self.inputs.get(name) {
            Some(Value::Images(images)) => Ok(images.clone()),
            _ => Err(Failure::new("AttributeError", format!("'{name}' object has no attribute 'shape'")).into()),
        }
    }

    /// Reports a step to whoever may see it. The preview is made only if somebody does.
    pub fn report(&mut self, value: u64, max: u64, preview: Option<&Preview>) {
        if let Some(state) = self.states.last_mut() {
            state.value = Amount::Steps(value);
            state.max = Amount::Steps(max);
        }
        let owner = self.prompt.client_id.as_deref();
        if self.server.hub.reaches(owner) {
            self.server.log.push(EventKind::Stepped { prompt_id: self.prompt.id.clone(), value });
            let state = frames::progress_state(&self.prompt.id, self.states);
            let progress = frames::progress(&self.prompt.id, &self.node.id, value, max);
            self.server.hub.step(owner, (&self.prompt.id, &self.node.id), state, progress, preview);
        }
    }

    /// Whether a preview would be seen by anybody.
    pub fn is_watched(&self) -> bool {
        self.server.hub.reaches(self.prompt.client_id.as_deref())
    }

    /// Waits, unless an interrupt comes first. A real node notices the interrupt when its step ends; waiting that long would only
    /// make tests slow.
    pub async fn wait(&self, time: Duration) -> Result<(), Stop> {
        if self.interrupt.is_cancelled() {
            return Err(Stop::Interrupted);
        }
        if time.is_zero() {
            return Ok(());
        }
        tokio::select! {
            () = tokio::time::sleep(time) => Ok(()),
            () = self.interrupt.cancelled() => Err(Stop::Interrupted),
        }
    }

    fn literal(&self, name: &str) -> Option<&Json> {
        match self.node.input(name) {
            Some(Input::Literal(value)) => Some(value),
            _ => None,
        }
    }
}
