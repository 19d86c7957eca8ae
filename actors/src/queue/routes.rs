//! Which lanes each backend can serve, as far as this process knows.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use ractor::ActorRef;
use tracing::{debug, error};

use super::{Held, QueueMsg, State};
use crate::{
    domain::{
        id::BackendId,
        lane::{ANYBODY, Lane, Lanes, Needs},
        memory::roomier,
        tenant::Tenant,
    },
    kit::tasks::Panicked,
    ports::store::StoreError,
};

/// A lane that the store does not name this many times in a row has no tasks any more. More than once, because a task may be on its
/// way into the store while the lanes are being read.
const MISSES: u8 = 5;

/// Lanes, and who serves them.
#[derive(Debug, Default)]
pub(super) struct Routes {
    lanes: BTreeMap<i64, Known>,
    served: BTreeMap<BackendId, Lanes>,
    reading: bool,
}

#[derive(Debug)]
struct Known {
    needs: Arc<Needs>,
    misses: u8,
}

impl Routes {
    /// The lanes a backend can serve: what anybody can run, and those whose needs it meets.
    pub(super) fn served_by(&self, backend: &BackendId) -> Lanes {
        self.served.get(backend).cloned().unwrap_or_else(|| Lanes::only([ANYBODY]))
    }

    /// What the tasks of a lane need; `None` when it is not known.
    fn needs(&self, lane: i64) -> Option<Arc<Needs>> {
        if lane == ANYBODY { Some(Arc::default()) } else { self.lanes.get(&lane).map(|known| known.needs.clone()) }
    }

    /// The lanes of a tenant, as far as they are known.
    pub(super) fn lanes_of(&self, tenant: &Tenant) -> BTreeSet<i64> {
        let theirs = self.lanes.iter().filter(|(_, known)| known.needs.tenant.as_ref() == Some(tenant));
        theirs.map(|(lane, _)| *lane).collect()
    }

    /// A task of this lane is about to be stored.
    fn enter(&mut self, lane: &Lane) -> bool {
        let is_new = lane.id != ANYBODY && !self.lanes.contains_key(&lane.id);
        if lane.id != ANYBODY {
            self.lanes.insert(lane.id, Known { needs: lane.needs.clone(), misses: 0 });
        }
        is_new
    }

    /// The store named every lane that has tasks.
    fn read(&mut self, lanes: Vec<Lane>) {
        self.lanes.values_mut().for_each(|known| known.misses += 1);
        let known = lanes.into_iter().map(|lane| (lane.id, Known { needs: lane.needs, misses: 0 }));
        self.lanes.extend(known);
        self.lanes.retain(|_, known| known.misses < MISSES);
    }

    /// Works out anew who serves what; tells whether that changed.
    fn work_out<'a>(
        &mut self,
        fits: impl Fn(&BackendId, &Needs) -> bool,
        backends: impl Iterator<Item = &'a BackendId>,
    ) -> bool {
        let meeting = |backend: &BackendId| {
            let met = self.lanes.iter().filter(|(_, known)| fits(backend, &known.needs));
            let anybody = fits(backend, &Needs::default()).then_some(ANYBODY);
            Lanes::only(met.map(|(lane, _)| *lane).chain(anybody))
        };
        let served = backends.map(|backend| (backend.clone(), meeting(backend))).collect();
        let before = std::mem::replace(&mut self.served, served);
        before != self.served
    }
}

impl State {
    /// Hears of every change of what the backends have.
    pub(super) fn watch_catalogues(&mut self, me: &ActorRef<QueueMsg>) {
        let (mut catalogues, me) = (self.system.catalogues.watch(), me.clone());
        self.tasks.run_unreported(async move {
            while catalogues.changed().await.is_ok() && me.cast(QueueMsg::CataloguesChanged).is_ok() {}
        });
    }

    /// The lanes a backend can serve.
    pub(super) fn lanes_of(&self, backend: &BackendId) -> Lanes {
        self.routes.served_by(backend)
    }

    pub(super) fn enter_lane(&mut self, lane: &Lane) {
        if self.routes.enter(lane) {
            self.work_out_routes();
        }
    }

