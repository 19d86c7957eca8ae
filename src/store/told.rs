//! A change as processes tell each other of it: short, because many go into one word.

use comfyd_actors::{
    domain::{id::TaskId, order::Priority, task::TaskState},
    ports::store::Changed,
};
use serde::{Deserialize, Serialize};

/// Task, where it stood, where it stands, priority, whether it is being cancelled, whether a webhook is told, whether it is a tenant's.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Told(TaskId, Option<TaskState>, TaskState, Priority, bool, bool, bool);

impl From<&Changed> for Told {
    fn from(changed: &Changed) -> Self {
        let Changed { id, was, state, priority, cancelling, hooked, of_tenant, here: _ } = *changed;
        Self(id, was, state, priority, cancelling, hooked, of_tenant)
    }
}

impl From<Told> for Changed {
    fn from(Told(id, was, state, priority, cancelling, hooked, of_tenant): Told) -> Self {
        Self { id, was, state, priority, cancelling, hooked, of_tenant, here: false }
    }
}
