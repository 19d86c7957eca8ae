//! Long queues, made in seconds.

use std::{path::Path, sync::Arc};

use comfyd::{
    clock::SystemClock,
    store::sqlite::{SqliteConfig, SqliteStore},
};
use sqlx::{ConnectOptions, SqliteConnection, sqlite::SqliteConnectOptions};

use super::{graph, process::database_file};

/// Finished tasks, then waiting ones, as the store leaves them, in the order of their ids as when they were made one after the other.
const TASKS: &str = "
    WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?1 + ?2)
    INSERT INTO tasks (id, tenant, lane, priority, sort_key, queued_at, state, generation, fence, dispatch, attempt, max_attempts, poison,
                       timeout_ms, created_at, backend, client, accepted, started_at, executing_at, uploading_at, finished_at)
    SELECT unhex(printf('%012x70008%s', 1700000000000 + i, substr(hex(randomblob(8)), 2))), 0, 0, 0, 1700000000000 + i, 1700000000000 + i,
           iif(i <= ?1, 'completed', 'pending'), 1, i <= ?1, i <= ?1, 1, 3, 0, 3600000, 1700000000000 + i,
           iif(i <= ?1, 'http://backend', NULL), iif(i <= ?1, 'bench', NULL), i <= ?1, iif(i <= ?1, 1700000000000 + i, NULL),
           iif(i <= ?1, 1700000000000 + i, NULL), iif(i <= ?1, 1700000000000 + i, NULL), iif(i <= ?1, 1700000000000 + i, NULL)
    FROM n";
const PAYLOADS: &str = "
    INSERT INTO task_payloads (task_id, graph, inputs, metadata) SELECT id, ?, '{}', '{}' FROM tasks ORDER BY rowid";
/// One for each is enough to make their indexes as deep as they get.
const EVENTS: &str = "
    INSERT INTO task_events (task_id, at, dispatch, attempt, stage)
    SELECT id, created_at, dispatch, 1, iif(state = 'pending', 'queued', state) FROM tasks ORDER BY rowid";

/// Opens the store in `folder`.
pub async fn store(folder: &Path) -> Arc<SqliteStore> {
    SqliteStore::open(SqliteConfig::new(database_file(folder)), Arc::new(SystemClock::start())).await.expect("a store")
}

/// Makes a store in `folder` in which `pending` tasks wait and `finished` ones are over, and returns a connection to its file.
pub async fn prefill(folder: &Path, pending: u32, finished: u32) -> SqliteConnection {
    store(folder).await.mark_clean().await.expect("the store is closed");
    let mut conn = SqliteConnectOptions::new().filename(database_file(folder)).connect().await.expect("a database");
    let sql = |text: &'static str| sqlx::query(text);
    sql("PRAGMA cache_size = -200000").execute(&mut conn).await.expect("a setting");
    sql("BEGIN").execute(&mut conn).await.expect("a transaction");
    sql(TASKS).bind(finished).bind(pending).execute(&mut conn).await.expect("tasks");
    sql(PAYLOADS).bind(graph(0).to_string()).execute(&mut conn).await.expect("payloads");
    sql(EVENTS).execute(&mut conn).await.expect("events");
    sql("COMMIT").execute(&mut conn).await.expect("a commit");
    sql("PRAGMA wal_checkpoint(TRUNCATE)").execute(&mut conn).await.expect("a checkpoint");
    conn
}
