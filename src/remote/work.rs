//! Tasks over HTTP. A claim whose answer was lost is found by [`WorkSource::held`], as after any doubtful claim; a change is found done when
//! it is repeated.

use std::time::Duration;

use async_trait::async_trait;
use comfyd_actors::{
    domain::{
        id::{TaskId, WorkerId},
        lane::Lane,
        progress::NodeTiming,
        task::{Change, Fence, Task},
    },
    ports::store::{Assignment, Changed, Claim, Hints, Pause, Renewed, StoreError, Sweep, WorkSource},
};
use tokio::sync::broadcast;

use super::{
    ApiClient,
    protocol::{Apply, Own, Renewal, Run},
};

#[async_trait]
impl WorkSource for ApiClient {
    async fn claim(&self, claim: Claim) -> Result<Vec<Assignment>, StoreError> {
        self.call("claim", &claim).await
    }

    async fn apply(&self, id: TaskId, fence: Fence, change: Change) -> Result<Task, StoreError> {
        self.call("apply", &Apply { id, fence, change }).await
    }

    async fn note_run(&self, id: TaskId, dispatch: i64, nodes: Vec<NodeTiming>) -> Result<(), StoreError> {
        self.call("note-run", &Run { id, dispatch, nodes }).await
    }

    async fn renew(
        &self,
        worker: &WorkerId,
        lease: Duration,
        held: &[(TaskId, Fence)],
    ) -> Result<Vec<Renewed>, StoreError> {
        self.call("renew", &Renewal { worker: worker.clone(), lease, held: held.to_vec() }).await
    }

    async fn lanes(&self) -> Result<Vec<Lane>, StoreError> {
        self.call("lanes", &()).await
    }

    async fn held(&self, worker: &WorkerId) -> Result<Vec<Assignment>, StoreError> {
        self.call("held", &Own { worker: worker.clone(), lease: Duration::ZERO }).await
    }

    async fn take_over(&self, worker: &WorkerId, lease: Duration) -> Result<Vec<Assignment>, StoreError> {
        self.call("take-over", &Own { worker: worker.clone(), lease }).await
    }

    async fn adopt_expired(&self, sweep: &Sweep) -> Result<Vec<Assignment>, StoreError> {
        self.call("adopt", sweep).await
    }
}

#[async_trait]
impl Hints for ApiClient {
    fn changes(&self) -> broadcast::Receiver<Changed> {
        self.changes.subscribe()
    }

    async fn pauses(&self) -> Result<Vec<Pause>, StoreError> {
        self.call("pauses", &()).await
    }
}
