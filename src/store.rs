//! The task stores: adapters behind the ports `TaskStore` and `WorkSource` of `comfyd_actors::ports::store`.
//!
//! All of them load a task, call `Task::apply` and save what comes out, so what a change means is decided in one place and a store
//! only answers for order, durability and atomicity. One suite (`comfyd_actors::testing::store_conformance`) holds them to that.

pub mod node_lock;
pub mod sqlite;

use comfyd_actors::{
    domain::task::{Fence, Task, TaskState},
    ports::store::NewTask,
};

/// The row a new task starts as.
fn first_state(new: &NewTask) -> Task {
    Task {
        id: new.id,
        tenant: new.tenant,
        lane: new.lane,
        workflow: new.workflow.clone(),
        priority: new.priority,
        sort_key: new.sort_key,
        state: TaskState::Pending,
        generation: 1,
        fence: Fence(0),
        dispatch: 0,
        attempt: 1,
        max_attempts: new.max_attempts,
        poison: 0,
        timeout: new.timeout,
        lease: None,
        prompt: None,
        run_at: None,
        cancel_requested_at: None,
        created_at: new.created_at,
        started_at: None,
        executing_at: None,
        uploading_at: None,
        finished_at: None,
        error: None,
    }
}
