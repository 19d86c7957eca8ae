//! The task stores: adapters behind the ports `TaskStore` and `WorkSource` of `comfyd_actors::ports::store`.
//!
//! All of them load a task, call `Task::apply` and save what comes out, so what a change means is decided in one place and a store
//! only answers for order, durability and atomicity. One suite (`comfyd_actors::testing::store_conformance`) holds them to that.

pub mod node_lock;
pub mod sqlite;
