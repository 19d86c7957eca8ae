//! Opening the database: which one, whether it can be used, and by which schema.

use std::{str::FromStr, time::Duration};

use comfyd_actors::ports::store::StoreError;
use sqlx::{
    ConnectOptions, Connection, PgConnection, PgPool,
    migrate::{MigrateError, Migrator},
    postgres::{PgConnectOptions, PgPoolOptions},
};
use tracing::{info, log::LevelFilter, warn};
use uuid::Uuid;

use super::{
    fault::{answered, code},
    pooler::{self, forget_prepared, is_poolers, through_pooler},
    writer::hang_up,
};
use crate::{config, store::tls::is_tls};

static MIGRATIONS: Migrator = sqlx::migrate!("src/store/migrations/postgres");

/// The oldest version that knows all we say: `PostgreSQL` 12, for `AS MATERIALIZED`.
const OLDEST: i32 = 120_000;

/// How long opening may take before the database counts as out of reach.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long the database may take for an answer.
const ANSWERS: Duration = Duration::from_secs(20);

/// How long a read waits for one of the connections.
const READER_PATIENCE: Duration = Duration::from_secs(5);

/// What a connection may take to show that it is alive.
const SIGN_OF_LIFE: Duration = Duration::from_secs(2);

/// Every process is known to the database by this row, and forgotten when nobody has seen it for a month.
const INTRODUCE: &str =
    "WITH gone AS (DELETE FROM writers WHERE at < (extract(epoch FROM now()) * 1000)::bigint - 2592000000)
    INSERT INTO writers (id, batch, at) VALUES ($1, 0, (extract(epoch FROM now()) * 1000)::bigint)";

/// Until the end of the transaction.
const TAKE_TURNS: &str = "SELECT pg_advisory_xact_lock($1)";
/// Any constant will do; all processes on a database must have the same.
const MIGRATIONS_LOCK: i64 = 0x636f_6d66_7964_6d67;

const FORGET: &str = "DELETE FROM writers WHERE id = $1";

/// Where the tasks are kept.
#[derive(Clone)]
pub struct PgConfig {
    /// The server, the database, who we are there.
    pub(super) options: PgConnectOptions,
    /// A pooler in transaction mode is between us and the server.
    pub(super) is_pooled: bool,
    /// Where to listen; `None`: nobody does.
    pub(super) listening: Option<PgConnectOptions>,
    /// Connections for reading.
    pub readers: u32,
    /// How long the database may take for an answer before the connection counts as broken. Not less than a statement may wait there for a
    /// lock, which is 10 s.
    pub patience: Duration,
}

impl PgConfig {
    /// The database that the configuration names, if it is one of these.
    ///
    /// # Errors
    /// `Url`.
    pub fn of(config: &config::Store) -> Result<Option<Self>, OpenError> {
        let url = config.database_url.expose();
        if !url.starts_with("postgres://") && !url.starts_with("postgresql://") {
            return Ok(None);
        }
        let mut parsed = Self { readers: config.postgres_readers, ..Self::parse(url)? };
        if config.postgres_pooled {
            parsed = parsed.through_pooler();
        }
        if let Some(direct) = &config.postgres_listen_url {
            parsed = parsed.listen_at(direct.expose())?;
        }
        Ok(Some(parsed))
    }

    /// A pooler in transaction mode is between us and the server. Nobody listens then.
    #[must_use]
    pub fn through_pooler(self) -> Self {
        Self { options: through_pooler(self.options), is_pooled: true, listening: None, ..self }
    }

    /// Listens there: past the pooler.
    ///
    /// # Errors
    /// `Url` when it is none.
    pub fn listen_at(self, url: &str) -> Result<Self, OpenError> {
        Ok(Self { listening: Self::parse(url)?.listening, ..self })
    }

    /// Reads `postgres://<user>:<password>@<host>:<port>/<database>?sslmode=...`.
    ///
    /// # Errors
    /// `Url` when it is none.
    pub fn parse(url: &str) -> Result<Self, OpenError> {
        let options = PgConnectOptions::from_str(url).map_err(|_| OpenError::Url)?;
        let options = options.application_name("comfyd").log_statements(LevelFilter::Trace);
        let options = options.log_slow_statements(LevelFilter::Warn, Duration::from_secs(5));
        let listening = Some(options.clone());
        Ok(Self { options, is_pooled: false, listening, readers: 4, patience: ANSWERS })
    }

