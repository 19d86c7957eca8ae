//! Figures, not checks: `cargo test --release --test it speed -- --ignored --nocapture`.

use std::{
    fs::File,
    io::Write,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use comfyd::store::sqlite::{SqliteConfig, SqliteStore};
use comfyd_actors::{
    domain::{id::TaskId, task::Change},
    ports::store::{Query, TaskStore, WorkSource},
    testing::{
        TestClock,
        store_conformance::fixtures::{claim, new_task, worker},
    },
};
use sqlx::{ConnectOptions, sqlite::SqliteConnectOptions};

use super::run_writer;

const CALLERS: usize = 16;
const LONG: Duration = Duration::from_secs(3);

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes a minute and checks nothing"]
async fn speed_of_sqlite() {
    let folder = tempfile::tempdir_in(".").unwrap();
    let path = folder.path().join("tasks.db");
    fsyncs(folder.path());
    let store = SqliteStore::open(SqliteConfig::new(&path), Arc::new(TestClock::default())).await.unwrap();
    let _writer = run_writer(&store);
    creates(&store).await;
    lone_calls(&store, "empty").await;
    fill(&path, 1_000_000).await;
    lone_calls(&store, "1 M pending").await;
}

fn fsyncs(folder: &Path) {
    let mut file = File::create(folder.join("probe")).unwrap();
    let mut times = Vec::new();
    for _ in 0..300 {
        file.write_all(&[7; 8192]).unwrap();
        let start = Instant::now();
        file.sync_data().unwrap();
        times.push(start.elapsed());
    }
    report("fsync of 8 kB", times);
}

async fn creates(store: &Arc<SqliteStore>) {
    let start = Instant::now();
    let callers: Vec<_> = (0..CALLERS)
        .map(|_| {
            let store = Arc::clone(store);
            tokio::spawn(async move {
                let mut times = Vec::new();
                while start.elapsed() < LONG {
                    let asked = Instant::now();
                    store.create(new_task(0), None).await.unwrap();
                    times.push(asked.elapsed());
                }
                times
            })
        })
        .collect();
    let mut times = Vec::new();
    for caller in callers {
        times.extend(caller.await.unwrap());
    }
    println!("{CALLERS} callers: {:.0} creates/s", times.len() as f64 / start.elapsed().as_secs_f64());
    report("create among 16", times);
}

async fn lone_calls(store: &Arc<SqliteStore>, state: &str) {
    let me = worker("node", 1);
    let [mut creating, mut claiming, mut again, mut releasing, mut getting, mut listing] = [const { Vec::new() }; 6];
    let mut id = TaskId::new();
    for _ in 0..500 {
        let start = Instant::now();
        let (_, held) = store.create(new_task(0), Some(claim(&me, 1))).await.unwrap();
        creating.push(start.elapsed());
        let start = Instant::now();
        let more = store.claim(claim(&me, 1)).await.unwrap();
        claiming.push(start.elapsed());
        for held in held.iter().chain(&more) {
            let start = Instant::now();
            store.apply(held.task.id, held.task.fence, Change::HandOff).await.unwrap();
            releasing.push(start.elapsed());
            id = held.task.id;
        }
        let start = Instant::now();
        store.claim(claim(&me, 1)).await.unwrap();
        again.push(start.elapsed());
        let start = Instant::now();
        store.get(id).await.unwrap();
        getting.push(start.elapsed());
        let start = Instant::now();
        store.list(Query { limit: 20, ..Query::default() }).await.unwrap();
        listing.push(start.elapsed());
    }
    println!("-- {state}");
    report("create + claim (durable)", creating);
    report("claim after a create", claiming);
    report("claim after a hand off", again);
    report("hand off", releasing);
    report("get", getting);
    report("page of 20", listing);
}

fn report(what: &str, mut times: Vec<Duration>) {
    times.sort();
    let at = |share: usize| times.get(times.len() * share / 100).copied().unwrap_or_default();
    println!("{what}: p50 {:?}, p99 {:?}", at(50), at(99));
}

async fn fill(path: &Path, tasks: i64) {
    let mut conn = SqliteConnectOptions::new().filename(path).connect().await.unwrap();
    let fill = "INSERT INTO tasks (id, tenant, lane, priority, sort_key, state, generation, fence, dispatch, attempt, max_attempts,
            poison, created_at)
        WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?)
        SELECT randomblob(16), 0, 0, 0, i, 'pending', 1, 0, 0, 1, 3, 0, i FROM n;
        INSERT OR IGNORE INTO task_payloads SELECT id, '{}', '{}', '{}' FROM tasks";
    sqlx::query(fill).bind(tasks).execute(&mut conn).await.unwrap();
}
