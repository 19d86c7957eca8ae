//! A private PostgreSQL that waits for the disk, as at its users'.

use std::{
    io::{BufRead, BufReader},
    net::TcpListener,
    path::Path,
    process::{Child, Command, Stdio},
};

use sqlx::{AssertSqlSafe, ConnectOptions, PgConnection, postgres::PgConnectOptions};

use super::graph;

/// Finished tasks, then waiting ones, as the store leaves them, in the order of their ids as when they were made one after the other.
const TASKS: &str = "
    INSERT INTO tasks (id, tenant, lane, priority, sort_key, queued_at, state, generation, fence, dispatch, attempt, max_attempts, poison,
                       timeout_ms, created_at, backend, client, accepted, started_at, executing_at, uploading_at, finished_at)
    SELECT (lpad(to_hex(at), 12, '0') || '70008' || substr(md5(random()::text), 1, 15))::uuid, 0, 0, 0, at, at, state, 1, done, done, 1, 3, 0,
           3600000, at, backend, client, done = 1, ended, ended, ended, ended
    FROM (SELECT 1700000000000 + i AS at, 'completed' AS state, 1 AS done, 'http://backend' AS backend, 'bench' AS client,
                 1700000000000 + i AS ended FROM generate_series(1, $1) i
          UNION ALL
          SELECT 1700000000000 + $1 + i, 'pending', 0, NULL, NULL, NULL FROM generate_series(1, $2) i) made";
const PAYLOADS: &str = "
    INSERT INTO task_payloads (task_id, graph, inputs, metadata, options) SELECT id, $1, '{}', '{}', '{}' FROM tasks ORDER BY created_at";
/// One for each is enough to make their indexes as deep as they get.
const EVENTS: &str = "
    INSERT INTO task_events (task_id, at, dispatch, attempt, stage)
    SELECT id, created_at, dispatch, 1, CASE state WHEN 'pending' THEN 'queued' ELSE state END FROM tasks ORDER BY created_at";

/// The server; it ends with its handle, or with this process.
pub struct Postgres {
    port: u16,
    process: Child,
}

impl Postgres {
    pub fn start() -> Self {
        let port = TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a free port").port();
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/postgres_server");
        let mut command = Command::new(script);
        command.arg(port.to_string()).env("FSYNC", "on").stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = command.spawn().expect("a process");
        let mut ready = String::new();
        let output = process.stdout.take().expect("its output");
        BufReader::new(output).read_line(&mut ready).expect("PostgreSQL starts: tests/run installs it");
        assert_eq!(ready, "ready\n", "PostgreSQL starts: tests/run installs it");
        Self { port, process }
    }

    pub fn url(&self, database: &str) -> String {
        format!("postgres://comfyd:hunter2@127.0.0.1:{}/{database}?sslmode=disable", self.port)
    }

    pub async fn connect(&self, database: &str) -> PgConnection {
        let options: PgConnectOptions = self.url(database).parse().expect("an address");
        options.connect().await.expect("a connection")
    }

    /// Makes an empty database; its address.
    pub async fn database(&self, name: &str) -> String {
        let create = AssertSqlSafe(format!("CREATE DATABASE {name}"));
        sqlx::raw_sql(create).execute(&mut self.connect("postgres").await).await.expect("a database");
        self.url(name)
    }

    /// Has `pending` tasks wait and `finished` ones be over in a database with our tables; a connection to it.
    pub async fn fill(&self, name: &str, pending: u32, finished: u32) -> PgConnection {
        let mut conn = self.connect(name).await;
        let sql = |text: &'static str| sqlx::query(text);
        // What refers to what is right; to look at it takes as long as all the rest.
        sql("SET session_replication_role = replica").execute(&mut conn).await.expect("a setting");
        let rows = sql(TASKS).bind(i64::from(finished)).bind(i64::from(pending));
        rows.execute(&mut conn).await.expect("tasks");
        sql(PAYLOADS).bind(graph(0).to_string()).execute(&mut conn).await.expect("payloads");
        sql(EVENTS).execute(&mut conn).await.expect("events");
        for settle in ["VACUUM ANALYZE", "CHECKPOINT", "SET session_replication_role = origin"] {
            sqlx::raw_sql(settle).execute(&mut conn).await.expect("it is settled");
        }
        conn
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // With its input it ends, and takes its files with it.
        drop(self.process.stdin.take());
        let _ = self.process.wait();
    }
}
