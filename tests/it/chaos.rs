//! Kills without a plan: actors die at random, without a pause, while two hundred tasks pass, and every task ends once.
//!
//! A failure prints its seed; `COMFYD_SEED=<seed>` draws the same kills again.

use std::{panic::AssertUnwindSafe, time::Duration};

use comfyd::store::WRITER;
use fake_comfyui::FakeConfig;
use futures_util::{FutureExt, StreamExt, stream};
use ractor::ActorCell;
use rand::{RngExt, SeedableRng, rngs::StdRng};

use crate::{
    databases::database,
    support::{Builder, World, task, world},
};

const TASKS: u32 = 200;

/// The seed of this run.
pub fn seed() -> u64 {
    std::env::var("COMFYD_SEED").map_or_else(|_| rand::random(), |text| text.parse().unwrap())
}

/// Runs a test that draws, and tells its seed when it fails.
pub async fn with_seed(test: impl AsyncFnOnce(StdRng)) {
    let seed = seed();
    if let Err(panic) = AssertUnwindSafe(test(StdRng::seed_from_u64(seed))).catch_unwind().await {
        eprintln!("to see this again: COMFYD_SEED={seed}");
        std::panic::resume_unwind(panic);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_tasks_end_once_while_actors_die() {
    end_once(world()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_tasks_in_postgres_end_once_while_actors_die() {
    end_once(world().with("DATABASE_URL", &database().await)).await;
}

async fn end_once(world: Builder) {
    with_seed(async |mut rng| {
        let fake = FakeConfig { node_time: Duration::from_millis(5), ..FakeConfig::default() };
        let world = world.fakes([fake.clone(), fake.clone(), fake]).start().await;
        let flow = async {
            let create = async |n| world.create_stubbornly(&task(n), &format!("chaos-{n}")).await;
            let ids: Vec<_> = stream::iter(0..TASKS).map(create).buffer_unordered(8).collect().await;
            for id in &ids {
                world.finished(id).await;
            }
            ids
        };
        let kills = async {
            loop {
                tokio::time::sleep(Duration::from_millis(rng.random_range(50..100))).await;
                kill_one(&world, &mut rng).await;
            }
        };
        let ids = tokio::select! {
            ids = flow => ids,
            () = kills => unreachable!("there is no last kill"),
        };
        world.online().await;
        for id in &ids {
            let done = world.completed(id).await;
            assert_eq!(done["attempt"], 1, "{done}");
            assert_eq!(world.executions(id), 1, "{id} ran more than once");
        }
        let counts = world.desk().store.counts().await.unwrap();
        assert_eq!((counts.scheduled, counts.pending, counts.held), (0, 0, 0));
    })
    .await;
}

async fn kill_one(world: &World, rng: &mut StdRng) {
    let slots = &world.system().slots;
    match rng.random_range(0..10) {
        0 => world.kill(&slots.queue).await,
        1 => world.kill(&slots.uploads).await,
        2 => world.kill(&slots.janitor).await,
        3 => world.kill(&slots.http).await,
        4 => world.kill(&slots.services[WRITER]).await,
        5 => world.kill(&slots.backends).await,
        6 => {
            // All at once: a draw among them would depend on the moment.
            let uploads = slots.uploads.get();
            uploads
                .iter()
                .flat_map(|uploads| uploads.get_cell().get_children())
                .for_each(|child: ActorCell| child.kill());
        }
        _ => world.kill(world.session(rng.random_range(0..3))).await,
    }
}
