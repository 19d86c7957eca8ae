//! The settings, one plain struct per section of `config/default.toml`, where each is described.

use std::{net::IpAddr, path::PathBuf, time::Duration};

use comfyd_actors::{
    domain::{
        health,
        order::Ordering,
        passthrough::{Gate, Rule},
        retry::Backoff,
        scaling::Aim,
    },
    kit::budget::Limits,
    ports::store::Retention,
};
use url::Url;

use crate::store::postgres::PgConfig;

use super::{
    reader::Reader,
    values::{self, Secret, SecretUrl},
};

pub(super) const fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// Bounds for intervals: below a millisecond is a busy loop, above thirty days is a typing error.
pub(super) const MS: Duration = Duration::from_millis(1);
const DAY: Duration = secs(86_400);
pub(super) const MONTH: Duration = secs(30 * 86_400);
const YEARS: Duration = secs(100 * 365 * 86_400);

/// Where this process runs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Env {
    /// A developer's machine, a test or a rehearsal.
    #[default]
    Development,
    /// People depend on it: unsafe settings are refused.
    Production,
}

/// `[app]`
#[derive(Debug, Clone)]
pub struct App {
    /// Where this process runs.
    pub env: Env,
    /// This machine's name among consumers.
    pub node: String,
}

/// `[server]`
#[derive(Debug, Clone)]
pub struct Server {
    /// Address to listen on.
    pub host: IpAddr,
    /// Port to listen on; 0 = any.
    pub port: u16,
    /// How clients reach us, if told.
    pub public_url: Option<String>,
    /// Largest body in bytes.
    pub body_limit: u64,
    /// Most bytes of outputs that come with a task, together.
    pub inline_limit: u64,
    /// Web origins that may call us.
    pub cors_origins: Vec<String>,
    /// Time between the word that we stop and the stop.
    pub drain_delay: Duration,
    /// Time for what is nearly done at shutdown.
    pub drain_grace: Duration,
}

/// `[connections]`
#[derive(Debug, Clone, Copy)]
pub struct Connections {
    /// All of them.
    pub max: usize,
    /// Those of one address.
    pub max_per_address: usize,
    /// Those whose request is not whole.
    pub max_unfinished: usize,
    /// Those of one address.
    pub max_unfinished_per_address: usize,
    /// Longest time until the head of a request is whole.
    pub header_timeout: Duration,
    /// Longest time until another piece of a body is there.
    pub body_timeout: Duration,
    /// Longest time in which a client takes nothing.
    pub write_timeout: Duration,
    /// Longest time between two requests.
    pub idle_timeout: Duration,
}

/// `[comfyui]`
#[derive(Debug, Clone)]
pub struct ComfyUi {
    /// Base URLs, without trailing slash, all different.
    pub urls: Vec<SecretUrl>,
    /// Prefix of the client id of each connection.
    pub client_id: String,
    /// Sent with every request.
    pub headers: Vec<(String, Secret)>,
    /// Longest wait for a connection.
    pub connect_timeout: Duration,
    /// Longest wait for an answer.
    pub request_timeout: Duration,
    /// Longest wait for the answer to a submission.
    pub post_timeout: Duration,
    /// How long a server may still be validating an unanswered submission.
    pub validate_grace: Duration,
    /// Pause between pings of a WebSocket.
    pub ping_interval: Duration,
    /// Largest answer that is read, in bytes.
    pub max_answer: usize,
    /// Pauses between attempts to connect.
    pub reconnect: Backoff,
    /// Silence after which a prompt is polled.
    pub silence: Duration,
    /// Time in which an accepted prompt must bring a frame.
    pub deaf_after: Duration,
    /// Absence after which a server is given up for its tasks.
    pub backend_lost_after: Duration,
    /// Time a prompt has to stop when asked to.
    pub stop_grace: Duration,
    /// How long a server is given to free its memory.
    pub free_wait: Duration,
    /// Graphs are held against what the servers have.
    pub validate: bool,
    /// How often a server is asked what it has.
    pub nodes_refresh: Duration,
    /// How often at most, when something is missing.
    pub nodes_recheck: Duration,
    /// Pictures of unfinished work are asked for every task.
    pub previews: bool,
}

