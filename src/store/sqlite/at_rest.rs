//! Looking at a database without using it: nothing is written, migrated or marked, so a running service and the next start find it as it was.

use std::path::Path;

use comfyd_actors::domain::time::Timestamp;
use sqlx::{ConnectOptions, Connection, Row, SqliteConnection};

use super::open::{OpenError, base, newest_migration};

/// Newest tasks, by the index that pages are read by. Ids are UUIDv7, so the greatest is the newest.
const NEWEST: &str = "SELECT created_at FROM tasks ORDER BY id DESC LIMIT 1";
const SCHEMA: &str = "SELECT max(version) FROM _sqlx_migrations WHERE success";
const PUBLISHED: &str = "SELECT w.name, v.text FROM workflows w JOIN workflow_versions v
     ON v.name = w.name AND v.version = w.published WHERE w.published IS NOT NULL";

/// Whose schema a database has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Schema {
    /// This program's.
    Current,
    /// An earlier program's: the next start migrates it.
    Older {
        /// The file's version.
        found: i64,
        /// The newest one known.
        known: i64,
    },
    /// A later program's: this one refuses it.
    Newer {
        /// The file's version.
        found: i64,
        /// The newest one known.
        known: i64,
    },
}

/// A database as it lies there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AtRest {
    /// Its schema.
    pub schema: Schema,
    /// When its newest task was made.
    pub newest: Option<Timestamp>,
    /// The workflows that were published through the API: names and files.
    pub published: Vec<(String, String)>,
}

/// Looks at the database at `path`, which must be there.
///
/// # Errors
/// `Sqlite` when it cannot be read, or is not one of ours.
pub async fn look(path: &Path) -> Result<AtRest, OpenError> {
    let mut conn = base(path).read_only(true).connect().await?;
    let (found, known) = (schema(&mut conn).await?, newest_migration());
    let schema = match found {
        found if found > known => Schema::Newer { found, known },
        found if found < known => Schema::Older { found, known },
        _ => Schema::Current,
    };
    // What another schema means is not known here.
    let (newest, published) = match schema {
        Schema::Current => (newest(&mut conn).await?, published(&mut conn).await?),
        _ => (None, Vec::new()),
    };
    conn.close().await?;
    Ok(AtRest { schema, newest, published })
}

async fn schema(conn: &mut SqliteConnection) -> Result<i64, sqlx::Error> {
    let version: Option<i64> = sqlx::query_scalar(SCHEMA).fetch_one(conn).await?;
    Ok(version.unwrap_or(0))
}

async fn newest(conn: &mut SqliteConnection) -> Result<Option<Timestamp>, sqlx::Error> {
    let at: Option<i64> = sqlx::query_scalar(NEWEST).fetch_optional(conn).await?;
    Ok(at.map(Timestamp))
}

async fn published(conn: &mut SqliteConnection) -> Result<Vec<(String, String)>, sqlx::Error> {
    let rows = sqlx::query(PUBLISHED).fetch_all(conn).await?;
    rows.iter().map(|row| Ok((row.try_get("name")?, row.try_get("text")?))).collect()
}
