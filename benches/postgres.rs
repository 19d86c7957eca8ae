//! What our layers cost on PostgreSQL: cycles of claim and finish, sixteen claimers at once, against a bare loop that issues our statements.
//!
//! Both have the same database on a private server that waits for the disk, and take turns. A claimer claims one task and ends it as
//! completed with one stored output. The bare loop knows beforehand what it will find, so it decides nothing, checks nothing and tells
//! nobody; it sends what the store sends for a claim and for an end, from BEGIN to COMMIT. It may share transactions out among its sixteen as
//! it likes: a connection for each, or fewer with more tasks in each transaction. The quickest of these ways is what is compared with.
#![expect(clippy::expect_used, reason = "a benchmark that cannot measure says so and ends")]

mod common;

use std::{sync::Arc, time::Duration};

use comfyd::{
    clock::SystemClock,
    store::postgres::{PgConfig, PgStore, statements},
};
use comfyd_actors::{
    domain::{
        artifact::Artifact,
        id::{BackendId, ClientId, WorkerId},
        lane::Lanes,
        task::{Change, Intent},
        tenant::Caps,
    },
    ports::store::{Claim, ClaimSlot, WorkSource},
    testing::store_conformance::fixtures,
};
use common::{Postgres, ROUNDS, Report, timed};
use sqlx::{PgConnection, Row, postgres::PgRow};
use tokio::task::JoinSet;
use uuid::Uuid;

const CLAIMERS: usize = 16;
/// Of each claimer, each time something is measured.
const CYCLES: usize = 100;
/// Connections of the bare loop, and tasks in each of its transactions.
const SHAPES: [(usize, usize); 4] = [(16, 1), (4, 4), (2, 8), (1, 16)];
/// Processes that share the claimers out among them.
const PROCESSES: usize = 4;
const BOUND: f64 = 0.8;
/// How often something is measured while a snapshot is held.
const SNAPSHOT: usize = 16;
const LEASE: Duration = Duration::from_secs(3600);

fn main() {
    common::run(cycles());
}

async fn cycles() -> Report {
    let server = Postgres::start();
    let url = server.database("cycles").await;
    let (alone, _alone) = open(&url).await;
    let mut processes = Vec::new();
    for _ in 0..PROCESSES {
        processes.push(open(&url).await);
    }
    let together: Vec<Arc<PgStore>> = processes.iter().map(|(store, _)| Arc::clone(store)).collect();
    let tasks = ((ROUNDS + 1) * (SHAPES.len() + 2) + SNAPSHOT + 2) * CLAIMERS * CYCLES;
    drop(server.fill("cycles", u32::try_from(tasks).expect("a small number"), 0).await);
    let mut report = Report::default();
    let (mut ones, mut manies) = (Vec::new(), Vec::new());
    // The first round warms up caches and connections.
    for round in 0..=ROUNDS {
        let mut bare = Vec::new();
        for (connections, tasks) in SHAPES {
            bare.push(rate(by_hand(&server, connections, tasks)).await);
        }
        let one = rate(by_store(&[Arc::clone(&alone)])).await;
        let many = rate(by_store(&together)).await;
        if round == 0 {
            continue;
        }
        let best = bare.iter().copied().fold(0.0, f64::max);
        let told: Vec<_> = SHAPES.iter().zip(&bare).map(|((c, t), rate)| format!("{c}x{t} {rate:.0}/s")).collect();
        report.note(format!("bare {}; comfyd {one:.0}/s; {PROCESSES} of them together {many:.0}/s", told.join(", ")));
        ones.push(one / best);
        // As many transactions at once: what they wait for each other the bare loop waits too.
        let alike = SHAPES.iter().zip(&bare).find(|((connections, _), _)| *connections == PROCESSES);
        manies.push(many / alike.expect("one of them").1);
    }
    report.at_least(format!("claim + finish, {CLAIMERS} claimers, against a bare loop"), "x", &ones, BOUND);
    report.at_least(format!("the same by {PROCESSES} processes, against as many connections"), "x", &manies, BOUND);
    under_a_snapshot(&server, &mut report, &alone).await;
    left_alike(&server).await;
    report
}

