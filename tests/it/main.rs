//! Tests of the whole, one binary: linking is what costs.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "a test may panic; these lints spare only functions marked as tests, not their helpers"
)]

mod backends;
mod docs_page;
mod doubt;
mod flow;
mod generations;
mod socket;
mod stores;
mod support;
mod uploads;
mod witness;
