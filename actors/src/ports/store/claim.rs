//! Tasks are taken: by whom, for how long, and which.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use serde::{Deserialize, Serialize};

use crate::domain::{
    artifact::Artifact,
    id::{BackendId, TaskId, WorkerId},
    lane::{Head, Lanes, allot},
    options::TaskOptions,
    task::{Change, Intent, Task},
    tenant::{Caps, Room},
    time::Timestamp,
};

/// A request for work.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Claim {
    /// Who asks.
    pub worker: WorkerId,
    /// How long the leases last.
    pub lease: Duration,
    /// One entry per task wanted, filled in order.
    pub slots: Vec<ClaimSlot>,
    /// How many tasks of a tenant may run. Never taken from somebody outside: whoever hands the claim to the store says it.
    #[serde(skip)]
    pub caps: Caps,
}

impl Claim {
    /// Every lane that any of the slots serves; `None` = all there are.
    #[must_use]
    pub fn lanes(&self) -> Option<BTreeSet<i64>> {
        ClaimSlot::lanes_of(&self.slots)
    }

    /// The tenants of these tasks whose running tasks have to be counted before any of theirs is taken.
    #[must_use]
    pub fn capped(&self, heads: &[Head]) -> BTreeSet<i64> {
        heads.iter().map(|head| head.tenant).filter(|tenant| self.caps.of(*tenant).is_some()).collect()
    }

    /// Which of these tasks are taken, and how, as [`allot`] says. They are given in the order of the queue, and come out in that order. Of each
    /// tenant in `running` so many run already; those that are [capped](Self::capped) and not in it have none.
    #[must_use]
    pub fn take(&self, heads: &[Head], running: &BTreeMap<i64, u64>, now: Timestamp) -> Vec<(TaskId, Change)> {
        let served: Vec<Lanes> = self.slots.iter().map(|slot| slot.lanes.clone()).collect();
        let room: Room = self.caps.room(self.capped(heads), running);
        let until = now.after(self.lease);
        let taken = heads.iter().zip(allot(heads, &served, room)).filter_map(|(head, slot)| {
            let intent = self.slots.get(slot?)?.intent.clone();
            Some((head.task, Change::Claim { worker: self.worker.clone(), until, intent }))
        });
        taken.collect()
    }
}

/// A place for one task.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ClaimSlot {
    /// Where its task would run.
    pub intent: Intent,
    /// Which tasks can run there.
    pub lanes: Lanes,
}

impl ClaimSlot {
    /// Every lane that any of these serves; `None` = all there are.
    #[must_use]
    pub fn lanes_of<'a>(slots: impl IntoIterator<Item = &'a Self>) -> Option<BTreeSet<i64>> {
        let mut served = BTreeSet::new();
        for slot in slots {
            match &slot.lanes {
                Lanes::All => return None,
                Lanes::Only(lanes) => served.extend(lanes.iter().copied()),
            }
        }
        Some(served)
    }
}

/// A search for tasks that nobody holds any more, by who can go on with them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sweep {
    /// Who asks.
    pub worker: WorkerId,
    /// How long the new leases last.
    pub lease: Duration,
    /// The servers it can reach: whoever cannot reach the server of a task cannot tell what became of it.
    pub backends: BTreeSet<BackendId>,
    /// Tasks on any other server, once their lease has been over for so long: nobody came who can reach it.
    pub stranded_after: Duration,
    /// At most this many: a crowd is shared with others.
    pub limit: u32,
}

impl Sweep {
    /// Whether a task whose lease ended then is to be adopted now.
    #[must_use]
    pub fn takes(&self, task: &Task, now: Timestamp) -> bool {
        let Some(lease) = &task.lease else { return false };
        let reached = task.prompt.as_ref().is_none_or(|prompt| self.backends.contains(&prompt.backend));
        lease.until <= if reached { now } else { now.before(self.stranded_after) }
    }
}

/// A held task with all that is needed to run it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Assignment {
    /// The task, held by the asker under `task.fence`.
    pub task: Task,
    /// Its graph.
    pub graph: Arc<str>,
    /// What is done differently for it.
    pub options: Arc<TaskOptions>,
    /// Its artifacts, when it is already uploading.
    pub artifacts: Vec<Artifact>,
}

/// A renewed lease. A task that is missing from the answer was lost to somebody else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Renewed {
    /// Which.
    pub id: TaskId,
    /// A client wants it stopped.
    pub cancel_requested: bool,
}