/// `[health]`
#[derive(Debug, Clone, Copy)]
pub struct Health {
    /// When a server gets no more work, and how it is tested.
    pub limits: health::Limits,
    /// Silence of a run that is worth a warning.
    pub quiet_after: Duration,
    /// Silence of a run that is taken to be stuck.
    pub no_progress_timeout: Duration,
}

/// `[passthrough]`
#[derive(Debug, Clone)]
pub struct Passthrough {
    /// Whether anything goes through.
    pub enabled: bool,
    /// What goes through.
    pub gate: Gate,
    /// Longest silence of either side.
    pub idle_timeout: Duration,
    /// WebSockets at the same time.
    pub max_sockets: usize,
}

/// `[events]`
#[derive(Debug, Clone, Copy)]
pub struct Events {
    /// Streams at the same time.
    pub max_watchers: usize,
    /// Silence after which a stream says that it is still there.
    pub heartbeat: Duration,
}

/// `[queue]`
#[derive(Debug, Clone)]
pub struct Queue {
    /// Tasks that may wait.
    pub max_pending: u64,
    /// Which comes first.
    pub ordering: Ordering,
    /// Prompts sent to a busy server ahead of time.
    pub prepare_ahead: usize,
    /// How long a task is held without renewal.
    pub lease: Duration,
    /// How often it is renewed.
    pub renew_every: Duration,
    /// What autoscalers are to aim at.
    pub scaling: Aim,
}

/// `[tasks]`
#[derive(Debug, Clone)]
pub struct Tasks {
    /// Attempts of a task that does not say.
    pub max_attempts: i32,
    /// Time limit of a task that does not say.
    pub timeout: Duration,
    /// Pauses between attempts.
    pub retry: Backoff,
    /// Outputs stored at the same time.
    pub upload_parallel: usize,
    /// Most bytes of one output.
    pub max_output: u64,
    /// Attempts to store one output.
    pub upload_attempts: u32,
    /// Pauses between them.
    pub upload_retry: Backoff,
    /// Finished runs that may wait for storage.
    pub upload_max_waiting: usize,
    /// How long a storage that is away is waited for.
    pub upload_patience: Duration,
}

/// `[inputs]`
#[derive(Debug, Clone, Copy)]
pub struct Inputs {
    /// Most bytes of files in one request.
    pub max_size: u64,
    /// How long a file is kept after its last use.
    pub keep: Duration,
    /// How many are fetched from URLs at the same time.
    pub fetch_parallel: usize,
    /// Longest time for one of them.
    pub fetch_timeout: Duration,
    /// Most pixels of a fetched picture.
    pub fetch_max_pixels: u64,
}

/// `[store]`
#[derive(Debug, Clone)]
pub struct Store {
    /// `sqlite://...`, `postgres://...` or `redis://...`.
    pub database_url: SecretUrl,
    /// Connections of one process to `PostgreSQL` for reading.
    pub postgres_readers: u32,
    /// A pooler in transaction mode is between us and `PostgreSQL`.
    pub postgres_pooled: bool,
    /// An address of `PostgreSQL` past the pooler, to listen at.
    pub postgres_listen_url: Option<SecretUrl>,
    /// What all keys in Redis begin with.
    pub redis_prefix: String,
}

/// `[workflows]`
#[derive(Debug, Clone)]
pub struct WorkflowFiles {
    /// Folder of named workflows.
    pub dir: PathBuf,
}

/// `[supervision]`
#[derive(Debug, Clone)]
pub struct Supervision {
    /// The budget of every supervisor.
    pub limits: Limits,
    /// How long a crashing backend is left alone.
    pub quarantine: Duration,
}

/// How a log line looks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// For machines.
    Json,
}

/// `[log]`
#[derive(Debug, Clone)]
pub struct Log {
    /// A level or filter directives.
    pub level: String,
    /// Folder of `app.log`.
    pub dir: PathBuf,
    /// How a line looks.
    pub format: Format,
}

pub(super) fn app(r: &mut Reader) -> App {
    let env = [
        ("development", Env::Development),
        ("dev", Env::Development),
        ("test", Env::Development),
        ("staging", Env::Development),
        ("production", Env::Production),
        ("prod", Env::Production),
    ];
    App { env: r.choice("app.env", &env), node: r.text("app.node", node) }
}

