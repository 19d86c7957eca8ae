//! What every supervisor here does: knows its children by actor id, and decides on their restarts.

use std::{collections::HashMap, hash::Hash};

use ractor::{ActorCell, ActorId, SupervisionEvent};
use tokio::time::Instant;

use super::budget::{Decision, Limits, RestartBudget};

/// A child's end, as its supervisor sees it.
#[derive(Debug)]
pub struct Exit<K> {
    /// Which child.
    pub key: K,
    /// What it died of.
    pub reason: String,
    /// What to do.
    pub decision: Decision,
}

struct Child {
    id: Option<ActorId>,
    budget: RestartBudget,
    restarts: u64,
}

/// The children of one supervisor, with a restart budget each.
pub struct Children<K> {
    limits: Limits,
    children: HashMap<K, Child>,
}

impl<K: Clone + Eq + Hash> Children<K> {
    /// No children yet.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self { limits, children: HashMap::new() }
    }

    /// Notes a (re)started child.
    pub fn started(&mut self, key: K, cell: &ActorCell) {
        self.child(key).id = Some(cell.get_id());
    }

    /// Notes a start that failed in `pre_start`: no supervision event tells of it.
    pub fn failed_to_start(&mut self, key: K, reason: String) -> Exit<K> {
        let decision = self.spend(&key);
        Exit { key, reason, decision }
    }

    /// Reads a supervision event. `None` when it is not the end of a current child: a start, or a late word of an incarnation
    /// that was replaced long ago. Every end counts: long-lived children have no normal one.
    pub fn on_event(&mut self, event: &SupervisionEvent) -> Option<Exit<K>> {
        let (cell, reason) = match event {
            SupervisionEvent::ActorFailed(cell, error) => (cell, error.to_string()),
            SupervisionEvent::ActorTerminated(cell, _, reason) => {
                (cell, reason.clone().unwrap_or_else(|| "stopped".to_owned()))
            }
            _ => return None,
        };
        let id = cell.get_id();
        let key = self.children.iter().find(|(_, child)| child.id == Some(id)).map(|(key, _)| key.clone())?;
        let decision = self.spend(&key);
        Some(Exit { key, reason, decision })
    }

    /// How often a child was restarted since the supervisor started.
    #[must_use]
    pub fn restarts(&self, key: &K) -> u64 {
        self.children.get(key).map_or(0, |child| child.restarts)
    }

    /// Forgets what a child has spent, after a quarantine.
    pub fn pardon(&mut self, key: K) {
        let limits = self.limits;
        self.child(key).budget = RestartBudget::new(limits);
    }

    fn spend(&mut self, key: &K) -> Decision {
        let child = self.child(key.clone());
        child.id = None;
        child.restarts += 1;
        child.budget.on_failure(Instant::now(), rand::random())
    }

    fn child(&mut self, key: K) -> &mut Child {
        let limits = self.limits;
        self.children.entry(key).or_insert_with(|| Child { id: None, budget: RestartBudget::new(limits), restarts: 0 })
    }
}
