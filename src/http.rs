//! The HTTP edge: what clients speak to. Handlers hold a [`Bridge`] and nothing else of the core.
//!
//! One file per group of endpoints; `problem` is the only place where errors become statuses; `frame` is around everything.

mod backends;
mod body;
mod cached;
mod comfyui;
mod consumer_pages;
mod consumers;
mod control;
mod create;
mod docs;
mod events;
mod failed;
mod files;
mod form;
mod frame;
#[cfg(any(test, feature = "fuzz"))]
pub(crate) mod fuzz;
mod health;
mod inline;
mod inputs;
mod metrics;
mod nodes;
mod output_options;
mod outputs;
mod passthrough;
mod problem;
mod serve;
mod server;
mod storage;
mod tasks;
mod tenant;
mod unread;
mod validate;
pub(crate) mod view;
mod webhook_url;
mod webhooks;
mod workflows;

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    http::{HeaderMap, HeaderName, HeaderValue, Method, header},
    middleware,
};
use comfyd_actors::{
    bridge::Bridge,
    domain::{scaling::Aim, webhook::Webhook},
};
use tokio::{sync::Semaphore, time::Instant};
use tokio_util::sync::CancellationToken;
use tower_http::cors::{AllowOrigin, CorsLayer};
use utoipa::OpenApi;
use utoipa_axum::{router::OpenApiRouter, routes};

pub(crate) use self::storage::link_all;
pub(crate) use self::validate::is_placeholder;
pub use self::{
    consumer_pages::{ConsumerPages, router as consumer_router},
    consumers::Consumers,
    docs::document,
    server::{AxumEdge, Pages},
};
use self::{docs::Intro, health::Checks, metrics::Memory, problem::Problem};
use crate::{
    config::{self, Config},
    inputs::Shelves,
    outbound::Policy,
    workflows::Workflows,
};

/// What the edge needs of the configuration.
#[derive(Debug, Clone)]
pub struct HttpConfig {
    /// How many clients there may be, and how slow.
    pub connections: config::Connections,
    /// Largest body in bytes.
    pub body_limit: usize,
    /// Most bytes of outputs that come with a task, together.
    pub inline_limit: u64,
    /// How clients reach us, if told.
    pub public_url: Option<String>,
    /// Most bytes of files in one request.
    pub input_limit: u64,
    /// How long a file is kept after its last use.
    pub input_keep: Duration,
    /// Which URLs may be fetched.
    pub outbound: Arc<Policy>,
    /// Web origins that may call us.
    pub cors_origins: Vec<String>,
    /// What goes through to ComfyUI as it is.
    pub passthrough: config::Passthrough,
    /// How many may watch, and what they hear when nothing happens.
    pub events: config::Events,
    /// Who is told of tasks that name nobody.
    pub webhook: Option<Webhook>,
    /// Named workflows wait in lanes of their own, because there may be consumers that take some of them only.
    pub workflow_lanes: bool,
    /// Whose new tasks are.
    pub tenants: config::Tenants,
    /// What autoscalers are to aim at.
    pub scaling: Aim,
    /// What the names of our own connections to ComfyUI begin with.
    pub client_prefix: String,
}

impl HttpConfig {
    /// What the body of a request may be that is kept whole.
    fn body(&self) -> body::Limits {
        let bytes = self.body_limit as u64;
        body::Limits { bytes, setting: Some("server.body_limit"), pace: self.connections.body_timeout }
    }

    /// What a body with files may be.
    fn files(&self) -> body::Limits {
        body::Limits { bytes: self.input_limit, setting: Some("inputs.max_size"), ..self.body() }
    }
}

impl From<&Config> for HttpConfig {
    fn from(config: &Config) -> Self {
        let server = &config.server;
        Self {
            connections: config.connections,
            body_limit: usize::try_from(server.body_limit).unwrap_or(usize::MAX),
            inline_limit: server.inline_limit,
            public_url: server.public_url.clone(),
            input_limit: config.inputs.max_size,
            input_keep: config.inputs.keep,
            outbound: Arc::new(config.outbound.policy.clone()),
            cors_origins: server.cors_origins.clone(),
            passthrough: config.passthrough.clone(),
            events: config.events,
            webhook: config.webhooks.webhook(&config.outbound.policy),
            workflow_lanes: !config.consumer.workflows.is_empty(),
            tenants: config.tenants.clone(),
            scaling: config.queue.scaling,
            client_prefix: config.comfyui.client_id.clone(),
        }
    }
}

/// What every handler may use.
struct Service {
    bridge: Bridge,
    config: Arc<HttpConfig>,
    workflows: Arc<Workflows>,
    /// What consumers without a database reach through us.
    consumers: Option<Arc<Consumers>>,
    stop: CancellationToken,
    /// Places for WebSockets that go through to ComfyUI.
    sockets: Arc<Semaphore>,
    checks: Checks,
    memory: Memory,
    started: Instant,
}

impl Service {
    /// Whether clients should go elsewhere: sooner than nothing is taken any more.
    fn is_leaving(&self) -> bool {
        self.stop.is_cancelled() || self.bridge.is_leaving()
    }

    /// The way for consumers.
    fn consumers(&self) -> Result<&Consumers, Problem> {
        let none = || Problem::unavailable("no_consumers", "this process serves no consumers");
        self.consumers.as_deref().ok_or_else(none)
    }

