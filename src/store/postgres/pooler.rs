//! Through a pooler in transaction mode, such as pgbouncer: every transaction may go over another connection of the server's, so nothing may be
//! left on one.
//!
//! - A statement is prepared where it is run, in a transaction, each time anew.
//! - What a transaction needs it sets itself (`writer`).
//! - LISTEN needs a line of its own (`store.postgres_listen_url`); without one, what other processes do is found by looking.

use sqlx::{
    Connection, PgConnection, Postgres,
    postgres::{PgArguments, PgConnectOptions, PgRow},
    query::Query,
};

/// As a pooler takes them: it refuses what it does not know, and a statement with a name would be somebody else's the next time.
pub(super) fn through_pooler(options: PgConnectOptions) -> PgConnectOptions {
    options.statement_cache_capacity(0).extra_float_digits(None)
}

/// Runs a query on its own.
pub(super) async fn rows(
    conn: &mut PgConnection,
    is_pooled: bool,
    query: Query<'_, Postgres, PgArguments>,
) -> Result<Vec<PgRow>, sqlx::Error> {
    if !is_pooled {
        return query.fetch_all(conn).await;
    }
    let mut tx = conn.begin().await?;
    let rows = query.persistent(false).fetch_all(&mut *tx).await?;
    tx.commit().await?;
    Ok(rows)
}

/// Forgets what was prepared on the connection that this transaction has: before and after what prepares by names of its own.
pub(super) async fn forget_prepared(conn: &mut PgConnection, is_pooled: bool) -> Result<(), sqlx::Error> {
    if is_pooled {
        sqlx::raw_sql("DEALLOCATE ALL").execute(conn).await?;
    }
    Ok(())
}

/// Whether it complains of what only a pooler complains of, or of what a pooler lost.
pub(super) fn is_poolers(code: &str, told: &str) -> bool {
    matches!(code, "26000" | "42P05") || code == "08P01" && told.contains("startup parameter")
}
