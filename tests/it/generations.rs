//! Old ComfyUI servers: without `/api/jobs`, and older ones that give prompts ids of their own and interrupt whatever runs.

use fake_comfyui::{Control, EventKind, FakeConfig, Fault, Generation, Outcome};
use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::{
    support::{World, task, world},
    witness::{posted, prompts, until},
};

async fn old(generation: Generation) -> World {
    world().fakes([FakeConfig { generation, ..FakeConfig::default() }]).start().await
}

fn ended(prompt: &str, as_what: Outcome) -> impl Fn(&EventKind) -> bool {
    let prompt = prompt.to_owned();
    move |event| matches!(event, EventKind::Finished { prompt_id, outcome } if *prompt_id == prompt && *outcome == as_what)
}

fn interrupted(fake: &Control) -> Vec<String> {
    let victim = |event: fake_comfyui::Event| match event.kind {
        EventKind::Interrupted { prompt_id } => Some(prompt_id),
        _ => None,
    };
    fake.log().into_iter().filter_map(victim).collect()
}

/// A prompt at the gate, one behind it on the server, one that waits with us.
async fn three(world: &World) -> [String; 3] {
    world.fake().pause_execution();
    let running = world.create(&task(1)).await;
    world.running(&running).await;
    let prepared = world.create(&task(2)).await;
    until(&world.fake(), posted(&prepared)).await;
    let pending = world.create(&task(3)).await;
    [running, prepared, pending]
}

async fn runs(generation: Generation) {
    let world = old(generation).await;
    let id = world.create(&task(1)).await;
    world.ran(&id, 1).await;
    // Under whatever id it ran, it leaves the server's history.
    let prompt = prompts(&world.fake(), &id).remove(0);
    until(&world.fake(), |event| matches!(event, EventKind::HistoryDeleted { prompt_id } if *prompt_id == prompt))
        .await;
    assert_eq!(world.get("/api/status").await["backends"][0]["jobs_api"], generation == Generation::Current);
}

async fn cancels(generation: Generation) {
    let world = old(generation).await;
    let ids = three(&world).await;
    let [running, prepared, pending] = &ids;
    assert_eq!(world.cancel(pending).await.0, StatusCode::OK);
    world.stop(prepared).await;
    world.stop(running).await;
    // The gate is closed: only being interrupted ends the first.
    for id in &ids {
        assert_eq!(world.finished(id).await["status"], "cancelled");
    }
    assert_eq!((world.executions(prepared), world.executions(pending)), (0, 0));
    assert_eq!(interrupted(&world.fake()), prompts(&world.fake(), running));
}

async fn finds_doubtful_prompts(generation: Generation) {
    let world = old(generation).await;
    let fake = world.fake();
    fake.inject_times(Fault::PostLost, 1).await.unwrap();
    let quick = world.create(&task(1)).await;
    world.ran(&quick, 1).await;
    fake.pause_execution();
    fake.inject_times(Fault::PostLost, 1).await.unwrap();
    let running = world.create(&task(2)).await;
    world.running(&running).await;
    fake.inject_times(Fault::PostFailsAfterAccept, 1).await.unwrap();
    let behind = world.create(&task(3)).await;
    until(&fake, posted(&behind)).await;
    world.stage(&behind, "executing").await;
    fake.resume();
    for id in [&running, &behind] {
        world.ran(id, 1).await;
        assert_eq!(prompts(&fake, id).len(), 1);
    }
}

async fn cancels_a_doubtful_prompt(generation: Generation) {
    let world = old(generation).await;
    let fake = world.fake();
    fake.pause_execution();
    fake.inject_times(Fault::PostLost, 1).await.unwrap();
    let id = world.create(&task(1)).await;
    until(&fake, posted(&id)).await;
    world.cancel(&id).await;
    assert_eq!(world.finished(&id).await["status"], "cancelled");
    let prompt = prompts(&fake, &id).remove(0);
    until(&fake, ended(&prompt, Outcome::Interrupted)).await;
}

async fn adopts_after_a_restart(generation: Generation) {
    let world = old(generation).await;
    let ids = three(&world).await;
    let world = world.restart().await;
    world.fake().resume();
    for id in &ids {
        world.ran(id, 1).await;
    }
    world.assert_nothing_was_repeated();
}

