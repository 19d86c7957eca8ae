//! The crash points, one after the other: the real program is aborted there again and again, and the checker finds every promise kept.
//!
//! Points that are ours are reached in the code (`src/crash_point.rs`), for the world's the process is killed when the fake ComfyUI logs
//! what it waits for. `c4_` is row C4 of the table in decision 029, which also says what is not here. Every test makes five crashes per
//! moment; `tests/run --soak` makes as many as one likes.
#![cfg(debug_assertions)]

mod chain;
mod errands;
mod frozen;
mod postgres;

use std::time::Duration;

use fake_comfyui::{EventKind, Fault};

use self::{
    chain::{Case, Moment, survives},
    errands::Errand,
};

const MS: fn(u64) -> Duration = Duration::from_millis;

fn posted(event: &EventKind) -> bool {
    matches!(event, EventKind::Posted { accepted: true, .. })
}

fn started(event: &EventKind) -> bool {
    matches!(event, EventKind::Started { .. })
}

fn finished(event: &EventKind) -> bool {
    matches!(event, EventKind::Finished { .. })
}

fn viewed(event: &EventKind) -> bool {
    matches!(event, EventKind::Viewed { .. })
}

/// A moment of the server's, under a fault.
fn logged(name: &'static str, fault: Option<Fault>, when: fn(&EventKind) -> bool) -> Case {
    Case::new(Moment::Logged { name, fault, when }, Errand::Picture)
}

#[tokio::test(flavor = "multi_thread")]
async fn c0_before_a_task_is_stored() {
    survives(Case::points(["create/received", "commit/created"], Errand::Picture)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn c1_before_the_client_is_told() {
    survives(Case::points(["committed/created", "flushed/created", "create/answering"], Errand::Picture)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn c2_before_anybody_knows_that_a_task_waits() {
    survives(Case::points(["commit/promoted", "committed/promoted"], Errand::Later)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn c3_between_the_intent_and_its_holder() {
    survives(Case::points(["commit/claimed", "committed/claimed"], Errand::Picture)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn c4_before_the_first_byte_of_the_prompt() {
    survives(Case::new(Moment::Point("post"), Errand::Picture).everywhere()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn c5_while_the_answer_to_the_prompt_is_awaited() {
    let late = logged("the answer is late", Some(Fault::PostDelayed { delay: MS(60_000) }), posted);
    let lost = logged("the answer is lost", Some(Fault::PostLost), posted);
    survives(late.everywhere().into_iter().chain([lost])).await;
}

/// Its sender is long dead when the prompt arrives, and it is waited for.
#[tokio::test(flavor = "multi_thread")]
async fn c5_while_the_prompt_is_on_its_way() {
    const PATIENT: &[(&str, &str)] = &[("COMFYD_COMFYUI__VALIDATE_GRACE", "4s")];
    let struck = Moment::Struck { name: "the prompt is slow", fault: Fault::PostHeld { delay: MS(700) } };
    survives([Case::new(struck, Errand::Picture).with(PATIENT)]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn c6_when_the_prompt_is_refused() {
    survives(Case::points(["commit/failed", "committed/failed"], Errand::Refused)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn c7_before_the_answer_to_the_prompt_is_recorded() {
    let mut cases = Case::points(["commit/accepted", "committed/accepted"], Errand::Picture);
    cases.extend(Case::new(Moment::Point("posted"), Errand::Picture).everywhere());
    survives(cases).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn c8_while_the_prompt_runs() {
    survives(logged("it runs", None, started).everywhere()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn c9_when_the_server_dies() {
    let together = Case::new(Moment::Together { name: "both die", when: started }, Errand::Picture);
    let mut cases = Case::points(["commit/given-back", "committed/given-back"], Errand::ServerDies);
    cases.push(together);
    survives(cases).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn c10_between_the_end_of_a_run_and_its_history() {
    let slow = logged("the history is slow", Some(Fault::SlowHistory { delay: MS(200) }), finished);
    let late = logged("the history is late", Some(Fault::LateHistory { delay: MS(200) }), finished);
    survives([slow, late]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn c11_between_the_history_and_the_download() {
    survives(Case::points(["history-read", "commit/planned", "committed/planned", "view"], Errand::Three)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn c12_within_the_download() {
    let slow = logged("the file trickles", Some(Fault::SlowView { bytes_per_second: 20 }), viewed);
    let cut = logged("the file is cut", Some(Fault::CutView { bytes: 10 }), viewed);
    survives([slow, cut]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn c13_when_some_outputs_are_stored() {
    survives(Case::points(["put/begun", "put/written", "put/renamed", "put/done"], Errand::Three)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn c14_between_the_last_output_and_the_manifest() {
    survives(Case::points(["commit/completed"], Errand::Three)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn c15_before_anybody_is_told_of_the_end() {
    survives(Case::points(["committed/completed", "flushed/completed"], Errand::Picture)).await;
}

/// The state says so, and the message is in the outbox: one commit.
#[tokio::test(flavor = "multi_thread")]
async fn c15_before_a_webhook_is_told_of_it() {
    let cases = Case::points(["commit/completed", "flushed/completed", "webhook/sending"], Errand::Picture);
    survives(cases.into_iter().map(Case::told)).await;
}

/// It is told again, under the same id.
#[tokio::test(flavor = "multi_thread")]
async fn c16_between_a_webhooks_answer_and_the_record_of_it() {
    survives(Case::points(["webhook/sent"], Errand::Picture).into_iter().map(Case::told)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn c17_before_the_server_forgets_what_is_done() {
    survives(Case::points(["forget"], Errand::Picture)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn c18_around_a_cancellation() {
    let points = ["commit/cancelling", "committed/cancelling", "flushed/cancelling", "cancel/answering", "stop"];
    let mut cases = Case::points(points, Errand::Cancelled);
    cases.extend(Case::points(["stopped", "commit/cancelled", "committed/cancelled"], Errand::Cancelled));
    survives(cases).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn between_a_failure_and_another_attempt() {
    survives(Case::points(["commit/put-off", "committed/put-off"], Errand::Stumbling)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn when_a_failed_task_is_asked_for_again() {
    survives(Case::points(["commit/given-back", "committed/given-back"], Errand::Again)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_a_tasks_file_is_handed_over() {
    survives(Case::points(["hand-over", "handed-over"], Errand::WithFile)).await;
}

/// The first process dies when it renews its leases, all others when they take them over.
#[tokio::test(flavor = "multi_thread")]
async fn while_the_next_process_takes_over() {
    const QUICK: &[(&str, &str)] = &[("COMFYD_QUEUE__LEASE", "3s"), ("COMFYD_QUEUE__RENEW_EVERY", "100ms")];
    let cases = Case::points(["commit/kept", "committed/kept"], Errand::Cancelled);
    survives(cases.into_iter().map(|case| case.with(QUICK))).await;
}
