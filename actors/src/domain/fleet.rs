//! All backends together: whether any of them can run a graph, and which.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use serde_json::{Map, Value};

use super::{
    allowance::Allowance,
    catalogue::Catalogue,
    check::{Fault, Lack, Terms, check, needed},
    id::BackendId,
    lane::{Lane, Needs},
};

/// What is known of every backend there is.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Fleet {
    /// `None` = it was never asked, or never answered.
    backends: BTreeMap<BackendId, Option<Arc<Catalogue>>>,
    /// Those that are not told apart may do everything.
    allowances: BTreeMap<BackendId, Allowance>,
}

/// What the fleet makes of a graph.
#[derive(Debug, Clone, PartialEq)]
pub enum Verdict {
    /// It is taken, to wait in this lane.
    Taken(Lane),
    /// No backend will ever take it as it is.
    Refused(Vec<Objection>),
}

/// A fault, and where it is one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Objection {
    /// What is wrong.
    pub fault: Fault,
    /// The backends on which it is. All that are known, when `without` is empty.
    pub on: Vec<BackendId>,
    /// The backends without this fault. Each of them has others.
    pub without: Vec<BackendId>,
}

/// Backends that have the same.
struct Group<'a> {
    catalogue: &'a Arc<Catalogue>,
    backends: Vec<&'a BackendId>,
    faults: Vec<Fault>,
}

impl Fleet {
    /// Backends of which nothing is known yet.
    #[must_use]
    pub fn of(backends: impl IntoIterator<Item = BackendId>) -> Self {
        Self { backends: backends.into_iter().map(|backend| (backend, None)).collect(), allowances: BTreeMap::new() }
    }

    /// Notes what a backend has; tells whether that is news. Backends with the same share one catalogue.
    pub fn learn(&mut self, backend: &BackendId, catalogue: Catalogue) -> bool {
        let known = self.backends.values().flatten().find(|known| ***known == catalogue).cloned();
        let catalogue = known.unwrap_or_else(|| Arc::new(catalogue));
        let before = self.backends.insert(backend.clone(), Some(catalogue.clone()));
        before.flatten().as_ref() != Some(&catalogue)
    }

    /// Those of others, beside one's own: whoever is not among them any more is forgotten.
    pub fn muster(&mut self, own: &BTreeSet<BackendId>, others: &BTreeMap<BackendId, Allowance>) {
        self.backends.retain(|backend, _| own.contains(backend) || others.contains_key(backend));
        self.allowances.retain(|backend, _| own.contains(backend));
        for (backend, allowance) in others {
            self.backends.entry(backend.clone()).or_default();
            self.allow(backend, allowance.clone());
        }
    }

    /// Notes what a backend may do.
    pub fn allow(&mut self, backend: &BackendId, allowance: Allowance) {
        self.allowances.insert(backend.clone(), allowance);
    }

    /// What a backend may do.
    #[must_use]
    pub fn allowance(&self, backend: &BackendId) -> Allowance {
        self.allowances.get(backend).cloned().unwrap_or_default()
    }

    /// Whether a backend may run tasks with these needs, whatever it has.
    #[must_use]
    pub fn allows(&self, backend: &BackendId, needs: &Needs) -> bool {
        match self.allowances.get(backend) {
            Some(allowance) => allowance.takes(needs),
            None => needs.labels.is_empty(),
        }
    }

    /// What a backend has.
    #[must_use]
    pub fn catalogue(&self, backend: &BackendId) -> Option<&Arc<Catalogue>> {
        self.backends.get(backend)?.as_ref()
    }

    /// Every backend that is known, and what it has.
    pub fn known(&self) -> impl Iterator<Item = (&BackendId, &Arc<Catalogue>)> {
        self.backends.iter().filter_map(|(backend, catalogue)| Some((backend, catalogue.as_ref()?)))
    }

    /// Whether a backend can run tasks with these needs. Of one that is not known nothing is expected.
    #[must_use]
    pub fn meets(&self, backend: &BackendId, needs: &Needs) -> bool {
        let has = || {
            (needs.backends.is_empty() || needs.backends.contains(backend))
                && self.catalogue(backend).is_some_and(|catalogue| catalogue.meets(needs))
        };
        self.allows(backend, needs) && (needs.are_met_by_all() || has())
    }

