//! The protocol of one task, model-checked: every order in which a few accidents can happen is tried, and in each the promises hold.
//!
//! What is searched is the code itself. The store's row changes by [`Task::apply`](crate::domain::task::Task::apply), a session's mind by
//! [`Flight`](crate::comfy_session::flight::Flight) and the rule of absence in [`reconcile`](crate::domain::reconcile), as in the service; only what
//! is around them is modelled: two workers, a ComfyUI server, a network that delays and loses POSTs, time. Writes are atomic, because stores'
//! are; everything else happens one step at a time, in any order, or never.
//!
//! - A worker claims, adopts when a lease expired, or takes over after a crash; sends its POST any time after deciding to; hears of the
//!   server's frames late, twice or never; looks in two reads with anything in between; records evidence late; settles, perhaps
//!   without hearing that it did.
//! - Accidents: a crash, the death of a session, a lost connection, a freeze longer than the lease, a drain, a recall, giving up on a server; a
//!   POST lost, late, unanswered, refused, or stumbled over; a run that fails, is interrupted by others, or whose files are gone; a server that
//!   restarts or forgets its history; a commit whose answer is lost. The client cancels, and asks again.
//! - Time passes in two leaps: seconds (longer than any pause between tries, shorter than any patience) whenever they like, and hours (all
//!   patience ends) only when no POST is on its way that its sender's grace must wait for. That assumption is the one thing believed here.
//!
//! The flaws are what others do, or what we did once: each must be caught, or the model proves nothing.

mod happen;
mod names;
mod search;
mod server;
mod steps;
pub(crate) mod time;
mod worker;
mod world;

use search::{Findings, explore};
use server::Generation;
use steps::Step;
use world::Rules;

const ONE_ENDING: &str = "P3: an end is written once and stays";
const ONE_EXECUTION: &str = "P4: one execution, and one more for each reason to";
const MANIFEST: &str = "P5: what is published was made by the run it is said to be of";
const CANCEL: &str = "P7: what was cancelled neither completes nor begins again";
const FENCE: &str = "only the newest holder writes";
const ONE_POST: &str = "no id is sent twice";
const LEASE: &str = "held means leased, and fences only grow";

/// What is done wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flaw {
    /// The grace is looked at after the reads instead of before the first.
    GraceAfterReads,
    /// The same, and one absence is believed.
    GraceAfterOneLook,
    /// A holder frozen beyond all grace sends the POST it had in hand.
    FrozenHolderSends,
    /// Whoever writes is believed.
    NoFence,
    /// A POST without an answer is sent again.
    BlindRepost,
    /// A look reads the history, then the queue.
    HistoryFirst,
    /// Abandoned work starts over.
    ResetToPending,
    /// A sweep writes what it read some time ago.
    StaleSweep,
    /// Whoever takes an expired lease does not wait for a POST of its holder.
    NoGrace,
    /// One absence is believed.
    OneLook,
    /// What was recalled is not looked for.
    RecallUnseen,
    /// A drain gives its tasks back instead of handing them off.
    DrainResets,
}

/// Searches a world in which this goes wrong at most so often.
fn search(
    generation: Generation,
    (accidents, wishes): (u8, u8),
    flaw: Option<Flaw>,
    enough: Option<&str>,
) -> Findings<Step> {
    let findings = explore(&Rules::new(generation, accidents, wishes, flaw), enough);
    let Findings { states, steps, .. } = findings;
    println!("{generation:?}, {accidents} accidents, {wishes} wishes, {flaw:?}: {states} states, {steps} steps");
    findings
}

#[track_caller]
fn assert_all_hold(generation: Generation, limits: (u8, u8)) -> Findings<Step> {
    let findings = search(generation, limits, None, None);
    let Findings { broken, stuck, .. } = &findings;
    assert!(broken.is_empty(), "{broken:#?}");
    assert!(stuck.0 == 0, "no sure way out of {} states, one of them after {:#?}", stuck.0, stuck.1);
    findings
}