    /// Where the files of clients go.
    fn shelves(&self) -> Shelves<'_> {
        let (inputs, objects) = (self.bridge.inputs().as_ref(), self.bridge.targets().inputs().as_ref());
        Shelves { inputs, objects, keep: self.config.input_keep }
    }

    /// What decides about the files of a request, now.
    fn file_terms(&self) -> files::Terms {
        let targets = Some(self.bridge.targets().clone());
        files::Terms { policy: self.config.outbound.clone(), fleet: self.bridge.fleet(), targets }
    }

    fn is_draining(&self) -> bool {
        self.stop.is_cancelled() || self.bridge.is_draining()
    }
}

/// The whole service as a router. `stop` ends the patience of requests that wait for something.
pub fn router(
    bridge: Bridge,
    config: Arc<HttpConfig>,
    workflows: Arc<Workflows>,
    consumers: Option<Arc<Consumers>>,
    stop: CancellationToken,
) -> Router {
    let cors = cors(&config);
    let framed = middleware::from_fn_with_state(config.clone(), frame::frame);
    let sockets = Arc::new(Semaphore::new(config.passthrough.max_sockets));
    let checks = Checks::new(bridge.targets());
    let service = Service {
        bridge,
        config,
        workflows,
        consumers,
        stop,
        sockets,
        checks,
        memory: Memory::default(),
        started: Instant::now(),
    };
    let (api, _) = routes().split_for_parts();
    let app = api.merge(docs::pages()).with_state(Arc::new(service));
    let app = match cors {
        Some(cors) => app.layer(cors).layer(framed),
        None => app.layer(framed),
    };
    app.layer(middleware::from_fn(unread::close))
}

/// Every endpoint, with its description.
fn routes() -> OpenApiRouter<Arc<Service>> {
    OpenApiRouter::with_openapi(Intro::openapi())
        .routes(routes!(create::create))
        .routes(routes!(tasks::list))
        .routes(routes!(tasks::get, control::change))
        .routes(routes!(tasks::cancel))
        .routes(routes!(control::retry))
        .routes(routes!(failed::list))
        .routes(routes!(failed::replay))
        .routes(routes!(control::pause_queue))
        .routes(routes!(control::resume_queue))
        .routes(routes!(backends::list))
        .routes(routes!(backends::pause))
        .routes(routes!(backends::drain))
        .routes(routes!(backends::resume))
        .routes(routes!(events::of_task))
        .routes(routes!(events::of_all))
        .routes(routes!(outputs::download))
        .routes(routes!(inputs::download_input))
        .routes(routes!(webhooks::deliveries))
        .routes(routes!(webhooks::redeliver))
        .routes(routes!(webhooks::endpoints))
        .routes(routes!(webhooks::enable))
        .routes(routes!(workflows::list))
        .routes(routes!(workflows::get, workflows::put, workflows::delete))
        .routes(routes!(workflows::schema))
        .routes(routes!(workflows::run))
        .routes(routes!(comfyui::queue_status))
        .routes(routes!(comfyui::system_stats))
        .routes(routes!(comfyui::interrupt))
        .routes(routes!(nodes::list))
        .routes(routes!(nodes::get))
        .routes(routes!(health::health))
        .routes(routes!(health::status))
        .routes(routes!(health::livez))
        .routes(routes!(health::readyz))
        .routes(routes!(metrics::metrics))
        .routes(routes!(metrics::stats))
        .layer(middleware::from_fn(frame::patience))
        // From here on, those that may take as long as a client needs to send.
        .routes(routes!(inputs::upload_inputs))
        .routes(routes!(passthrough::pass))
        .routes(routes!(consumers::call))
        .routes(routes!(consumers::read_file))
        .routes(routes!(consumers::store_output))
}

/// Off unless origins are named.
fn cors(config: &HttpConfig) -> Option<CorsLayer> {
    let origins: Vec<HeaderValue> = config.cors_origins.iter().filter_map(|origin| origin.parse().ok()).collect();
    let ours = ["idempotency-key", "prefer", "x-request-id", "x-filename", "comfyd-backend", "comfy-user"]
        .map(HeaderName::from_static);
    let shown = ["x-request-id", "idempotent-replayed", "preference-applied"].map(HeaderName::from_static);
    (!origins.is_empty()).then(|| {
        CorsLayer::new()
            .allow_origin(AllowOrigin::list(origins))
            .allow_methods([Method::GET, Method::HEAD, Method::POST, Method::PUT, Method::PATCH, Method::DELETE])
            .allow_headers(
                [header::CONTENT_TYPE, header::RANGE, header::IF_NONE_MATCH]
                    .into_iter()
                    .chain(ours)
                    .collect::<Vec<_>>(),
            )
            .expose_headers(
                [header::LOCATION, header::RETRY_AFTER, header::ETAG].into_iter().chain(shown).collect::<Vec<_>>(),
            )
    })
}

/// What our URLs begin with for this client: as configured, else as it called us, else nothing (a path is a URL too).
fn base_url(config: &HttpConfig, headers: &HeaderMap) -> String {
    if let Some(url) = &config.public_url {
        return url.clone();
    }
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b':' | b'[' | b']');
    let scheme = if text("x-forwarded-proto") == Some("https") { "https" } else { "http" };
    match text("host").filter(|host| !host.is_empty() && host.bytes().all(plain)) {
        Some(host) => format!("{scheme}://{host}"),
        None => String::new(),
    }
}

#[cfg(test)]
mod tests;
