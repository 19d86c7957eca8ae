//! The composition root: the one file that knows adapters and actors. Configuration in, running service out.

use std::{
    collections::BTreeMap,
    io,
    net::{SocketAddr, TcpListener},
    sync::Arc,
};

use comfyd_actors::{
    board::Board,
    bridge::Bridge,
    catalogues::Catalogues,
    domain::{allowance::Allowance, id::BackendId},
    kit::deadline::Deadline,
    metrics::{Metrics, MetricsError},
    ports::{clock::Clock, comfy::ComfyTransport, store::StoreError},
    posts::Posts,
    root::{RootMsg, RootSupervisor},
    system::{self, Predecessors, Role, System},
};
use ractor::{Actor, ActorRef};
use tokio::task::JoinHandle;
use tracing::{info, warn};

use self::ground::Common;
use crate::{
    clock::SystemClock,
    comfy::{ComfyConfig, HttpComfy},
    config::{self, Config},
    http::AxumEdge,
    media::Studio,
    storage,
    store::{self, Presence},
};

mod ground;
mod settings;

/// The name of the service that keeps the named workflows current.
pub const WORKFLOWS: &str = "workflows";

/// The name of the service that shows that the process lives.
pub const PULSE: &str = "pulse";

/// The name of the service that hears what happens, for consumers or from the API.
pub const HEARING: &str = "hearing";

/// The name of the service that tells other processes which servers this one has.
pub const HERALD: &str = "herald";
/// The name of the service that keeps a picture of the servers of other processes.
pub const MUSTER: &str = "muster";

/// The name of the service that tells other processes how far tasks are that they watch.
pub const BEACON: &str = "beacon";
/// The name of the service that shows how far tasks of other processes are.
pub const LOOKOUT: &str = "lookout";

/// The name of the service that reads the log of events for those who watch.
pub const EVENTS: &str = "events";