fn node(text: &str) -> Result<String, String> {
    let name = if text.is_empty() { super::host_name() } else { text.to_owned() };
    let plain = |c: char| c.is_ascii_graphic();
    if name.len() <= 255 && name.chars().all(plain) {
        Ok(name)
    } else {
        Err("a node's name is at most 255 printable ASCII characters without spaces".to_owned())
    }
}

pub(super) fn server(r: &mut Reader) -> Server {
    let host: Option<IpAddr> = r.text("server.host", |text| host(text).map(Some));
    Server {
        host: host.unwrap_or(IpAddr::V4(std::net::Ipv4Addr::LOCALHOST)),
        port: r.number("server.port", 0..=u16::MAX),
        public_url: r
            .text("server.public_url", |t| if t.is_empty() { Ok(None) } else { values::public_url(t).map(Some) }),
        body_limit: r.size("server.body_limit", 1 << 10..=1 << 30),
        inline_limit: r.size("server.inline_limit", 0..=256 << 20),
        cors_origins: r.list("server.cors_origins", values::origin),
        drain_delay: r.duration("server.drain_delay", Duration::ZERO..=DAY),
        drain_grace: r.duration("server.drain_grace", Duration::ZERO..=DAY),
    }
}

fn host(text: &str) -> Result<IpAddr, String> {
    if text.eq_ignore_ascii_case("localhost") {
        return Ok(IpAddr::V4(std::net::Ipv4Addr::LOCALHOST));
    }
    text.trim_matches(['[', ']']).parse().map_err(|_| {
        "expected an IP address of this machine or localhost (some shells set HOST to the machine's name; use \
         COMFYD_SERVER__HOST then)"
            .to_owned()
    })
}

pub(super) fn connections(r: &mut Reader) -> Connections {
    Connections {
        max: r.number("connections.max", 1..=1_000_000),
        max_per_address: r.number("connections.max_per_address", 1..=1_000_000),
        max_unfinished: r.number("connections.max_unfinished", 1..=1_000_000),
        max_unfinished_per_address: r.number("connections.max_unfinished_per_address", 1..=1_000_000),
        header_timeout: r.duration("connections.header_timeout", MS..=DAY),
        body_timeout: r.duration("connections.body_timeout", MS..=DAY),
        write_timeout: r.duration("connections.write_timeout", MS..=DAY),
        idle_timeout: r.duration("connections.idle_timeout", MS..=DAY),
    }
}

pub(super) fn comfyui(r: &mut Reader) -> ComfyUi {
    let urls: Vec<Option<SecretUrl>> = r.list("comfyui.urls", |text| values::backend_url(text).map(Some));
    ComfyUi {
        urls: urls.into_iter().flatten().collect(),
        client_id: r.text("comfyui.client_id", client_id),
        headers: r.headers("comfyui.headers"),
        connect_timeout: r.duration("comfyui.connect_timeout", MS..=secs(600)),
        request_timeout: r.duration("comfyui.request_timeout", MS..=secs(3_600)),
        post_timeout: r.duration("comfyui.post_timeout", MS..=secs(3_600)),
        validate_grace: r.duration("comfyui.validate_grace", Duration::ZERO..=secs(3_600)),
        max_answer: usize::try_from(r.size("comfyui.max_answer", 1 << 20..=1 << 30)).unwrap_or(usize::MAX),
        ping_interval: r.duration("comfyui.ping_interval", MS..=secs(3_600)),
        reconnect: backoff(r, "comfyui.reconnect_base", "comfyui.reconnect_cap"),
        silence: r.duration("comfyui.silence", MS..=secs(3_600)),
        deaf_after: r.duration("comfyui.deaf_after", MS..=secs(3_600)),
        backend_lost_after: r.duration("comfyui.backend_lost_after", MS..=MONTH),
        stop_grace: r.duration("comfyui.stop_grace", MS..=DAY),
        free_wait: r.duration("comfyui.free_wait", MS..=DAY),
        validate: r.choice("comfyui.validate", &[("on", true), ("off", false)]),
        nodes_refresh: r.duration("comfyui.nodes_refresh", secs(1)..=MONTH),
        nodes_recheck: r.duration("comfyui.nodes_recheck", Duration::ZERO..=DAY),
        previews: r.choice("comfyui.previews", &[("true", true), ("false", false)]),
    }
}

