//! Cancelling, in every stage and on every generation of servers: what was cancelled never completes, it is stopped as soon as anything
//! can stop it, and nobody else is hit.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use comfyd_actors::queue::QueueMsg;
use fake_comfyui::{EventKind, FakeConfig, Fault, Generation, Outcome};
use futures_util::future::join_all;
use rand::RngExt;
use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::{
    chaos::with_seed,
    place::Place,
    support::{Builder, World, image, task, world},
    witness::{posted, prompts, until, until_level},
};

/// Longer than any test waits: what depends on it does not happen.
const NEVER: Duration = Duration::from_secs(600);

fn on(generation: Generation) -> Builder {
    world().fakes([FakeConfig { generation, ..FakeConfig::default() }])
}

/// The prompt is over without a result, whether it ran or not.
fn stopped(prompt: &str) -> impl Fn(&EventKind) -> bool {
    let prompt = prompt.to_owned();
    move |event| match event {
        EventKind::Deleted { prompt_id } => *prompt_id == prompt,
        EventKind::Finished { prompt_id, outcome: Outcome::Interrupted } => *prompt_id == prompt,
        _ => false,
    }
}

fn finished(prompt: &str, as_what: Outcome) -> impl Fn(&EventKind) -> bool {
    let prompt = prompt.to_owned();
    move |event| matches!(event, EventKind::Finished { prompt_id, outcome } if *prompt_id == prompt && *outcome == as_what)
}

async fn cancelled(world: &World, id: &str) {
    let task = world.finished(id).await;
    assert_eq!((&task["status"], &task["outputs"]), (&json!("cancelled"), &json!([])), "{task}");
}

/// The server has the prompt and runs it, and does not answer.
async fn before_its_post_is_answered(generation: Generation) {
    let world = on(generation).with("COMFYD_COMFYUI__POST_TIMEOUT", "10m").start().await;
    let fake = world.fake();
    fake.pause_execution();
    fake.inject_times(Fault::PostDelayed { delay: NEVER }, 1).await.unwrap();
    let id = world.create(&task(1)).await;
    until(&fake, posted(&id)).await;
    assert_eq!(world.cancel(&id).await.0, StatusCode::ACCEPTED);
    // The gate is closed and the answer far: only being asked to ends it.
    let prompt = prompts(&fake, &id).remove(0);
    until(&fake, stopped(&prompt)).await;
    cancelled(&world, &id).await;
    fake.resume();
    let next = world.create(&task(2)).await;
    world.ran(&next, 1).await;
    assert_eq!(prompts(&fake, &id).len(), 1);
    world.assert_nothing_was_repeated();
}

/// The server takes the prompt after it was asked to stop it.
async fn before_its_post_arrives(generation: Generation) {
    let world = on(generation).start().await;
    let fake = world.fake();
    fake.pause_execution();
    fake.inject_times(Fault::PostHeld { delay: Duration::from_millis(2500) }, 1).await.unwrap();
    let id = world.create(&task(1)).await;
    world.stage(&id, "preparing").await;
    assert_eq!(world.cancel(&id).await.0, StatusCode::ACCEPTED);
    until(&fake, posted(&id)).await;
    let prompt = prompts(&fake, &id).remove(0);
    until(&fake, stopped(&prompt)).await;
    cancelled(&world, &id).await;
    assert_eq!(prompts(&fake, &id).len(), 1);
    world.assert_nothing_was_repeated();
}

/// The task does not wait for a server that does not hear. Its prompt, under whatever id, is stopped when it does.
async fn while_its_server_does_not_hear(generation: Generation) {
    let world = on(generation).with("COMFYD_COMFYUI__POST_TIMEOUT", "300ms").start().await;
    let fake = world.fake();
    fake.pause_execution();
    fake.inject_times(Fault::PostDelayed { delay: NEVER }, 1).await.unwrap();
    let id = world.create(&task(1)).await;
    until(&fake, posted(&id)).await;
    fake.inject(Fault::Unhealthy).await.unwrap();
    assert_eq!(world.cancel(&id).await.0, StatusCode::ACCEPTED);
    cancelled(&world, &id).await;
    let prompt = prompts(&fake, &id).remove(0);
    assert!(!fake.log().iter().any(|event| stopped(&prompt)(&event.kind)), "it runs on");
    fake.clear();
    until(&fake, stopped(&prompt)).await;
    world.assert_nothing_was_repeated();
}

