//! Prompts waiting, running and done: everything a restart forgets.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use serde::Serialize;
use serde_json::Value as Json;
use serde_json::value::RawValue;
use tokio_util::sync::CancellationToken;

use crate::graph::{Graph, Members};
use crate::log::Outcome;
use crate::nodes::expand::{parent, shown};

/// A place in the queue: the counter as an integer, a given number as a float.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(untagged)]
pub(crate) enum Number {
    Counter(i64),
    Given(f64),
}

impl Number {
    fn value(self) -> f64 {
        match self {
            Self::Counter(number) => number as f64,
            Self::Given(number) => number,
        }
    }
}

/// An accepted prompt.
#[derive(Debug)]
pub(crate) struct Prompt {
    pub id: String,
    pub number: Number,
    pub graph: Graph,
    /// The graph as it was sent.
    pub text: Box<RawValue>,
    /// As sent, plus what the server adds, minus the secrets.
    pub extra_data: Members,
    /// Indexes of the output nodes that run.
    pub outputs: Vec<usize>,
    /// Whose socket gets the events.
    pub client_id: Option<String>,
    /// Milliseconds since 1970.
    pub create_time: u64,
    /// `extra_data.comfyd.task`, for the log.
    pub task: Option<String>,
    /// Whether samplers send previews.
    pub previews: bool,
}

impl Prompt {
    fn output_ids(&self) -> Vec<&str> {
        self.outputs.iter().map(|&at| self.graph.nodes[at].id.as_str()).collect()
    }
}

/// The five-part tuple of `/queue` and `/history`.
impl Serialize for Prompt {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        (&self.number, &self.id, &self.text, &self.extra_data, self.output_ids()).serialize(serializer)
    }
}

/// Position in the queue: least number first, then id, then arrival.
#[derive(Debug, Clone, PartialEq)]
struct Key {
    number: f64,
    id: String,
    arrival: u64,
}

impl Eq for Key {}

impl Ord for Key {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.number
            .total_cmp(&other.number)
            .then_with(|| self.id.cmp(&other.id))
            .then_with(|| self.arrival.cmp(&other.arrival))
    }
}

impl PartialOrd for Key {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

/// The prompt the worker has.
#[derive(Debug, Clone)]
pub(crate) struct Running {
    pub prompt: Arc<Prompt>,
    pub interrupt: CancellationToken,
    /// Milliseconds since 1970.
    pub started: u64,
    /// The node last announced by `executing`, told to a client that reconnects.
    pub node: Option<String>,
}

/// What a prompt left behind.
#[derive(Debug)]
pub(crate) struct Record {
    pub prompt: Arc<Prompt>,
    /// Output of each output node that ran, in order of execution.
    pub outputs: Vec<(String, Arc<Json>)>,
    pub outcome: Outcome,
    /// The status frames as they were sent: name and data.
    pub messages: Vec<(&'static str, Json)>,
    /// Milliseconds since 1970.
    pub started: u64,
    /// Milliseconds since 1970.
    pub ended: u64,
}

impl Record {
    pub fn status(&self) -> Json {
        let success = self.outcome == Outcome::Success;
        serde_json::json!({
            "status_str": if success { "success" } else { "error" },
            "completed": success,
            "messages": self.messages,
        })
    }

    pub fn outputs(&self) -> Json {
        Json::Object(self.outputs.iter().map(|(id, output)| (id.clone(), Json::clone(output))).collect())
    }
}

/// An entry of `/history`.
impl Serialize for Record {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Entry<'a> {
            prompt: &'a Prompt,
            outputs: InOrder<'a>,
            status: Json,
            meta: Json,
        }
        struct InOrder<'a>(&'a [(String, Arc<Json>)]);
        impl Serialize for InOrder<'_> {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_map(self.0.iter().map(|(id, output)| (id, &**output)))
            }
        }
        let meta = |id: &String| {
            let outer = shown(id);
            serde_json::json!({"node_id": id, "display_node": outer, "parent_node": parent(id), "real_node_id": outer})
        };
        Entry {
            prompt: &self.prompt,
            outputs: InOrder(&self.outputs),
            status: self.status(),
            meta: Json::Object(self.outputs.iter().map(|(id, _)| (id.clone(), meta(id))).collect()),
        }
        .serialize(serializer)
    }
}