fn client_id(text: &str) -> Result<String, String> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    if (1..=100).contains(&text.len()) && text.bytes().all(plain) {
        Ok(text.to_owned())
    } else {
        Err("expected 1 to 100 letters, digits, `-`, `_` or `.`: it becomes part of a URL".to_owned())
    }
}

pub(super) fn backoff(r: &mut Reader, base: &'static str, cap: &'static str) -> Backoff {
    let backoff = Backoff { base: r.duration(base, MS..=DAY), cap: r.duration(cap, MS..=DAY) };
    r.demand(backoff.cap >= backoff.base, &[cap, base], format!("must not be shorter than {base}"));
    backoff
}

pub(super) fn health(r: &mut Reader) -> Health {
    let health = Health {
        limits: health::Limits {
            failures: r.number("health.failures", 1..=1_000_000),
            percent: r.number("health.percent", 1..=100),
            tasks: r.number("health.tasks", 1..=health::MOST_ENDS),
            window: r.duration("health.window", MS..=DAY),
            pause: backoff(r, "health.pause_base", "health.pause_cap"),
            canary: r.duration("health.test_timeout", MS..=DAY),
            idle: r.duration("health.idle_after", MS..=DAY),
            blocked: r.duration("health.blocked_after", MS..=MONTH),
        },
        quiet_after: r.duration("health.quiet_after", MS..=MONTH),
        no_progress_timeout: r.duration("health.no_progress_timeout", MS..=MONTH),
    };
    r.demand(
        health.no_progress_timeout >= health.quiet_after,
        &["health.no_progress_timeout", "health.quiet_after"],
        "must not be shorter than health.quiet_after: a run is looked into before it is stopped",
    );
    health
}

pub(super) fn passthrough(r: &mut Reader) -> Passthrough {
    Passthrough {
        enabled: r.choice("passthrough.enabled", &[("true", true), ("false", false)]),
        gate: Gate::new(rules(r, "passthrough.allow"), rules(r, "passthrough.deny")),
        idle_timeout: r.duration("passthrough.idle_timeout", MS..=DAY),
        max_sockets: r.number("passthrough.max_sockets", 1..=100_000),
    }
}

pub(super) fn events(r: &mut Reader) -> Events {
    Events {
        max_watchers: r.number("events.max_watchers", 0..=1_000_000),
        heartbeat: r.duration("events.heartbeat", MS..=secs(3_600)),
    }
}

fn rules(r: &mut Reader, key: &'static str) -> Vec<Rule> {
    let rules: Vec<Option<Rule>> = r.list(key, |text| text.parse().map(Some));
    rules.into_iter().flatten().collect()
}

pub(super) fn queue(r: &mut Reader) -> Queue {
    let ordering: Option<Ordering> =
        r.choice("queue.ordering", &[("aged", Some(Ordering::Aged)), ("strict", Some(Ordering::Strict))]);
    Queue {
        max_pending: r.number("queue.max_pending", 1..=100_000_000),
        ordering: ordering.unwrap_or(Ordering::Aged),
        prepare_ahead: r.number("queue.prepare_ahead", 0..=100),
        lease: r.duration("queue.lease", secs(1)..=DAY),
        renew_every: r.duration("queue.renew_every", MS..=DAY),
        scaling: Aim {
            wait: r.duration("queue.target_wait", Duration::ZERO..=DAY),
            servers_each: r.number("queue.consumer_servers", 1..=10_000),
        },
    }
}

pub(super) fn tasks(r: &mut Reader) -> Tasks {
    Tasks {
        max_attempts: r.number("tasks.max_attempts", 1..=100),
        timeout: r.duration("tasks.timeout", secs(1)..=MONTH),
        retry: backoff(r, "tasks.retry_base", "tasks.retry_cap"),
        upload_parallel: r.number("tasks.upload_parallel", 1..=1_000),
        max_output: r.size("tasks.max_output", 1..=1 << 50),
        upload_attempts: r.number("tasks.upload_attempts", 1..=100),
        upload_retry: backoff(r, "tasks.upload_retry_base", "tasks.upload_retry_cap"),
        upload_max_waiting: r.number("tasks.upload_max_waiting", 1..=100_000),
        upload_patience: r.duration("tasks.upload_patience", MS..=YEARS),
    }
}

