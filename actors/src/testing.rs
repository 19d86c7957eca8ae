//! What tests of this package and of the adapters stand on: a clock that only moves when told, a store that is obviously right, and
//! the suite that holds every other store to it. Only with feature `testing`.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "test code may panic; these lints spare only functions marked as tests, not suites that adapters call"
)]

pub mod clock;
pub mod memory_store;
pub mod store_conformance;

pub use clock::TestClock;
pub use memory_store::MemoryStore;
