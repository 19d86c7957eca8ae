//! A ComfyUI server that is not one: it speaks the recorded protocol of ComfyUI over HTTP and WebSocket, runs a handful of nodes,
//! and breaks on command.
//!
//! It serves tests (scripted faults, an execution log, a gate that holds prompts), demos (text-to-image graphs yield pictures worth
//! looking at) and benchmarks (with no node time it runs thousands of prompts per second).
//!
//! ```no_run
//! # async fn example() -> std::io::Result<()> {
//! use fake_comfyui::{EventKind, FakeComfy, FakeConfig, Fault};
//!
//! let fake = FakeComfy::start(FakeConfig::default()).await?;
//! let control = fake.control();
//! control.inject_times(Fault::PostLost, 1).await?; // the next POST /prompt is taken, its answer lost
//! // ... use fake.url() ...
//! control.wait_for(|event| matches!(event, EventKind::Finished { .. })).await;
//! fake.shutdown().await;
//! # Ok(())
//! # }
//! ```
//!
//! # The control endpoint
//!
//! `POST /fake/control` takes a fault (see [`Fault`]), with an optional `times`, or an order:
//!
//! ```json
//! {"fault": "drop_sockets"}
//! {"fault": "post_delayed", "delay_ms": 200, "times": 1}
//! {"fault": "restart", "down_ms": 500}
//! {"clear": true}
//! {"pause": true}      {"step": 1}      {"resume": true}
//! {"node_time_ms": 50}
//! ```
//!
//! `GET /fake/control` shows the faults in force, `GET /fake/log?since=0` the events (see [`Event`]), `GET /fake/stats` counts and
//! idle time.
//!
//! # Where it differs from ComfyUI
//!
//! Deliberately: graphs are echoed as they were sent (no conversion of numbers), JSON is not ASCII-escaped, `queue_pending` comes in
//! the order of execution, an interrupt ends a sampler's step at once, `/view?preview=webp` yields PNG, `channel` is ignored, a batch of more than 32 megapixels is out of memory, and a reader that stops reading is cut off instead of stalling everybody.
//! The routes of the web interface (users, settings, userdata, assets, internal) are not there.

#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "pixels, coordinates and noise: a saturating cast is what is meant"
)]

mod config;
mod control;
mod fault;
mod files;
mod frames;
mod gate;
mod graph;
mod http;
mod log;
mod memory;
mod net;
mod nodes;
mod picture;
mod queue;
mod server;
mod socket;
mod worker;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

pub use config::{FakeConfig, Generation, UnknownGeneration};
pub use control::Control;
pub use fault::{Breakage, Fault, Injection};
pub use files::Folder;
pub use log::{Event, EventKind, IdleTime, Outcome};

use server::Server;

/// A running fake server. Dropping it ends the server.
#[derive(Debug)]
pub struct FakeComfy {
    server: Arc<Server>,
}

impl FakeComfy {
    /// Starts a server; when this returns, it listens.
    ///
    /// # Errors
    ///
    /// The address cannot be bound.
    pub async fn start(config: FakeConfig) -> io::Result<Self> {
        Ok(Self { server: Server::start(config).await? })
    }

    /// The address it listens on, with the real port.
    pub fn addr(&self) -> SocketAddr {
        self.server.addr
    }

    /// `http://<address>`, without a slash at the end.
    pub fn url(&self) -> String {
        format!("http://{}", self.server.addr)
    }

    /// The handle to script it and to read its log.
    pub fn control(&self) -> Control {
        Control::new(self.server.clone())
    }

    /// Stops the server and waits until its port is free.
    pub async fn shutdown(self) {
        self.server.shut_down().await;
    }
}

impl Drop for FakeComfy {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// Serves until the future is dropped: what the command line does.
///
/// # Errors
///
/// The address cannot be bound.
pub async fn serve(config: FakeConfig) -> io::Result<()> {
    let fake = FakeComfy::start(config).await?;
    tracing::info!(url = fake.url(), "fake ComfyUI listens");
    std::future::pending::<()>().await;
    drop(fake);
    Ok(())
}
