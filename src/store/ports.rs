//! How a store that has readers and operations serves the ports: each method either reads, or is an operation of the same name. Written once,
//! because it is the same for all of them; what an operation does is each store's own.

/// Has `$store` serve all ports but `Wire`: what reads is asked of its field `$readers`, what writes goes through its `write`. The operations
/// are looked for in the module `ops` beside it.
macro_rules! serve_ports {
    ($store:ty, $readers:ident) => {
        const _: () = {
            use std::{
                collections::{BTreeMap, BTreeSet},
                sync::Arc,
                time::Duration,
            };

            use async_trait::async_trait;
            use comfyd_actors::{
                domain::{
                    event::Event,
                    id::{TaskId, WorkerId},
                    input::{About, Input, InputId},
                    lane::Lane,
                    progress::NodeTiming,
                    task::{Change, Fence, Task, TaskState},
                    time::Timestamp,
                    webhook::{Delivery, Endpoint, EndpointId, Policy, Report},
                },
                ports::{
                    hook_store::{DeliveryQuery, HookLevels, HookStore},
                    input_store::InputStore,
                    store::{
                        Assignment, Changed, Claim, Counts, Creation, Depth, FailedQuery, Hold, NewTask, Pausable,
                        Pause, Query, Renewed, Retention, StoreError, Sweep, TaskRecord, TaskStore, WorkSource,
                    },
                    workflow_store::{Kept, Publication, Published, WorkflowStore},
                },
            };
            use tokio::sync::broadcast;

            use self::ops::{
                AdoptExpired, Amend, Apply, Check, ClaimHeads, Content, Create, Enable, Forget, GiveUp, Held, Keep,
                NoteFetched, NoteRun, NoteSwept, Promote, Prune, Publish, Record, Redeliver, Refresh, Renew, Reserve,
                SetPaused, Settle, Take, TakeOver, Withdraw,
            };

            #[async_trait]
            impl TaskStore for $store {
                async fn create(&self, new: NewTask, claim: Option<Claim>) -> Result<Creation, StoreError> {
                    self.write(Create { new, claim }).await
                }

                async fn amend(&self, id: TaskId, change: Change) -> Result<Task, StoreError> {
                    self.write(Amend { id, change }).await
                }

                async fn get(&self, id: TaskId) -> Result<TaskRecord, StoreError> {
                    self.$readers.get(id).await
                }

                async fn list(&self, query: Query) -> Result<Vec<Task>, StoreError> {
                    self.$readers.list(&query).await
                }

                async fn failed(&self, query: FailedQuery) -> Result<Vec<Task>, StoreError> {
                    self.$readers.failed(&query).await
                }

                async fn counts(&self) -> Result<Counts, StoreError> {
                    self.$readers.counts().await
                }

                async fn waiting(&self) -> Result<Vec<(Lane, u64)>, StoreError> {
                    self.$readers.waiting().await
                }

                async fn crowd(&self, lanes: BTreeSet<i64>, limit: u32) -> Result<u32, StoreError> {
                    self.$readers.crowd(&lanes, limit).await
                }

                async fn depths(&self) -> Result<Vec<Depth>, StoreError> {
                    self.$readers.depths().await
                }

                async fn pauses(&self) -> Result<Vec<Pause>, StoreError> {
                    self.$readers.pauses().await
                }

                async fn set_paused(&self, what: Pausable, hold: Hold) -> Result<Vec<Pause>, StoreError> {
                    self.write(SetPaused { what, hold }).await
                }

                async fn check(&self) -> Result<(), StoreError> {
                    self.write(Check).await
                }

                async fn events(&self, of: Option<TaskId>, after: i64, limit: u32) -> Result<Vec<Event>, StoreError> {
                    self.$readers.events(of, after, limit).await
                }

                async fn newest_event(&self) -> Result<i64, StoreError> {
                    self.$readers.newest_event().await
                }

                async fn ahead(&self, id: TaskId, limit: u32) -> Result<Option<u32>, StoreError> {
                    self.$readers.ahead(id, limit).await
                }

                async fn promote(&self, limit: u32) -> Result<u32, StoreError> {
                    self.write(Promote { limit }).await
                }

                async fn next_scheduled(&self) -> Result<Option<Timestamp>, StoreError> {
                    self.$readers.next_scheduled().await
                }

                async fn prune(&self, retention: Retention, limit: u32) -> Result<u32, StoreError> {
                    self.write(Prune { retention, limit }).await
                }

                async fn unswept(
                    &self,
                    state: TaskState,
                    until: Timestamp,
                    limit: u32,
                ) -> Result<Vec<Task>, StoreError> {
                    self.$readers.unswept(state, until, limit).await
                }

                async fn note_swept(&self, state: TaskState, last: (Timestamp, TaskId)) -> Result<(), StoreError> {
                    self.write(NoteSwept { state, last }).await
                }

                fn changes(&self) -> broadcast::Receiver<Changed> {
                    self.changes.subscribe()
                }
            }

            #[async_trait]
            impl WorkSource for $store {
                async fn claim(&self, claim: Claim) -> Result<Vec<Assignment>, StoreError> {
                    self.write(ClaimHeads(claim)).await
                }

                async fn apply(&self, id: TaskId, fence: Fence, change: Change) -> Result<Task, StoreError> {
                    self.write(Apply { id, fence, change }).await
                }

                async fn note_run(&self, id: TaskId, dispatch: i64, nodes: Vec<NodeTiming>) -> Result<(), StoreError> {
                    self.write(NoteRun { id, dispatch, nodes }).await
                }

                async fn renew(
                    &self,
                    worker: &WorkerId,
                    lease: Duration,
                    held: &[(TaskId, Fence)],
                ) -> Result<Vec<Renewed>, StoreError> {
                    self.write(Renew { worker: worker.clone(), lease, held: held.to_vec() }).await
                }

                async fn lanes(&self) -> Result<Vec<Lane>, StoreError> {
                    self.$readers.lanes().await
                }

                async fn held(&self, worker: &WorkerId) -> Result<Vec<Assignment>, StoreError> {
                    self.write(Held(worker.clone())).await
                }

                async fn take_over(&self, worker: &WorkerId, lease: Duration) -> Result<Vec<Assignment>, StoreError> {
                    self.write(TakeOver { worker: worker.clone(), lease }).await
                }

                async fn adopt_expired(&self, sweep: &Sweep) -> Result<Vec<Assignment>, StoreError> {
                    self.write(AdoptExpired(sweep.clone())).await
                }
            }

            #[async_trait]
            impl InputStore for $store {
                async fn reserve(&self, key: &str, patience: Duration) -> Result<(), StoreError> {
                    self.write(Reserve { key: key.to_owned(), patience }).await
                }

                async fn keep(
                    &self,
                    key: &str,
                    id: &InputId,
                    about: &About,
                    keep: Duration,
                ) -> Result<Input, StoreError> {
                    self.write(Keep { key: key.to_owned(), id: id.clone(), about: about.clone(), keep }).await
                }

                async fn refresh(&self, ids: &[InputId], keep: Duration) -> Result<Vec<Input>, StoreError> {
                    self.write(Refresh { ids: ids.to_vec(), keep }).await
                }

                async fn find(&self, id: &InputId) -> Result<Input, StoreError> {
                    self.$readers.input(id).await
                }

                async fn note_fetched(&self, task: TaskId, url: &str, id: &InputId) -> Result<(), StoreError> {
                    self.write(NoteFetched { task, url: url.to_owned(), id: id.clone() }).await
                }

                async fn fetched(&self, task: TaskId) -> Result<BTreeMap<String, Input>, StoreError> {
                    self.$readers.fetched(task).await
                }

                async fn give_up(&self, limit: u32) -> Result<Vec<String>, StoreError> {
                    self.write(GiveUp { limit }).await
                }

                async fn forget(&self, keys: &[String]) -> Result<(), StoreError> {
                    self.write(Forget(keys.to_vec())).await
                }
            }

            #[async_trait]
            impl HookStore for $store {
                async fn next_due(&self) -> Result<Option<Timestamp>, StoreError> {
                    self.$readers.next_due().await
                }

                async fn take(&self, limit: u32, policy: &Policy) -> Result<Vec<Delivery>, StoreError> {
                    self.write(Take { limit, policy: policy.clone() }).await
                }

                async fn settle(
                    &self,
                    id: i64,
                    turn: i64,
                    report: Report,
                    policy: &Policy,
                ) -> Result<Option<Delivery>, StoreError> {
                    self.write(Settle { id, turn, report, policy: policy.clone() }).await
                }

                async fn deliveries(&self, query: DeliveryQuery) -> Result<Vec<(Delivery, Endpoint)>, StoreError> {
                    self.$readers.deliveries(&query).await
                }

                async fn redeliver(&self, id: i64) -> Result<(Delivery, Endpoint), StoreError> {
                    self.write(Redeliver(id)).await
                }

                async fn endpoints(&self, after: Option<EndpointId>, limit: u32) -> Result<Vec<Endpoint>, StoreError> {
                    self.$readers.endpoints(after, limit).await
                }

                async fn enable(&self, id: EndpointId) -> Result<Endpoint, StoreError> {
                    self.write(Enable(id)).await
                }

                async fn levels(&self) -> Result<HookLevels, StoreError> {
                    self.$readers.hook_levels().await
                }
            }

            #[async_trait]
            impl WorkflowStore for $store {
                async fn record(&self, name: &str, text: &str) -> Result<u32, StoreError> {
                    self.write(Record(Content::new(name, text))).await
                }

                async fn publish(&self, name: &str, text: &str) -> Result<Publication, StoreError> {
                    self.write(Publish(Content::new(name, text))).await
                }

                async fn withdraw(&self, name: &str) -> Result<bool, StoreError> {
                    self.write(Withdraw(name.to_owned())).await
                }

                async fn published(&self) -> Result<Published, StoreError> {
                    self.$readers.published().await
                }

                async fn version(&self, name: &str, version: u32) -> Result<Option<Arc<str>>, StoreError> {
                    self.$readers.version(name, version).await
                }

                async fn versions(&self, name: &str) -> Result<Vec<Kept>, StoreError> {
                    self.$readers.versions(name).await
                }
            }
        };
    };
}