    /// The server and the database, without the password.
    #[must_use]
    pub fn place(&self) -> String {
        let database = self.options.get_database().unwrap_or_else(|| self.options.get_username());
        format!("{}:{}/{database}", self.options.get_host(), self.options.get_port())
    }
}

/// Why the database cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The configuration names no database.
    #[error(
        "DATABASE_URL is not of the form postgres://<user>:<password>@<host>:5432/<database>; letters such as @ or / in the password are written %40, %2F"
    )]
    Url,
    /// Nobody answers.
    #[error("PostgreSQL at {place} cannot be reached: start it, or correct host and port in DATABASE_URL")]
    Unreachable {
        /// Where.
        place: String,
        /// What the system says.
        #[source]
        source: Option<sqlx::Error>,
    },
    /// It does not let us in.
    #[error("PostgreSQL at {place} refuses the user or the password in DATABASE_URL: {why}")]
    Refused {
        /// Where.
        place: String,
        /// What it says.
        why: String,
    },
    /// There is no such database.
    #[error("PostgreSQL at {place} has no such database: create it (CREATE DATABASE ...), or correct DATABASE_URL")]
    NoDatabase {
        /// Where.
        place: String,
    },
    /// The connection cannot be made safe.
    #[error("no safe connection to PostgreSQL at {place}: {why}; see sslmode and sslrootcert in DATABASE_URL")]
    Tls {
        /// Where.
        place: String,
        /// What went wrong.
        why: String,
    },
    /// The server is too old.
    #[error("PostgreSQL {found} is too old: at least 12 is needed")]
    OldServer {
        /// Its version.
        found: String,
    },
    /// We may not make our tables.
    #[error(
        "the user in DATABASE_URL may not make or use tables in {place}: make it the owner of the database ({why})"
    )]
    Rights {
        /// Where.
        place: String,
        /// What the server says.
        why: String,
    },
    /// It is not the server that answers.
    #[error(
        "between us and PostgreSQL at {place} is a pooler in transaction mode, as it seems ({why}): set store.postgres_pooled = true"
    )]
    Pooler {
        /// Where.
        place: String,
        /// What it says.
        why: String,
    },
    /// The server takes no writes.
    #[error("PostgreSQL at {place} takes no writes, as a standby does: name the primary in DATABASE_URL")]
    ReadOnly {
        /// Where.
        place: String,
    },
    /// A newer comfyd wrote the database.
    #[error(
        "the database was written by a newer comfyd (its schema has version {found}, this program knows {known}): upgrade comfyd"
    )]
    NewerSchema {
        /// The database's version.
        found: i64,
        /// The newest one known.
        known: i64,
    },
    /// The schema cannot be brought up to date.
    #[error("failed to migrate the database")]
    Migrate(#[source] MigrateError),
    /// Anything else the server says.
    #[error("failed to open the database")]
    Other(#[source] sqlx::Error),
}

pub(super) struct Opened {
    pub(super) readers: PgPool,
    /// This process, as the database knows it.
    pub(super) id: Uuid,
}

pub(super) async fn open(config: &PgConfig) -> Result<Opened, OpenError> {
    let explain = |error| explain(config, error);
    let mut conn = connect(config).await?;
    let id = Uuid::now_v7();
    // In one transaction, whichever connection of a pooler's that gets.
    let mut tx = conn.begin().await.map_err(explain)?;
    forget_prepared(&mut tx, config.is_pooled).await.map_err(explain)?;
    check_version(config, &mut tx).await?;
    let read_only: bool = sqlx::query_scalar("SELECT current_setting('transaction_read_only')::boolean")
        .fetch_one(&mut *tx)
        .await
        .map_err(explain)?;
    if read_only {
        return Err(OpenError::ReadOnly { place: config.place() });
    }
    migrate(config, &mut tx).await?;
    warn_of_settings(&mut tx).await.map_err(explain)?;
    sqlx::query(INTRODUCE).bind(id).execute(&mut *tx).await.map_err(explain)?;
    forget_prepared(&mut tx, config.is_pooled).await.map_err(explain)?;
    tx.commit().await.map_err(explain)?;
    hang_up(conn).await;
    if config.listening.is_none() {
        warn!(
            "what other processes do is found by looking, each second: LISTEN does not pass a pooler; name a direct address in DATABASE_LISTEN_URL"
        );
    }
    info!(place = config.place(), "opened the task store");
    let readers = PgPoolOptions::new()
        .max_connections(config.readers)
        .acquire_timeout(READER_PATIENCE)
        // One that broke, or went silent, is noticed here instead of by the read.
        .test_before_acquire(false)
        .before_acquire(|conn, _| Box::pin(async { Ok(answered(SIGN_OF_LIFE, conn.ping()).await.is_ok()) }))
        .connect_lazy_with(config.options.clone());
    Ok(Opened { readers, id })
}

/// Opens a connection, and says what is wrong when that fails.
pub(super) async fn connect(config: &PgConfig) -> Result<PgConnection, OpenError> {
    match tokio::time::timeout(PATIENCE, config.options.connect()).await {
        Ok(conn) => conn.map_err(|error| explain(config, error)),
        Err(_) => Err(OpenError::Unreachable { place: config.place(), source: None }),
    }
}

pub(super) fn explain(config: &PgConfig, error: sqlx::Error) -> OpenError {
    let (place, why) = (config.place(), error.to_string());
    match code(&error).as_deref() {
        Some("28P01" | "28000") => OpenError::Refused { place, why },
        Some("3D000") => OpenError::NoDatabase { place },
        Some("42501") => OpenError::Rights { place, why },
        Some(code) if is_poolers(code, &why) => OpenError::Pooler { place, why },
        Some("25006") => OpenError::ReadOnly { place },
        Some(_) => OpenError::Other(error),
        None if matches!(error, sqlx::Error::Tls(_)) || is_tls(&error) => OpenError::Tls { place, why },
        None if matches!(error, sqlx::Error::Io(_)) => OpenError::Unreachable { place, source: Some(error) },
        None => OpenError::Other(error),
    }
}

pub(super) async fn check_version(config: &PgConfig, conn: &mut PgConnection) -> Result<String, OpenError> {
    let (number, found): (i32, String) =
        sqlx::query_as("SELECT current_setting('server_version_num')::int, current_setting('server_version')")
            .fetch_one(conn)
            .await
            .map_err(|error| explain(config, error))?;
    if number < OLDEST { Err(OpenError::OldServer { found }) } else { Ok(found) }
}

/// The version of this program's schema.
pub(super) fn newest_migration() -> i64 {
    MIGRATIONS.iter().map(|migration| migration.version).max().unwrap_or(0)
}

/// Processes that start together take turns.
async fn migrate(config: &PgConfig, conn: &mut PgConnection) -> Result<(), OpenError> {
    let known = newest_migration();
    sqlx::query(TAKE_TURNS).bind(MIGRATIONS_LOCK).execute(&mut *conn).await.map_err(|error| explain(config, error))?;
    MIGRATIONS.run(conn).await.map_err(|error| match error {
        MigrateError::VersionMissing(found) if found > known => OpenError::NewerSchema { found, known },
        MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _) if code(&error).is_some() => {
            explain(config, error)
        }
        other => OpenError::Migrate(other),
    })
}

