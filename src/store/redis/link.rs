//! The way to the server and back: questions that may be asked again, and commits that are made once however often they are sent.

use std::time::Duration;

use comfyd_actors::ports::store::StoreError;
use rand::RngExt;
use redis::{
    ErrorKind, FromRedisValue, Pipeline, RedisError, Script, ServerErrorKind,
    aio::{ConnectionManager, ConnectionManagerConfig},
};
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use super::{keys::Keys, rows::corrupt};

/// How long a server that is gone is waited for: a restart takes less, which reads its whole log first. Whoever waits for us is told then,
/// and before a client's request is given up (15 s).
const PATIENCE: Duration = Duration::from_secs(12);
/// Longest wait for one answer. The largest is a page of tasks with their graphs.
const ANSWER: Duration = Duration::from_secs(5);
/// Longest wait for a connection.
pub(super) const CONNECT: Duration = Duration::from_secs(3);
/// The first pause before the same is sent again; each is twice the one before, up to the next.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);
/// How long the server remembers a commit: far longer than anybody sends it again.
const REMEMBERED: Duration = Duration::from_secs(60);

/// Something the server does in a commit: a word and its arguments.
pub(super) type Command = Vec<Vec<u8>>;

/// What must not have changed: a hash, a field, and its value (`None`: not there).
pub(super) type Check = (String, String, Option<Vec<u8>>);

/// What became of a commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    Done,
    /// Somebody changed what it was decided from. Nothing was written.
    Conflict,
}

/// The connection. Many use it at the same time.
pub(super) struct Link {
    manager: ConnectionManager,
    script: Script,
    pub(super) keys: Keys,
}

impl Link {
    /// # Errors
    /// As the server says it.
    pub(super) async fn open(client: redis::Client, keys: Keys) -> Result<Self, RedisError> {
        // It connects again in the background; how often the same is sent is decided here.
        let config = ConnectionManagerConfig::new()
            .set_number_of_retries(1)
            .set_connection_timeout(Some(CONNECT))
            .set_response_timeout(Some(ANSWER));
        let manager = client.get_connection_manager_with_config(config).await?;
        Ok(Self { manager, script: Script::new(include_str!("commit.lua")), keys })
    }

    /// Asks for something, in one trip.
    pub(super) async fn ask<T: FromRedisValue>(&self, questions: &Pipeline) -> Result<T, StoreError> {
        again(|| {
            let mut manager = self.manager.clone();
            async move { questions.query_async(&mut manager).await }
        })
        .await
    }

    /// Writes all of it, or nothing. A commit whose answer was lost is sent again under the same token: the server knows whether it was
    /// made.
    pub(super) async fn commit(&self, checks: &[Check], commands: &[Command]) -> Result<Outcome, StoreError> {
        let mut call = self.script.prepare_invoke();
        call.key(self.keys.token(Uuid::new_v4())).key(self.keys.prefix());
        call.arg(u64::try_from(REMEMBERED.as_millis()).map_err(corrupt)?).arg(checks.len());
        for (key, field, expected) in checks {
            call.arg(key).arg(field).arg(expected.as_deref().unwrap_or_default());
        }
        for command in commands {
            call.arg(command.len());
            command.iter().for_each(|word| {
                call.arg(word.as_slice());
            });
        }
        let call = &call;
        let written: i64 = again(|| {
            let mut manager = self.manager.clone();
            async move { call.invoke_async(&mut manager).await }
        })
        .await?;
        Ok(if written == 1 { Outcome::Done } else { Outcome::Conflict })
    }

    /// Writes a few facts about the store itself, as commits are made, and sees that they can be.
    ///
    /// # Errors
    /// As the server says it.
    pub(super) async fn prove(&self, facts: &[(&str, String)]) -> Result<(), RedisError> {
        let mut call = self.script.prepare_invoke();
        call.key(self.keys.token(Uuid::new_v4())).key(self.keys.prefix());
        call.arg(1).arg(0).arg(2 + 2 * facts.len()).arg("HSET").arg(self.keys.meta());
        for (name, value) in facts {
            call.arg(*name).arg(value);
        }
        call.invoke_async::<i64>(&mut self.manager.clone()).await.map(drop)
    }
}

/// Does it until there is an answer, or nobody can be expected to wait any longer.
async fn again<T, F: Future<Output = Result<T, RedisError>>>(work: impl Fn() -> F) -> Result<T, StoreError> {
    let give_up = Instant::now() + PATIENCE;
    let mut pause = FIRST_PAUSE;
    loop {
        match work().await {
            Ok(answer) => return Ok(answer),
            Err(error) if is_passing(&error) && Instant::now() + pause < give_up => {
                sleep(pause / 2 + some_of(pause / 2)).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
            Err(error) => return Err(store_error(&error)),
        }
    }
}

/// A pause of up to so long, so that those who met do not meet again.
pub(super) fn some_of(longest: Duration) -> Duration {
    longest.mul_f64(rand::rng().random_range(0.0..1.0))
}

/// Whether the same may be answered in a moment: the server is starting, changing places, or not reached.
fn is_passing(error: &RedisError) -> bool {
    match error.kind() {
        ErrorKind::Io => true,
        ErrorKind::Server(kind) => matches!(
            kind,
            ServerErrorKind::BusyLoading
                | ServerErrorKind::MasterDown
                | ServerErrorKind::TryAgain
                | ServerErrorKind::ClusterDown
                | ServerErrorKind::ReadOnly
        ),
        _ => error.is_connection_dropped() || error.is_timeout(),
    }
}

/// The error as the port tells it. None of them has the password in it: the server never repeats it.
pub(super) fn store_error(error: &RedisError) -> StoreError {
    match error.kind() {
        ErrorKind::UnexpectedReturnType | ErrorKind::Parse => corrupt(error),
        _ if error.code() == Some("WRONGTYPE") => corrupt(error),
        _ => StoreError::Unavailable(error.to_string()),
    }
}
