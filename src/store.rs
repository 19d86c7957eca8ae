//! The task stores: adapters behind the ports of `comfyd_actors::ports`, and the choice between them.
//!
//! All of them load a task, call `Task::apply` and save what comes out, so what a change means is decided in one place and a store
//! only answers for order, durability and atomicity. One suite (`comfyd_actors::testing::store_conformance`) holds them to that.

use std::{io, path::Path, sync::Arc};

use async_trait::async_trait;
use comfyd_actors::{
    kit::service::{Factory, factory},
    metrics::Metrics,
    ports::{
        clock::Clock,
        hook_store::HookStore,
        input_store::InputStore,
        store::{Hints, StoreError, TaskStore, WorkSource},
        wire::Wire,
        workflow_store::WorkflowStore,
    },
};
use tracing::info;

use self::{
    node_lock::NodeLock,
    postgres::{PgConfig, PgStore},
    redis::{RedisConfig, RedisStore, Time},
    sqlite::{SqliteConfig, SqliteStore},
};
use crate::config;

// First, for their macros.
#[macro_use]
mod columns;
#[macro_use]
mod ports;

pub mod node_lock;
pub mod postgres;
mod queue;
pub mod redis;
pub mod sqlite;
mod tls;
mod told;

/// The name of the service that writes to the store.
pub const WRITER: &str = "store writer";

/// The name of the service that hears of what other processes do.
pub const LISTENER: &str = "store listener";

/// The name of the service that tells other processes of changes, where that is not the writer's work.
pub const HERALD: &str = "store herald";

/// Committed changes a slow listener may be behind before it is told that it lost some.
const CHANGES_KEPT: usize = 4096;

/// Notices a slow listener may be behind before it loses some.
const NOTICES_KEPT: usize = 256;

