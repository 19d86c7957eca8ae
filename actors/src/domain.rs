//! What a task is and what may happen to it: plain data and plain functions.
//!
//! Nothing here knows an actor, a runtime, a socket or a clock. Every decision the product makes (order, admission, retry,
//! reconciling, a change of state) is a function in this folder, so it can be tested with a table.

pub mod allowance;
pub mod artifact;
pub mod catalogue;
pub mod check;
pub mod error;
pub mod eta;
pub mod event;
pub mod failure;
pub mod fleet;
pub mod graph;
pub mod health;
pub mod id;
pub mod input;
pub mod interest;
pub mod lane;
pub mod leftovers;
pub mod memory;
pub mod moment;
pub mod natural;
pub mod options;
pub mod order;
pub mod passthrough;
pub mod progress;
pub mod prompt;
pub mod reconcile;
pub mod resolve;
pub mod retry;
pub mod scaling;
pub mod storage;
pub mod task;
pub mod tenant;
pub mod time;
pub mod webhook;
pub mod workflow;
