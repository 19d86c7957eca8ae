//! How many tasks of a tenant may wait: counted in the store, with what is on its way there.

use std::time::Duration;

use ractor::{ActorRef, RpcReplyPort};

use super::{QueueMsg, State};
use crate::{
    bridge::{RequestError, TaskRequest},
    domain::tenant::{NOBODY, Tenant},
    kit::tasks::Panicked,
    ports::store::{Created, StoreError},
};

/// What is suggested to a tenant that is at its limit: how fast its own tasks leave nobody knows.
const RETRY_AFTER: Duration = Duration::from_secs(5);

/// New tasks of a tenant on their way into the store. Forgotten when there are none.
#[derive(Debug, Default)]
pub(super) struct Entering {
    begun: u64,
    ended: u64,
    /// Counts under way that began with these numbers.
    tallies: u64,
}

/// What was on its way when a count began.
#[derive(Debug, Clone)]
pub struct Tally {
    tenant: Tenant,
    limit: u64,
    /// Of those that had begun by then, so many had ended: the count is sure to see them.
    ended: u64,
}

impl State {
    /// How many tasks of this one's tenant may wait, if there is a limit.
    pub(super) fn limit_of(&self, request: &TaskRequest) -> Option<u64> {
        let tenant = request.lane.needs.tenant.as_ref()?;
        self.system.settings.tenants.limits(tenant).max_waiting
    }

    /// Counts first.
    pub(super) fn tally(
        &mut self,
        me: &ActorRef<QueueMsg>,
        request: TaskRequest,
        reply: RpcReplyPort<Result<Created, RequestError>>,
        limit: u64,
    ) {
        let (Some(store), Some(tenant)) = (self.system.store.clone(), request.lane.needs.tenant.clone()) else {
            return;
        };
        let mut lanes = self.routes.lanes_of(&tenant);
        lanes.insert(request.lane.id);
        let entering = self.tenants.entry(tenant.id()).or_default();
        entering.tallies += 1;
        let tally = Tally { tenant, limit, ended: entering.ended };
        let most = u32::try_from(limit).unwrap_or(u32::MAX);
        let request = Box::new(request);
        self.tasks.run(me, async move { store.crowd(lanes, most).await }, move |result| QueueMsg::Tallied {
            request,
            reply,
            tally,
            result,
        });
    }

    pub(super) fn on_tallied(
        &mut self,
        me: &ActorRef<QueueMsg>,
        request: Box<TaskRequest>,
        reply: RpcReplyPort<Result<Created, RequestError>>,
        tally: Tally,
        result: Result<Result<u32, StoreError>, Panicked>,
    ) {
        let Tally { tenant, limit, ended } = tally;
        let id = tenant.id();
        let entering = self.tenants.entry(id).or_default();
        entering.tallies = entering.tallies.saturating_sub(1);
        // Some of these the count has seen as well. Whoever is refused for that finds room the next time.
        let on_their_way = entering.begun.saturating_sub(ended);
        self.forget_entered(id);
        let waiting = match result {
            Ok(Ok(waiting)) => u64::from(waiting),
            Ok(Err(error)) => return drop(reply.send(Err(RequestError::Store(error)))),
            Err(panicked) => {
                let error = StoreError::Unavailable(panicked.to_string());
                return drop(reply.send(Err(RequestError::Store(error))));
            }
        };
        if self.drain.has_begun() {
            _ = reply.send(Err(RequestError::Draining));
        } else if waiting + on_their_way >= limit {
            _ = reply.send(Err(RequestError::TenantFull { tenant, limit, retry_after: RETRY_AFTER }));
        } else {
            self.create(me, *request, reply);
        }
    }

    pub(super) fn begin_entering(&mut self, tenant: i64) {
        if tenant != NOBODY {
            self.tenants.entry(tenant).or_default().begun += 1;
        }
    }

    pub(super) fn end_entering(&mut self, tenant: i64) {
        if let Some(entering) = self.tenants.get_mut(&tenant) {
            entering.ended += 1;
            self.forget_entered(tenant);
        }
    }

    fn forget_entered(&mut self, tenant: i64) {
        self.tenants.retain(|id, entering| *id != tenant || entering.tallies > 0 || entering.begun != entering.ended);
    }
}
