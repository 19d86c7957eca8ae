//! Watching what runs in another process: each process with clients tells what they watch ([`Lookout`]), and each that runs tasks tells the
//! newest of those that others watch ([`Beacon`]). Facts need none of this, they lie in the store.
//!
//! All of it are notices on the wire, which may come late or not at all: what is watched is told again every 3 s, and each time
//! whoever runs such a task answers with the newest of it. Nothing is told while nobody watches.

mod beacon;
mod lookout;
mod word;

use std::time::Duration;

pub use self::{beacon::Beacon, lookout::Lookout};

/// What is watched is told again this often.
const RENEW_EVERY: Duration = Duration::from_secs(3);
/// A word is good for so long: three lost in a row.
const GOOD_FOR: Duration = Duration::from_secs(10);
/// What is watched is told at most this often: clients come one after the other, and each time all of it is told.
const INTEREST_EVERY: Duration = Duration::from_millis(250);

/// Between two rounds of telling how far tasks are: a few pictures a second look alive.
const ROUND_EVERY: Duration = Duration::from_millis(250);
/// Tasks told of in one round, so that one process posts at most 64 notices a second (a progress and a preview for each). Of more tasks
/// each is told less often.
const PER_ROUND: usize = 8;
/// After a failure the wire is left alone for this long.
const AFTER_FAILURE: Duration = Duration::from_secs(1);
/// Larger previews are not told: samplers send tens of KB.
const LARGEST_PREVIEW: usize = 256 << 10;

/// How often who runs tasks looks for what is watched, which it should have heard of.
const LOOK_FOR_INTEREST: Duration = Duration::from_secs(2);
/// The same on a wire where nothing is heard of other processes.
const LOOK_FOR_INTEREST_DEAF: Duration = Duration::from_secs(1);
/// How often who watches looks for glimpses, which it should have heard of.
const LOOK: Duration = Duration::from_secs(2);
/// The same on a wire where nothing is heard of other processes.
const LOOK_DEAF: Duration = Duration::from_millis(250);

#[cfg(test)]
#[cfg(feature = "testing")]
mod tests;
