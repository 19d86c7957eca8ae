//! How fast a long queue is worked off while a random actor is killed every second, beside the same in calm.
//!
//! comfyd runs inside this process, because nobody else can reach its actors; so the calm is measured here as well. How often actors may
//! die is widened by configuration, and so is how long a restart is put off: with the defaults, who dies every few seconds is soon left
//! alone for as long. The seed is told; `COMFYD_SEED=<seed>` draws the same kills again.
#![expect(clippy::expect_used, reason = "a benchmark that cannot measure says so and ends")]

mod common;

use std::{path::Path, time::Duration};

use comfyd::{
    app::App,
    config::{self, Config, Sources},
};
use comfyd_actors::{
    kit::slot::Slot,
    system::{Slots, System},
};
use common::{Fake, Report, client, database, folder, graph, timed};
use futures_util::{StreamExt, stream};
use ractor::{ActorCell, Message};
use rand::{SeedableRng, rngs::StdRng, seq::IndexedRandom};
use serde_json::json;

/// More than ten seconds of work.
const TASKS: usize = 10_000;
const ROUNDS: u64 = 3;
/// Connections over which tasks are created.
const CONNECTIONS: usize = 16;
const KILL_EVERY: Duration = Duration::from_secs(1);
const LOOK_EVERY: Duration = Duration::from_millis(20);

fn main() {
    common::run(chaos());
}

async fn chaos() -> Report {
    let seed: u64 =
        std::env::var("COMFYD_SEED").map_or_else(|_| rand::random(), |seed| seed.parse().expect("a number"));
    let mut report = Report::default();
    report.note(format!("COMFYD_SEED={seed}"));
    let (mut shares, mut repeated) = (Vec::new(), 0);
    for round in 0..ROUNDS {
        let calm = work_off(None).await;
        let killed = work_off(Some(StdRng::seed_from_u64(seed ^ round))).await;
        report.note(format!("{TASKS} tasks: {calm} in calm, {killed} while actors die"));
        shares.push(calm.time.as_secs_f64() / killed.time.as_secs_f64());
        repeated += calm.repeated + killed.repeated;
    }
    report.at_least("rate while an actor dies each second, of calm", "", &shares, 0.7);
    report.at_most("tasks that ran more than once", "", &[f64::from(repeated)], 0.0);
    report
}

/// What came of one round.
struct Outcome {
    time: Duration,
    kills: usize,
    repeated: u32,
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:.2?} ({} kills, {} ran twice)", self.time, self.kills, self.repeated)
    }
}

/// Stores tasks while ComfyUI stands still, then lets it go, until every one is completed.
async fn work_off(kills: Option<StdRng>) -> Outcome {
    let (fake, folder) = (Fake::start(), folder());
    let mut app = App::start(&configuration(folder.path(), &fake.url)).await.expect("comfyd starts");
    fake.order(json!({"pause": true})).await;
    let (http, url) = (client(), format!("http://{}/api/tasks/create", app.address()));
    let create = async |number| {
        let request = http.post(&url).json(&json!({"workflow": graph(number)}));
        request.send().await.expect("an answer").error_for_status().expect("the task is taken");
    };
    stream::iter(0..TASKS).for_each_concurrent(CONNECTIONS, create).await;
    let system = app.system().clone();
    let mut victims = 0;
    let (time, ()) = timed(async {
        fake.order(json!({"resume": true})).await;
        tokio::select! {
            () = all_over(&system) => {}
            () = killing(&system.slots, kills, &mut victims) => {}
        }
    })
    .await;
    let repeated = fake.executions().await.saturating_sub(TASKS as u64);
    app.shut_down();
    app.ended().await.expect("a good end");
    Outcome { time, kills: victims, repeated: u32::try_from(repeated).unwrap_or(u32::MAX) }
}

async fn all_over(system: &System) {
    loop {
        let counts = system.desk.as_ref().expect("it serves clients").store.counts().await.expect("counts");
        if counts.scheduled + counts.pending + counts.held == 0 {
            return;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

async fn killing(slots: &Slots, rng: Option<StdRng>, victims: &mut usize) {
    let Some(mut rng) = rng else { return std::future::pending().await };
    loop {
        tokio::time::sleep(KILL_EVERY).await;
        if let Some(victim) = actors(slots).choose(&mut rng) {
            victim.kill();
            *victims += 1;
        }
    }
}

/// Every actor that has an address and is not the root.
fn actors(slots: &Slots) -> Vec<ActorCell> {
    fn cell<M: Message>(slot: &Slot<M>) -> Option<ActorCell> {
        slot.get().map(|actor| actor.get_cell())
    }
    let single =
        [cell(&slots.queue), cell(&slots.uploads), cell(&slots.janitor), cell(&slots.http), cell(&slots.backends)];
    let many = slots.services.values().map(cell).chain(slots.sessions.values().map(cell));
    single.into_iter().chain(many).flatten().collect()
}

fn configuration(folder: &Path, comfyui: &str) -> Config {
    let own = |name: &str, value: String| (name.to_owned(), value);
    let env = vec![
        own("COMFYUI_URL", comfyui.to_owned()),
        own("PORT", "0".to_owned()),
        own("DATABASE_URL", database(folder)),
        own("STORAGE_LOCAL_DIR", folder.join("outputs").display().to_string()),
        own("COMFYD_WORKFLOWS__DIR", folder.join("workflows").display().to_string()),
        own("COMFYD_LOG__DIR", folder.join("logs").display().to_string()),
        own("COMFYD_SUPERVISION__MAX_RESTARTS", "1000000".to_owned()),
        own("COMFYD_SUPERVISION__BACKOFF_BASE", "5ms".to_owned()),
        own("COMFYD_SUPERVISION__BACKOFF_CAP", "20ms".to_owned()),
    ];
    let loaded = config::read(Sources { env, ..Sources::default() });
    assert!(loaded.faults.is_empty(), "{:?}", loaded.faults);
    loaded.config
}