/// Other people use the same server. None of our ways to stop something may hit them.
async fn spares_the_prompts_of_others(generation: Generation) {
    let world = old(generation).await;
    let fake = world.fake();
    fake.pause_execution();
    let theirs = world.foreign_prompt(&world.fakes[0], 100).await;
    until(&fake, |event| matches!(event, EventKind::Gated { .. })).await;
    let ours = [world.create(&task(1)).await, world.create(&task(2)).await];
    for id in &ours {
        until(&fake, posted(id)).await;
        world.stage(id, "executing").await;
    }
    // Ours wait behind theirs: one is cancelled by name, the other because everything of ours shall stop.
    world.cancel(&ours[0]).await;
    assert_eq!(world.finished(&ours[0]).await["status"], "cancelled");
    let request = world.client.post(world.url("/api/comfyui-interrupt"));
    let answer: Value = request.send().await.unwrap().error_for_status().unwrap().json().await.unwrap();
    assert_eq!(answer["data"]["task_ids"], json!([ours[1]]), "{answer}");
    assert_eq!(world.finished(&ours[1]).await["status"], "cancelled");
    assert_eq!(interrupted(&fake), [""; 0]);
    fake.step();
    until(&fake, ended(&theirs, Outcome::Success)).await;

    // Theirs waits behind ours.
    let ours = world.create(&task(3)).await;
    world.running(&ours).await;
    let theirs = world.foreign_prompt(&world.fakes[0], 101).await;
    world.cancel(&ours).await;
    assert_eq!(world.finished(&ours).await["status"], "cancelled");
    fake.resume();
    until(&fake, ended(&theirs, Outcome::Success)).await;
    // A server that reads no id might hit theirs by then. It is not asked to: ours runs to its end for nothing.
    let hit = if generation == Generation::IgnoresPromptId { Vec::new() } else { prompts(&fake, &ours) };
    assert_eq!(interrupted(&fake), hit);
}

macro_rules! on {
    ($generation:ident, $($name:ident: $check:ident),+ $(,)?) => {
        $(#[tokio::test(flavor = "multi_thread")]
        async fn $name() {
            $check(Generation::$generation).await;
        })+
    };
}

on!(V0_3_64,
    v0_3_64_runs: runs,
    v0_3_64_cancels: cancels,
    v0_3_64_finds_doubtful_prompts: finds_doubtful_prompts,
    v0_3_64_cancels_a_doubtful_prompt: cancels_a_doubtful_prompt,
    v0_3_64_adopts_after_a_restart: adopts_after_a_restart,
    v0_3_64_spares_the_prompts_of_others: spares_the_prompts_of_others,
);
on!(IgnoresPromptId,
    own_ids_run: runs,
    own_ids_cancel: cancels,
    own_ids_find_doubtful_prompts: finds_doubtful_prompts,
    own_ids_cancel_a_doubtful_prompt: cancels_a_doubtful_prompt,
    own_ids_adopt_after_a_restart: adopts_after_a_restart,
    own_ids_spare_the_prompts_of_others: spares_the_prompts_of_others,
);
on!(Current,
    current_spares_the_prompts_of_others: spares_the_prompts_of_others,
);

/// The server is replaced by another version while we run, with all that is on it.
async fn changes(from: Generation, to: Generation) {
    let world = old(from).await;
    let fake = world.fake();
    let ids = three(&world).await;
    fake.inject(Fault::Generation { generation: to }).await.unwrap();
    let position = fake.position();
    fake.inject(Fault::DropSockets).await.unwrap();
    fake.wait_from(position, |event| matches!(event, EventKind::SocketOpened { .. })).await;
    world.online().await;
    assert_eq!(world.get("/api/status").await["backends"][0]["jobs_api"], to == Generation::Current);
    world.stop(&ids[1]).await;
    assert_eq!(world.finished(&ids[1]).await["status"], "cancelled");
    fake.resume();
    world.ran(&ids[0], 1).await;
    world.ran(&ids[2], 1).await;
    assert_eq!(world.executions(&ids[1]), 0);
    world.assert_nothing_was_repeated();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_grows_older_at_a_reconnect() {
    changes(Generation::Current, Generation::V0_3_64).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_grows_younger_at_a_reconnect() {
    changes(Generation::IgnoresPromptId, Generation::Current).await;
}
