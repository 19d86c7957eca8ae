//! The in-process handle: the same operations as the control endpoint, typed.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::fault::{Fault, Injection};
use crate::log::{Event, EventKind, IdleTime};
use crate::server::Server;

/// Scripts a running fake server and reads what it did. Cheap to clone; holding one does not keep the server up.
#[derive(Debug, Clone)]
pub struct Control {
    server: Arc<Server>,
}

impl Control {
    pub(crate) fn new(server: Arc<Server>) -> Self {
        Self { server }
    }

    /// Puts a fault in force until it is cleared, or plays it if it acts at once. When this returns, the fault is there.
    ///
    /// # Errors
    ///
    /// Restarting can fail to take the address again.
    pub async fn inject(&self, fault: Fault) -> io::Result<()> {
        self.server.inject(Injection { fault, times: None }, None).await
    }

    /// Puts a fault in force for the next `times` occasions.
    ///
    /// # Errors
    ///
    /// As [`Self::inject`].
    pub async fn inject_times(&self, fault: Fault, times: u32) -> io::Result<()> {
        self.server.inject(Injection { fault, times: Some(times) }, None).await
    }

    /// Ends every fault in force and lets hanging nodes go on. What happened already stays so: cut sockets stay cut, a dead worker
    /// dead, a killed server down, a changed generation changed.
    pub fn clear(&self) {
        self.server.faults.clear();
    }

    /// The faults in force.
    pub fn faults(&self) -> Vec<Injection> {
        self.server.faults.active()
    }

    /// From now on every prompt waits inside its first node (`Gated` in the log) until [`Self::step`] or [`Self::resume`]. An
    /// interrupt ends the wait too.
    pub fn pause_execution(&self) {
        self.server.gate.close();
    }

    /// Lets one prompt through the gate: the one that waits, else the next that comes.
    pub fn step(&self) {
        self.server.gate.admit(1);
    }

    /// Opens the gate.
    pub fn resume(&self) {
        self.server.gate.open();
    }

    /// Changes the time of a prompt, for prompts that start from now on.
    pub fn set_node_time(&self, node_time: Duration) {
        self.server.set_node_time(node_time);
    }

    /// Changes the names `CheckpointLoaderSimple` offers, as if somebody had put models into the folder or taken them out.
    pub fn set_checkpoints(&self, names: &[&str]) {
        self.server.set_checkpoints(names.iter().map(|name| (*name).to_owned()).collect());
    }

    /// The events kept.
    pub fn log(&self) -> Vec<Event> {
        self.server.log.since(0)
    }

    /// The events kept from a position on.
    pub fn log_since(&self, position: u64) -> Vec<Event> {
        self.server.log.since(position)
    }

    /// The position the next event will get: take it before acting, wait from it after.
    pub fn position(&self) -> u64 {
        self.server.log.position()
    }

    /// Waits for an event, past ones included. The caller sets the limit:
    /// `tokio::time::timeout(limit, control.wait_for(...))`.
    pub async fn wait_for(&self, wanted: impl Fn(&EventKind) -> bool) -> Event {
        self.wait_from(0, wanted).await
    }

    /// Waits for an event at or after a position.
    pub async fn wait_from(&self, position: u64, wanted: impl Fn(&EventKind) -> bool) -> Event {
        self.server.log.wait_from(position, |event| wanted(&event.kind)).await
    }

    /// How often this prompt was started, as far as the log goes back.
    pub fn executions(&self, prompt_id: &str) -> usize {
        let started =
            |event: &Event| matches!(&event.kind, EventKind::Started { prompt_id: id, .. } if id == prompt_id);
        self.log().iter().filter(|event| started(event)).count()
    }

    /// How often prompts of this task were started, as far as the log goes back.
    pub fn executions_of_task(&self, task: &str) -> usize {
        let started = |event: &Event| matches!(&event.kind, EventKind::Started { task: Some(of), .. } if of == task);
        self.log().iter().filter(|event| started(event)).count()
    }

    /// Prompts started since the server was made.
    pub fn total_executions(&self) -> u64 {
        self.server.log.total_executions()
    }

    /// How long the worker was idle between its first start and its last finish since the last reset.
    pub fn idle_time(&self) -> IdleTime {
        self.server.log.idle_time()
    }

    /// Starts the count of idle time again.
    pub fn reset_idle_time(&self) {
        self.server.log.reset_idle_time();
    }

    /// Forgets the events kept; positions go on.
    pub fn clear_log(&self) {
        self.server.log.clear();
    }

    /// Deletes a stored file behind the server's back; tells whether it was there.
    pub fn delete_file(&self, folder: crate::Folder, subfolder: &str, filename: &str) -> bool {
        let place = crate::files::Place { folder, subfolder: subfolder.to_owned(), filename: filename.to_owned() };
        self.server.files.delete(&place)
    }
}

/// A body of `POST /fake/control`: any of these fields, played in this order.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Order {
    /// `true` clears the faults in force.
    pub clear: bool,
    /// `true` closes the gate.
    pub pause: bool,
    /// Lets this many prompts through the gate.
    pub step: u64,
    /// `true` opens the gate.
    pub resume: bool,
    /// Changes the time of a prompt, in milliseconds.
    pub node_time_ms: Option<u64>,
    pub reset_idle_time: bool,
    pub clear_log: bool,
    /// A fault, with its own fields and `times` beside it.
    #[serde(skip)]
    pub injection: Option<Injection>,
}

impl Order {
    /// Reads a body; the error is the text of the 400.
    pub fn parse(body: &[u8]) -> Result<Self, String> {
        let value: serde_json::Value = serde_json::from_slice(body).map_err(|error| error.to_string())?;
        let injection = match value.get("fault") {
            Some(_) => Some(serde_json::from_value(value.clone()).map_err(|error| error.to_string())?),
            None => None,
        };
        let order: Self = serde_json::from_value(value).map_err(|error| error.to_string())?;
        Ok(Self { injection, ..order })
    }

    pub async fn play(self, server: &Arc<Server>, asking: Option<u64>) -> io::Result<()> {
        if self.clear {
            server.faults.clear();
        }
        if self.pause {
            server.gate.close();
        }
        if self.step > 0 {
            server.gate.admit(self.step);
        }
        if self.resume {
            server.gate.open();
        }
        if let Some(millis) = self.node_time_ms {
            server.set_node_time(Duration::from_millis(millis));
        }
        if self.reset_idle_time {
            server.log.reset_idle_time();
        }
        if self.clear_log {
            server.log.clear();
        }
        match self.injection {
            Some(injection) => server.inject(injection, asking).await,
            None => Ok(()),
        }
    }
}
