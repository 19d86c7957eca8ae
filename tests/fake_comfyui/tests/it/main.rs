//! Tests of the fake server, from outside: over its sockets and through its control handle.

mod client;
mod contract;
mod execution;
mod faults;
mod files;
mod queue;
mod sockets;
mod trace;
