//! How many tasks of a tenant may wait: counted in the store, with what is on its way there.

use std::time::Duration;

use ractor::{ActorRef, RpcReplyPort};

use super::{QueueMsg, State, control::Amended};
use crate::{
    bridge::{RequestError, TaskRequest, Wish},
    domain::{
        id::TaskId,
        tenant::{NOBODY, Tenant},
    },
    kit::tasks::Panicked,
    ports::store::{Created, StoreError, TaskRecord},
};

/// What is suggested to a tenant that is at its limit: how fast its own tasks leave nobody knows.
const RETRY_AFTER: Duration = Duration::from_secs(5);

/// A task that is about to wait, and who hears of it after the commit.
#[derive(Debug)]
pub enum Entrant {
    /// A new one.
    New(Box<TaskRequest>, RpcReplyPort<Result<Created, RequestError>>),
    /// One that was over, of this tenant.
    Again(TaskId, i64, RpcReplyPort<Amended>),
}

impl Entrant {
    fn refuse(self, error: RequestError) {
        match self {
            Self::New(_, reply) => _ = reply.send(Err(error)),
            Self::Again(_, _, reply) => _ = reply.send(Err(error)),
        }
    }
}

/// Tasks of a tenant on their way into the store. Forgotten when there are none.
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
    /// Lets a task wait, if its tenant may have another one that does: what waits is counted first when there is a limit.
    pub(super) fn admit(&mut self, me: &ActorRef<QueueMsg>, tenant: Option<Tenant>, lane: i64, entrant: Entrant) {
        let limit = tenant.as_ref().and_then(|tenant| self.system.settings.tenants.limits(tenant).max_waiting);
        let (Some(store), Some(tenant), Some(limit)) = (self.system.store.clone(), tenant, limit) else {
            return self.enter(me, entrant);
        };
        let mut lanes = self.routes.lanes_of(&tenant);
        lanes.insert(lane);
        let entering = self.tenants.entry(tenant.id()).or_default();
        entering.tallies += 1;
        let tally = Tally { tenant, limit, ended: entering.ended };
        let most = u32::try_from(limit).unwrap_or(u32::MAX);
        self.tasks.run(me, async move { store.crowd(lanes, most).await }, move |result| QueueMsg::Tallied {
            entrant,
            tally,
            result,
        });
    }

    fn enter(&mut self, me: &ActorRef<QueueMsg>, entrant: Entrant) {
        match entrant {
            Entrant::New(request, reply) => self.create(me, *request, reply),
            Entrant::Again(id, tenant, reply) => self.change(me, id, tenant, Wish::Again, reply),
        }
    }

    /// A task that is to wait again is known now. One that is not over takes no place.
    pub(super) fn on_found(
        &mut self,
        me: &ActorRef<QueueMsg>,
        id: TaskId,
        reply: RpcReplyPort<Amended>,
        result: Result<Result<TaskRecord, StoreError>, Panicked>,
    ) {
        let result = result.unwrap_or_else(|panicked| Err(StoreError::Unavailable(panicked.to_string())));
        match result {
            Ok(TaskRecord { task, needs, .. }) => {
                let tenant = needs.tenant.clone().filter(|_| task.state.is_final());
                self.admit(me, tenant, task.lane, Entrant::Again(id, task.tenant, reply));
            }
            Err(error) => _ = reply.send(Err(RequestError::Store(error))),
        }
    }

    pub(super) fn on_tallied(
        &mut self,
        me: &ActorRef<QueueMsg>,
        entrant: Entrant,
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
            Ok(Err(error)) => return entrant.refuse(error.into()),
            Err(panicked) => return entrant.refuse(StoreError::Unavailable(panicked.to_string()).into()),
        };
        if self.drain.has_begun() {
            entrant.refuse(RequestError::Draining);
        } else if waiting + on_their_way >= limit {
            entrant.refuse(RequestError::TenantFull { tenant, limit, retry_after: RETRY_AFTER });
        } else {
            self.enter(me, entrant);
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
