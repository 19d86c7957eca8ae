//! QueueActor

use ractor::RpcReplyPort;

use crate::{
    bridge::{RequestError, TaskRequest},
    domain::{id::TaskId, task::Task},
    ports::store::Created,
};

/// What the queue hears.
#[derive(Debug)]
pub enum QueueMsg {
    /// A client wants a task done.
    Submit {
        /// The task.
        request: Box<TaskRequest>,
        /// Answered after the commit.
        reply: RpcReplyPort<Result<Created, RequestError>>,
    },
    /// A client wants a task stopped.
    Cancel {
        /// Which.
        id: TaskId,
        /// Answered after the commit.
        reply: RpcReplyPort<Result<Task, RequestError>>,
    },
    /// Which tasks run on a backend now?
    Running {
        /// Answered from memory.
        reply: RpcReplyPort<Vec<TaskId>>,
    },
}
