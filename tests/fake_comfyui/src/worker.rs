//! The one worker: takes a prompt from the queue, runs its nodes in ComfyUI's order, tells the sockets, writes history.
//!
//! It waits on events only. A restart ends its task wherever it is, with its cache.

pub(crate) mod cache;
pub(crate) mod step;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value as Json, json};

use crate::fault::Fault;
use crate::frames::{self, Amount, NodeState};
use crate::graph::order::Staging;
use crate::graph::validate::traceback;
use crate::log::{EventKind, Outcome, wall_ms};
use crate::nodes::expand::child;
use crate::nodes::{self, Failure, Product, Stop, Value};
use crate::queue::{Prompt, Record, Running};
use crate::server::Server;
use cache::{Cache, Signature};
use step::Step;

/// Runs prompts until the task is aborted.
pub(crate) async fn work(server: Arc<Server>) {
    let mut cache = Cache::default();
    loop {
        let mut next = next_of(&server).await;
        if next.is_none() {
            server.work_arrived().await;
            next = next_of(&server).await;
        }
        if let Some(running) = next {
            Execution::new(&server, running, &mut cache).run().await;
        }
        // Read only now, as in ComfyUI: a prompt that came right after the wish runs first.
        if let Some(wish) = server.memory.take_wish() {
            if wish.results {
                cache.clear();
            }
            server.log.push(EventKind::Freed { models: wish.models, results: wish.results });
        }
    }
}

/// The next prompt, unless the worker dies before it takes one.
async fn next_of(server: &Server) -> Option<Running> {
    if server.faults.strikes(&Fault::WorkerGone) {
        std::future::pending::<()>().await;
    }
    server.start_next()
}

/// One execution of one prompt.
struct Execution<'a> {
    server: &'a Arc<Server>,
    running: Running,
    cache: &'a mut Cache,
    states: Vec<NodeState>,
    /// What the nodes of this prompt handed on, by node index.
    values: HashMap<usize, Arc<Vec<Value>>>,
    outputs: Vec<(String, Arc<Json>)>,
    executed: Vec<String>,
    messages: Vec<(&'static str, Json)>,
    /// What is left of the configured time of a prompt.
    time_left: Duration,
    gate_passed: bool,
}

/// Why an execution ended before its last node.
struct Halt {
    node: usize,
    stop: Stop,
}

impl Halt {
    fn is_out_of_memory(&self) -> bool {
        matches!(&self.stop, Stop::Failed(failure) if failure.exception_type.ends_with("MemoryError"))
    }
}

impl<'a> Execution<'a> {
    fn new(server: &'a Arc<Server>, running: Running, cache: &'a mut Cache) -> Self {
        Self {
            server,
            running,
            cache,
            states: Vec::new(),
            values: HashMap::new(),
            outputs: Vec::new(),
            executed: Vec::new(),
            messages: Vec::new(),
            time_left: server.node_time(),
            gate_passed: false,
        }
    }

    async fn run(mut self) {
        let prompt = self.running.prompt.clone();
        self.server.log.push(EventKind::Started { prompt_id: prompt.id.clone(), task: prompt.task.clone() });
        self.tell("execution_start", json!({"prompt_id": prompt.id, "timestamp": wall_ms()}));

        let signatures = cache::signatures(&prompt.graph, &self.server.files);
        self.cache.keep_only(&signatures);
        let nodes = prompt.graph.nodes.iter().zip(&signatures);
        let cached: Vec<&str> =
            nodes.filter(|(_, signature)| self.cache.has(signature)).map(|(node, _)| node.id.as_str()).collect();
        self.tell("execution_cached", json!({"nodes": cached, "prompt_id": prompt.id, "timestamp": wall_ms()}));

        let result = self.run_nodes(&prompt, &signatures).await;
        self.server.memory.ran(result.as_ref().is_err_and(Halt::is_out_of_memory));
        let outcome = self.tell_end(&prompt, result);
        self.finish(outcome).await;
    }

    async fn run_nodes(&mut self, prompt: &Arc<Prompt>, signatures: &[Signature]) -> Result<(), Halt> {
        let samples = prompt.graph.nodes.iter().any(|node| node.class.work == nodes::Work::Sample);
        let mut staging = Staging::new(&prompt.graph, &prompt.outputs, |node| self.cache.has(&signatures[node]));
        while let Some(node) = staging.next() {
            if let Some(ui) = self.cache.ui(&signatures[node]) {
                self.replay(prompt, node, ui);
            } else {
                let product =
                    self.run_node(prompt, signatures, node, samples).await.map_err(|stop| Halt { node, stop })?;
                // What is sent is sent anew each time.
                if prompt.graph.nodes[node].class.work != nodes::Work::SendImages {
                    self.cache.insert(signatures[node], product);
                }
            }
            staging.finish(node);
        }
        if !self.gate_passed {
            // Everything came from the cache: the gate stands before the end instead.
            let halt = |stop| Halt { node: prompt.outputs.first().copied().unwrap_or(0), stop };
            self.pass_gate(prompt).await.map_err(halt)?;
        }
        Ok(())
    }

