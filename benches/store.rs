//! Whether a long queue and a long history make a store slow: the head of the queue, and one task by its id, with a million waiting and ten
//! millions over, against a thousand and none.
//!
//! In this process, on the store alone: over HTTP the difference would drown in what both have in common. Both stores take turns. SQLite and
//! PostgreSQL one after the other; each makes its ten millions first, which takes minutes and some ten gigabytes. With arguments other numbers:
//! `cargo bench --bench store -- 100000 1000000`.
#![expect(clippy::expect_used, reason = "a benchmark that cannot measure says so and ends")]

mod common;

use std::{any::Any, sync::Arc, time::Duration};

use comfyd::{
    clock::SystemClock,
    store::postgres::{PgConfig, PgStore},
};
use comfyd_actors::{
    domain::{
        id::{BackendId, ClientId, TaskId, WorkerId},
        lane::Lanes,
        task::Intent,
        tenant::Caps,
    },
    ports::store::{Claim, ClaimSlot, TaskStore, WorkSource},
};
use common::{Postgres, ROUNDS, Report, folder, median, prefill, store, timed};
use sqlx::Row;
use tokio::task::JoinSet;
use uuid::Uuid;

const FEW: u32 = 1_000;
/// Waiting and over, when nothing else is said.
const MANY: [u32; 2] = [1_000_000, 10_000_000];
/// Of each kind, in each round. All rounds together leave most of the few waiting.
const CLAIMS: usize = 40;
const GETS: usize = 200;

fn main() {
    common::run(queue_length());
}

struct Queue {
    tasks: Arc<dyn TaskStore>,
    work: Arc<dyn WorkSource>,
    ids: Vec<TaskId>,
    worker: WorkerId,
    /// What must live as long.
    _running: JoinSet<()>,
    _place: Box<dyn Any>,
}

async fn queue_length() -> Report {
    let numbers: Vec<u32> = std::env::args().filter_map(|argument| argument.parse().ok()).collect();
    let [pending, finished] = numbers.try_into().unwrap_or(MANY);
    let mut report = Report::default();
    let pair = (Queue::sqlite(FEW, 0).await, Queue::sqlite(pending, finished).await);
    compare(&mut report, "SQLite", &pair.0, &pair.1).await;
    drop(pair);
    let server = Arc::new(Postgres::start());
    let pair = (Queue::postgres(&server, FEW, 0).await, Queue::postgres(&server, pending, finished).await);
    compare(&mut report, "PostgreSQL", &pair.0, &pair.1).await;
    report.note(format!("{pending} pending and {finished} finished, against {FEW} and none"));
    report
}

async fn compare(report: &mut Report, store: &str, few: &Queue, many: &Queue) {
    let (mut claims, mut gets) = (Vec::new(), Vec::new());
    // The first round warms up caches.
    for round in 0..=ROUNDS {
        let (few_claim, many_claim) = alternate(CLAIMS, async || few.claim().await, async || many.claim().await).await;
        let place = |i: usize| round * GETS + i;
        let (mut i, mut k) = (0.., 0..);
        let few_get = async || few.get(place(i.next().unwrap_or_default())).await;
        let many_get = async || many.get(place(k.next().unwrap_or_default())).await;
        let (few_get, many_get) = alternate(GETS, few_get, many_get).await;
        if round == 0 {
            continue;
        }
        report
            .note(format!("{store}: claim {few_claim:.0?} and {many_claim:.0?}, get {few_get:.0?} and {many_get:.0?}"));
        claims.push(many_claim.div_duration_f64(few_claim));
        gets.push(many_get.div_duration_f64(few_get));
    }
    report.at_most(format!("{store}: claim with many against few, p50"), "", &claims, 1.5);
    report.at_most(format!("{store}: GET by id with many against few, p50"), "", &gets, 1.5);
}

/// Both by turns; their medians.
async fn alternate(
    times: usize,
    mut one: impl AsyncFnMut() -> Duration,
    mut other: impl AsyncFnMut() -> Duration,
) -> (Duration, Duration) {
    let (mut ones, mut others) = (Vec::new(), Vec::new());
    for _ in 0..times {
        ones.push(one().await);
        others.push(other().await);
    }
    (median(&ones), median(&others))
}

/// Some ids of waiting tasks from everywhere in the queue, in no order.
macro_rules! sample {
    ($conn:expr, $sql:literal) => {{
        let wanted = u32::try_from(GETS * (ROUNDS + 1)).expect("a small number");
        sqlx::query($sql).bind(i64::from(wanted)).fetch_all(&mut $conn).await.expect("ids")
    }};
}

impl Queue {
    async fn sqlite(pending: u32, finished: u32) -> Self {
        let folder = folder();
        let mut conn = prefill(folder.path(), pending, finished).await;
        let rows = sample!(conn, "SELECT id FROM tasks WHERE state = 'pending' ORDER BY random() LIMIT ?");
        let ids = rows.iter().map(|row| TaskId(Uuid::from_slice(row.get(0)).expect("an id"))).collect();
        drop(conn);
        let store = store(folder.path()).await;
        let mut running = JoinSet::new();
        running.spawn(store.writer());
        Self::of(store, ids, running, folder)
    }

    async fn postgres(server: &Arc<Postgres>, pending: u32, finished: u32) -> Self {
        let name = format!("tasks_{pending}");
        let url = server.database(&name).await;
        let config = PgConfig::parse(&url).expect("an address");
        let store = PgStore::open(config, Arc::new(SystemClock::start())).await.expect("a store");
        let mut conn = server.fill(&name, pending, finished).await;
        let rows = sample!(conn, "SELECT id FROM tasks WHERE state = 'pending' ORDER BY random() LIMIT $1");
        let ids = rows.iter().map(|row| TaskId(row.get(0))).collect();
        let mut running = JoinSet::new();
        for (_, service) in store.services() {
            running.spawn(service());
        }
        Self::of(store, ids, running, Arc::clone(server))
    }

    fn of<S: TaskStore + WorkSource>(store: Arc<S>, ids: Vec<TaskId>, running: JoinSet<()>, place: impl Any) -> Self {
        let (tasks, work) = (Arc::clone(&store) as Arc<dyn TaskStore>, store as Arc<dyn WorkSource>);
        let worker = WorkerId::starting("bench");
        Self { tasks, work, ids, worker, _running: running, _place: Box::new(place) }
    }

    async fn claim(&self) -> Duration {
        let intent = Intent { backend: BackendId::new("http://backend"), client: ClientId::new("bench") };
        let slot = ClaimSlot { intent, lanes: Lanes::only([0]) };
        let claim = Claim {
            worker: self.worker.clone(),
            lease: Duration::from_secs(3600),
            slots: vec![slot],
            caps: Caps::default(),
        };
        let (time, claimed) = timed(self.work.claim(claim)).await;
        assert_eq!(claimed.expect("an answer").len(), 1);
        time
    }

    async fn get(&self, place: usize) -> Duration {
        let (time, found) = timed(self.tasks.get(self.ids[place % self.ids.len()])).await;
        found.expect("a task");
        time
    }
}
