//! Tests of the whole, one binary: linking is what costs.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test may panic; these lints spare only functions marked as tests, not their helpers"
)]

mod chaos;
mod crash_table;
mod flow;
mod stores;
mod support;
