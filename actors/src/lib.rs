#![doc = include_str!("../README.md")]

pub mod backends;
pub mod board;
pub mod bridge;
pub mod catalogues;
pub mod comfy_session;
pub mod domain;
pub mod files;
pub mod http;
pub mod janitor;
pub mod kit;
pub mod metrics;
#[cfg(test)]
mod model;
pub mod muster;
pub mod ports;
pub mod posts;
pub mod queue;
pub mod root;
pub mod system;
pub mod targets;
#[cfg(feature = "testing")]
pub mod testing;
pub mod uploads;
pub mod watch;
pub mod webhooks;
