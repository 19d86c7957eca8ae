//! The configuration: read once at the start, checked as a whole, plain data from then on.
//!
//! Four layers, later wins: `config/default.toml` (embedded, and the manual), a TOML file, `.env`, the environment. A faulty
//! setting never stops the reading: everything wrong is told at once, each with its key, its source and its value.

mod check;
mod consumer;
mod fault;
#[cfg(any(test, feature = "fuzz"))]
pub(crate) mod fuzz;
mod outbound;
mod reader;
mod sections;
mod sources;
mod storage;
mod tenants;
pub mod values;
mod webhooks;

use std::time::Duration;

use comfyd_actors::ports::store::Retention;

use self::reader::Reader;
pub use self::values::SecretUrl;
pub use self::{
    check::check,
    consumer::{Consumer, label},
    fault::{Fault, Faults, nearest},
    outbound::Outbound,
    sections::{
        App, ComfyUi, Connections, Env, Events, Format, Health, Inputs, Log, Passthrough, Queue, Server, Store,
        Supervision, Tasks, WorkflowFiles,
    },
    sources::{Layers, Sources},
    storage::{CfImages, Gcs, Kind as TargetKind, S3, Storage, TargetConfig},
    tenants::Tenants,
    webhooks::{SigningKey, Webhooks, event},
};

/// Every setting, by section.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where and who we are.
    pub app: App,
    /// The HTTP server.
    pub server: Server,
    /// Those who speak to it.
    pub connections: Connections,
    /// The `ComfyUI` servers.
    pub comfyui: ComfyUi,
    /// Which of them are given work.
    pub health: Health,
    /// ComfyUI's own API through us.
    pub passthrough: Passthrough,
    /// Who watches tasks.
    pub events: Events,
    /// The queue.
    pub queue: Queue,
    /// What tasks get that do not say.
    pub tasks: Tasks,
    /// What clients have us ask for.
    pub outbound: Outbound,
    /// Whose tasks those are.
    pub tenants: Tenants,
    /// Who is told of tasks.
    pub webhooks: Webhooks,
    /// How long finished things are kept.
    pub retention: Retention,
    /// How long after the end of a task it is looked for what runs of it that were given up left in storage.
    pub leftovers: Duration,
    /// Files for tasks.
    pub inputs: Inputs,
    /// Where tasks are kept.
    pub store: Store,
    /// Consumers that run apart from the API.
    pub consumer: Consumer,
    /// Where outputs are kept.
    pub storage: Storage,
    /// Where named workflows are.
    pub workflows: WorkflowFiles,
    /// How crashes are dealt with.
    pub supervision: Supervision,
    /// Logs.
    pub log: Log,
}

/// A configuration and what there is to say about it.
#[derive(Debug)]
pub struct Loaded {
    /// The settings; faulty ones have their defaults.
    pub config: Config,
    /// Everything wrong. With any of these the service must not start.
    pub faults: Vec<Fault>,
    /// What looks wrong and may be meant so.
    pub warnings: Vec<String>,
    /// Each setting's text and where it came from.
    pub layers: Layers,
}

/// Reads the configuration of this process; the warnings are for the log.
///
/// # Errors
/// All faults at once.
pub fn load() -> Result<(Config, Vec<String>), Faults> {
    let loaded = read(Sources::gather());
    if loaded.faults.is_empty() { Ok((loaded.config, loaded.warnings)) } else { Err(Faults(loaded.faults)) }
}

/// Reads a configuration from texts.
#[must_use]
pub fn read(sources: Sources) -> Loaded {
    let layers = sources::merge(sources);
    let mut reader = Reader::new(&layers);
    let mut config = read_sections(&mut reader);
    let names_database =
        layers.settings.get("store.database_url").is_some_and(|given| given.source != sources::DEFAULT);
    config.consumer.remote = config.consumer.api_url.is_some() && !names_database;
    debug_assert_eq!(reader.asked().len(), layers.defaults.len(), "each setting of the manual is read exactly once");
    demand_agreement(&mut reader, &config);
    if config.app.env == Env::Production {
        demand_safety(&mut reader, &config);
    }
    Loaded { config, faults: reader.into_faults(), warnings: layers.warnings.clone(), layers }
}

fn read_sections(r: &mut Reader) -> Config {
    let app = sections::app(r);
    Config {
        server: sections::server(r),
        connections: sections::connections(r),
        comfyui: sections::comfyui(r),
        health: sections::health(r),
        passthrough: sections::passthrough(r),
        events: sections::events(r),
        queue: sections::queue(r),
        tasks: sections::tasks(r),
        outbound: outbound::outbound(r),
        tenants: tenants::tenants(r),
        webhooks: webhooks::webhooks(r),
        retention: sections::retention(r),
        leftovers: sections::leftovers(r),
        inputs: sections::inputs(r),
        store: sections::store(r),
        consumer: consumer::consumer(r),
        storage: storage::storage(r),
        workflows: sections::workflows(r),
        supervision: sections::supervision(r),
        log: sections::log(r, app.env),
        app,
    }
}

