//! Lanes: which tasks a backend can run at all.
//!
//! Backends differ in their nodes and models. What a task needs that not every backend has is decided once, when it is created; tasks
//! with the same needs wait in the same lane, and a claimer takes the least head of the lanes it can serve. So a task nobody can run
//! never stands in the way of others, and the cost of a claim grows with the number of lanes, not of tasks.

use std::{collections::BTreeSet, fmt, sync::Arc};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{
    id::{BackendId, TaskId},
    tenant::{Room, Tenant},
};

/// The lane of what any backend can run.
pub const ANYBODY: i64 = 0;
/// The space of the ids below. Any constant will do, but it must never change: lanes are stored.
const SPACE: Uuid = Uuid::from_u128(0x6d9a_5c7e_2f41_4b0b_9c3d_8e10_77a2_41f6);

/// What a backend must have to run a task.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Needs {
    /// Node classes.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub classes: BTreeSet<String>,
    /// Values in the lists of inputs: models, mostly.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub values: BTreeSet<ListValue>,
    /// One of these backends itself: they differ from others in a way the two sets above do not tell (versions of a node with other
    /// inputs, say). Empty = any.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub backends: BTreeSet<BackendId>,
    /// It is made from this named workflow, and there may be servers that take some workflows only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workflow: Option<String>,
    /// What its client says it needs, in words of the operator's.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub labels: BTreeSet<String>,
    /// Whose it is. No backend need have that: tenants have lanes of their own, so that one that may not run more stands in nobody's way.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tenant: Option<Tenant>,
}

/// A value that must be in the list of an input.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ListValue {
    /// The class of the node.
    pub class: String,
    /// Its input.
    pub input: String,
    /// The value.
    pub value: String,
}

impl Needs {
    /// Whether any backend will do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.are_met_by_all() && self.workflow.is_none() && self.labels.is_empty()
    }

    /// Whether nothing is needed that a server may lack, whatever it is allowed to do.
    #[must_use]
    pub fn are_met_by_all(&self) -> bool {
        self.classes.is_empty() && self.values.is_empty() && self.backends.is_empty()
    }
}

impl fmt::Display for Needs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let classes = self.classes.iter().map(|class| format!("node {class}"));
        let values = self.values.iter().map(|need| format!("{} ({} of {})", need.value, need.input, need.class));
        let backends = self.backends.iter().map(|backend| format!("server {backend}"));
        let workflow = self.workflow.iter().map(|name| format!("workflow {name}"));
        let labels = self.labels.iter().map(|label| format!("label {label}"));
        f.write_str(&classes.chain(values).chain(backends).chain(workflow).chain(labels).collect::<Vec<_>>().join(", "))
    }
}

/// A lane: its id and what it stands for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lane {
    /// A hash of tenant and needs; [`ANYBODY`] without any.
    pub id: i64,
    /// What its tasks need.
    pub needs: Arc<Needs>,
}

impl Default for Lane {
    fn default() -> Self {
        Self { id: ANYBODY, needs: Arc::default() }
    }
}

impl Lane {
    /// The lane of these needs.
    #[must_use]
    pub fn of(needs: Needs) -> Self {
        if needs.is_empty() && needs.tenant.is_none() {
            return Self::default();
        }
        // Sets are sorted, so equal needs are equal texts.
        let text = serde_json::to_vec(&needs).unwrap_or_default();
        let (hash, _) = Uuid::new_v5(&SPACE, &text).as_u64_pair();
        // Odd, because 0 is taken.
        Self { id: (hash | 1).cast_signed(), needs: Arc::new(needs) }
    }
}

/// The lanes a claimer can serve.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Lanes {
    /// Whatever there is.
    All,
    /// These, and nothing else.
    Only(Arc<BTreeSet<i64>>),
}

impl Lanes {
    /// These alone.
    pub fn only(lanes: impl IntoIterator<Item = i64>) -> Self {
        Self::Only(Arc::new(lanes.into_iter().collect()))
    }

    /// Whether it is one of them.
    #[must_use]
    pub fn contains(&self, lane: i64) -> bool {
        match self {
            Self::All => true,
            Self::Only(lanes) => lanes.contains(&lane),
        }
    }
}