pub(super) fn retention(r: &mut Reader) -> Retention {
    Retention {
        completed: r.duration("retention.completed", secs(1)..=YEARS),
        failed: r.duration("retention.failed", secs(1)..=YEARS),
        idempotency: r.duration("retention.idempotency", secs(1)..=YEARS),
        webhooks: r.duration("retention.webhooks", Duration::ZERO..=YEARS),
    }
}

pub(super) fn leftovers(r: &mut Reader) -> Duration {
    r.duration("retention.leftovers", secs(1)..=MONTH)
}

pub(super) fn inputs(r: &mut Reader) -> Inputs {
    Inputs {
        max_size: r.size("inputs.max_size", 1 << 10..=1 << 40),
        keep: r.duration("inputs.keep", secs(60)..=YEARS),
        fetch_parallel: r.number("inputs.fetch_parallel", 1..=1_000),
        fetch_timeout: r.duration("inputs.fetch_timeout", MS..=DAY),
        fetch_max_pixels: r.number("inputs.fetch_max_pixels", 1..=1 << 40),
    }
}

pub(super) fn store(r: &mut Reader) -> Store {
    let url: Option<SecretUrl> = r.text("store.database_url", |text| database_url(text).map(Some));
    Store {
        database_url: url.unwrap_or_else(|| SecretUrl::new("sqlite://data/comfyd.db")),
        postgres_readers: r.number("store.postgres_readers", 1..=1_000),
        postgres_pooled: r.choice("store.postgres_pooled", &[("true", true), ("false", false)]),
        postgres_listen_url: r.text("store.postgres_listen_url", listen_url),
        redis_prefix: r.text("store.redis_prefix", redis_prefix),
    }
}

fn database_url(text: &str) -> Result<SecretUrl, String> {
    match text.split_once(':') {
        Some(("sqlite", rest)) if !rest.trim_start_matches('/').is_empty() => Ok(SecretUrl::new(text)),
        Some(("redis" | "rediss", _)) => match Url::parse(text) {
            Ok(url) if url.has_host() => Ok(SecretUrl::new(text)),
            _ => Err("expected redis://:<password>@<host>:6379/0, or rediss:// for TLS".into()),
        },
        Some(("postgres" | "postgresql", _)) => match PgConfig::parse(text) {
            Ok(_) => Ok(SecretUrl::new(text)),
            Err(error) => Err(error.to_string()),
        },
        _ => Err("expected sqlite://<file>, for example sqlite://data/comfyd.db, or postgres://<user>:<password>@<host>/<database>, \
                  or redis://<host>"
            .into()),
    }
}

/// Empty: none.
fn listen_url(text: &str) -> Result<Option<SecretUrl>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    PgConfig::parse(text).map(|_| Some(SecretUrl::new(text))).map_err(|error| error.to_string())
}

fn redis_prefix(text: &str) -> Result<String, String> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | ':');
    if !text.is_empty() && text.len() <= 64 && text.chars().all(is_plain) {
        Ok(text.to_owned())
    } else {
        Err("expected up to 64 letters, digits, `-`, `_`, `.` or `:`".into())
    }
}

pub(super) fn workflows(r: &mut Reader) -> WorkflowFiles {
    WorkflowFiles { dir: r.plain("workflows.dir").into() }
}

pub(super) fn supervision(r: &mut Reader) -> Supervision {
    Supervision {
        limits: Limits {
            max_restarts: r.number("supervision.max_restarts", 1..=1_000_000),
            window: r.duration("supervision.window", MS..=DAY),
            backoff: backoff(r, "supervision.backoff_base", "supervision.backoff_cap"),
            calm: r.duration("supervision.calm", MS..=DAY),
        },
        quarantine: r.duration("supervision.quarantine", MS..=DAY),
    }
}

pub(super) fn log(r: &mut Reader, env: Env) -> Log {
    let format = r.choice("log.format", &[("auto", None), ("text", Some(Format::Text)), ("json", Some(Format::Json))]);
    let usual = if env == Env::Production { Format::Json } else { Format::Text };
    Log {
        level: r.text("log.level", |text| crate::telemetry::filter(text).map(|_| text.to_owned())),
        dir: r.plain("log.dir").into(),
        format: format.unwrap_or(usual),
    }
}
