//! Opening the file: where it may lie, how connections are set up, which versions fit, and the mark that tells a clean end from a crash.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use sqlx::{
    ConnectOptions, Connection, SqliteConnection, SqlitePool,
    migrate::{MigrateError, Migrator},
    sqlite::{SqliteAutoVacuum, SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};
use tracing::info;

use super::place::{Files, remote_file_system};

static MIGRATIONS: Migrator = sqlx::migrate!("src/store/migrations/sqlite");

/// Before it, a checkpoint at the wrong moment could lose pages of the log.
const OLDEST: [u32; 3] = [3, 51, 3];

/// How long a write waits for another process that is writing.
pub(super) const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a read waits for one of the connections.
const READER_PATIENCE: Duration = Duration::from_secs(5);

/// What the log is cut back to once its contents are in the database: a burst must not keep the disk for ever.
const LOG_LIMIT: &str = "67108864";

/// Where the tasks are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SqliteConfig {
    /// The database file. Its folder is made when it is not there.
    pub path: PathBuf,
    /// Connections for reading.
    pub readers: u32,
}

impl SqliteConfig {
    /// A database at `path`, with the usual number of readers.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), readers: 4 }
    }

    /// Reads `sqlite:<path>`, `sqlite://<path>` or a plain path.
    ///
    /// # Errors
    /// [`OpenError::NotAFile`] for what names no file, as a database in memory.
    pub fn parse(url: &str) -> Result<Self, OpenError> {
        let path = url.strip_prefix("sqlite:").map_or(url, |rest| rest.strip_prefix("//").unwrap_or(rest));
        let is_file = !path.is_empty() && !path.contains(":memory:") && !path.contains('?') && !path.ends_with('/');
        if is_file { Ok(Self::new(path)) } else { Err(OpenError::NotAFile(url.into())) }
    }
}

/// Why the database cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The configuration names no file.
    #[error("`{0}` names no database file: give a path such as data/comfyd.db")]
    NotAFile(String),
    /// The file's folder cannot be made or read.
    #[error("failed to make the database's folder {0}")]
    Folder(PathBuf, #[source] io::Error),
    /// The file lies on another machine.
    #[error(
        "the database {path} lies on a {kind} file system, where SQLite loses data: put it on a local disk, or use PostgreSQL"
    )]
    Remote {
        /// The file.
        path: PathBuf,
        /// The file system.
        kind: String,
    },
    /// The linked `SQLite` has a known fault.
    #[error("SQLite {0} is too old: at least 3.51.3 is needed")]
    OldSqlite(String),
    /// A newer comfyd wrote the file.
    #[error(
        "the database was written by a newer comfyd (its schema has version {found}, this program knows {known}): upgrade comfyd"
    )]
    NewerSchema {
        /// The file's version.
        found: i64,
        /// The newest one known.
        known: i64,
    },
    /// The schema cannot be brought up to date.
    #[error("failed to migrate the database")]
    Migrate(#[source] MigrateError),
    /// Anything else `SQLite` says.
    #[error("failed to open the database")]
    Sqlite(#[from] sqlx::Error),
}

pub(super) struct Opened {
    /// How the writer connects.
    pub(super) options: SqliteConnectOptions,
    pub(super) files: Files,
    pub(super) readers: SqlitePool,
    pub(super) was_clean: bool,
}

pub(super) async fn open(config: &SqliteConfig) -> Result<Opened, OpenError> {
    prepare_place(&config.path)?;
    let options = writing(&config.path);
    let mut conn = durable(&options).create_if_missing(true).connect().await?;
    check_version(&mut conn).await?;
    migrate(&mut conn).await?;
    let was_clean = mark_used(&mut conn).await?;
    conn.close().await?;
    let files = Files::of(&config.path).map_err(sqlx::Error::Io)?;
    info!(path = %config.path.display(), was_clean, "opened the task store");
    Ok(Opened { readers: reading(&config.path, config.readers), options, files, was_clean })
}

fn prepare_place(path: &Path) -> Result<(), OpenError> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder).map_err(|error| OpenError::Folder(folder.into(), error))?;
    match remote_file_system(folder) {
        Some(kind) => Err(OpenError::Remote { path: path.into(), kind }),
        None => Ok(()),
    }
}