/// The interrupt is heard while the last node is at work, which looks at nothing: the server reports a success (trace 07b).
async fn while_its_last_node_is_at_work(generation: Generation) {
    let world = on(generation).with("COMFYD_COMFYUI__STOP_GRACE", "10m").start().await;
    let fake = world.fake();
    // The first node comes from the cache.
    let first = world.create(&task(1)).await;
    world.ran(&first, 1).await;
    fake.inject_times(Fault::Hang, 1).await.unwrap();
    let mut graph = image(1);
    graph["2"]["inputs"]["filename_prefix"] = json!("last");
    let id = world.create(&json!({"workflow": graph})).await;
    until_level("it hangs", || fake.faults().is_empty()).await;
    assert_eq!(world.cancel(&id).await.0, StatusCode::ACCEPTED);
    let prompt = prompts(&fake, &id).remove(0);
    until(&fake, |event| matches!(event, EventKind::Interrupted { prompt_id } if *prompt_id == prompt)).await;
    fake.clear();
    until(&fake, finished(&prompt, Outcome::Success)).await;
    cancelled(&world, &id).await;
    assert_eq!(world.executions(&id), 1);
    until(&fake, |event| matches!(event, EventKind::HistoryDeleted { prompt_id } if *prompt_id == prompt)).await;
}

/// Everybody who knew of the cancellation dies before the server hears of it.
async fn though_all_who_knew_die(generation: Generation) {
    let world = on(generation).with("COMFYD_COMFYUI__STOP_GRACE", "10m").start().await;
    let fake = world.fake();
    fake.pause_execution();
    let id = world.create(&task(1)).await;
    world.running(&id).await;
    world.stage(&id, "executing").await;
    fake.inject(Fault::Unhealthy).await.unwrap();
    assert_eq!(world.cancel(&id).await.0, StatusCode::ACCEPTED);
    world.kill(&world.system().slots.queue).await;
    world.kill(world.session(0)).await;
    fake.clear();
    let prompt = prompts(&fake, &id).remove(0);
    until(&fake, finished(&prompt, Outcome::Interrupted)).await;
    cancelled(&world, &id).await;
}

/// Many tasks, strangers' prompts among them, and cancellations whenever they come. What was promised is kept, and nobody is hit who should
/// not be.
async fn at_any_moment(generation: Generation) {
    const TASKS: u32 = 30;
    with_seed(async |mut rng| {
        let fake = FakeConfig { generation, node_time: Duration::from_millis(15), ..FakeConfig::default() };
        let world = world().fakes([fake]).start().await;
        let fake = world.fake();
        let (mut ids, mut theirs) = (Vec::new(), Vec::new());
        for n in 0..TASKS {
            ids.push(world.create(&task(n)).await);
            if n % 8 == 0 {
                theirs.push(world.foreign_prompt(&world.fakes[0], 1000 + n).await);
            }
        }
        let drawn = ids.iter().map(|id| (id, rng.random_bool(0.5), Duration::from_millis(rng.random_range(0..800))));
        let cancels: Vec<_> = drawn.filter(|(_, cancel, _)| *cancel).map(|(id, _, moment)| (id, moment)).collect();
        let answers = join_all(cancels.into_iter().map(async |(id, moment)| {
            tokio::time::sleep(moment).await;
            (id.clone(), world.cancel(id).await)
        }));
        let answers: BTreeMap<String, (StatusCode, Value)> = answers.await.into_iter().collect();

        let mut unwanted = BTreeSet::new();
        for id in &ids {
            let task = world.finished(id).await;
            let answer = answers.get(id);
            let completed_first = answer.is_none_or(|(_, answer)| answer["status"] == "completed");
            let expected = if completed_first { "completed" } else { "cancelled" };
            assert_eq!(task["status"], expected, "{answer:?} {task}");
            if !completed_first {
                unwanted.extend(prompts(&fake, id));
            }
        }
        for prompt in &theirs {
            until(&fake, finished(prompt, Outcome::Success)).await;
        }
        let hit = |event: fake_comfyui::Event| match event.kind {
            EventKind::Interrupted { prompt_id } => Some(prompt_id),
            _ => None,
        };
        let hit: BTreeSet<String> = fake.log().into_iter().filter_map(hit).collect();
        if generation == Generation::IgnoresPromptId {
            // One of ours may begin between a look at the queue and an interrupt. It runs again, at no cost to its attempts.
            assert!(theirs.iter().all(|prompt| !hit.contains(prompt)), "a stranger's prompt was hit");
        } else {
            assert!(hit.is_subset(&unwanted), "{hit:?} were hit, {unwanted:?} were to be");
            for id in ids.iter().filter(|id| !answers.contains_key(*id)) {
                world.ran(id, 1).await;
            }
        }
        world.assert_nothing_was_repeated();
    })
    .await;
}