/// The results kept, oldest first.
#[derive(Debug, Default)]
pub(crate) struct History {
    records: HashMap<String, Arc<Record>>,
    order: VecDeque<String>,
}

impl History {
    /// Adds a result. A prompt that ran before keeps its place and gets the new content, as in a Python dict.
    pub fn insert(&mut self, record: Record, capacity: usize) {
        let id = record.prompt.id.clone();
        if self.records.insert(id.clone(), Arc::new(record)).is_none() {
            self.order.push_back(id);
        }
        while self.order.len() > capacity {
            if let Some(oldest) = self.order.pop_front() {
                self.records.remove(&oldest);
            }
        }
    }

    pub fn get(&self, id: &str) -> Option<Arc<Record>> {
        self.records.get(id).cloned()
    }

    pub fn remove(&mut self, id: &str) -> bool {
        let found = self.records.remove(id).is_some();
        if found {
            self.order.retain(|kept| kept != id);
        }
        found
    }

    pub fn clear(&mut self) -> Vec<String> {
        self.records.clear();
        self.order.drain(..).collect()
    }

    /// All results, oldest first.
    pub fn all(&self) -> Vec<Arc<Record>> {
        self.order.iter().filter_map(|id| self.records.get(id).cloned()).collect()
    }
}

/// Everything that dies with the process.
#[derive(Debug, Default)]
pub(crate) struct Jobs {
    counter: i64,
    arrivals: u64,
    pending: BTreeMap<Key, Arc<Prompt>>,
    pub running: Option<Running>,
    pub history: History,
}

impl Jobs {
    /// The number of a request that gives none; counts refused requests too.
    pub fn count(&mut self, front: bool) -> Number {
        let number = self.counter;
        self.counter += 1;
        Number::Counter(if front { -number } else { number })
    }

    /// Queues a prompt. False when an equal (number, id) pair waits already: ComfyUI stumbles over the comparison and answers 500,
    /// yet both are queued.
    pub fn push(&mut self, prompt: Arc<Prompt>) -> bool {
        let number = prompt.number.value();
        let key = Key { number, id: prompt.id.clone(), arrival: self.arrivals };
        self.arrivals += 1;
        let from = Key { arrival: 0, ..key.clone() };
        let tie = self.pending.range(from..=key.clone()).next().is_some();
        self.pending.insert(key, prompt);
        !tie
    }

    /// Moves the first waiting prompt to running.
    pub fn start_next(&mut self, now: u64) -> Option<Running> {
        let (_, prompt) = self.pending.pop_first()?;
        let running = Running { prompt, interrupt: CancellationToken::new(), started: now, node: None };
        self.running = Some(running.clone());
        Some(running)
    }

    pub fn remaining(&self) -> usize {
        self.pending.len() + usize::from(self.running.is_some())
    }

    /// The waiting prompts in the order they will run.
    pub fn pending(&self) -> impl Iterator<Item = &Arc<Prompt>> {
        self.pending.values()
    }

    /// Removes the first waiting prompt with this id, as ComfyUI's delete does.
    pub fn delete(&mut self, id: &str) -> bool {
        let key = self.pending.keys().find(|key| key.id == id).cloned();
        key.is_some_and(|key| self.pending.remove(&key).is_some())
    }

    pub fn clear_pending(&mut self) -> Vec<String> {
        std::mem::take(&mut self.pending).into_keys().map(|key| key.id).collect()
    }

    /// Interrupts what runs: always, or only if it has this id. Tells which prompt was hit.
    pub fn interrupt(&self, id: Option<&str>) -> Option<String> {
        let running = self.running.as_ref()?;
        if id.is_some_and(|id| id != running.prompt.id) {
            return None;
        }
        running.interrupt.cancel();
        Some(running.prompt.id.clone())
    }
}
