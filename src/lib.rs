//! The shell of comfyd: everything that touches the outside. The core, which does not, is `comfyd_actors`.
//!
//! - `app` puts adapters and actors together; `lifecycle` ends them; `cli`, `config` and `telemetry` are what a process needs besides.
//! - `http` is the API, `comfy` the ComfyUI client, `store` the task store, `media` what outputs go
//!   through, `storage` the place for them: one adapter per port.
//! - `inputs` takes files in, and `fetch` those that lie at URLs; `outbound` is the one way out to what clients name, and `describe`
//!   puts the client's errors into words.
//! - `pace` and `json` say how slowly somebody may send, and how much may be in it, here and there.
//! - `workflows` reads the named workflows; `demo`, `doctor` and `healthcheck` are commands. `crash_point` is for tests.

pub mod app;
pub mod cli;
pub mod clock;
pub mod comfy;
pub mod config;
pub mod crash_point;
pub mod demo;
pub mod describe;
pub mod doctor;
pub mod fetch;
#[cfg(any(test, feature = "fuzz"))]
pub mod fuzz;
pub mod healthcheck;
pub mod http;
pub mod inputs;
pub mod json;
pub mod lifecycle;
pub mod media;
pub mod outbound;
pub mod pace;
pub mod remote;
pub mod storage;
pub mod store;
pub mod telemetry;
pub mod tls;
pub mod webhooks;
pub mod workflows;
