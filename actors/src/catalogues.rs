//! What every backend can run, for whoever asks: the queue, which routes by it, and the API, which refuses what nobody can run.
//!
//! Written by the sessions, read without a mailbox. Unlike the truth about tasks it may be lost: the next session asks its server again.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use tokio::sync::watch;

use crate::domain::{allowance::Allowance, catalogue::Catalogue, fleet::Fleet, id::BackendId};

/// The catalogues of all backends. Clones share them.
#[derive(Debug, Clone)]
pub struct Catalogues(Arc<watch::Sender<Arc<Fleet>>>);

impl Catalogues {
    /// Of backends of which nothing is known yet.
    #[must_use]
    pub fn new(backends: impl IntoIterator<Item = BackendId>) -> Self {
        Self(Arc::new(watch::Sender::new(Arc::new(Fleet::of(backends)))))
    }

    /// What is known now.
    #[must_use]
    pub fn fleet(&self) -> Arc<Fleet> {
        self.0.borrow().clone()
    }

    /// Notes what a backend has; whoever watches is told when that is news.
    pub fn learn(&self, backend: &BackendId, catalogue: Catalogue) {
        self.0.send_if_modified(|fleet| Arc::make_mut(fleet).learn(backend, catalogue));
    }

    /// Notes what a backend may do, before anybody asks.
    pub fn allow(&self, backend: &BackendId, allowance: &Allowance) {
        self.0.send_modify(|fleet| Arc::make_mut(fleet).allow(backend, allowance.clone()));
    }

    /// Notes which backends others have, what those may do, and what is new of what they have.
    pub fn muster(
        &self,
        own: &BTreeSet<BackendId>,
        others: BTreeMap<BackendId, Allowance>,
        news: Vec<(BackendId, Catalogue)>,
    ) {
        self.0.send_if_modified(|fleet| {
            let mut now = (**fleet).clone();
            now.muster(own, &others);
            for (backend, catalogue) in news {
                now.learn(&backend, catalogue);
            }
            let changed = now != **fleet;
            if changed {
                *fleet = Arc::new(now);
            }
            changed
        });
    }

    /// Tells of every change from now on.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Arc<Fleet>> {
        self.0.subscribe()
    }
}
