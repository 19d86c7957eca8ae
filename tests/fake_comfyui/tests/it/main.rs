//! Tests of the fake server, from outside: over its sockets and through its control handle.

mod client;
mod execution;
