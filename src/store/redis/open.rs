//! Connecting to the server, and what it must be to be trusted with tasks.

use std::collections::HashMap;

use comfyd_actors::{domain::time::Timestamp, ports::store::StoreError};
use redis::{Client, ErrorKind, RedisError, ServerErrorKind, aio::MultiplexedConnection};
use tracing::warn;

use super::{
    keys::Keys,
    link::{CONNECT, Link},
    rows::{WorkflowRow, from_json},
};
use crate::{config, store::tls::is_tls};

/// Before it, sorted sets are not written as we need it.
const OLDEST: (u32, u32) = (6, 2);
/// What of our data we write. A later program that writes it differently raises it.
const SCHEMA: i64 = 1;

/// Where the tasks are kept.
#[derive(Clone, PartialEq, Eq)]
pub struct RedisConfig {
    /// `redis://` or `rediss://`, with the password.
    pub url: String,
    /// What all keys begin with.
    pub prefix: String,
}

impl RedisConfig {
    /// What the configuration says, if it names a Redis server.
    #[must_use]
    pub fn of(config: &config::Store) -> Option<Self> {
        let url = config.database_url.expose();
        let is_redis = url.starts_with("redis:") || url.starts_with("rediss:");
        is_redis.then(|| Self { url: url.to_owned(), prefix: config.redis_prefix.clone() })
    }

    /// A client that has not connected yet.
    ///
    /// # Errors
    /// [`OpenError::Url`].
    pub(super) fn client(&self) -> Result<Client, OpenError> {
        crate::tls::install_crypto_provider();
        // What the library says of a URL may repeat it.
        Client::open(self.url.as_str()).map_err(|_| OpenError::Url)
    }
}

/// Why the server cannot be used. None of them says the password.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The URL makes no sense.
    #[error(
        "DATABASE_URL is no address of a Redis server: write redis://:<password>@<host>:6379/0, or rediss:// for TLS"
    )]
    Url,
    /// Nobody answers.
    #[error(
        "the Redis server of DATABASE_URL is not reached ({0}): see that it runs, and that host and port are right"
    )]
    Unreachable(String),
    /// It is not who it should be, or nobody can tell.
    #[error(
        "no safe connection to the Redis server of DATABASE_URL ({0}): its certificate has to be for this host, and of an authority that this machine trusts or that SSL_CERT_FILE names"
    )]
    Tls(String),
    /// Who we say we are is not believed.
    #[error("the Redis server does not let us in ({0}): correct the user and the password in DATABASE_URL")]
    Password(String),
    /// We may not do what we need.
    #[error(
        "this user of the Redis server may not do what is needed ({0}): give it ~* &* +@all -@dangerous +info +config|get, or all rights"
    )]
    Forbidden(String),
    /// It lacks what we need.
    #[error("Redis {0} is too old: at least 6.2 is needed")]
    Old(String),
    /// It throws away what it has no room for.
    #[error(
        "the Redis server forgets keys when its memory is full (maxmemory-policy {0}), and with them tasks: set maxmemory-policy noeviction"
    )]
    Evicts(String),
    /// It is a copy of another.
    #[error("the Redis server is a replica, which takes no writes: give DATABASE_URL the address of its master")]
    Replica,
    /// A newer comfyd wrote it.
    #[error(
        "the tasks in Redis were written by a newer comfyd (version {found} of their form, this program knows {SCHEMA}): upgrade comfyd"
    )]
    Newer {
        /// The version there.
        found: i64,
    },
    /// Anything else the server says.
    #[error("the Redis server answers with an error: {0}")]
    Server(String),
    /// The first questions went well, the next did not.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<RedisError> for OpenError {
    fn from(error: RedisError) -> Self {
        let text = error.to_string();
        match error.kind() {
            ErrorKind::AuthenticationFailed => Self::Password(text),
            ErrorKind::Server(ServerErrorKind::NoPerm) => Self::Forbidden(text),
            _ if matches!(error.code(), Some("WRONGPASS" | "NOAUTH")) => Self::Password(text),
            ErrorKind::Server(_) | ErrorKind::Extension => Self::Server(text),
            _ if is_tls(&error) => Self::Tls(text),
            _ => Self::Unreachable(text),
        }
    }
}

/// How much of what it answered the server can lose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// Nothing, while its disk lives.
    EveryWrite,
    /// The last second, when its machine fails.
    EverySecond,
    /// What its system had not written yet.
    SystemsChoice,
    /// Everything since the last snapshot, if there are any.
    Snapshots,
}

/// A server as it was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerReport {
    /// Its version.
    pub version: String,
    /// Its time.
    pub now: Timestamp,
    /// What it does about memory that is full; `None` when it does not say.
    pub policy: Option<String>,
    /// Bytes it may use; 0 = no bound of its own.
    pub max_memory: u64,
    /// Bytes it uses.
    pub used_memory: u64,
    /// What it can lose; `None` when it does not say.
    pub durability: Option<Durability>,
    /// The workflows that were published through the API: names and files.
    pub published: Vec<(String, String)>,
    /// This run of the server.
    pub run: String,
    /// The run that somebody used last.
    pub last_run: Option<String>,
}

impl ServerReport {
    /// Questions it takes to learn all this, at least.
    pub const TRIPS: u32 = 5;

    /// A server with which nothing is wrong, for tests.
    #[cfg(test)]
    pub(crate) fn well(now: Timestamp) -> Self {
        Self {
            version: "7.2.0".to_owned(),
            now,
            policy: Some("noeviction".to_owned()),
            max_memory: 100 << 20,
            used_memory: 10 << 20,
            durability: Some(Durability::EveryWrite),
            published: Vec::new(),
            run: String::new(),
            last_run: None,
        }
    }

