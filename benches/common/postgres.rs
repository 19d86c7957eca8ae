//! A private PostgreSQL that waits for the disk, as at its users'.

use std::{
    io::{BufRead, BufReader},
    net::TcpListener,
    path::Path,
    process::{Child, Command, Stdio},
};

use sqlx::{AssertSqlSafe, ConnectOptions, PgConnection, postgres::PgConnectOptions};

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
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // With its input it ends, and takes its files with it.
        drop(self.process.stdin.take());
        let _ = self.process.wait();
    }
}
