//! Random actors die at random moments, and no task notices. `COMFYD_SEED` replays a run.

use std::time::Duration;

use fake_comfyui::FakeConfig;
use rand::{RngExt, SeedableRng, rngs::StdRng};

use crate::support::{World, task, world};

const TASKS: u32 = 200;
/// Then there is calm: concluding that a prompt was lost with its sender takes a session that lives for some seconds.
const KILLS: u32 = 80;

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_tasks_through_random_kills() {
    let seed = std::env::var("COMFYD_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(rand::random::<u64>);
    println!("COMFYD_SEED={seed}");
    let slow = || FakeConfig { node_time: Duration::from_millis(5), ..FakeConfig::default() };
    let world = world().fakes([slow(), slow()]).start().await;
    let (ids, ()) = tokio::join!(work(&world), kill_at_random(&world, seed));
    for id in &ids {
        assert_eq!(world.executions(id), 1, "task {id} ran again because of a crash of ours");
    }
    let counts = world.system().store.counts().await.unwrap();
    assert_eq!((counts.pending, counts.scheduled, counts.held), (0, 0, 0));
}

async fn work(world: &World) -> Vec<String> {
    let mut ids = Vec::new();
    for n in 0..TASKS {
        ids.push(world.create_stubbornly(&task(n), &format!("chaos-{n}")).await);
    }
    for id in &ids {
        let done = world.completed(id).await;
        assert_eq!(done["attempt"], 1, "{done}");
    }
    ids
}

async fn kill_at_random(world: &World, seed: u64) {
    let mut random = StdRng::seed_from_u64(seed);
    let slots = &world.system().slots;
    for _ in 0..KILLS {
        tokio::time::sleep(Duration::from_millis(random.random_range(30..150))).await;
        match random.random_range(0..8) {
            0 => World::kill(&slots.queue).await,
            1 => World::kill(&slots.uploads).await,
            2 => World::kill(&slots.janitor).await,
            3 => World::kill(&slots.http).await,
            4 => World::kill(&slots.backends).await,
            5 => World::kill(&slots.services["store writer"]).await,
            n => World::kill(world.session(n % 2)).await,
        }
    }
}
