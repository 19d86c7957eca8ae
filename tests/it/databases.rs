//! PostgreSQL for tests: one server for all of them, a server of its own for those that stop it, a database of its own for each.

use std::{
    io::{BufRead, BufReader, Lines, Write},
    net::TcpListener,
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::{Mutex, OnceLock},
};

use sqlx::{AssertSqlSafe, ConnectOptions, Connection, PgConnection, postgres::PgConnectOptions};
use uuid::Uuid;

use crate::tools::root;

/// A server that ends with its handle, or with this process.
pub struct Server {
    port: u16,
    /// Its orders and its answers; none when it is to end.
    pipe: Mutex<Option<(ChildStdin, Lines<BufReader<ChildStdout>>)>>,
    process: Child,
}

impl Server {
    /// Starts one; that takes a second.
    pub fn start() -> Self {
        Self::start_as(|_| {})
    }

    /// One that has the `cert.pem` and the `key.pem` of this folder.
    pub fn start_with_tls(folder: &Path) -> Self {
        Self::start_as(|command| _ = command.env("TLS", folder))
    }

    fn start_as(set_up: impl FnOnce(&mut Command)) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut command = Command::new(root().join("tests/postgres_server"));
        command.arg(port.to_string()).stdin(Stdio::piped()).stdout(Stdio::piped());
        set_up(&mut command);
        let mut process = command.spawn().unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let ready = lines.next().expect("PostgreSQL does not start: tests/run installs it").unwrap();
        assert_eq!(ready, "ready");
        Self { port, pipe: Mutex::new(process.stdin.take().map(|orders| (orders, lines))), process }
    }

    /// Stops it as a crash does.
    pub fn kill(&self) {
        self.order("kill");
    }

    /// Starts it again with what its disk holds.
    pub fn start_again(&self) {
        self.order("start");
    }

    fn order(&self, order: &str) {
        let mut pipe = self.pipe.lock().unwrap();
        let (orders, answers) = pipe.as_mut().unwrap();
        writeln!(orders, "{order}").unwrap();
        assert_eq!(answers.next().unwrap().unwrap(), format!("{order} done"));
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// The address of a database, reached through `port`.
    pub fn url(&self, database: &str, port: u16) -> String {
        format!("postgres://comfyd:hunter2@127.0.0.1:{port}/{database}?sslmode=disable")
    }

    /// A connection of the test's own.
    pub async fn connect(&self, database: &str) -> PgConnection {
        let options: PgConnectOptions = self.url(database, self.port).parse().unwrap();
        options.connect().await.unwrap()
    }

    /// Makes an empty database; its name.
    pub async fn database(&self) -> String {
        let name = format!("d{}", Uuid::new_v4().simple());
        let mut conn = self.connect("postgres").await;
        sqlx::query(AssertSqlSafe(format!("CREATE DATABASE {name}"))).execute(&mut conn).await.unwrap();
        conn.close().await.unwrap();
        name
    }
}

/// A pooler in transaction mode before the server that all use; it ends with its handle, or with this process.
pub struct Pooler {
    port: u16,
    process: Child,
}

impl Pooler {
    fn start(server: &Server) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut command = Command::new(root().join("tests/pgbouncer_server"));
        command.args([port.to_string(), server.port.to_string()]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = command.spawn().unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        assert_eq!(lines.next().expect("pgbouncer does not start: tests/run installs it").unwrap(), "ready");
        Self { port, process }
    }

    /// The same database through the pooler.
    pub fn url(&self, direct: &str) -> String {
        direct.replace(&format!(":{}/", server().port), &format!(":{}/", self.port))
    }
}

impl Drop for Pooler {
    fn drop(&mut self) {
        drop(self.process.stdin.take());
        self.process.wait().unwrap();
    }
}

/// The one for all tests.
pub async fn pooler() -> &'static Pooler {
    static POOLER: OnceLock<Pooler> = OnceLock::new();
    tokio::task::spawn_blocking(|| POOLER.get_or_init(|| Pooler::start(server()))).await.unwrap()
}

impl Drop for Server {
    fn drop(&mut self) {
        // Its input ends here, and with that it does.
        *self.pipe.get_mut().unwrap() = None;
        self.process.wait().unwrap();
    }
}

/// The one for tests that only use it.
pub fn server() -> &'static Server {
    static SERVER: OnceLock<Server> = OnceLock::new();
    SERVER.get_or_init(Server::start)
}

/// The address of an empty database.
pub async fn database() -> String {
    let server = tokio::task::spawn_blocking(server).await.unwrap();
    server.url(&server.database().await, server.port)
}
