//! Names of things, each its own type, so that a prompt id can never be passed where a task id is meant.

use std::{fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// A task's name for its whole life, a UUIDv7: sorting by it is sorting by creation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TaskId(pub Uuid);

impl TaskId {
    /// A fresh id, ordered after those drawn before it in this process.
    #[must_use]
    pub fn new() -> Self {
        Self(Uuid::now_v7())
    }
}

impl Default for TaskId {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Display for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for TaskId {
    type Err = uuid::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Uuid::from_str(text).map(Self)
    }
}

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(Arc<str>);

        impl $name {
            /// Wraps the text as it is.
            pub fn new(text: impl Into<Arc<str>>) -> Self {
                Self(text.into())
            }

            /// The text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

text_id! {
    /// ComfyUI's name for one run of a graph. We choose it ([`PromptId::of`]); builds from before July 2025 answer with one of their own.
    PromptId
}
text_id! {
    /// The name under which one WebSocket connection registers with ComfyUI. Fresh for every connection: two sockets
    /// under one name go deaf (PROTOCOL.md 6.7).
    ClientId
}
text_id! {
    /// One ComfyUI server: its base URL without credentials and without a trailing slash.
    BackendId
}
text_id! {
    /// One incarnation of a consumer process, `node:boot`. The part before the last colon survives a restart, the part
    /// after it does not, so a process can tell its predecessor's leases from those of others.
    WorkerId
}

impl PromptId {
    /// The id of dispatch number `dispatch` of a task: a UUIDv5, so an adopter can name a prompt whose evidence was lost.
    /// Canonical lowercase with hyphens, as ComfyUI 0.33 demands.
    #[must_use]
    pub fn of(task: TaskId, dispatch: i64) -> Self {
        Self::new(Uuid::new_v5(&task.0, &dispatch.to_be_bytes()).to_string())
    }
}

impl WorkerId {
    /// A fresh incarnation of `node`.
    #[must_use]
    pub fn starting(node: &str) -> Self {
        Self::new(format!("{node}:{}", Uuid::new_v4().simple()))
    }

    /// The incarnation's name, different after each restart.
    #[must_use]
    pub fn boot(&self) -> &str {
        self.0.rsplit_once(':').map_or(&self.0, |(_, boot)| boot)
    }

    /// The node's name, the same before and after a restart.
    #[must_use]
    pub fn node(&self) -> &str {
        self.0.rsplit_once(':').map_or(&self.0, |(node, _)| node)
    }
}

impl ClientId {
    /// A name no connection had before, starting with `prefix`, of this incarnation of a process.
    #[must_use]
    pub fn fresh(prefix: &str, worker: &WorkerId) -> Self {
        Self::new(format!("{prefix}-{}-{}", Uuid::new_v4().simple(), worker.boot()))
    }

    /// Whether this incarnation of a process made it.
    #[must_use]
    pub fn is_of(&self, worker: &WorkerId) -> bool {
        self.0.rsplit_once('-').is_some_and(|(_, boot)| boot == worker.boot())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prompt_id_is_stable_and_differs_by_dispatch() {
        let task = TaskId::new();
        assert_eq!(PromptId::of(task, 1), PromptId::of(task, 1));
        assert_ne!(PromptId::of(task, 1), PromptId::of(task, 2));
        let text = PromptId::of(task, 1).to_string();
        assert_eq!(Uuid::parse_str(&text).unwrap().hyphenated().to_string(), text);
    }

    #[test]
    fn a_worker_keeps_its_node_over_a_boot() {
        let (a, b) = (WorkerId::starting("rack:7"), WorkerId::starting("rack:7"));
        assert_ne!(a.boot(), b.boot());
        assert_eq!((a.node(), b.node()), ("rack:7", "rack:7"));
    }

    #[test]
    fn a_connection_tells_whose_it_is() {
        let (a, b) = (WorkerId::starting("node"), WorkerId::starting("node"));
        let client = ClientId::fresh("our-gpu", &a);
        assert!(client.is_of(&a) && !client.is_of(&b) && client.as_str().starts_with("our-gpu-"));
        assert_ne!(client, ClientId::fresh("our-gpu", &a));
        assert!(!ClientId::new("gpu").is_of(&a));
    }
}