    /// What to do about it, if it can lose more than the last moment.
    #[must_use]
    pub fn warning(&self) -> Option<String> {
        let loses = match self.durability {
            Some(Durability::EveryWrite) => return None,
            Some(Durability::EverySecond) => {
                "it keeps writes on its disk each second (appendfsync everysec): a power cut of its machine can lose tasks that were accepted in the \
                 last second or two, and have work of that time done twice; set appendfsync always if that is too much"
            }
            Some(Durability::SystemsChoice) => {
                "it leaves it to its system when writes reach the disk (appendfsync no): a power cut of its machine can lose the tasks of half a \
                 minute; set appendfsync always or everysec"
            }
            Some(Durability::Snapshots) => {
                "it keeps no log of writes (appendonly no): whenever it ends without a snapshot, ALL tasks accepted since the last one are lost; set \
                 appendonly yes and appendfsync always"
            }
            None => {
                "it does not say how it keeps data (CONFIG is not allowed): see that appendonly is yes and maxmemory-policy noeviction, or \
                 tasks will be lost"
            }
        };
        Some(format!("the Redis server can lose accepted tasks: {loses}"))
    }

    /// Whether what was done last may be missing.
    fn was_clean(&self) -> bool {
        let same_run = self.last_run.as_ref().is_none_or(|last| *last == self.run);
        same_run || self.durability == Some(Durability::EveryWrite)
    }
}

/// Looks at a server without changing anything there.
///
/// # Errors
/// [`OpenError`]: it cannot be used.
pub async fn look(config: &RedisConfig) -> Result<ServerReport, OpenError> {
    examine(&config.client()?, &Keys::new(&config.prefix)).await
}

/// Connects; whether what was done last is all there.
pub(super) async fn open(client: &Client, keys: Keys) -> Result<(Link, bool), OpenError> {
    let about = examine(client, &keys).await?;
    if let Some(warning) = about.warning() {
        warn!("{warning}");
    }
    let link = Link::open(client.clone(), keys).await?;
    link.prove(&[("schema", SCHEMA.to_string()), ("run", about.run.clone())]).await?;
    Ok((link, about.was_clean()))
}

async fn examine(client: &Client, keys: &Keys) -> Result<ServerReport, OpenError> {
    let patience = redis::AsyncConnectionConfig::new().set_connection_timeout(Some(CONNECT));
    let mut connection = client.get_multiplexed_async_connection_with_config(&patience).await?;
    let info: String = redis::cmd("INFO").query_async(&mut connection).await?;
    let info: HashMap<&str, &str> = info.lines().filter_map(|line| line.trim_end().split_once(':')).collect();
    let of = |name: &str| info.get(name).copied().unwrap_or_default();
    let version = of("redis_version").to_owned();
    let mut parts = version.split('.').map(|part| part.parse().unwrap_or(0));
    if (parts.next().unwrap_or(0), parts.next().unwrap_or(0)) < OLDEST {
        return Err(OpenError::Old(version));
    }
    if of("role") == "slave" {
        return Err(OpenError::Replica);
    }
    // Servers that others run often do not let anybody look at their configuration. INFO has the policy, too.
    let settings = settings(&mut connection).await;
    let policy = of("maxmemory_policy").to_owned();
    if !matches!(policy.as_str(), "noeviction" | "") {
        return Err(OpenError::Evicts(policy));
    }
    let (schema, last_run): (Option<i64>, Option<String>) =
        redis::cmd("HMGET").arg(keys.meta()).arg("schema").arg("run").query_async(&mut connection).await?;
    if let Some(found) = schema.filter(|found| *found > SCHEMA) {
        return Err(OpenError::Newer { found });
    }
    let (seconds, micros): (i64, i64) = redis::cmd("TIME").query_async(&mut connection).await?;
    let logs = of("aof_enabled") == "1";
    Ok(ServerReport {
        now: Timestamp(seconds * 1000 + micros / 1000),
        policy: Some(policy).filter(|policy| !policy.is_empty()),
        max_memory: of("maxmemory").parse().unwrap_or(0),
        used_memory: of("used_memory").parse().unwrap_or(0),
        durability: match settings.get("appendfsync").map(String::as_str) {
            _ if !logs && info.contains_key("aof_enabled") => Some(Durability::Snapshots),
            Some("always") => Some(Durability::EveryWrite),
            Some("everysec") => Some(Durability::EverySecond),
            Some("no") => Some(Durability::SystemsChoice),
            _ => None,
        },
        published: published(&mut connection, keys).await?,
        run: of("run_id").to_owned(),
        last_run,
        version,
    })
}

async fn settings(connection: &mut MultiplexedConnection) -> HashMap<String, String> {
    redis::cmd("CONFIG").arg("GET").arg("appendfsync").query_async(connection).await.unwrap_or_default()
}

async fn published(connection: &mut MultiplexedConnection, keys: &Keys) -> Result<Vec<(String, String)>, OpenError> {
    let rows: HashMap<String, String> = redis::cmd("HGETALL").arg(keys.workflows()).query_async(connection).await?;
    let mut published = Vec::new();
    for (name, row) in rows {
        let Some(version) = from_json::<WorkflowRow>(&row)?.published else { continue };
        let text: Option<String> =
            redis::cmd("HGET").arg(keys.versions(&name)).arg(version).query_async(connection).await?;
        published.extend(text.map(|text| (name, text)));
    }
    published.sort_unstable();
    Ok(published)
}
