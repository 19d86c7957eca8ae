//! The same where PostgreSQL keeps the tasks: the points at its commits, and those at which something is left elsewhere.
//!
//! Whoever comes after a crash cannot know that its predecessor is dead, and adopts what it held when its lease is over. `committed/*` is C20 as
//! well: the commit is done, and whoever asked for it never hears of it. Commits whose answer is lost while their process lives on are in
//! `tests/it/stores/postgres.rs`.

use super::{
    chain::{Case, survives},
    errands::Errand,
    logged, posted, started,
};
use fake_comfyui::Fault;

async fn survive(cases: impl IntoIterator<Item = Case>) {
    survives(cases.into_iter().map(Case::on_postgres)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn c0_c1_c20_when_a_task_comes() {
    let points = ["create/received", "commit/created", "committed/created", "create/answering"];
    survive(Case::points(points, Errand::Picture)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn c2_c3_c20_when_it_is_its_turn() {
    let mut cases = Case::points(["commit/promoted", "committed/promoted"], Errand::Later);
    cases.extend(Case::points(["commit/claimed", "committed/claimed"], Errand::Picture));
    survive(cases).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn c4_to_c8_when_its_prompt_is_sent() {
    let mut cases = Case::points(["post", "posted", "commit/accepted", "committed/accepted"], Errand::Picture);
    cases.extend(Case::points(["commit/failed", "committed/failed"], Errand::Refused));
    cases.push(logged("the answer is lost", Some(Fault::PostLost), posted));
    cases.push(logged("it runs", None, started));
    survive(cases).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn c11_to_c16_when_its_outputs_are_stored() {
    let mut cases = Case::points(["history-read", "commit/planned", "put/written", "commit/completed"], Errand::Three);
    cases.extend(Case::points(["committed/completed", "webhook/sent"], Errand::Picture).into_iter().map(Case::told));
    survive(cases).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn c9_c18_when_it_does_not_go_as_usual() {
    let mut cases = Case::points(["commit/cancelling", "committed/cancelling", "commit/cancelled"], Errand::Cancelled);
    cases.extend(Case::points(["commit/given-back", "committed/given-back"], Errand::ServerDies));
    cases.extend(Case::points(["commit/put-off"], Errand::Stumbling));
    survive(cases).await;
}
