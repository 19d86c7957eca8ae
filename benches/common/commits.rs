//! What one durable commit costs on this disk: the unit in which a durable queue is paid for.

use std::{path::Path, time::Duration};

use sqlx::{
    ConnectOptions, SqliteConnection,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous},
};

use super::timed;

/// A SQLite file in WAL mode with `synchronous = FULL`.
pub struct Commits(SqliteConnection);

impl Commits {
    pub async fn open(folder: &Path) -> Self {
        let options = SqliteConnectOptions::new()
            .filename(folder.join("commits.db"))
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full);
        let mut conn = options.connect().await.expect("a database");
        sqlx::query("CREATE TABLE t (x INTEGER PRIMARY KEY, y TEXT)").execute(&mut conn).await.expect("a table");
        Self(conn)
    }

    /// One commit of one short row.
    pub async fn once(&mut self) -> Duration {
        let insert = sqlx::query("INSERT INTO t (y) VALUES ('a row of no importance')");
        timed(insert.execute(&mut self.0)).await.0
    }
}