    /// The lane for a task that ran out of memory, when some of the servers that could run it are out of the question now. Without
    /// validation nobody is told apart.
    pub(super) fn roomier_lane(&self, held: &Held) -> Option<Lane> {
        let needs = self.routes.needs(held.lane).filter(|_| self.system.settings.validate)?;
        let fleet = self.system.catalogues.fleet();
        let able = self.sessions.values().filter(|demand| fleet.meets(&demand.backend, &needs));
        let sizes: BTreeMap<_, _> = able.map(|demand| (&demand.backend, demand.memory)).collect();
        let chosen = roomier(&held.backend, held.ooms, &sizes);
        let excludes_some = !chosen.is_empty() && chosen.len() < sizes.len();
        excludes_some.then(|| Lane::of(Needs { backends: chosen, ..Needs::clone(&needs) }))
    }

    pub(super) fn on_catalogues_changed(&mut self, me: &ActorRef<QueueMsg>) {
        if self.work_out_routes() {
            self.on_wake(me);
        }
    }

    /// Other processes make lanes too, and a task that failed long ago may be tried again.
    pub(super) fn read_lanes(&mut self, me: &ActorRef<QueueMsg>) {
        if !std::mem::replace(&mut self.routes.reading, true) {
            let source = self.system.source.clone();
            self.tasks.run(me, async move { source.lanes().await }, QueueMsg::LanesRead);
        }
    }

    pub(super) fn on_lanes_read(
        &mut self,
        me: &ActorRef<QueueMsg>,
        result: Result<Result<Vec<Lane>, StoreError>, Panicked>,
    ) {
        self.routes.reading = false;
        match result {
            Ok(Ok(lanes)) => {
                self.routes.read(lanes);
                self.on_catalogues_changed(me);
            }
            Ok(Err(error)) => debug!(%error, "could not read the lanes"),
            Err(Panicked) => error!("reading the lanes panicked"),
        }
    }

    /// Without validation nobody knows better than the servers themselves what they have.
    pub(super) fn work_out_routes(&mut self) -> bool {
        let (fleet, validate) = (self.system.catalogues.fleet(), self.system.settings.validate);
        let fits = |backend: &BackendId, needs: &Needs| {
            if validate { fleet.meets(backend, needs) } else { fleet.allows(backend, needs) }
        };
        self.routes.work_out(fits, self.system.backends.keys())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{catalogue::Catalogue, fleet::Fleet};

    fn lane(class: &str) -> Lane {
        Lane::of(Needs { classes: [class.to_owned()].into(), ..Needs::default() })
    }

    #[test]
    fn a_backend_serves_what_it_has_and_what_anybody_can_run() {
        let [a, b] = ["a", "b"].map(BackendId::new);
        let mut fleet = Fleet::of([a.clone(), b.clone()]);
        let mut routes = Routes::default();
        let video = lane("SaveVideo");
        assert!(routes.enter(&video) && !routes.enter(&video) && !routes.enter(&Lane::default()));
        assert!(routes.work_out(|backend, needs| fleet.meets(backend, needs), [&a, &b].into_iter()));
        assert_eq!(routes.served_by(&a), Lanes::only([ANYBODY]), "nothing is known of it");
        fleet.learn(&a, Catalogue::parse(r#"{"SaveVideo": {"input": {}}}"#).unwrap());
        assert!(routes.work_out(|backend, needs| fleet.meets(backend, needs), [&a, &b].into_iter()));
        assert!(!routes.work_out(|backend, needs| fleet.meets(backend, needs), [&a, &b].into_iter()));
        assert_eq!(routes.served_by(&a), Lanes::only([ANYBODY, video.id]));
        assert_eq!(routes.served_by(&b), Lanes::only([ANYBODY]));
    }

    #[test]
    fn a_lane_is_forgotten_when_the_store_has_forgotten_it() {
        let mut routes = Routes::default();
        let (old, new) = (lane("Old"), lane("New"));
        routes.read(vec![old.clone()]);
        routes.enter(&new);
        for _ in 1..MISSES {
            routes.read(vec![old.clone()]);
        }
        assert_eq!(routes.lanes.len(), 2, "the new one may be on its way into the store");
        routes.read(Vec::new());
        assert_eq!(routes.lanes.keys().copied().collect::<Vec<_>>(), [old.id]);
    }
}
