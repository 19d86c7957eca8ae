//! Whether a long queue makes the store slow: the head of the queue, and one task by its id, with a million waiting against a thousand.
//!
//! In this process, on the store alone: over HTTP the difference would drown in what both have in common. Both stores take turns.
#![expect(clippy::expect_used, reason = "a benchmark that cannot measure says so and ends")]

mod common;

use std::{sync::Arc, time::Duration};

use comfyd::store::sqlite::SqliteStore;
use comfyd_actors::{
    domain::{
        id::{BackendId, ClientId, TaskId, WorkerId},
        lane::Lanes,
        task::Intent,
    },
    ports::store::{Claim, ClaimSlot, TaskStore, WorkSource},
};
use common::{ROUNDS, Report, folder, median, prefill, store, timed};
use sqlx::{Row, SqliteConnection};
use tempfile::TempDir;
use tokio::task::JoinSet;
use uuid::Uuid;

const FEW: u32 = 1_000;
const MANY: u32 = 1_000_000;
/// Of each kind, in each round. All rounds together leave most of the few waiting.
const CLAIMS: usize = 40;
const GETS: usize = 200;

fn main() {
    common::run(queue_length());
}

struct Queue {
    store: Arc<SqliteStore>,
    ids: Vec<TaskId>,
    worker: WorkerId,
    _writer: JoinSet<()>,
    _folder: TempDir,
}

async fn queue_length() -> Report {
    let mut report = Report::default();
    let (few, many) = (Queue::of(FEW).await, Queue::of(MANY).await);
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
        report.note(format!("claim {few_claim:.0?} and {many_claim:.0?}, get {few_get:.0?} and {many_get:.0?}"));
        claims.push(many_claim.div_duration_f64(few_claim));
        gets.push(many_get.div_duration_f64(few_get));
    }
    report.at_most(format!("claim at {MANY} pending against {FEW}, p50"), "", &claims, 1.5);
    report.at_most(format!("GET by id at {MANY} pending against {FEW}, p50"), "", &gets, 1.5);
    report
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

impl Queue {
    async fn of(pending: u32) -> Self {
        let folder = folder();
        let ids = sample(prefill(folder.path(), pending).await).await;
        let store = store(folder.path()).await;
        let mut writer = JoinSet::new();
        writer.spawn(store.writer());
        Self { store, ids, worker: WorkerId::starting("bench"), _writer: writer, _folder: folder }
    }

    async fn claim(&self) -> Duration {
        let intent = Intent { backend: BackendId::new("http://backend"), client: ClientId::new("bench") };
        let slot = ClaimSlot { intent, lanes: Lanes::only([0]) };
        let claim = Claim { worker: self.worker.clone(), lease: Duration::from_secs(3600), slots: vec![slot] };
        let (time, claimed) = timed(self.store.claim(claim)).await;
        assert_eq!(claimed.expect("an answer").len(), 1);
        time
    }

    async fn get(&self, place: usize) -> Duration {
        let (time, found) = timed(self.store.get(self.ids[place % self.ids.len()])).await;
        found.expect("a task");
        time
    }
}

/// Some ids from everywhere in the queue, in no order.
async fn sample(mut conn: SqliteConnection) -> Vec<TaskId> {
    let wanted = u32::try_from(GETS * (ROUNDS + 1)).expect("a small number");
    let query = sqlx::query("SELECT id FROM tasks ORDER BY random() LIMIT ?").bind(wanted);
    let rows = query.fetch_all(&mut conn).await.expect("ids");
    rows.iter().map(|row| TaskId(Uuid::from_slice(row.get(0)).expect("an id"))).collect()
}
