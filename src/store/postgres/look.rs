//! Looking at a database without using it: nothing is written or migrated, so a running service and the next start find it as it was.

use std::time::Duration;

use comfyd_actors::domain::time::Timestamp;
use sqlx::{Connection, PgConnection};

use super::{
    fault::answered,
    open::{OpenError, PgConfig, check_version, connect, explain, newest_migration, unsafe_settings},
    pooler::forget_prepared,
    writer::hang_up,
};

const IS_OURS: &str = "SELECT to_regclass('_sqlx_migrations') IS NOT NULL";
const SCHEMA: &str = "SELECT max(version) FROM _sqlx_migrations WHERE success";
const PUBLISHED: &str = "SELECT w.name, v.text FROM workflows w JOIN workflow_versions v
     ON v.name = w.name AND v.version = w.published WHERE w.published IS NOT NULL ORDER BY w.name";
const NOW: &str = "SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint";
/// What keeps dead rows from being cleared away, in seconds. Of other users only the oldest age can be seen, not whose it is.
const OLDEST_TRANSACTION: &str = "SELECT coalesce(max(extract(epoch FROM clock_timestamp() - xact_start)), 0)::bigint
     FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()";
const CONNECTIONS: &str = "SELECT current_setting('max_connections')::bigint,
     (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend')";

/// A server as it is.
#[derive(Debug, Clone)]
pub struct ServerReport {
    /// Its version.
    pub version: String,
    /// Our schema there and the newest one known; `None`: there is none yet.
    pub schema: (Option<i64>, i64),
    /// What its clock says.
    pub now: Timestamp,
    /// Settings that break our promise.
    pub unsafe_settings: Vec<&'static str>,
    /// How long the oldest transaction of another connection has been open.
    pub oldest_transaction: Duration,
    /// How many connections it takes, and has.
    pub connections: (i64, i64),
    /// The workflows that were published through the API: names and files.
    pub published: Vec<(String, String)>,
}

/// Looks at the server.
///
/// # Errors
/// As when it is opened.
pub async fn look(config: &PgConfig) -> Result<ServerReport, OpenError> {
    let mut conn = connect(config).await?;
    let mut tx = conn.begin().await.map_err(|error| explain(config, error))?;
    forget_prepared(&mut tx, config.is_pooled).await.map_err(|error| explain(config, error))?;
    let version = check_version(config, &mut tx).await?;
    let report = answered(config.patience, examine(version, &mut tx)).await.map_err(|error| explain(config, error))?;
    forget_prepared(&mut tx, config.is_pooled).await.map_err(|error| explain(config, error))?;
    tx.rollback().await.map_err(|error| explain(config, error))?;
    hang_up(conn).await;
    Ok(report)
}

async fn examine(version: String, conn: &mut PgConnection) -> Result<ServerReport, sqlx::Error> {
    let (found, known) = (schema(conn).await?, newest_migration());
    let oldest: i64 = sqlx::query_scalar(OLDEST_TRANSACTION).fetch_one(&mut *conn).await?;
    Ok(ServerReport {
        version,
        schema: (found, known),
        unsafe_settings: unsafe_settings(conn).await?,
        oldest_transaction: Duration::from_secs(oldest.unsigned_abs()),
        connections: sqlx::query_as(CONNECTIONS).fetch_one(&mut *conn).await?,
        // What another schema means is not known here.
        published: if found == Some(known) {
            sqlx::query_as(PUBLISHED).fetch_all(&mut *conn).await?
        } else {
            Vec::new()
        },
        now: Timestamp(sqlx::query_scalar(NOW).fetch_one(conn).await?),
    })
}

async fn schema(conn: &mut PgConnection) -> Result<Option<i64>, sqlx::Error> {
    if !sqlx::query_scalar::<_, bool>(IS_OURS).fetch_one(&mut *conn).await? {
        return Ok(None);
    }
    sqlx::query_scalar(SCHEMA).fetch_one(conn).await
}