/// A waiting task at the head of its lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// Which.
    pub task: TaskId,
    /// Where it waits.
    pub lane: i64,
    /// Whose it is.
    pub tenant: i64,
}

/// Which slot gets which waiting task: for each task, in the order of the queue, the slot that serves it.
///
/// As many tasks as possible are served, and always those that come first: a task that finds every slot it fits taken has the earlier
/// ones move over to others that they fit as well. Slots are tried in their order. A task whose tenant has no room left is left out.
#[must_use]
pub fn allot(tasks: &[Head], slots: &[Lanes], mut room: Room) -> Vec<Option<usize>> {
    let mut taken: Vec<Option<usize>> = vec![None; slots.len()];
    for (task, head) in tasks.iter().enumerate() {
        if taken.iter().all(Option::is_some) {
            break;
        }
        // Whoever is placed once keeps a place, so the room is taken for good.
        if room.has(head.tenant) && place(task, tasks, slots, &mut taken, &mut vec![false; slots.len()]) {
            room.take(head.tenant);
        }
    }
    let mut allotted = vec![None; tasks.len()];
    for (slot, task) in taken.iter().enumerate() {
        if let Some(task) = task.and_then(|task| allotted.get_mut(task)) {
            *task = Some(slot);
        }
    }
    allotted
}