    /// Whether anybody will take a graph that passed [`graph::check`](super::graph::check), and what it needs that not everybody has.
    ///
    /// While no backend is known, every graph is taken: the server decides. A backend that is not known may have whatever the others
    /// lack, so a graph that only lacks something waits for it.
    #[must_use]
    pub fn judge(&self, nodes: &Map<String, Value>, terms: Terms<'_>) -> Verdict {
        let groups = self.groups(nodes, terms);
        let is_partly_unknown = self.backends.values().any(Option::is_none);
        let fits = groups.iter().any(|group| group.faults.is_empty());
        if groups.is_empty() || groups.iter().all(|group| group.faults.is_empty()) && !is_partly_unknown {
            return Verdict::Taken(Lane::default());
        }
        let only_lacks = |group: &Group<'_>| group.faults.iter().all(|fault| fault.lack.is_some());
        if fits || is_partly_unknown && groups.iter().any(only_lacks) {
            return Verdict::Taken(Lane::of(needs(nodes, &groups, is_partly_unknown, terms)));
        }
        Verdict::Refused(objections(&groups))
    }

    fn groups(&self, nodes: &Map<String, Value>, terms: Terms<'_>) -> Vec<Group<'_>> {
        let mut groups: Vec<Group<'_>> = Vec::new();
        for (backend, catalogue) in self.known() {
            match groups.iter_mut().find(|group| Arc::ptr_eq(group.catalogue, catalogue)) {
                Some(group) => group.backends.push(backend),
                None => {
                    let faults = check(nodes, catalogue, terms);
                    groups.push(Group { catalogue, backends: vec![backend], faults });
                }
            }
        }
        groups
    }
}

/// What the graph needs that somebody lacks. Of backends that are not known everything is doubted.
fn needs(nodes: &Map<String, Value>, groups: &[Group<'_>], is_partly_unknown: bool, terms: Terms<'_>) -> Needs {
    let mut needs = Needs::default();
    let fitting: Vec<&Group<'_>> = groups.iter().filter(|group| group.faults.is_empty()).collect();
    let asked = if fitting.is_empty() { groups.iter().collect() } else { fitting.clone() };
    for need in asked.iter().flat_map(|group| needed(nodes, group.catalogue, terms)) {
        // A value is lacked by who has the class; who has not lacks the class.
        let there = |group: &Group<'_>| match &need {
            Lack::Class(class) => group.catalogue.class(class).is_some(),
            Lack::Value(value) => group.catalogue.class(&value.class).is_none() || group.catalogue.has(value),
        };
        let lacks = |group: &&Group<'_>| !there(group);
        // A graph that may run in part does not need what nobody has.
        let in_vain = !fitting.is_empty() && fitting.iter().all(lacks);
        if !in_vain && (is_partly_unknown || groups.iter().any(|group| lacks(&group))) {
            match need {
                Lack::Class(class) => needs.classes.insert(class),
                Lack::Value(value) => needs.values.insert(value),
            };
        }
    }
    let told_apart = groups.iter().all(|group| group.faults.is_empty() || !group.catalogue.meets(&needs));
    if !fitting.is_empty() && !told_apart {
        needs.backends = fitting.iter().flat_map(|group| &group.backends).map(|backend| (*backend).clone()).collect();
    }
    needs
}

/// Each fault once, with where it is one.
fn objections(groups: &[Group<'_>]) -> Vec<Objection> {
    let names = |wanted: &dyn Fn(&Group<'_>) -> bool| -> Vec<BackendId> {
        groups
            .iter()
            .filter(|group| wanted(group))
            .flat_map(|group| &group.backends)
            .map(|name| (*name).clone())
            .collect()
    };
    let mut objections: Vec<Objection> = Vec::new();
    for fault in groups.iter().flat_map(|group| &group.faults) {
        if objections.iter().any(|known| is_same(&known.fault, fault)) {
            continue;
        }
        let has = |group: &Group<'_>| group.faults.iter().any(|other| is_same(other, fault));
        objections.push(Objection { on: names(&has), without: names(&|group| !has(group)), fault: fault.clone() });
    }
    objections
}

/// Whether two faults are about the same thing: what the words say of a list may differ.
fn is_same(one: &Fault, other: &Fault) -> bool {
    one.node == other.node
        && one.input == other.input
        && one.lack == other.lack
        && (one.lack.is_some() || one.detail == other.detail)
}

#[cfg(test)]
mod tests;