/// What no single setting can tell.
fn demand_agreement(r: &mut Reader, config: &Config) {
    r.demand(
        config.queue.lease >= config.queue.renew_every * 3,
        &["queue.lease", "queue.renew_every"],
        "must be at least three times queue.renew_every, so that two lost renewals do not cost a running task its lease",
    );
    r.demand(
        config.inputs.keep >= config.retention.idempotency,
        &["inputs.keep", "retention.idempotency"],
        "must not be shorter than retention.idempotency: a repeated request would not find its files any more",
    );
    if let Some(url) = &config.webhooks.url {
        let read = config.outbound.policy.read(url.expose());
        r.demand(read.is_ok(), &["webhooks.url"], read.map_or_else(|refusal| refusal.to_string(), |_| String::new()));
    }
    r.demand(!config.comfyui.urls.is_empty(), &["comfyui.urls"], "name at least one ComfyUI server");
    let mut names: Vec<String> = config.comfyui.urls.iter().map(ToString::to_string).collect();
    names.sort_unstable();
    r.demand(
        names.windows(2).all(|pair| pair[0] != pair[1]),
        &["comfyui.urls"],
        "the same server is listed twice; each would be given the work of two",
    );
    r.demand(
        config.comfyui.backend_lost_after > config.comfyui.reconnect.base,
        &["comfyui.backend_lost_after", "comfyui.reconnect_base"],
        "must be longer than comfyui.reconnect_base, else a server is given up before it is tried again",
    );
}

/// What is fine on a developer's machine and not where people depend on it.
fn demand_safety(r: &mut Reader, config: &Config) {
    r.demand(
        !config.store.database_url.expose().contains(":memory:"),
        &["store.database_url"],
        "APP_ENV=production refuses a database in memory: every restart would lose all tasks",
    );
    r.demand(
        config
            .consumer
            .api_url
            .as_ref()
            .is_none_or(|url| !url.expose().starts_with("http://") || is_near(url.expose())),
        &["consumer.api_url"],
        "APP_ENV=production refuses to send the consumer's token over http to a public address; use https",
    );
    r.demand(
        config.server.cors_origins.iter().all(|origin| origin.starts_with("https://") || is_near(origin)),
        &["server.cors_origins"],
        "APP_ENV=production refuses http origins: anybody on the way could run scripts as that page",
    );
    r.demand(
        !config.outbound.policy.http || config.outbound.headers.is_empty(),
        &["outbound.http", "outbound.headers"],
        "APP_ENV=production refuses http together with outbound.headers: they could be read by anybody on the way",
    );
    r.demand(
        config.webhooks.url.is_none() || !config.webhooks.secrets.is_empty(),
        &["webhooks.secrets", "webhooks.url"],
        "APP_ENV=production refuses webhooks without a secret: whoever receives them could not tell them from forged ones",
    );
    let openly = |url: &Option<String>| url.as_ref().is_some_and(|url| url.starts_with("http://") && !is_near(url));
    r.demand(
        !config.storage.targets.values().any(|target| openly(&target.address())),
        &["storage.targets", "storage.provider"],
        "APP_ENV=production refuses to send outputs or tokens over http to a public address; use https",
    );
    let sent_openly = |url: &SecretUrl| {
        let has_secret = !config.comfyui.headers.is_empty() || url.expose().contains('@');
        has_secret && url.expose().starts_with("http://") && !is_near(url.expose())
    };
    r.demand(
        !config.comfyui.urls.iter().any(sent_openly),
        &["comfyui.urls"],
        "APP_ENV=production refuses to send headers or passwords over http to a public address; use https",
    );
}

/// Whether a URL stays on this machine or in a private network. Names without a dot are those of containers and neighbours.
fn is_near(url: &str) -> bool {
    let Ok(url) = url::Url::parse(url) else { return false };
    match url.host() {
        Some(url::Host::Ipv4(ip)) => ip.is_loopback() || ip.is_private() || ip.is_link_local(),
        Some(url::Host::Ipv6(ip)) => ip.is_loopback() || ip.is_unique_local() || ip.is_unicast_link_local(),
        Some(url::Host::Domain(name)) => !name.contains('.') || name.ends_with(".internal") || name.ends_with(".local"),
        None => false,
    }
}

/// What to say, loudly, when everybody who reaches this machine may use it. `None` on loopback.
#[must_use]
pub fn public_address_warning(server: &Server) -> Option<String> {
    (!server.host.is_loopback()).then(|| {
        format!(
            "listening on {}:{} without any login: everybody who can reach this machine can run workflows on your GPUs and read \
             every output. Close it with HOST=127.0.0.1, with a firewall, or with a reverse proxy that asks for a password",
            server.host, server.port
        )
    })
}

/// This machine's name; stable over restarts, which an invented one would not be.
fn host_name() -> String {
    let from_kernel = || std::fs::read_to_string("/proc/sys/kernel/hostname").ok();
    let from_windows = || std::env::var("COMPUTERNAME").ok();
    let from_command = || {
        let output = std::process::Command::new("hostname").output().ok()?;
        String::from_utf8(output.stdout).ok()
    };
    let name = from_kernel().or_else(from_windows).or_else(from_command).unwrap_or_default();
    let name = name.trim();
    if name.is_empty() { "comfyd".to_owned() } else { name.to_owned() }
}

#[cfg(test)]
mod tests;