/// Why the service could not start, or ended by itself.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// The address is taken, or not of this machine.
    #[error(
        "failed to listen on {address}; set HOST and PORT (of a consumer, consumer.port) to an address that is free"
    )]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system says.
        source: io::Error,
    },
    /// The task store cannot be used.
    #[error("failed to open the task store")]
    Store(#[from] store::OpenError),
    /// The storage for outputs cannot be used.
    #[error(transparent)]
    Storage(#[from] storage::OpenError),
    /// A backend's address or headers make no sense.
    #[error("failed to set up a ComfyUI backend")]
    Backend(#[from] crate::comfy::ConfigError),
    /// The client for the API cannot be made.
    #[error("failed to set up the connection to the API")]
    Api(#[source] reqwest::Error),
    /// The client for URLs of clients cannot be made.
    #[error("failed to set up the client for URL inputs and webhooks: {0}")]
    Outbound(String),
    /// What is published cannot be read.
    #[error("failed to read the published workflows")]
    Workflows(#[from] StoreError),
    /// The instruments contradict each other.
    #[error("failed to set up the metrics")]
    Metrics(#[source] MetricsError),
    /// The supervision tree did not start.
    #[error("failed to start the supervision tree: {0}")]
    Tree(String),
    /// An actor died too often.
    #[error("the service gave up after too many crashes; start it again, nothing is lost")]
    GaveUp,
}

/// A running service.
pub struct App {
    address: SocketAddr,
    system: System,
    bridge: Option<Bridge>,
    root: ActorRef<RootMsg>,
    ended: JoinHandle<()>,
    presence: Option<Box<dyn Presence>>,
}

impl App {
    /// Starts everything the configuration asks for. When it returns, the socket accepts connections.
    ///
    /// # Errors
    /// [`AppError`], before anything was taken on.
    pub async fn start(config: &Config) -> Result<Self, AppError> {
        Self::start_at(config, Arc::new(SystemClock::start())).await
    }

    /// As [`Self::start`], by a clock of the caller's.
    ///
    /// # Errors
    /// As there.
    pub async fn start_at(config: &Config, clock: Arc<dyn Clock>) -> Result<Self, AppError> {
        Self::start_as(Role::Both, config, clock).await
    }

    /// Starts what a role asks for.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub async fn start_as(role: Role, config: &Config, clock: Arc<dyn Clock>) -> Result<Self, AppError> {
        crate::tls::install_crypto_provider();
        let (listener, address) = listen(config, role)?;
        let in_order = if role.runs_tasks() { backends(config, role)? } else { Vec::new() };
        let backends: BTreeMap<BackendId, _> =
            in_order.iter().map(|backend| (backend.id().clone(), backend.clone())).collect();
        let board = Board::default();
        let catalogues = Catalogues::new(backends.keys().cloned());
        let metrics = Metrics::new().map_err(AppError::Metrics)?;
        let allowance =
            Allowance { labels: config.consumer.labels.clone(), workflows: config.consumer.workflows.clone() };
        backends.keys().for_each(|backend| catalogues.allow(backend, &allowance));
        let common = Common { role, config, clock, board, catalogues, metrics, in_order };
        let ground = match &config.consumer.api_url {
            Some(url) if role == Role::Consumer && config.consumer.remote => common.remote(url)?,
            _ => common.near().await?,
        };
        let edge = AxumEdge::new(listener, config.connections, ground.pages, config.server.drain_grace)
            .map_err(|source| AppError::Listen { address, source })?;
        let Common { clock, board, catalogues, metrics, .. } = common;
        let settings = settings::settings(config, !ground.was_clean);
        let system = Arc::new(system::Parts {
            worker: ground.worker,
            started_at: clock.now(),
            role,
            store: ground.store,
            source: ground.source,
            hints: ground.hints,
            desk: ground.desk,
            files: ground.files,
            wire: ground.wire,
            outputs: ground.outputs,
            media: Arc::new(Studio::default()),
            backends,
            edge: Arc::new(edge),
            services: ground.services,
            clock,
            board,
            catalogues,
            metrics,
            predecessors: Predecessors::new(ground.was_alone && role.runs_tasks()),
            posts: Posts::default(),
            deadline: Deadline::new(settings.lease * 2 / 3),
            settings,
            slots: ground.slots,
        });
        let (root, ended) = RootSupervisor::spawn(None, RootSupervisor, system.clone())
            .await
            .map_err(|error| AppError::Tree(error.to_string()))?;
        let public = config::public_address_warning(&config.server).filter(|_| role != Role::Consumer);
        for warning in public.into_iter().chain(config.storage.warnings()) {
            warn!("{warning}");
        }
        info!(%address, worker = %system.worker, ?role, backends = system.backends.len(), "comfyd listens");
        Ok(Self { address, system, bridge: ground.bridge, root, ended, presence: ground.presence })
    }

    /// The address it listens on, with the real port.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What HTTP handlers hold; `None` in a consumer, which has no clients.
    #[must_use]
    pub fn bridge(&self) -> Option<&Bridge> {
        self.bridge.as_ref()
    }

    /// Ports, settings and the addresses of all actors.
    #[must_use]
    pub fn system(&self) -> &System {
        &self.system
    }

    /// Says that it is about to stop: `/readyz` does, and all else goes on.
    pub fn announce_end(&self) {
        self.system.board.set_leaving();
    }

    /// Asks it to drain and stop; [`Self::ended`] returns when it has.
    pub fn shut_down(&self) {
        // A root that is gone has stopped already.
        let _ = self.root.cast(RootMsg::Shutdown);
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// `GaveUp` when it was not asked to stop.
    pub async fn ended(&mut self) -> Result<(), AppError> {
        // The handle fails only when the runtime itself goes down.
        let _ = (&mut self.ended).await;
        if !self.system.board.is_draining() {
            return Err(AppError::GaveUp);
        }
        if let Some(presence) = &self.presence
            && let Err(error) = presence.leave().await
        {
            warn!(%error, "could not note the clean end; the next start will be more careful than it needs to be");
        }
        Ok(())
    }
}

/// Binds the socket once, for the life of the process.
fn listen(config: &Config, role: Role) -> Result<(TcpListener, SocketAddr), AppError> {
    let port = if role == Role::Consumer { config.consumer.port } else { config.server.port };
    let address = SocketAddr::new(config.server.host, port);
    let bind = || {
        let listener = TcpListener::bind(address)?;
        let bound = listener.local_addr()?;
        Ok((listener, bound))
    };
    bind().map_err(|source| AppError::Listen { address, source })
}

pub(crate) fn backends(config: &Config, role: Role) -> Result<Vec<Arc<dyn ComfyTransport>>, AppError> {
    let headers: Vec<_> =
        config.comfyui.headers.iter().map(|(name, value)| (name.clone(), value.expose().to_owned())).collect();
    let mut backends: Vec<Arc<dyn ComfyTransport>> = Vec::new();
    for url in &config.comfyui.urls {
        let comfy = HttpComfy::new(ComfyConfig {
            headers: headers.clone(),
            connect_timeout: config.comfyui.connect_timeout,
            request_timeout: config.comfyui.request_timeout,
            post_timeout: config.comfyui.post_timeout,
            relay_idle_timeout: config.passthrough.idle_timeout,
            ping_interval: config.comfyui.ping_interval,
            max_json_bytes: config.comfyui.max_answer,
            machine: (role == Role::Consumer).then(|| config.app.node.clone()),
            ..ComfyConfig::new(url.expose())
        })?;
        backends.push(Arc::new(comfy));
    }
    Ok(backends)
}