/// A fast server takes over what waits on a slow one, which may begin with it at that moment. What it gives back is gone from there at once;
/// everything runs once.
async fn recalled_it_runs_once(generation: Generation) {
    with_seed(async |mut rng| {
        let fake = FakeConfig { generation, ..FakeConfig::default() };
        let world = world().fakes([fake.clone(), fake]).start().await;
        let recalls = || {
            let logs = world.fakes.iter().flat_map(|fake| fake.control().log());
            logs.filter(|event| matches!(event.kind, EventKind::Deleted { .. })).count()
        };
        let mut ids = Vec::new();
        // In each round the last ones wait on the slow one when the fast one has nothing more to do, for about as long as a recall takes.
        while recalls() < 5 {
            assert!(ids.len() < 1500, "{} recalls in all this time", recalls());
            for (fake, longest) in world.fakes.iter().zip([5, 120]) {
                fake.control().set_node_time(Duration::from_millis(rng.random_range(1..longest)));
            }
            let round = join_all((0..5).map(async |n| world.create(&task(n)).await)).await;
            for id in &round {
                world.finished(id).await;
            }
            ids.extend(round);
        }
        for id in &ids {
            world.ran(id, 1).await;
        }
        world.assert_nothing_was_repeated();
    })
    .await;
}

macro_rules! on_every_generation {
    ($($check:ident),+ $(,)?) => {
        on_every_generation!(@ current Current $($check)+);
        on_every_generation!(@ v0_3_64 V0_3_64 $($check)+);
        on_every_generation!(@ own_ids IgnoresPromptId $($check)+);
    };
    (@ $name:ident $generation:ident $($check:ident)+) => {
        mod $name {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $check() {
                super::$check(fake_comfyui::Generation::$generation).await;
            })+
        }
    };
}

on_every_generation!(
    before_its_post_is_answered,
    before_its_post_arrives,
    while_its_server_does_not_hear,
    while_its_last_node_is_at_work,
    though_all_who_knew_die,
    at_any_moment,
    recalled_it_runs_once,
);

#[tokio::test(flavor = "multi_thread")]
async fn though_the_process_dies_before_the_server_hears() {
    let place = Place::new().await;
    let process = place.start().await;
    place.control().pause_execution();
    let id = place.create(1).await.remove(0);
    let prompt = place.running(&id).await;
    place.control().inject(Fault::Unhealthy).await.unwrap();
    let (status, answer) = place.api.cancel(&id).await;
    assert_eq!((status, &answer["stage"]), (StatusCode::ACCEPTED, &json!("cancelling")), "{answer}");
    drop(process);
    place.control().clear();
    let _process = place.start().await;
    place.wait_for(finished(&prompt, Outcome::Interrupted)).await;
    assert_eq!(place.api.finished(&id).await["status"], "cancelled");
    assert_eq!(prompts(&place.control(), &id).len(), 1);
}

/// The cancellation overtakes the answer to the claim. The heartbeat, which would tell as well, is far.
#[tokio::test(flavor = "multi_thread")]
async fn between_a_claim_and_its_answer_nothing_is_sent() {
    let far = [("COMFYD_QUEUE__LEASE", "1h"), ("COMFYD_QUEUE__RENEW_EVERY", "20m")];
    let world = far.into_iter().fold(world(), |world, (name, value)| world.with(name, value)).start().await;
    world.client.post(world.url("/api/queue/pause")).send().await.unwrap().error_for_status().unwrap();
    let id = world.create(&task(1)).await;
    let system = world.system();
    let claimed = world.claim(system.worker.clone(), system.settings.lease).await;
    assert_eq!(claimed.len(), 1);
    assert_eq!(world.cancel(&id).await.0, StatusCode::ACCEPTED);
    let stretch = system.deadline.stretch();
    assert!(system.slots.queue.cast(QueueMsg::Claimed { kept: Vec::new(), stretch, result: Ok(Ok(claimed)) }));
    cancelled(&world, &id).await;
    assert_eq!(prompts(&world.fake(), &id), [""; 0]);
}