pub(super) fn base(path: &Path) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(path)
        .busy_timeout(BUSY_TIMEOUT)
        .foreign_keys(true)
        .pragma("temp_store", "MEMORY")
        // A read error of a mapped file is a signal that kills the process; of a plain one it is an error we can report.
        .pragma("mmap_size", "0")
}

/// With commits that wait for the disk.
fn durable(options: &SqliteConnectOptions) -> SqliteConnectOptions {
    options.clone().synchronous(SqliteSynchronous::Full)
}

/// How the writer's connection is set up, to a file that is there. Its commits do not wait for the disk: see `flush`.
fn writing(path: &Path) -> SqliteConnectOptions {
    base(path)
        // Counts only before the first table: lets the file shrink bit by bit as tasks are pruned.
        .auto_vacuum(SqliteAutoVacuum::Incremental)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Normal)
        .pragma("journal_size_limit", LOG_LIMIT)
}

fn reading(path: &Path, connections: u32) -> SqlitePool {
    SqlitePoolOptions::new()
        .max_connections(connections)
        .acquire_timeout(READER_PATIENCE)
        // The connection is a thread of ours: asking it whether it is there costs a trip per read and finds nothing.
        .test_before_acquire(false)
        .connect_lazy_with(base(path).read_only(true))
}

async fn check_version(conn: &mut SqliteConnection) -> Result<(), OpenError> {
    let version: String = sqlx::query_scalar("SELECT sqlite_version()").fetch_one(conn).await?;
    let numbers: Vec<u32> = version.split('.').map_while(|part| part.parse().ok()).collect();
    if numbers.as_slice() < OLDEST.as_slice() { Err(OpenError::OldSqlite(version)) } else { Ok(()) }
}

/// The version of this program's schema.
pub(super) fn newest_migration() -> i64 {
    MIGRATIONS.iter().map(|migration| migration.version).max().unwrap_or(0)
}

async fn migrate(conn: &mut SqliteConnection) -> Result<(), OpenError> {
    let known = newest_migration();
    MIGRATIONS.run(conn).await.map_err(|error| match error {
        MigrateError::VersionMissing(found) if found > known => OpenError::NewerSchema { found, known },
        other => OpenError::Migrate(other),
    })
}

/// From here on the file counts as in use, on the disk, until somebody says goodbye. Returns how the last user left it.
async fn mark_used(conn: &mut SqliteConnection) -> Result<bool, sqlx::Error> {
    let mark: Option<String> =
        sqlx::query_scalar("SELECT value FROM meta WHERE name = 'state'").fetch_optional(&mut *conn).await?;
    set_mark(conn, "in use").await?;
    Ok(mark.is_none_or(|mark| mark == "clean"))
}

async fn set_mark(conn: &mut SqliteConnection, mark: &'static str) -> Result<(), sqlx::Error> {
    let sql =
        "INSERT INTO meta (name, value) VALUES ('state', ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value";
    sqlx::query(sql).bind(mark).execute(conn).await.map(drop)
}

/// Uses a connection of its own: the writer is gone by then.
pub(super) async fn mark_clean(options: &SqliteConnectOptions) -> Result<(), sqlx::Error> {
    let mut conn = durable(options).connect().await?;
    set_mark(&mut conn, "clean").await?;
    conn.close().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_urls_and_paths() {
        for (url, path) in [
            ("sqlite:data/a.db", "data/a.db"),
            ("sqlite://data/a.db", "data/a.db"),
            ("sqlite:///var/a.db", "/var/a.db"),
            ("./a.db", "./a.db"),
        ] {
            assert_eq!(SqliteConfig::parse(url).unwrap().path, Path::new(path));
        }
        for url in ["sqlite::memory:", "sqlite:", "", "data/", "sqlite:a.db?mode=memory"] {
            assert!(SqliteConfig::parse(url).is_err(), "{url}");
        }
    }
}