/// Whoever ran a task, its log tells the same: the bare loop left nothing out.
async fn left_alike(server: &Postgres) {
    let logs = "SELECT DISTINCT string_agg(coalesce(stage, 'output ' || output), ', ' ORDER BY seq) AS log
        FROM task_events GROUP BY task_id";
    let logs = sqlx::query(logs).fetch_all(&mut server.connect("cycles").await).await.expect("the logs");
    let logs: Vec<String> = logs.iter().map(|row| row.get("log")).collect();
    assert_eq!(logs, ["queued, preparing, executing, uploading, output 0, completed"]);
}

/// While somebody reads at length, nothing that was claimed meanwhile is cleared away.
#[expect(clippy::cast_precision_loss, reason = "small numbers")]
async fn under_a_snapshot(server: &Postgres, report: &mut Report, store: &Arc<PgStore>) {
    let mut reader = server.connect("cycles").await;
    let cycles = async || rate(by_store(&[Arc::clone(store)])).await;
    let begin = "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM tasks";
    let before = cycles().await;
    sqlx::raw_sql(begin).fetch_all(&mut reader).await.expect("a snapshot");
    let mut rates = Vec::new();
    for _ in 0..SNAPSHOT {
        rates.push(cycles().await);
    }
    sqlx::raw_sql("COMMIT").execute(&mut reader).await.expect("it is over");
    // Whatever vacuums by itself does so once a minute.
    sqlx::raw_sql("VACUUM tasks").execute(&mut reader).await.expect("it is cleared away");
    let after = cycles().await;
    let told: Vec<_> = rates.iter().map(|rate| format!("{rate:.0}")).collect();
    report.note(format!("{before:.0}/s; under a snapshot {}; after it {after:.0}/s", told.join(" ")));
    // The last quarter, because one time alone tells more of the machine.
    let last = &rates[SNAPSHOT - SNAPSHOT / 4..];
    let [last, without] = [last, &[before, after]].map(|rates| rates.iter().sum::<f64>() / rates.len() as f64);
    let tasks = SNAPSHOT * CLAIMERS * CYCLES;
    report.at_least(
        format!("the same at the end of {tasks} tasks under one snapshot, of the rate without"),
        "x",
        &[last / without],
        0.5,
    );
}

/// What the store has running goes on until the handle is dropped.
async fn open(url: &str) -> (Arc<PgStore>, JoinSet<()>) {
    let config = PgConfig::parse(url).expect("an address");
    let store = PgStore::open(config, Arc::new(SystemClock::start())).await.expect("a store");
    let mut running = JoinSet::new();
    for (_, service) in store.services() {
        running.spawn(service());
    }
    (store, running)
}

/// Cycles a second.
#[expect(clippy::cast_precision_loss, reason = "small numbers")]
async fn rate(work: impl Future<Output = ()>) -> f64 {
    let (time, ()) = timed(work).await;
    (CLAIMERS * CYCLES) as f64 / time.as_secs_f64()
}

/// Sixteen claimers, shared out among these processes.
async fn by_store(stores: &[Arc<PgStore>]) {
    let mut claimers = JoinSet::new();
    for (claimer, store) in (0..CLAIMERS).zip(stores.iter().cycle()) {
        let (store, worker) = (Arc::clone(store), WorkerId::new(format!("bench:{claimer}")));
        claimers.spawn(async move {
            for _ in 0..CYCLES {
                let intent = Intent { backend: BackendId::new("http://backend"), client: ClientId::new("bench") };
                let slot = ClaimSlot { intent, lanes: Lanes::only([0]) };
                let caps = Caps::default();
                let claim = Claim { worker: worker.clone(), lease: LEASE, slots: vec![slot], caps };
                let held = store.claim(claim).await.expect("an answer").pop().expect("a task");
                let done = Change::Complete { artifacts: fixtures::artifacts(1, true) };
                store.apply(held.task.id, held.task.fence, done).await.expect("it is completed");
            }
        });
    }
    claimers.join_all().await;
}

/// So many connections, with so many tasks in each transaction.
async fn by_hand(server: &Postgres, connections: usize, tasks: usize) {
    let mut claimers = JoinSet::new();
    for _ in 0..connections {
        let conn = server.connect("cycles").await;
        let cycles = CYCLES * CLAIMERS / tasks / connections;
        claimers.spawn(async move { Bare { conn, writer: Uuid::new_v4(), batch: 0 }.run(cycles, tasks).await });
    }
    claimers.join_all().await;
}

struct Bare {
    conn: PgConnection,
    writer: Uuid,
    batch: i64,
}

