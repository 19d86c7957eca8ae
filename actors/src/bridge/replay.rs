//! Asking again for tasks that failed, many at a time.

use futures_util::future::join_all;

use super::{Bridge, RequestError, Wish};
use crate::{
    domain::{
        id::TaskId,
        task::{Refusal, Task},
    },
    ports::store::{FailedQuery, StoreError},
};

/// So many are asked for at the same time: enough to share commits, few enough to leave room for others.
const ABREAST: usize = 32;

/// What to ask for again.
#[derive(Debug, Clone)]
pub enum Replay {
    /// These.
    Tasks(Vec<TaskId>),
    /// Those that failed like this, the oldest failures first.
    Failed(FailedQuery),
}

/// What became of it.
#[derive(Debug, Default)]
pub struct Replayed {
    /// Under way again, in the order in which they failed or were named.
    pub tasks: Vec<TaskId>,
    /// Those that cannot be.
    pub refused: Vec<(TaskId, Unfit)>,
    /// There are more like that, which were not asked for again.
    pub more: bool,
    /// Why it ended early.
    pub stopped: Option<RequestError>,
}

/// Why a task cannot be asked for again.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// There is none.
    #[error("there is no task with this id; finished tasks are deleted after a time")]
    Unknown,
    /// It refuses.
    #[error(transparent)]
    Refused(Refusal),
    /// Its tenant has as many tasks waiting as it may, in words.
    #[error("{0}")]
    TenantFull(String),
}

impl Bridge {
    /// A page of failed tasks, the newest failures first.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn failed(&self, query: FailedQuery) -> Result<Vec<Task>, StoreError> {
        self.0.store.failed(query).await
    }

    /// Asks for tasks again, as [`Wish::Again`] and [`Wish::UploadsAgain`] do for one. It ends early when no more are taken now; what was
    /// asked for before that stays so.
    ///
    /// # Errors
    /// As for any request, when nothing was done.
    pub async fn replay(&self, what: Replay, wish: Wish) -> Result<Replayed, RequestError> {
        let mut outcome = Replayed::default();
        let ids = match what {
            Replay::Tasks(ids) => ids,
            Replay::Failed(query) => {
                let limit = usize::try_from(query.limit).unwrap_or(usize::MAX);
                // One more than wanted tells whether there are more. Of those at hand the oldest go first.
                let limited = FailedQuery { limit: query.limit.saturating_add(1), ..query };
                let mut found: Vec<TaskId> = self.failed(limited).await?.into_iter().map(|task| task.id).collect();
                outcome.more = found.len() > limit;
                found.truncate(limit);
                found.reverse();
                found
            }
        };
        for some in ids.chunks(ABREAST) {
            let asked = join_all(some.iter().map(|id| self.amend(*id, wish))).await;
            for (id, result) in some.iter().zip(asked) {
                match result {
                    Ok(_) => outcome.tasks.push(*id),
                    Err(RequestError::Store(StoreError::NotFound)) => outcome.refused.push((*id, Unfit::Unknown)),
                    Err(RequestError::Store(StoreError::Refused(refusal))) => {
                        outcome.refused.push((*id, Unfit::Refused(refusal)));
                    }
                    // Others have room.
                    Err(full @ RequestError::TenantFull { .. }) => {
                        outcome.refused.push((*id, Unfit::TenantFull(full.to_string())));
                    }
                    Err(error) => outcome.stopped = Some(error),
                }
            }
            if outcome.stopped.is_some() {
                break;
            }
        }
        match outcome.stopped {
            Some(error) if outcome.tasks.is_empty() && outcome.refused.is_empty() => Err(error),
            stopped => Ok(Replayed { more: outcome.more || stopped.is_some(), stopped, ..outcome }),
        }
    }
}
