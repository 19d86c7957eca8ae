//! Points where tests have the process die: between an effect and the record of it, where a power cut would hurt most.
//!
//! `CRASH_AT=<point>` aborts the process when that point is reached, `CRASH_AT=<point>:<n>` when it is reached for the nth time, and
//! `FREEZE_AT` stops it there (SIGSTOP), as a machine that is suspended. `tests/it/crash.rs` lists the points and what must hold after
//! each. There are none in a release build: [`reach`] does nothing there, and the compiler leaves it out (decision 029).

use std::{
    process::Command,
    sync::{
        OnceLock,
        atomic::{AtomicU32, Ordering},
    },
};

use comfyd_actors::{domain::task::TaskState, ports::store::Changed};

/// What happens at a point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Abort,
    Freeze,
}

/// The point this process shall not pass.
#[derive(Debug)]
struct Armed {
    point: String,
    left: AtomicU32,
    fate: Fate,
}

/// One per process, because its death is.
static ARMED: OnceLock<Option<Armed>> = OnceLock::new();

/// Stops a process and ends when all of its threads stand still: a signal takes its time, and whoever went on meanwhile would be frozen
/// further on, with a lock in its hands.
const STOP: &str = r#"kill -s STOP "$0"; while grep -qv '^[^)]*) T' /proc/"$0"/task/*/stat; do :; done"#;

/// The process is at `point`.
#[inline]
pub fn reach(point: &str) {
    if cfg!(debug_assertions) {
        reached(point, "");
    }
}

/// A batch of the store is at `point`: `<point>/<kind>` is reached once for each change of that kind.
#[inline]
pub fn reach_with(point: &str, changes: &[Changed]) {
    if cfg!(debug_assertions) {
        changes.iter().for_each(|change| reached(point, kind(change)));
    }
}

fn reached(point: &str, kind: &str) {
    if let Some(armed) = ARMED.get_or_init(Armed::of_environment)
        && armed.is_here(point, kind)
    {
        armed.fate.befall();
    }
}

/// What a change is, as far as it can be seen on the task.
fn kind(change: &Changed) -> &'static str {
    match (change.was, change.state) {
        (None, _) => "created",
        (Some(was), now) if was == now => {
            if change.cancelling {
                "cancelling"
            } else {
                "kept"
            }
        }
        (_, TaskState::Scheduled) => "put-off",
        (Some(TaskState::Scheduled), TaskState::Pending) => "promoted",
        (_, TaskState::Pending) => "given-back",
        (_, TaskState::Dispatching) => "claimed",
        (_, TaskState::Executing) => "accepted",
        (_, TaskState::Uploading) => "planned",
        (_, TaskState::Completed) => "completed",
        (_, TaskState::Failed) => "failed",
        (_, TaskState::Cancelled) => "cancelled",
    }
}

impl Armed {
    fn of_environment() -> Option<Self> {
        let named = |name, fate| std::env::var(name).ok().map(|text| Self::parse(&text, fate));
        named("CRASH_AT", Fate::Abort).or_else(|| named("FREEZE_AT", Fate::Freeze))
    }

    fn parse(text: &str, fate: Fate) -> Self {
        let (point, times) = text.split_once(':').unwrap_or((text, "1"));
        Self { point: point.to_owned(), left: AtomicU32::new(times.parse().unwrap_or(1)), fate }
    }

    /// Whether this is it, for the last time that is let pass.
    fn is_here(&self, point: &str, kind: &str) -> bool {
        let named = match kind {
            "" => self.point == point,
            kind => self.point.strip_prefix(point).and_then(|rest| rest.strip_prefix('/')) == Some(kind),
        };
        named && self.left.fetch_sub(1, Ordering::AcqRel) == 1
    }
}

impl Fate {
    fn befall(self) {
        match self {
            // No destructor, no flush, no goodbye.
            Self::Abort => std::process::abort(),
            Self::Freeze => {
                // Stopped while it waits for the end of this; woken by SIGCONT.
                _ = Command::new("sh").args(["-c", STOP, &std::process::id().to_string()]).status();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use comfyd_actors::domain::{id::TaskId, order::Priority};

    use super::*;

    #[test]
    fn only_the_nth_time_counts() {
        let armed = Armed::parse("commit/claimed:2", Fate::Abort);
        let reached = [("commit", ""), ("commit", "created"), ("commit", "claimed"), ("commit", "claimed")];
        assert_eq!(reached.map(|(point, kind)| armed.is_here(point, kind)), [false, false, false, true]);
        assert!(!armed.is_here("commit", "claimed"), "what was survived once is survived");
        let armed = Armed::parse("post", Fate::Abort);
        assert!(!armed.is_here("post", "x") && !armed.is_here("posted", "") && armed.is_here("post", ""));
    }

    #[test]
    fn changes_have_names() {
        let of = |was, state, cancelling| {
            kind(&Changed {
                id: TaskId::new(),
                was,
                state,
                priority: Priority::default(),
                cancelling,
                hooked: false,
                of_tenant: false,
                here: true,
            })
        };
        let (pending, dispatching) = (TaskState::Pending, TaskState::Dispatching);
        assert_eq!(of(None, pending, false), "created");
        assert_eq!(of(Some(pending), dispatching, false), "claimed");
        assert_eq!(of(Some(dispatching), pending, false), "given-back");
        assert_eq!(of(Some(TaskState::Scheduled), pending, false), "promoted");
        assert_eq!(of(Some(dispatching), dispatching, false), "kept");
        assert_eq!(of(Some(dispatching), dispatching, true), "cancelling");
        assert_eq!(of(Some(dispatching), TaskState::Cancelled, false), "cancelled");
    }
}