/// Settings of the server that break our promise.
pub(super) async fn unsafe_settings(conn: &mut PgConnection) -> Result<Vec<&'static str>, sqlx::Error> {
    let (fsync, synchronous): (String, String) =
        sqlx::query_as("SELECT current_setting('fsync'), current_setting('synchronous_commit')")
            .fetch_one(conn)
            .await?;
    let mut found = Vec::new();
    if fsync == "off" {
        found.push("fsync is off on the database server: a power cut can lose accepted tasks, or the whole database");
    }
    if synchronous == "off" {
        found.push(
            "synchronous_commit is off for this database; comfyd turns it on for what it promises, other programs may lose data",
        );
    }
    Ok(found)
}

async fn warn_of_settings(conn: &mut PgConnection) -> Result<(), sqlx::Error> {
    unsafe_settings(conn).await?.into_iter().for_each(|warning| warn!("{warning}"));
    Ok(())
}

/// Nobody needs to know this process any more.
pub(super) async fn forget(config: &PgConfig, id: Uuid) -> Result<(), StoreError> {
    let unavailable = |error: &dyn std::fmt::Display| StoreError::Unavailable(error.to_string());
    let mut conn = connect(config).await.map_err(|error| unavailable(&error))?;
    let forget = pooler::rows(&mut conn, config.is_pooled, sqlx::query(FORGET).bind(id));
    answered(PATIENCE, forget).await.map_err(|error| unavailable(&error))?;
    hang_up(conn).await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_has_no_password() {
        let config = PgConfig::parse("postgres://me:secret@db.example:5433/tasks?sslmode=require").unwrap();
        assert_eq!(config.place(), "db.example:5433/tasks");
        assert!(PgConfig::parse("postgres://me:sec ret@:x/").is_err());
    }
}