/// The flaw is caught, and it takes one accident at most.
#[track_caller]
fn assert_breaks(flaw: Flaw, promise: &str) {
    let findings = search(Generation::Lists, (1, 0), Some(flaw), Some(promise));
    let way = findings.broken.get(promise);
    assert!(way.is_some(), "{flaw:?} was not caught: {:#?}", findings.broken);
    println!("{promise}, broken by {way:?}");
}

/// Built with `COMFYD_SOAK` set, more goes wrong at once.
const SOAK: bool = option_env!("COMFYD_SOAK").is_some();

#[test]
fn the_promises_hold_on_servers_with_jobs() {
    assert_all_hold(Generation::Jobs, (1, 0));
    if SOAK {
        assert_all_hold(Generation::Jobs, (2, 0));
        assert_all_hold(Generation::Jobs, (1, 2));
    }
}

#[test]
fn the_promises_hold_on_servers_with_lists() {
    let findings = assert_all_hold(Generation::Lists, (1, 1));
    assert_eq!(findings.kinds.len(), Step::KINDS, "some step is never possible, so nothing is proven about it");
    if SOAK {
        assert_all_hold(Generation::Lists, (2, 1));
    }
}

#[test]
fn the_promises_hold_on_servers_that_give_their_own_ids() {
    assert_all_hold(Generation::OwnIds, (1, 0));
    if SOAK {
        assert_all_hold(Generation::OwnIds, (2, 0));
        assert_all_hold(Generation::OwnIds, (1, 1));
    }
}

#[test]
fn an_absence_read_before_the_grace_is_over_runs_a_task_twice() {
    assert_breaks(Flaw::GraceAfterOneLook, ONE_EXECUTION);
}

/// A second look a moment later sees what the first was too early for, however wrongly that one was judged.
#[test]
fn two_looks_forgive_one_that_came_too_early() {
    let findings = search(Generation::Lists, (1, 0), Some(Flaw::GraceAfterReads), None);
    assert!(findings.broken.is_empty(), "{:#?}", findings.broken);
}

#[test]
fn a_frozen_holder_costs_a_run_and_nothing_else() {
    let findings = search(Generation::Lists, (1, 0), Some(Flaw::FrozenHolderSends), None);
    assert_eq!(findings.broken.keys().collect::<Vec<_>>(), [&ONE_EXECUTION]);
}

#[test]
fn a_holder_frozen_beyond_all_grace_runs_a_task_twice() {
    assert_breaks(Flaw::FrozenHolderSends, ONE_EXECUTION);
}

#[test]
fn writes_without_a_fence_end_a_task_twice() {
    assert_breaks(Flaw::NoFence, ONE_ENDING);
}

#[test]
fn a_post_sent_again_runs_a_task_twice() {
    assert_breaks(Flaw::BlindRepost, ONE_EXECUTION);
}

#[test]
fn history_before_queue_runs_a_task_twice() {
    assert_breaks(Flaw::HistoryFirst, ONE_EXECUTION);
}

#[test]
fn abandoned_work_that_starts_over_runs_a_task_twice() {
    assert_breaks(Flaw::ResetToPending, ONE_EXECUTION);
}

#[test]
fn a_sweep_from_a_stale_snapshot_reopens_what_ended() {
    assert_breaks(Flaw::StaleSweep, ONE_ENDING);
}

#[test]
fn an_expired_lease_without_grace_runs_a_task_twice() {
    assert_breaks(Flaw::NoGrace, ONE_EXECUTION);
}

#[test]
fn one_absence_runs_a_task_twice() {
    assert_breaks(Flaw::OneLook, ONE_EXECUTION);
}

#[test]
fn a_recall_that_is_not_verified_runs_a_task_twice() {
    assert_breaks(Flaw::RecallUnseen, ONE_EXECUTION);
}

#[test]
fn a_drain_that_gives_back_runs_a_task_twice() {
    assert_breaks(Flaw::DrainResets, ONE_EXECUTION);
}
