//! The POST of a prompt goes wrong in every way it can. What was accepted runs once; no id is ever sent a second time.

use std::time::Duration;

use fake_comfyui::{EventKind, Fault, Outcome};
use reqwest::StatusCode;
use serde_json::json;

use crate::{
    support::{World, task, task_with, world},
    witness::{posted, prompts, until},
};

const MS: fn(u64) -> Duration = Duration::from_millis;

/// Clients give up waiting long before the fake takes the prompt, and look for it for long enough.
async fn impatient() -> World {
    let settings = [("COMFYD_COMFYUI__POST_TIMEOUT", "300ms"), ("COMFYD_COMFYUI__VALIDATE_GRACE", "8s")];
    settings.into_iter().fold(world(), |world, (name, value)| world.with(name, value)).start().await
}

/// The prompt was taken and the answer is lost, late or a lie: one POST, one run.
async fn is_found_again(fault: Fault) {
    let world = world().start().await;
    let fake = world.fake();
    // Over before anybody looks for it.
    fake.inject_times(fault.clone(), 1).await.unwrap();
    let quick = world.create(&task(1)).await;
    world.ran(&quick, 1).await;
    // Still running when it is looked for.
    fake.pause_execution();
    fake.inject_times(fault.clone(), 1).await.unwrap();
    let slow = world.create(&task(2)).await;
    world.running(&slow).await;
    world.stage(&slow, "executing").await;
    // Behind another one when it is looked for.
    fake.inject_times(fault, 1).await.unwrap();
    let behind = world.create(&task(3)).await;
    until(&fake, posted(&behind)).await;
    world.stage(&behind, "executing").await;
    fake.resume();
    for id in [&slow, &behind] {
        world.ran(id, 1).await;
    }
    for id in [&quick, &slow, &behind] {
        assert_eq!(prompts(&fake, id).len(), 1);
    }
    world.assert_nothing_was_repeated();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prompt_behind_an_error_is_found_again() {
    is_found_again(Fault::PostFailsAfterAccept).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prompt_whose_answer_is_lost_is_found_again() {
    is_found_again(Fault::PostLost).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prompt_whose_answer_is_late_is_waited_for() {
    is_found_again(Fault::PostDelayed { delay: MS(700) }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prompt_that_is_taken_late_is_waited_for() {
    is_found_again(Fault::PostHeld { delay: MS(700) }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_post_that_lands_long_after_its_sender_gave_up_runs_once() {
    let world = impatient().await;
    let fake = world.fake();
    fake.inject_times(Fault::PostHeld { delay: MS(3000) }, 1).await.unwrap();
    let id = world.create(&task(1)).await;
    world.ran(&id, 1).await;
    assert_eq!(prompts(&fake, &id).len(), 1);
    world.assert_nothing_was_repeated();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prompt_with_a_late_answer_and_a_late_history_runs_once() {
    let world = impatient().await;
    let fake = world.fake();
    fake.inject_times(Fault::PostDelayed { delay: MS(600) }, 1).await.unwrap();
    fake.inject_times(Fault::LateHistory { delay: MS(4000) }, 1).await.unwrap();
    let id = world.create(&task(1)).await;
    world.ran(&id, 1).await;
    world.assert_nothing_was_repeated();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prompt_that_was_not_taken_is_sent_under_another_id() {
    let world = world().start().await;
    let fake = world.fake();
    fake.inject_times(Fault::PostFails, 1).await.unwrap();
    let id = world.create(&task(1)).await;
    world.completed(&id).await;
    assert_eq!(world.executions(&id), 1);
    assert_eq!(prompts(&fake, &id).len(), 1);
    world.assert_nothing_was_repeated();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_never_takes_the_prompt_uses_up_the_attempts() {
    let world = world().start().await;
    world.fake().inject(Fault::PostFails).await.unwrap();
    let id = world.create(&task_with(1, &json!({"max_attempts": 2}))).await;
    let failed = world.finished(&id).await;
    assert_eq!((&failed["error"]["code"], &failed["attempt"]), (&json!("backend_error"), &json!(2)), "{failed}");
    assert_eq!(world.executions(&id), 0);
    world.fake().clear();
    let next = world.create(&task(2)).await;
    world.ran(&next, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_prompt_is_not_sent_again() {
    let world = world().start().await;
    let fake = world.fake();
    fake.inject_times(Fault::PostRefused, 1).await.unwrap();
    let id = world.create(&task(1)).await;
    let failed = world.finished(&id).await;
    assert_eq!((&failed["error"]["code"], &failed["attempt"]), (&json!("invalid_prompt"), &json!(1)), "{failed}");
    let refused = |event: &EventKind| matches!(event, EventKind::Posted { task: Some(task), .. } if *task == id);
    assert_eq!(fake.log().iter().filter(|event| refused(&event.kind)).count(), 1);
    assert_eq!(world.executions(&id), 0);
    world.assert_nothing_was_repeated();
}

/// Cancels a task whose POST is not answered yet, or never will be: what was taken is stopped, once it is there.
async fn is_cancelled_in_doubt(world: World, fault: Fault) {
    let fake = world.fake();
    fake.pause_execution();
    fake.inject_times(fault, 1).await.unwrap();
    let id = world.create(&task(1)).await;
    world.stage(&id, "preparing").await;
    let (status, task) = world.cancel(&id).await;
    assert_eq!((status, &task["stage"]), (StatusCode::ACCEPTED, &json!("cancelling")), "{task}");
    // The gate is closed: nothing but our interrupt ends it.
    until(&fake, posted(&id)).await;
    let prompt = prompts(&fake, &id).remove(0);
    let ended = |event: &EventKind| match event {
        EventKind::Deleted { prompt_id } => *prompt_id == prompt,
        EventKind::Finished { prompt_id, outcome: Outcome::Interrupted } => *prompt_id == prompt,
        _ => false,
    };
    until(&fake, ended).await;
    assert_eq!(world.finished(&id).await["status"], "cancelled");
    assert_eq!(prompts(&fake, &id).len(), 1);
    world.assert_nothing_was_repeated();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_is_cancelled_before_its_late_answer() {
    is_cancelled_in_doubt(world().start().await, Fault::PostDelayed { delay: MS(700) }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_is_cancelled_before_it_is_taken() {
    is_cancelled_in_doubt(world().start().await, Fault::PostHeld { delay: MS(700) }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_is_cancelled_before_its_abandoned_post_lands() {
    is_cancelled_in_doubt(impatient().await, Fault::PostHeld { delay: MS(2000) }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_is_cancelled_though_the_answer_never_came() {
    is_cancelled_in_doubt(impatient().await, Fault::PostDelayed { delay: MS(60_000) }).await;
}
