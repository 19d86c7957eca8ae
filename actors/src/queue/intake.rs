//! New tasks and cancellations: what clients ask of the queue.

use ractor::{ActorRef, RpcReplyPort};

use super::{COUNT_EVERY, Held, QueueMsg, State, Whereabouts, tenants::Entrant};
use crate::{
    bridge::{RequestError, Start, TaskRequest},
    comfy_session::{Origin, SessionMsg},
    domain::{
        id::{BackendId, TaskId},
        order::sort_key,
    },
    kit::tasks::Panicked,
    ports::store::{Created, Creation, NewTask, StoreError},
    uploads::UploadsMsg,
};

impl State {
    pub(super) fn submit(
        &mut self,
        me: &ActorRef<QueueMsg>,
        request: TaskRequest,
        reply: RpcReplyPort<Result<Created, RequestError>>,
    ) {
        let limit = self.system.settings.max_pending;
        if self.drain.has_begun() {
            _ = reply.send(Err(RequestError::Draining));
        } else if let Err(retry_after) = self.waiting.admit(self.entering, limit, COUNT_EVERY) {
            _ = reply.send(Err(RequestError::Full { pending: self.waiting.count(), limit, retry_after }));
        } else {
            let (tenant, lane) = (request.lane.needs.tenant.clone(), request.lane.id);
            self.admit(me, tenant, lane, Entrant::New(Box::new(request), reply));
        }
    }

    /// Stores the task and, when a backend is free, takes the head of the order in the same commit: its work begins while the disk is
    /// waited for.
    pub(super) fn create(
        &mut self,
        me: &ActorRef<QueueMsg>,
        request: TaskRequest,
        reply: RpcReplyPort<Result<Created, RequestError>>,
    ) {
        // Without a store there are no clients either.
        let Some(store) = self.system.store.clone() else { return };
        self.enter_lane(&request.lane);
        let new = self.new_task(request);
        let slot = self.places_to_fill(&self.places()).into_iter().find(|slot| slot.lanes.contains(new.lane.id));
        let claim = slot.map(|slot| self.keep(vec![slot]));
        let kept = claim.as_ref().and_then(|claim| claim.slots.first()).map(|slot| slot.intent.backend.clone());
        self.entering += 1;
        let tenant = new.tenant;
        self.begin_entering(tenant);
        let stretch = self.system.deadline.stretch();
        self.tasks.run(me, async move { store.create(new, claim).await }, move |result| QueueMsg::Stored {
            reply,
            tenant,
            kept,
            stretch,
            result,
        });
    }

    pub(super) fn new_task(&self, request: TaskRequest) -> NewTask {
        let settings = &self.system.settings;
        let created_at = self.system.clock.now();
        let run_at = request.start.map(|start| match start {
            Start::At(moment) => moment,
            Start::After(delay) => created_at.after(delay),
        });
        let mut new = NewTask {
            id: TaskId::new(),
            tenant: request.tenant,
            lane: request.lane,
            workflow: request.workflow,
            priority: request.priority,
            sort_key: 0,
            max_attempts: request.max_attempts.unwrap_or(settings.max_attempts),
            timeout: Some(request.timeout.unwrap_or(settings.timeout)),
            created_at,
            run_at,
            payload: request.payload,
            idempotency: request.idempotency,
        };
        new.sort_key = sort_key(new.queued_at(), new.priority, settings.ordering);
        new
    }

    pub(super) fn on_stored(
        &mut self,
        me: &ActorRef<QueueMsg>,
        reply: RpcReplyPort<Result<Created, RequestError>>,
        tenant: i64,
        kept: Option<BackendId>,
        stretch: u64,
        result: Result<Result<Creation, StoreError>, Panicked>,
    ) {
        self.entering = self.entering.saturating_sub(1);
        self.end_entering(tenant);
        self.doubtful |= kept.is_some() && !matches!(result, Ok(Ok(_)));
        self.release_places(kept);
        let Creation { created, claimed, durable } = match result {
            Ok(Ok(creation)) => creation,
            Ok(Err(error)) => return drop(reply.send(Err(RequestError::Store(error)))),
            Err(panicked) => {
                let error = StoreError::Unavailable(panicked.to_string());
                return drop(reply.send(Err(RequestError::Store(error))));
            }
        };
        if matches!(created, Created::New(_)) {
            self.waiting.entered();
        }
        self.waiting.left(claimed.len() as u64);
        self.assign_all(me, claimed, Origin::Claimed, stretch);
        self.hand_over_when_done(me);
        self.tasks.run_unreported(async move {
            let answer = durable.wait().await.map(|()| created).map_err(RequestError::Store);
            // A client that went away is no fault: its task is stored.
            _ = reply.send(answer);
        });
    }

    /// Whoever has the task stops it. In another process, the next renewal of its lease tells.
    pub(super) fn tell_cancelled(&self, id: TaskId) {
        match self.held.get(&id) {
            Some(Held { at: Whereabouts::Backend | Whereabouts::Ran, backend, .. }) => {
                self.tell_session(backend, SessionMsg::Cancel { id });
            }
            Some(Held { at: Whereabouts::Uploads, .. }) => {
                _ = self.system.slots.uploads.cast(UploadsMsg::Cancel { id });
            }
            Some(Held { at: Whereabouts::Settling, .. }) | None => {}
        }
    }

    pub(super) fn running(&self) -> Vec<TaskId> {
        self.held.iter().filter(|(_, held)| held.at == Whereabouts::Backend).map(|(id, _)| *id).collect()
    }
}