/// Why a store cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The `SQLite` file.
    #[error(transparent)]
    Sqlite(#[from] sqlite::OpenError),
    /// The `PostgreSQL` database.
    #[error(transparent)]
    Postgres(#[from] postgres::OpenError),
    /// The Redis server.
    #[error(transparent)]
    Redis(#[from] redis::OpenError),
    /// The node's lock file cannot be made.
    #[error("failed to lock the task store")]
    Lock(#[source] io::Error),
}

/// Why the end of a process could not be noted.
#[derive(Debug, thiserror::Error)]
pub enum LeaveError {
    /// The lock file.
    #[error("the lock file failed")]
    Lock(#[from] io::Error),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A store, whichever it is.
pub struct Store {
    /// Its API side.
    pub tasks: Arc<dyn TaskStore>,
    /// Its consumer side.
    pub work: Arc<dyn WorkSource>,
    /// What others do to tasks.
    pub hints: Arc<dyn Hints>,
    /// The files clients gave.
    pub inputs: Arc<dyn InputStore>,
    /// The messages to webhooks.
    pub hooks: Arc<dyn HookStore>,
    /// The versions of workflows.
    pub workflows: Arc<dyn WorkflowStore>,
    /// Notices for other processes.
    pub wire: Arc<dyn Wire>,
    /// Futures it needs to have run, by name.
    pub services: Vec<(&'static str, Factory)>,
    /// Whether whoever used it before ended in order. If not, what it did last may be missing.
    pub was_clean: bool,
    /// Whether earlier processes of this node are known to be dead.
    pub was_alone: bool,
    /// To be told of the end of this process.
    pub presence: Box<dyn Presence>,
}

impl Store {
    /// One that nobody has to be careful with for what came before: it was left in order, and who else lives is not known.
    fn of<S>(store: Arc<S>, services: Vec<(&'static str, Factory)>, presence: impl Presence + 'static) -> Self
    where
        S: TaskStore + WorkSource + InputStore + HookStore + WorkflowStore + Wire,
    {
        Self {
            tasks: store.clone(),
            work: store.clone(),
            hints: store.clone(),
            inputs: store.clone(),
            hooks: store.clone(),
            workflows: store.clone(),
            wire: store,
            services,
            was_clean: true,
            was_alone: false,
            presence: Box::new(presence),
        }
    }
}

/// That this process uses the store.
#[async_trait]
pub trait Presence: Send + Sync {
    /// The very last call: nothing is held any more, and the services have stopped.
    ///
    /// # Errors
    /// The next process will be more careful than it had to be.
    async fn leave(&self) -> Result<(), LeaveError>;
}

/// Opens the store of the configuration. Writes wait until its services run.
///
/// # Errors
/// [`OpenError`] says what is wrong with it, and what to do.
pub async fn open(config: &config::Store, clock: Arc<dyn Clock>, metrics: &Metrics) -> Result<Store, OpenError> {
    if let Some(config) = PgConfig::of(config)? {
        return open_postgres(config, clock, metrics).await;
    }
    match RedisConfig::of(config) {
        Some(config) => open_redis(config, clock, metrics).await,
        None => open_sqlite(SqliteConfig::parse(config.database_url.expose())?, clock, metrics).await,
    }
}

async fn open_postgres(config: PgConfig, clock: Arc<dyn Clock>, metrics: &Metrics) -> Result<Store, OpenError> {
    let store = PgStore::open(config, clock).await?;
    store.observe(metrics.clone());
    let (services, presence) = (store.services(), PgPresence(store.clone()));
    // Whatever a prompt's name was made of is on the disk before the prompt is sent, and a database is what it was before its crash. Who else
    // lives is not known: what a predecessor held is adopted when its leases expire.
    Ok(Store::of(store, services, presence))
}

struct PgPresence(Arc<PgStore>);

#[async_trait]
impl Presence for PgPresence {
    async fn leave(&self) -> Result<(), LeaveError> {
        Ok(self.0.leave().await?)
    }
}

async fn open_redis(config: RedisConfig, clock: Arc<dyn Clock>, metrics: &Metrics) -> Result<Store, OpenError> {
    let store = RedisStore::open(config, Time::Server(clock)).await?;
    store.observe(metrics.clone());
    let listener = Arc::clone(&store);
    let was_clean = store.was_clean();
    // Who else lives is not known here either.
    Ok(Store { was_clean, ..Store::of(store, vec![(LISTENER, factory(move || listener.listener()))], Unnoticed) })
}

/// A server knows itself whether it lost anything.
struct Unnoticed;

#[async_trait]
impl Presence for Unnoticed {
    async fn leave(&self) -> Result<(), LeaveError> {
        Ok(())
    }
}

async fn open_sqlite(config: SqliteConfig, clock: Arc<dyn Clock>, metrics: &Metrics) -> Result<Store, OpenError> {
    let lock = lock_node(&config.path).await.map_err(OpenError::Lock)?;
    let store = SqliteStore::open(config, clock).await?;
    store.observe(metrics.clone());
    let writer = Arc::clone(&store);
    let services = vec![(WRITER, factory(move || writer.writer()))];
    let (was_clean, was_alone) = (store.was_clean(), lock.was_alone());
    let presence = SqlitePresence { store: store.clone(), lock };
    Ok(Store { was_clean, was_alone, ..Store::of(store, services, presence) })
}

struct SqlitePresence {
    store: Arc<SqliteStore>,
    lock: NodeLock,
}

#[async_trait]
impl Presence for SqlitePresence {
    async fn leave(&self) -> Result<(), LeaveError> {
        // Another process may still lose what it wrote last.
        if self.lock.leaves_nobody().await? {
            self.store.mark_clean().await?;
        }
        Ok(())
    }
}

/// Whoever comes alone knows that earlier processes of this node are dead.
async fn lock_node(database: &Path) -> io::Result<NodeLock> {
    if let Some(folder) = database.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let lock = NodeLock::acquire(database).await?;
    if !lock.was_alone() {
        info!(
            "another comfyd is running on the same database: its tasks are adopted when it hands them over, or when their leases expire"
        );
    }
    Ok(lock)
}

#[cfg(test)]
mod tests {
    use sqlx::migrate::Migrator;

    /// Databases remember what they were migrated by, and one whose migration is another by now, be it in a comment, is not opened any more. A
    /// new migration gets a line here; no line is ever changed.
    #[test]
    fn released_migrations_stay_as_they_are() {
        let checksums = |migrations: &Migrator| {
            let line = |migration: &sqlx::migrate::Migration| {
                let checksum: String = migration.checksum[..8].iter().map(|byte| format!("{byte:02x}")).collect();
                format!("{} {checksum}", migration.version)
            };
            migrations.iter().map(line).collect::<Vec<_>>()
        };
        assert_eq!(
            checksums(&sqlx::migrate!("src/store/migrations/sqlite")),
            [
                "1 e75e318fd14662c6",
                "2 56c9f9d3bbff97a8",
                "3 181c750888390a1a",
                "4 80ea4211de1cf667",
                "5 1f46c7c5aece35a7",
                "6 9b52d8e8e8331738",
                "7 572f0a323d8b3969",
                "8 9f456d18a55b16ee",
                "9 b07162a884d352ca",
                "10 aa5c7437f0f7aac3",
                "11 90352771ae63c854",
                "12 9b1df249527de9de",
                "13 14afc5cf36e72dc0",
                "14 5ca0e938a94a580d",
                "15 dbdf920f20f6fc7f",
            ]
        );
        assert_eq!(checksums(&sqlx::migrate!("src/store/migrations/postgres")), ["1 9a0ed6705dc03945",]);
    }
}