impl Bare {
    async fn run(mut self, cycles: usize, tasks: usize) {
        let artifact = fixtures::artifacts(1, true).remove(0);
        let wanted = i64::try_from(tasks).expect("a small number");
        for _ in 0..cycles {
            self.begin().await;
            let heads = sqlx::query(statements::HEADS).bind([0_i64]).bind([wanted]).bind(wanted);
            let heads = heads.fetch_all(&mut self.conn).await.expect("tasks");
            assert_eq!(heads.len(), tasks);
            let ids: Vec<Uuid> = heads.iter().map(|row| row.get("id")).collect();
            self.change(&[], String::from("[]"), rows(&heads, HELD)).await;
            self.end(&ids, &["preparing"]).await;
            self.begin().await;
            let held = sqlx::query(statements::LOAD).bind(&ids).fetch_all(&mut self.conn).await.expect("tasks");
            self.change(&ids, outputs(&ids, &artifact), rows(&held, OVER)).await;
            self.end(&ids, &["executing", "uploading", OUTPUT, "completed"]).await;
        }
    }

    async fn begin(&mut self) {
        sqlx::raw_sql(statements::BEGIN).fetch_all(&mut self.conn).await.expect("a transaction");
    }

    async fn change(&mut self, replaced: &[Uuid], outputs: String, rows: String) {
        let change = sqlx::query(statements::CHANGE).bind(replaced).bind(outputs).bind("[]").bind(rows);
        change.execute(&mut self.conn).await.expect("they are changed");
    }

    async fn end(&mut self, ids: &[Uuid], told: &[&str]) {
        self.batch += 1;
        let event = |id: &Uuid, told: &str| {
            let told = if told == OUTPUT {
                String::from(r#""stage":null,"error":null,"output":0"#)
            } else {
                format!(r#""stage":"{told}","error":null,"output":null"#)
            };
            format!(r#"{{"task_id":"{id}","at":1,"dispatch":1,"attempt":1,{told}}}"#)
        };
        let events: Vec<_> = ids.iter().flat_map(|id| told.iter().map(|told| event(id, told))).collect();
        let events = format!("[{}]", events.join(","));
        let finish = sqlx::query(statements::FINISH).bind(self.writer).bind(self.batch).bind(1_i64);
        let finish = finish.bind(statements::EVENTS_LOCK).bind(events);
        finish.execute(&mut self.conn).await.expect("events");
        sqlx::raw_sql("COMMIT").execute(&mut self.conn).await.expect("a commit");
    }
}

/// What is told of an output, which is no stage.
const OUTPUT: &str = "";

/// What differs between a task that is held and one that is over.
const HELD: &str = r#""state":"dispatching","worker":"bench:1","lease_until":9000000000000,"executing_at":null,"uploading_at":null,"finished_at":null"#;
const OVER: &str =
    r#""state":"completed","worker":null,"lease_until":null,"executing_at":1,"uploading_at":1,"finished_at":1"#;

fn rows(tasks: &[PgRow], state: &str) -> String {
    let row = |row: &PgRow| {
        let (id, place): (Uuid, i64) = (row.get("id"), row.get("sort_key"));
        format!(
            r#"{{"id":"{id}","tenant":0,"lane":0,"workflow":null,"priority":0,"sort_key":{place},"queued_at":{place},"generation":1,"uploads_only":false,"fence":1,"dispatch":1,"attempt":1,"max_attempts":3,"poison":0,"ooms":0,"timeout_ms":3600000,"prompt_id":"{id}","backend":"http://backend","client":"bench","accepted":false,"run_at":null,"cancel_requested_at":null,"created_at":{place},"started_at":1,"error":null,"class":null,"hook_endpoint":null,"hook_events":0,{state}}}"#
        )
    };
    format!("[{}]", tasks.iter().map(row).collect::<Vec<_>>().join(","))
}

fn outputs(ids: &[Uuid], artifact: &Artifact) -> String {
    let artifact = serde_json::to_string(artifact).expect("JSON");
    let artifact = serde_json::to_string(&artifact).expect("JSON");
    let row = |id: &Uuid| format!(r#"{{"task_id":"{id}","idx":0,"stored":true,"artifact":{artifact}}}"#);
    format!("[{}]", ids.iter().map(row).collect::<Vec<_>>().join(","))
}
