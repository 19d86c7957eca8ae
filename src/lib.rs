//! The shell of comfyd: everything that touches the outside. The core, which does not, is `comfyd_actors`.

pub mod cli;
pub mod config;
pub mod http;
pub mod telemetry;
pub mod workflows;
