//! The operations on the writer's queue: what the ports promise, as the steps of one transaction each.

mod control;
mod create;
mod hold;
pub(super) mod hooks;
mod inputs;
mod upkeep;
mod workflows;

pub(super) use control::{Amend, NoteRun, PAUSES, SetPaused};
pub(super) use create::{ClaimHeads, Create};
pub(super) use hold::{AdoptExpired, Apply, Held, Renew, TakeOver};
pub(super) use hooks::{Enable, Redeliver, Settle, Take};
pub(super) use inputs::{Forget, GiveUp, Keep, NoteFetched, Refresh, Reserve};
pub(super) use upkeep::{Check, NoteSwept, Promote, Prune, set_back};
pub(super) use workflows::{Content, Publish, Record, Withdraw};