    /// An output node whose result is in the cache: shown again, not run.
    fn replay(&mut self, prompt: &Prompt, node: usize, ui: Option<Arc<Json>>) {
        let id = &prompt.graph.nodes[node].id;
        if let Some(ui) = ui {
            self.show(prompt, id, ui);
        }
        self.states.push(NodeState { id: id.clone(), value: Amount::Steps(1), max: Amount::Steps(1), finished: true });
        self.tell_states(prompt);
        self.executed.push(id.clone());
    }

    async fn run_node(
        &mut self,
        prompt: &Arc<Prompt>,
        signatures: &[Signature],
        at: usize,
        samples: bool,
    ) -> Result<Product, Stop> {
        let node = &prompt.graph.nodes[at];
        let owner = prompt.client_id.as_deref();
        if self.running.interrupt.is_cancelled() {
            return Err(Stop::Interrupted);
        }
        self.states.push(NodeState {
            id: node.id.clone(),
            value: Amount::Part(0.0),
            max: Amount::Part(1.0),
            finished: false,
        });
        self.tell_states(prompt);
        self.server.set_current_node(&node.id);
        self.server.hub.to_owner(owner, || frames::executing(&prompt.id, Some(&node.id)));

        if !self.gate_passed {
            self.pass_gate(prompt).await?;
            if !samples {
                let time = std::mem::take(&mut self.time_left);
                self.wait(time).await?;
            }
        }
        self.suffer().await?;

        let inputs = self.gather(prompt, signatures, at);
        let mut step = Step {
            server: self.server,
            prompt,
            node,
            inputs,
            interrupt: &self.running.interrupt,
            time_left: &mut self.time_left,
            states: &mut self.states,
        };
        let product = nodes::run(node.class.work, &mut step).await?;
        self.run_children(prompt, node, &product);

        self.executed.push(node.id.clone());
        if let Some(ui) = &product.ui {
            self.show(prompt, &node.id, Arc::new(ui.clone()));
        }
        self.finish_state(&node.id);
        self.tell_states(prompt);
        self.values.insert(at, Arc::new(product.values.clone()));
        Ok(product)
    }

    /// The subgraph of a node that expanded. Its work is done already; here its nodes are told of, one after the other.
    fn run_children(&mut self, prompt: &Prompt, node: &crate::graph::Node, product: &Product) {
        for (number, ui) in (1..).zip(&product.children) {
            let id = child(&node.id, number);
            self.states.push(NodeState {
                id: id.clone(),
                value: Amount::Part(0.0),
                max: Amount::Part(1.0),
                finished: false,
            });
            self.tell_states(prompt);
            self.server.hub.to_owner(prompt.client_id.as_deref(), || frames::executing(&prompt.id, Some(&id)));
            if let Some(ui) = ui {
                self.show(prompt, &id, Arc::new(ui.clone()));
            }
            self.finish_state(&id);
            self.tell_states(prompt);
        }
    }

    fn finish_state(&mut self, id: &str) {
        if let Some(state) = self.states.iter_mut().rev().find(|state| state.id == id) {
            state.value = state.max;
            state.finished = true;
        }
    }

    /// The values on the links of a node.
    fn gather(&self, prompt: &Prompt, signatures: &[Signature], at: usize) -> HashMap<String, Value> {
        let mut inputs = HashMap::new();
        for (name, input) in &prompt.graph.nodes[at].inputs {
            let crate::graph::Input::Link { node, slot } = input else {
                continue;
            };
            let values = self.values.get(node).cloned().or_else(|| self.cache.values(&signatures[*node]));
            if let Some(value) = values.and_then(|values| values.get(*slot).cloned()) {
                inputs.insert(name.clone(), value);
            }
        }
        inputs
    }

    async fn pass_gate(&mut self, prompt: &Prompt) -> Result<(), Stop> {
        self.gate_passed = true;
        let server = self.server;
        let passed = server.gate.pass(|| server.log.push(EventKind::Gated { prompt_id: prompt.id.clone() }));
        tokio::select! {
            () = passed => Ok(()),
            () = self.running.interrupt.cancelled() => Err(Stop::Interrupted),
        }
    }

