//! The task store cannot be written: the disk is full, or somebody else holds the file. Nothing is acknowledged that is not stored,
//! nothing that runs is run again, and when the trouble is over all goes on without a restart.

use std::{
    process::Command,
    time::{Duration, Instant},
};

use fake_comfyui::EventKind;
use reqwest::StatusCode;
use serde_json::{Value, json};
use sqlx::{ConnectOptions, Row, SqliteConnection, sqlite::SqliteConnectOptions};

use crate::{
    place::{PROGRAM, Place, Process},
    support::{Api, task, world},
    tools::{run, sh},
    witness::until,
};

const LEASE: Duration = Duration::from_secs(3);
const LEASES: [(&str, &str); 2] = [("COMFYD_QUEUE__LEASE", "3s"), ("COMFYD_QUEUE__RENEW_EVERY", "500ms")];

impl Api {
    /// What `/readyz` finds wrong; nothing when all is well.
    async fn faults(&self) -> Vec<String> {
        let answer = self.client.get(self.url("/readyz")).send().await.unwrap();
        if answer.status() == StatusCode::OK {
            return Vec::new();
        }
        assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
        let problem: Value = answer.json().await.unwrap();
        let faults = problem["errors"].as_array().unwrap().iter();
        faults.map(|fault| fault["pointer"].as_str().unwrap().to_owned()).collect()
    }

    /// Waits until `/readyz` finds exactly this wrong.
    async fn until_faults(&self, wanted: &[&str]) {
        let looks = async {
            while self.faults().await != wanted {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(crate::support::PATIENCE, looks).await.unwrap_or_else(|_| panic!("never: {wanted:?}"));
    }

    /// Asks for a new task, which must be refused; with what code.
    async fn refusal(&self, color: u32, key: &str) -> Value {
        let request = self.client.post(self.url("/api/tasks/create")).json(&task(color)).header("Idempotency-Key", key);
        let answer = request.send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
        let problem: Value = answer.json().await.unwrap();
        // Nobody is told that nothing was done: it may have been.
        let detail = problem["detail"].as_str().unwrap();
        assert!(detail.contains("may or may not") || detail.contains("not known"), "{problem}");
        assert!(detail.contains("same Idempotency-Key"), "{problem}");
        problem["code"].clone()
    }
}

/// Lets no file of a process grow, or even be written beyond its first byte; or lifts that. What a full disk does, and more.
async fn limit_files(process: &Process, limit: &str) {
    let mut prlimit = Command::new("prlimit");
    prlimit.args(["--pid", &process.id().to_string(), &format!("--fsize={limit}:")]);
    let output = run(prlimit, Duration::from_secs(10)).await;
    assert!(output.status.success(), "{output:?}");
}

fn posted(place: &Place) -> usize {
    let is_post = |event: &EventKind| matches!(event, EventKind::Posted { .. });
    place.control().log().iter().filter(|event| is_post(&event.kind)).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_waited_out() {
    let place = LEASES.iter().fold(Place::new().await, |place, (name, value)| place.with(name, value));
    place.control().pause_execution();
    let mut ignoring = sh();
    // The signal that comes with this limit would end the process; a full disk sends none.
    ignoring.env_clear().current_dir(place.dir.path()).args(["-c", "trap '' XFSZ; exec \"$0\"", PROGRAM]);
    let mut process = place.start_as(ignoring).await;
    place.running(&place.create(1).await[0]).await;
    let mut ids = place.create(4).await;
    limit_files(&process, "1").await;
    place.api.until_faults(&["/store", "/storage"]).await;
    let sent = posted(&place);
    place.control().resume();
    until(&place.control(), |event| matches!(event, EventKind::Finished { .. })).await;
    // Longer than a lease, so that those of the tasks end meanwhile.
    let (full, mut refused) = (Instant::now(), 0);
    while full.elapsed() < LEASE * 3 / 2 {
        assert_eq!(place.api.refusal(100, "refused").await, "store_unavailable");
        refused += 1;
        let task = place.api.get_now(&format!("/api/tasks/{}", ids[0])).await;
        assert_eq!(task["status"], "processing", "{task}");
        let alive = place.api.client.get(place.api.url("/livez")).send().await.unwrap();
        assert_eq!(alive.status(), StatusCode::OK);
    }
    assert_eq!(posted(&place), sent, "nothing new is sent that could not be recorded");
    limit_files(&process, "unlimited").await;
    place.api.until_faults(&[]).await;
    ids.push(place.api.create_stubbornly(&task(100), "refused").await);
    place.end(&ids, 1).await;
    println!("{refused} creations were refused while the disk was full");
    process.signal("TERM");
    assert_eq!(process.ended().await.code(), Some(0), "{}", process.output());
    let mut database = open(&place.dir.path().join("comfyd.db")).await;
    assert_eq!(ask(&mut database, "PRAGMA integrity_check").await, "ok");
    let completed = ask(&mut database, "SELECT CAST(count(*) AS TEXT) FROM tasks WHERE state = 'completed'").await;
    assert_eq!(completed, ids.len().to_string(), "what was refused was not stored");
}

async fn open(path: &std::path::Path) -> SqliteConnection {
    SqliteConnectOptions::new().filename(path).connect().await.unwrap()
}

async fn ask(database: &mut SqliteConnection, sql: &'static str) -> String {
    sqlx::query(sql).fetch_one(database).await.unwrap().get(0)
}

/// Another program that writes to the file waits for us, and we for it, ten seconds at most.
#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_somebody_else_locked_is_waited_for() {
    let builder = LEASES.iter().fold(world(), |world, (name, value)| world.with(name, value));
    let world = builder.start().await;
    let fake = world.fake();
    fake.pause_execution();
    let mut ids = vec![world.create(&task(0)).await, world.create(&task(1)).await];
    world.running(&ids[0]).await;
    let mut other = open(&world.dir.path().join("comfyd.db")).await;
    sqlx::query("BEGIN IMMEDIATE").execute(&mut other).await.unwrap();
    world.until_faults(&["/store"]).await;
    fake.resume();
    // Takes as long as a client is kept waiting, which is longer than a lease. The write may still come to pass: it waits in our queue.
    assert_eq!(world.refusal(100, "refused").await, "unanswered");
    assert_eq!(world.now(&ids[0]).await["status"], "processing");
    sqlx::query("ROLLBACK").execute(&mut other).await.unwrap();
    world.until_faults(&[]).await;
    ids.push(world.create_stubbornly(&task(100), "refused").await);
    for id in &ids {
        world.ran(id, 1).await;
    }
    let counts = world.desk().store.counts().await.unwrap();
    assert_eq!(json!([counts.scheduled, counts.pending, counts.held]), json!([0, 0, 0]));
    world.assert_nothing_was_repeated();
}
