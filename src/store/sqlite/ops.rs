//! The operations on the writer's queue: what the ports promise, as the steps of one transaction each.
//!
//! Limits are written `LIMIT 0 + ?`: `SQLite` plans a statement again whenever the variable of a bare `LIMIT ?` is bound, and planning
//! a claim costs ten times as much as running it. The same goes for `state = ?` on a table with partial indexes over `state`.

mod control;
mod create;
mod hold;
mod hooks;
mod inputs;
mod upkeep;
mod wire;
mod workflows;

pub(super) use control::{Amend, NoteRun, PAUSES, SetPaused};
pub(super) use create::{ClaimHeads, Create};
pub(super) use hold::{AdoptExpired, Apply, Held, Renew, TakeOver};
pub(super) use hooks::{Enable, Redeliver, Settle, Take};
pub(super) use inputs::{Forget, GiveUp, Keep, NoteFetched, Refresh, Reserve};
pub(super) use upkeep::{Check, NoteSwept, Promote, Prune, set_back};
pub(super) use wire::{Post, TakeBack};
pub(super) use workflows::{Content, Publish, Record, Withdraw};

/// The statements whose cost must not grow with the number of tasks, for the test that looks at their plans.
#[cfg(test)]
pub(super) const SEEKING: [(&str, &str); 12] = [
    ("claim", create::HEADS),
    ("claim for slots that differ", create::NAMES),
    ("claim for tenants with caps", create::RUNNING),
    ("adopt_expired", hold::EXPIRED),
    ("promote", upkeep::DUE),
    ("prune tasks", upkeep::FINISHED),
    ("prune keys", upkeep::DELETE_KEYS),
    ("prune lanes", upkeep::DELETE_LANES),
    ("give up inputs", inputs::DUE),
    ("take messages: endpoints", hooks::CALLED),
    ("take messages", hooks::RIPE),
    ("look at an endpoint again", hooks::REFRESH),
];
