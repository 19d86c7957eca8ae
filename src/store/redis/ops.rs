//! What is done to the store, operation by operation: read, decide, collect what is to be written. Each may run again when somebody else was
//! faster, so it changes nothing but its [`Tx`].

mod create;
mod hold;
mod hooks;
mod inputs;
mod tasks;
mod upkeep;
mod workflows;

pub(super) use self::{
    create::{ClaimHeads, Create},
    hold::{AdoptExpired, Apply, Held, Renew, TakeOver},
    hooks::{Enable, Redeliver, Settle, Take},
    inputs::{Forget, GiveUp, Keep, NoteFetched, Refresh, Reserve},
    tasks::{Amend, NoteRun, SetPaused, pauses},
    upkeep::{Check, NoteSwept, Promote, Prune, SetBack},
    workflows::{Content, Publish, Record, Withdraw},
};

use super::tx::{Fault, Tx};

/// Something to be done in one commit.
pub(super) trait Operation: Send + Sync {
    /// What the caller gets.
    type Answer: Send;

    /// Does it.
    fn run(&self, tx: &mut Tx<'_>) -> impl Future<Output = Result<Self::Answer, Fault>> + Send;
}
