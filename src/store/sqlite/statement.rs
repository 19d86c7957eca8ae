//! A statement and its arguments, not sent yet.
//!
//! sqlx runs each connection on a thread of its own. A trip there and back costs more than most statements, so what belongs together
//! travels together: [`join`] makes one query of several statements.

use std::{borrow::Cow, sync::Arc};

use sqlx::{Arguments, error::BoxDynError, sqlite::SqliteArguments};

/// A statement with its arguments.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Statement {
    sql: Cow<'static, str>,
    arguments: Vec<Value>,
}

/// Makes a statement of SQL, which may consist of several statements; their arguments follow one another, so none of them has a number
/// (`?1` would be the first one of the whole trip).
pub(super) fn query(sql: impl Into<Cow<'static, str>>) -> Statement {
    let sql = sql.into();
    debug_assert!(!sql.contains("?1"), "a numbered argument: {sql}");
    Statement { sql, arguments: Vec::new() }
}

impl Statement {
    /// Adds the next argument.
    #[must_use]
    pub(super) fn bind(mut self, value: impl Into<Value>) -> Self {
        self.arguments.push(value.into());
        self
    }
}

/// Joins statements into one query.
///
/// # Errors
/// When an argument cannot be encoded.
pub(super) fn join(statements: Vec<Statement>) -> Result<(String, SqliteArguments), BoxDynError> {
    let length = statements.iter().map(|statement| statement.sql.len() + 1).sum();
    let (mut sql, mut arguments) = (String::with_capacity(length), SqliteArguments::default());
    for statement in statements {
        if !sql.is_empty() {
            sql.push(';');
        }
        sql.push_str(&statement.sql);
        statement.arguments.into_iter().try_for_each(|value| value.add_to(&mut arguments))?;
    }
    Ok((sql, arguments))
}

/// A value of one of the types our columns have.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    Null,
    Integer(i64),
    Text(String),
    SharedText(Arc<str>),
    Blob(Vec<u8>),
}

impl Value {
    fn add_to(self, arguments: &mut SqliteArguments) -> Result<(), BoxDynError> {
        match self {
            Self::Null => Arguments::add(arguments, None::<i64>),
            Self::Integer(value) => Arguments::add(arguments, value),
            Self::Text(value) => Arguments::add(arguments, value),
            Self::SharedText(value) => Arguments::add(arguments, value),
            Self::Blob(value) => Arguments::add(arguments, value),
        }
    }
}

macro_rules! values {
    ($($from:ty => $value:path),+ $(,)?) => {
        $(impl From<$from> for Value {
            fn from(value: $from) -> Self {
                $value(value.into())
            }
        })+
    };
}

values! {
    bool => Self::Integer,
    i32 => Self::Integer,
    u32 => Self::Integer,
    i64 => Self::Integer,
    &str => Self::Text,
    String => Self::Text,
    &String => Self::Text,
    Arc<str> => Self::SharedText,
    Vec<u8> => Self::Blob,
}

impl<T: Into<Value>> From<Option<T>> for Value {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::Null, Into::into)
    }
}

#[cfg(test)]
mod tests {
    use sqlx::{AssertSqlSafe, ConnectOptions, Row, sqlite::SqliteConnectOptions};

    use super::*;

    #[tokio::test]
    async fn arguments_follow_one_another() {
        let mut conn = SqliteConnectOptions::new().in_memory(true).connect().await.unwrap();
        let statements = vec![
            query("CREATE TABLE t (a, b, c, d, e)"),
            query("INSERT INTO t VALUES (?, ?, ?, ?, ?)")
                .bind(true)
                .bind(-7_i64)
                .bind(None::<i64>)
                .bind(Arc::<str>::from("é"))
                .bind(vec![0_u8, 255]),
            query("SELECT *, ? AS f FROM t WHERE b = ?").bind("f").bind(-7),
        ];
        let (sql, arguments) = join(statements).unwrap();
        let rows = sqlx::query_with(AssertSqlSafe(sql), arguments).fetch_all(&mut conn).await.unwrap();
        let row = rows.first().unwrap();
        assert_eq!(rows.len(), 1);
        assert_eq!((row.get::<bool, _>("a"), row.get::<i64, _>("b"), row.get::<Option<i64>, _>("c")), (true, -7, None));
        assert_eq!(
            (row.get::<&str, _>("d"), row.get::<&[u8], _>("e"), row.get::<&str, _>("f")),
            ("é", &[0, 255][..], "f")
        );
    }
}