    async fn wait(&self, time: Duration) -> Result<(), Stop> {
        if time.is_zero() {
            return Ok(());
        }
        tokio::select! {
            () = tokio::time::sleep(time) => Ok(()),
            () = self.running.interrupt.cancelled() => Err(Stop::Interrupted),
        }
    }

    /// The scripted faults of a running node.
    async fn suffer(&self) -> Result<(), Stop> {
        let faults = &self.server.faults;
        if faults.strikes(&Fault::DeadWorker) {
            std::future::pending::<()>().await;
        }
        let mut cleared = faults.watch_cleared();
        if faults.strikes(&Fault::Hang) {
            // The sender outlives the worker, so an error cannot come.
            let _ = cleared.changed().await;
        }
        let error = faults.strike(|fault| match fault {
            Fault::NodeError { exception_type, message } => Some(Failure::new(exception_type, message.clone())),
            Fault::OutOfMemory => Some(Failure::out_of_memory()),
            _ => None,
        });
        error.map_or(Ok(()), |failure| Err(failure.into()))
    }

    /// Sends a status message to the owner and keeps it for history.
    fn tell(&mut self, kind: &'static str, data: Json) {
        let owner = self.running.prompt.client_id.as_deref();
        if kind == "execution_interrupted" {
            self.server.hub.to_owner_or_all(owner, || frames::text(kind, &data));
        } else {
            self.server.hub.to_owner(owner, || frames::text(kind, &data));
        }
        self.messages.push((kind, data));
    }

    fn tell_states(&self, prompt: &Prompt) {
        let make = || frames::progress_state(&prompt.id, &self.states);
        self.server.hub.to_owner_or_all(prompt.client_id.as_deref(), make);
    }

    fn show(&mut self, prompt: &Prompt, node: &str, ui: Arc<Json>) {
        self.server.hub.to_owner(prompt.client_id.as_deref(), || frames::executed(&prompt.id, node, &ui));
        self.outputs.push((node.to_owned(), ui));
    }

    fn tell_end(&mut self, prompt: &Prompt, result: Result<(), Halt>) -> Outcome {
        let Err(halt) = result else {
            self.tell("execution_success", json!({"prompt_id": prompt.id, "timestamp": wall_ms()}));
            return Outcome::Success;
        };
        let Some(node) = prompt.graph.nodes.get(halt.node) else {
            return Outcome::Error;
        };
        let mut data = json!({
            "prompt_id": prompt.id,
            "node_id": node.id,
            "node_type": node.class.name,
            "executed": self.executed,
        });
        match halt.stop {
            Stop::Interrupted => {
                data["timestamp"] = json!(wall_ms());
                self.tell("execution_interrupted", data);
                Outcome::Interrupted
            }
            Stop::Failed(failure) => {
                data["exception_message"] = json!(format!("{}\n", failure.message.trim_end_matches('\n')));
                data["exception_type"] = json!(failure.exception_type);
                data["traceback"] = json!(traceback());
                data["current_inputs"] = current_inputs(node);
                // Not what was put out, but every node the cache knows of.
                let nodes: Vec<&str> = prompt.graph.nodes.iter().map(|node| node.id.as_str()).collect();
                data["current_outputs"] = json!(nodes);
                data["timestamp"] = json!(wall_ms());
                self.tell("execution_error", data);
                Outcome::Error
            }
        }
    }

    async fn finish(self, outcome: Outcome) {
        let Self { server, running, outputs, messages, .. } = self;
        let window = server.faults.strike(|fault| match fault {
            Fault::SlowHistory { delay } => Some(*delay),
            _ => None,
        });
        let window = window.unwrap_or(server.config.history_window);
        if !window.is_zero() {
            tokio::time::sleep(window).await;
        }
        let late = server.faults.strike(|fault| match fault {
            Fault::LateHistory { delay } => Some(*delay),
            _ => None,
        });
        let prompt = running.prompt;
        let record =
            Record { prompt: prompt.clone(), outputs, outcome, messages, started: running.started, ended: wall_ms() };
        server.finish(record, late);
        server.hub.to_owner(prompt.client_id.as_deref(), || frames::executing(&prompt.id, None));
    }
}

/// The inputs of a failed node as Python would print them.
fn current_inputs(node: &crate::graph::Node) -> Json {
    let shown = node.inputs.iter().map(|(name, input)| {
        let value = match input {
            crate::graph::Input::Literal(value) => json!([value]),
            _ => json!(["tensor([[[[0.5, 0.5, 0.5]]]])"]),
        };
        (name.clone(), value)
    });
    Json::Object(shown.collect())
}