/// Finds a slot for a task, moving others if need be. Descends at most once into each slot.
fn place(task: usize, tasks: &[Head], slots: &[Lanes], taken: &mut [Option<usize>], tried: &mut [bool]) -> bool {
    let fits: Vec<usize> = (0..slots.len()).filter(|slot| slots[*slot].contains(tasks[task].lane)).collect();
    if let Some(free) = fits.iter().find(|slot| taken[**slot].is_none()) {
        taken[*free] = Some(task);
        return true;
    }
    for slot in fits {
        let Some(other) = taken[slot] else { continue };
        if !std::mem::replace(&mut tried[slot], true) && place(other, tasks, slots, taken, tried) {
            taken[slot] = Some(task);
            return true;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::domain::tenant::{Limits, Tenants};

    fn head(lane: i64, tenant: i64) -> Head {
        Head { task: TaskId(Uuid::nil()), lane, tenant }
    }

    fn heads(lanes: &[i64]) -> Vec<Head> {
        lanes.iter().map(|lane| head(*lane, 0)).collect()
    }

    fn needs(classes: &[&str]) -> Needs {
        Needs { classes: classes.iter().map(|class| (*class).to_owned()).collect(), ..Needs::default() }
    }

    #[test]
    fn a_lane_is_a_hash_of_its_needs() {
        assert_eq!(Lane::of(Needs::default()).id, ANYBODY);
        assert_eq!(Lane::of(needs(&["A", "B"])), Lane::of(needs(&["B", "A"])));
        assert_ne!(Lane::of(needs(&["A"])).id, Lane::of(needs(&["B"])).id);
        let of = |tenant| Lane::of(Needs { tenant: Some(Tenant::parse(tenant).unwrap()), ..Needs::default() });
        assert!(of("acme").id != ANYBODY && of("acme").id != of("other").id);
        assert!(of("acme").needs.is_empty(), "any backend will do");
        // Stored in databases: must never become another number.
        assert_eq!(Lane::of(needs(&["SaveVideo"])).id, Lane::of(needs(&["SaveVideo"])).id);
    }

    #[test]
    fn needs_survive_the_store() {
        let mut all = needs(&["A"]);
        all.values.insert(ListValue { class: "Load".into(), input: "name".into(), value: "x".into() });
        all.backends.insert(BackendId::new("http://a"));
        all.tenant = Some(Tenant::parse("acme").unwrap());
        let text = serde_json::to_string(&all).unwrap();
        assert_eq!(serde_json::from_str::<Needs>(&text).unwrap(), all);
        assert_eq!(serde_json::from_str::<Needs>("{}").unwrap(), Needs::default());
        assert_eq!(all.to_string(), "node A, x (name of Load), server http://a");
    }

    #[test]
    fn slots_go_to_the_first_in_the_queue() {
        let (any, special) = (Lanes::only([0]), Lanes::only([0, 7]));
        for (tasks, slots, expected) in [
            // Alike: in order.
            (vec![0, 0, 0], vec![any.clone(), any.clone()], vec![Some(0), Some(1), None]),
            // The one slot that serves lane 7 is given up by a task that any slot serves.
            (vec![0, 7], vec![special.clone(), any.clone()], vec![Some(1), Some(0)]),
            // Nobody serves lane 9; it stands in nobody's way.
            (vec![9, 0], vec![special.clone()], vec![None, Some(0)]),
            // The first in the queue keeps what it has.
            (vec![7, 7], vec![any.clone(), special.clone()], vec![Some(1), None]),
            (vec![0, 7], vec![special], vec![Some(0), None]),
            (vec![3], vec![Lanes::All], vec![Some(0)]),
            (vec![0], Vec::new(), vec![None]),
        ] {
            assert_eq!(allot(&heads(&tasks), &slots, Room::default()), expected, "{tasks:?}");
        }
    }

    #[test]
    fn who_has_no_room_stands_in_nobodys_way() {
        let tenants = Tenants { usual: Limits { max_waiting: None, max_running: Some(2) }, ..Tenants::default() };
        let room = |running: &[(i64, u64)]| tenants.caps().room([1, 2], &running.iter().copied().collect());
        let tasks = [head(0, 1), head(0, 1), head(5, 1), head(0, 2), head(0, 0)];
        let three = vec![Lanes::All; 3];
        assert_eq!(allot(&tasks, &three, room(&[])), [Some(0), Some(1), None, Some(2), None]);
        assert_eq!(allot(&tasks, &three, room(&[(1, 1)])), [Some(0), None, None, Some(1), Some(2)]);
        assert_eq!(allot(&tasks, &three, room(&[(1, 2), (2, 7)])), [None, None, None, None, Some(0)]);
    }

    proptest! {
        /// Compared with trying everything: no other choice serves an earlier task that this one leaves out.
        #[test]
        fn no_other_choice_is_better(
            tasks in prop::collection::vec(0_i64..4, 0..6),
            owners in prop::collection::vec(0_i64..3, 6),
            slots in prop::collection::vec(prop::collection::btree_set(0_i64..4, 0..3), 0..4),
            running in prop::collection::btree_map(1_i64..3, 0_u64..3, 0..3),
        ) {
            let tenants = Tenants { usual: Limits { max_waiting: None, max_running: Some(2) }, ..Tenants::default() };
            let room = tenants.caps().room([1, 2], &running);
            let tasks: Vec<Head> = tasks.into_iter().zip(owners).map(|(lane, tenant)| head(lane, tenant)).collect();
            let slots: Vec<Lanes> = slots.into_iter().map(Lanes::only).collect();
            let allotted = allot(&tasks, &slots, room.clone());
            let mut used: Vec<usize> = allotted.iter().flatten().copied().collect();
            used.sort_unstable();
            used.dedup();
            prop_assert_eq!(used.len(), allotted.iter().flatten().count(), "a slot is given once");
            for (task, slot) in allotted.iter().enumerate() {
                prop_assert!(slot.is_none_or(|slot| slots[slot].contains(tasks[task].lane)));
            }
            let served: Vec<bool> = allotted.iter().map(Option::is_some).collect();
            prop_assert_eq!(served, best(&tasks, &slots, &mut vec![false; slots.len()], &room).unwrap_or_default());
        }
    }

    /// The lexicographically greatest list of who is served.
    fn best(tasks: &[Head], slots: &[Lanes], taken: &mut Vec<bool>, room: &Room) -> Option<Vec<bool>> {
        let Some((head, rest)) = tasks.split_first() else { return Some(Vec::new()) };
        let mut found: Option<Vec<bool>> = None;
        for slot in 0..slots.len() {
            if !taken[slot] && slots[slot].contains(head.lane) && room.has(head.tenant) {
                taken[slot] = true;
                let mut less = room.clone();
                less.take(head.tenant);
                let tail = best(rest, slots, taken, &less);
                taken[slot] = false;
                found = found.max(tail.map(|tail| [vec![true], tail].concat()));
            }
        }
        found.max(best(rest, slots, taken, room).map(|tail| [vec![false], tail].concat()))
    }
}
