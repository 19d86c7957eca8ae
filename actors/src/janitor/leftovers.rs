//! Deleting what runs that were given up left in storage, some time after their task is over.
//!
//! Walks over the tasks in the order of their ends and asks the storage about those that may have left something. How far it came is noted
//! in the store after a whole page, so whatever ends it in between, that page is looked at again. It takes as long as it takes: nobody waits.

use std::time::Duration;

use tracing::{debug, info};

use super::PruneError;
use crate::{
    domain::{
        leftovers::Leftovers,
        task::{Task, TaskState},
        time::Timestamp,
    },
    ports::store::{StoreError, TaskStore},
    system::Parts,
    targets::Targets,
};

/// Tasks looked at between two notes of how far it came.
const PAGE: u32 = 100;
/// A storage that is away holds up the sweep for no longer than this: then what it has stays.
const PATIENCE: Duration = Duration::from_secs(86_400);

/// Looks at all tasks that are due, and returns how many objects were deleted.
pub(super) async fn sweep(system: &Parts) -> Result<u32, PruneError> {
    let (Some(store), Some(desk)) = (&system.store, &system.desk) else { return Ok(0) };
    let (mut deleted, now) = (0, system.clock.now());
    let (settings, retention) = (&system.settings, system.settings.retention);
    for (state, kept) in [
        (TaskState::Completed, retention.completed),
        (TaskState::Cancelled, retention.completed),
        (TaskState::Failed, retention.failed),
    ] {
        // With a task goes what tells which of its objects count.
        let until = now.before(settings.leftovers.min(kept / 2));
        loop {
            let page = store.unswept(state, until, PAGE).await?;
            for task in page.iter().filter(|task| task.may_have_left_objects()) {
                deleted += sweep_task(&**store, &desk.targets, task, now).await?;
            }
            let Some((at, id)) = page.last().and_then(|task| Some((task.finished_at?, task.id))) else { break };
            store.note_swept(state, (at, id)).await?;
        }
    }
    Ok(deleted)
}

async fn sweep_task(store: &dyn TaskStore, targets: &Targets, task: &Task, now: Timestamp) -> Result<u32, PruneError> {
    let record = match store.get(task.id).await {
        Err(StoreError::NotFound) => return Ok(0),
        record => record?,
    };
    // It may have gone on meanwhile, so what counts is how it is now.
    let leftovers = Leftovers::of(&record.task, &record.artifacts);
    match targets.sweep(&leftovers, &record.options.storage).await {
        Ok(0) => Ok(0),
        Ok(objects) => {
            info!(task.id = %task.id, objects, "deleted what runs that were given up left in storage");
            Ok(objects)
        }
        Err(error) if task.finished_at.is_some_and(|ended| now.since(ended) > PATIENCE) => {
            debug!(task.id = %task.id, %error, "what its runs may have left in storage stays there");
            Ok(0)
        }
        Err(error) => Err(error.into()),
    }
}
