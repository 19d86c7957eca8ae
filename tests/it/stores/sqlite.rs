//! The suite, and what only a file can do: outlive its process.

comfyd_actors::store_conformance!(super::open_sqlite, cases: 96);
