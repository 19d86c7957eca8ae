//! Two ComfyUI servers: both are used, nobody waits behind the slow one, and one that is gone takes nothing with it.

use std::time::Duration;

use fake_comfyui::{EventKind, FakeConfig, Fault, Outcome};
use serde_json::json;

use crate::{
    support::{Builder, PATIENCE, World, task, task_with, world},
    witness::{posted, prompts, started, until},
};

fn two() -> Builder {
    world().fakes([FakeConfig::default(), FakeConfig::default()])
}

impl World {
    fn pause_all(&self) {
        self.fakes.iter().for_each(|fake| fake.control().pause_execution());
    }

    fn resume_all(&self) {
        self.fakes.iter().for_each(|fake| fake.control().resume());
    }

    /// The backend that took this task's newest prompt.
    async fn taken_by(&self, id: &str) -> usize {
        let taken = async {
            loop {
                if let Some(index) = self.fakes.iter().position(|fake| !prompts(&fake.control(), id).is_empty()) {
                    return index;
                }
                let waits = self.fakes.iter().map(|fake| {
                    let control = fake.control();
                    Box::pin(async move { control.wait_for(posted(id)).await })
                });
                futures_util::future::select_all(waits).await;
            }
        };
        tokio::time::timeout(PATIENCE, taken).await.expect("nobody takes the task")
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_waits_behind_a_slow_task() {
    let world = two().start().await;
    world.pause_all();
    let slow = world.create(&task(0)).await;
    let busy = world.running(&slow).await;
    world.fakes[1 - busy].control().resume();
    let mut others = Vec::new();
    for color in 1..7 {
        others.push(world.create(&task(color)).await);
    }
    // The slow one is at its gate all the time.
    for id in &others {
        world.ran(id, 1).await;
    }
    assert_eq!(world.now(&slow).await["stage"], "executing");
    world.resume_all();
    world.ran(&slow, 1).await;
    world.assert_nothing_was_repeated();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prepared_prompt_moves_to_the_backend_that_is_free_first() {
    let world = two().start().await;
    world.pause_all();
    let running = [world.create(&task(1)).await, world.create(&task(2)).await];
    for id in &running {
        world.running(id).await;
    }
    let prepared = world.create(&task(3)).await;
    let stuck = world.taken_by(&prepared).await;
    let first_prompt = prompts(&world.fakes[stuck].control(), &prepared).remove(0);
    world.fakes[1 - stuck].control().resume();
    world.ran(&prepared, 1).await;
    assert_eq!(world.fakes[1 - stuck].control().executions_of_task(&prepared), 1);
    until(
        &world.fakes[stuck].control(),
        |event| matches!(event, EventKind::Deleted { prompt_id } if *prompt_id == first_prompt),
    )
    .await;
    world.resume_all();
    for id in &running {
        world.ran(id, 1).await;
    }
    world.assert_nothing_was_repeated();
}

#[tokio::test(flavor = "multi_thread")]
async fn while_one_backend_is_down_the_other_does_everything() {
    let world = two().start().await;
    world.fakes[0].control().inject(Fault::Kill).await.unwrap();
    world.offline(0).await;
    let mut ids = Vec::new();
    for color in 0..6 {
        ids.push(world.create(&task(color)).await);
    }
    for id in &ids {
        world.ran(id, 1).await;
    }
    assert_eq!(world.fakes[0].control().total_executions(), 0);

    // When it is back it is used again.
    world.fakes[0].control().inject(Fault::Revive).await.unwrap();
    world.online().await;
    world.pause_all();
    let both = [world.create(&task(7)).await, world.create(&task(8)).await];
    let (first, second) = (world.running(&both[0]).await, world.running(&both[1]).await);
    assert_ne!(first, second);
    world.resume_all();
    for id in &both {
        world.ran(id, 1).await;
    }
    world.assert_nothing_was_repeated();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_of_a_lost_backend_runs_elsewhere_and_its_orphan_is_stopped() {
    let world = two().with("COMFYD_COMFYUI__BACKEND_LOST_AFTER", "300ms").start().await;
    world.pause_all();
    let id = world.create(&task(1)).await;
    let lost = world.running(&id).await;
    let (lost, other) = (world.fakes[lost].control(), world.fakes[1 - lost].control());
    let orphan = prompts(&lost, &id).remove(0);
    // Unreachable, but alive: its prompt runs on.
    lost.inject(Fault::Unhealthy).await.unwrap();
    lost.inject(Fault::DropSockets).await.unwrap();
    until(&other, started(&id)).await;
    other.resume();
    world.ran(&id, 2).await;
    assert_eq!((lost.executions_of_task(&id), other.executions_of_task(&id)), (1, 1));

    // Its gate is closed all the time: only an interrupt ends it.
    lost.clear();
    let stopped = |event: &EventKind| matches!(event, EventKind::Finished { prompt_id, outcome: Outcome::Interrupted } if *prompt_id == orphan);
    until(&lost, stopped).await;
    world.assert_nothing_was_repeated();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lone_backend_is_never_given_up() {
    let world = world().with("COMFYD_COMFYUI__BACKEND_LOST_AFTER", "50ms").start().await;
    let fake = world.fake();
    fake.pause_execution();
    let id = world.create(&task(1)).await;
    world.running(&id).await;
    fake.inject(Fault::Unhealthy).await.unwrap();
    fake.inject(Fault::DropSockets).await.unwrap();
    world.offline(0).await;
    // Asked in vain for longer than another would be waited for.
    let before = world.asked().await;
    world.until_asked(before + 2.0).await;
    fake.resume();
    until(&fake, |event| matches!(event, EventKind::Finished { .. })).await;
    fake.clear();
    world.ran(&id, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_preparing_the_order_is_strict() {
    let settings = [("COMFYD_QUEUE__PREPARE_AHEAD", "0"), ("COMFYD_QUEUE__ORDERING", "strict")];
    let world = settings.into_iter().fold(two(), |world, (name, value)| world.with(name, value)).start().await;
    world.pause_all();
    let first = [world.create(&task(1)).await, world.create(&task(2)).await];
    for id in &first {
        world.running(id).await;
    }
    let mut waiting = Vec::new();
    for (color, priority) in [(3, "low"), (4, "normal"), (5, "high"), (6, "high")] {
        waiting.push(world.create(&task_with(color, &json!({"priority": priority}))).await);
    }
    // One of them stays at its gate, so that the other gets all, one after the other.
    let free = world.running(&first[0]).await;
    world.fakes[free].control().resume();
    for id in &waiting {
        world.ran(id, 1).await;
    }
    let [low, normal, high, high_too] = &waiting[..] else { panic!() };
    let log = world.fakes[free].control().log();
    let order: Vec<_> = log
        .into_iter()
        .filter_map(|event| match event.kind {
            EventKind::Started { task, .. } => task,
            _ => None,
        })
        .collect();
    assert_eq!(order.iter().collect::<Vec<_>>(), [&first[0], high, high_too, normal, low]);
    world.resume_all();
    world.ran(&first[1], 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn both_backends_do_their_share() {
    let slow = || FakeConfig { node_time: Duration::from_millis(50), ..FakeConfig::default() };
    let world = world().fakes([slow(), slow()]).start().await;
    // All are there before the first one ends: what is measured is the sharing, not the speed of creating.
    world.pause_all();
    let mut ids = Vec::new();
    for color in 0..20 {
        ids.push(world.create(&task(color)).await);
    }
    world.resume_all();
    for id in &ids {
        world.ran(id, 1).await;
    }
    let shares: Vec<_> = world.fakes.iter().map(|fake| fake.control().total_executions()).collect();
    assert!(shares.iter().all(|share| *share >= 7), "{shares:?}");
    world.assert_nothing_was_repeated();
}
