//! Names of keys, and members of indexes.
//!
//! An index is a sorted set whose members all have the score 0, so Redis keeps them in the order of their bytes: eight for a number, then
//! the sixteen of an id. That is exact for every number, which a score (a double) is not, and ties are broken by the id as everywhere.

use comfyd_actors::domain::{
    failure::Class, id::TaskId, order::Priority, task::TaskState, time::Timestamp, webhook::EndpointId,
};
use uuid::Uuid;

/// What all our keys begin with. The braces put all of them into one slot of a cluster.
#[derive(Debug, Clone)]
pub(super) struct Keys(String);

/// Hashes with a field for each of many things, and other keys there is one of.
macro_rules! single {
    ($($(#[$doc:meta])* $method:ident = $name:literal;)*) => {
        $($(#[$doc])* pub(super) fn $method(&self) -> String {
            self.at($name)
        })*
    };
}

impl Keys {
    pub(super) fn new(prefix: &str) -> Self {
        Self(format!("{{{prefix}}}:"))
    }

    pub(super) fn prefix(&self) -> &str {
        &self.0
    }

    fn at(&self, name: &str) -> String {
        format!("{}{name}", self.0)
    }

    single! {
        /// Counters and facts about the store itself.
        meta = "meta";
        /// Idempotency keys.
        requests = "requests";
        /// Their ages.
        request_ages = "requests:age";
        /// What lanes stand for.
        lanes = "lanes";
        /// How many tasks each lane but 0 has.
        lane_tasks = "lanes:tasks";
        /// How many of them are not over.
        lane_unfinished = "lanes:unfinished";
        /// How many of those wait, for their turn or their time.
        lane_waiting = "lanes:waiting";
        /// How many tasks of each tenant are held.
        tenant_running = "tenants:running";
        scheduled = "scheduled";
        leases = "leases";
        all = "all";
        /// A stream.
        events = "events";
        pauses = "pauses";
        /// Of each state, its last task that left nothing in storage any more, as in the index of those that are over.
        swept = "swept";
        inputs = "inputs";
        /// The object of each kept file.
        input_objects = "inputs:object";
        input_ages = "inputs:age";
        /// How many unfinished tasks need a file.
        input_needs = "inputs:needs";
        endpoints = "endpoints";
        /// How many tasks tell each endpoint something.
        endpoint_tasks = "endpoints:tasks";
        /// When endpoints are looked at next.
        calls = "calls";
        messages = "messages";
        /// When messages are sent.
        due = "due";
        log = "log";
        /// Pending messages by the time of what they tell.
        untold = "untold";
        workflows = "workflows";
        /// A channel: changes that were committed.
        changes = "changes";
        /// A channel: notices that were posted.
        posted = "posted";
    }

    /// A task: revision, row, payload, what its nodes took.
    pub(super) fn task(&self, id: TaskId) -> String {
        self.at(&format!("task:{}", id.0.simple()))
    }

    /// Its artifacts, by their places.
    pub(super) fn artifacts(&self, id: TaskId) -> String {
        self.at(&format!("artifacts:{}", id.0.simple()))
    }

    /// The numbers of its events.
    pub(super) fn events_of(&self, id: TaskId) -> String {
        self.at(&format!("events:{}", id.0.simple()))
    }

    /// Outputs that were told.
    pub(super) fn told(&self, id: TaskId) -> String {
        self.at(&format!("told:{}", id.0.simple()))
    }

    /// What was fetched for it, by URL.
    pub(super) fn fetched(&self, id: TaskId) -> String {
        self.at(&format!("fetched:{}", id.0.simple()))
    }

    /// Its messages that are pending.
    pub(super) fn waiting(&self, id: TaskId) -> String {
        self.at(&format!("waiting:{}", id.0.simple()))
    }

    pub(super) fn log_of_task(&self, id: TaskId) -> String {
        self.at(&format!("log:task:{}", id.0.simple()))
    }

    pub(super) fn log_of_endpoint(&self, id: EndpointId) -> String {
        self.at(&format!("log:endpoint:{}", id.0))
    }

    pub(super) fn log_of_state(&self, state: &str) -> String {
        self.at(&format!("log:state:{state}"))
    }

    /// Messages that have a time to be sent at.
    pub(super) fn due_of(&self, id: EndpointId) -> String {
        self.at(&format!("due:{}", id.0))
    }

    /// Messages that are on their way.
    pub(super) fn sending(&self, id: EndpointId) -> String {
        self.at(&format!("sending:{}", id.0))
    }

    /// The order of a lane.
    pub(super) fn queue(&self, lane: i64) -> String {
        self.at(&format!("queue:{lane}"))
    }

    /// Waiting tasks of a priority, the longest waiting first.
    pub(super) fn depth(&self, priority: Priority) -> String {
        self.at(&format!("depth:{priority}"))
    }

    pub(super) fn of_state(&self, state: TaskState) -> String {
        self.at(&format!("state:{state}"))
    }

    pub(super) fn of_workflow(&self, name: &str) -> String {
        self.at(&format!("workflow:{name}"))
    }

    pub(super) fn finished(&self, state: TaskState) -> String {
        self.at(&format!("finished:{state}"))
    }

    pub(super) fn failed(&self, class: Class) -> String {
        self.at(&format!("failed:{}", class.as_str()))
    }

    /// The texts of a workflow's versions.
    pub(super) fn versions(&self, name: &str) -> String {
        self.at(&format!("versions:{name}"))
    }

    /// The names of the notices of a kind, and when their time is over.
    pub(super) fn notices(&self, kind: &str) -> String {
        self.at(&format!("notices:{kind}"))
    }

    pub(super) fn notice(&self, kind: &str, name: &str) -> String {
        self.at(&format!("notice:{kind}:{name}"))
    }

    /// That a commit was made.
    pub(super) fn token(&self, token: Uuid) -> String {
        self.at(&format!("done:{}", token.simple()))
    }
}

/// A number in eight bytes that sort as it does.
pub(super) fn ordered(number: i64) -> [u8; 8] {
    (number.cast_unsigned() ^ (1 << 63)).to_be_bytes()
}

/// A member of an index over tasks.
pub(super) fn member(number: i64, id: TaskId) -> Vec<u8> {
    [&ordered(number)[..], id.0.as_bytes()].concat()
}

/// The number a member is sorted by.
pub(super) fn number_of(member: &[u8]) -> Option<i64> {
    let number: [u8; 8] = member.get(..8)?.try_into().ok()?;
    Some((u64::from_be_bytes(number) ^ (1 << 63)).cast_signed())
}

/// The task a member stands for.
pub(super) fn task_of(member: &[u8]) -> Option<TaskId> {
    Uuid::from_slice(member.get(8..)?).ok().map(TaskId)
}

/// The bound of a range that leaves out everything from this number on, when it is the upper one, or includes it, when the lower.
pub(super) fn before(at: Timestamp) -> Vec<u8> {
    [b"(", &ordered(at.0)[..]].concat()
}

/// The upper bound of a range that includes all members of this number.
pub(super) fn until(at: Timestamp) -> Vec<u8> {
    at.0.checked_add(1).map_or_else(|| b"+".to_vec(), |next| before(Timestamp(next)))
}

/// The lower bound of a range that includes all members of this number.
pub(super) fn from(at: Timestamp) -> Vec<u8> {
    [b"[", &ordered(at.0)[..]].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_sort_as_their_numbers_do() {
        let numbers = [i64::MIN, -1, 0, 1, 1 << 53, (1 << 53) + 1, i64::MAX];
        let id = TaskId(Uuid::from_u128(7));
        let members = numbers.map(|number| member(number, id));
        assert!(members.is_sorted_by(|a, b| a < b));
        assert!(members.iter().all(|member| task_of(member) == Some(id)));
        assert_eq!(task_of(b"short"), None);
        assert_eq!(until(Timestamp(i64::MAX)), b"+");
    }
}
