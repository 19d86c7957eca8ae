//! Every store against the one suite, and what is each one's own.

use std::sync::Arc;

use comfyd::store::sqlite::{SqliteConfig, SqliteStore};
use comfyd_actors::{ports::clock::Clock, testing::store_conformance::Subject};
use tokio::task::JoinHandle;

mod pooled;
mod postgres;
mod redis;
mod sqlite;

/// Ends the writer with the test.
struct Running(JoinHandle<()>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn run_writer(store: &Arc<SqliteStore>) -> Running {
    Running(tokio::spawn(store.writer()))
}

async fn open_sqlite(clock: Arc<dyn Clock>) -> Subject {
    let folder = tempfile::tempdir().unwrap();
    let config = SqliteConfig::new(folder.path().join("tasks.db"));
    let store = SqliteStore::open(config, clock).await.unwrap();
    let writer = run_writer(&store);
    Subject::new(store, (writer, folder))
}
