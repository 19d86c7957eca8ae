//! Tests of the fake server, from outside: over its sockets and through its control handle.
#![expect(clippy::expect_used, reason = "a test may panic; these lints spare only functions marked as tests")]

mod client;
mod contract;
mod execution;
mod faults;
mod files;
mod queue;
mod sockets;
mod trace;
