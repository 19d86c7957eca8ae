//! The composition root: the one file that knows adapters and actors. Configuration in, running service out.

use std::{
    collections::BTreeMap,
    io,
    net::{SocketAddr, TcpListener},
    sync::Arc,
};

use comfyd_actors::{
    board::Board,
    bridge::{self, Bridge},
    catalogues::Catalogues,
    domain::id::{BackendId, WorkerId},
    kit::{deadline::Deadline, service::factory},
    metrics::{Metrics, MetricsError},
    ports::{clock::Clock, comfy::ComfyTransport, store::StoreError},
    posts::Posts,
    root::{RootArgs, RootMsg, RootSupervisor},
    system::{self, Predecessors, SessionSettings, Settings, Slots, System, UploadSettings},
    watch,
};
use ractor::{Actor, ActorRef};
use tokio::task::JoinHandle;
use tracing::{info, warn};

use crate::{
    clock::SystemClock,
    comfy::{ComfyConfig, HttpComfy},
    config::{self, Config},
    fetch::UrlFetcher,
    http::{AxumEdge, HttpConfig},
    media::Studio,
    outbound::Outbound,
    storage,
    store::{self, Presence},
    webhooks::Receivers,
    workflows::Workflows,
};

/// The name of the service that keeps the named workflows current.
pub const WORKFLOWS: &str = "workflows";

/// The name of the service that shows that the process lives.
pub const PULSE: &str = "pulse";

/// The name of the service that reads the log of events for those who watch.
pub const EVENTS: &str = "events";

/// Why the service could not start, or ended by itself.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// The address is taken, or not of this machine.
    #[error("failed to listen on {address}; set HOST and PORT to an address that is free")]
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
    bridge: Bridge,
    root: ActorRef<RootMsg>,
    ended: JoinHandle<()>,
    presence: Box<dyn Presence>,
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
        crate::tls::install_crypto_provider();
        let (listener, address) = listen(config)?;
        let metrics = Metrics::new().map_err(AppError::Metrics)?;
        let store = store::open(&config.store, clock.clone(), &metrics).await?;
        let workflows = Arc::new(Workflows::open(&config.workflows.dir, store.workflows.clone()).await?);
        let edge = AxumEdge::new(listener, HttpConfig::from(config), workflows.clone(), config.server.drain_grace)
            .map_err(|source| AppError::Listen { address, source })?;
        let targets = storage::open(&config.storage, config.tasks.upload_retry)?;
        storage::prove(&targets).await?;
        let in_order = backends(config)?;
        let backends: BTreeMap<BackendId, _> =
            in_order.iter().map(|backend| (backend.id().clone(), backend.clone())).collect();
        let board = Board::default();
        let catalogues = Catalogues::new(backends.keys().cloned());
        let outbound = Outbound::new(&config.outbound).map_err(AppError::Outbound)?;
        let fetcher = UrlFetcher::new(outbound.clone(), store.inputs.clone(), targets.inputs().clone(), config.inputs);
        let (log, watched, pulse) = (store.tasks.clone(), board.clone(), board.pulse().clone());
        let mut services = store.services;
        services.extend([
            (WORKFLOWS, factory(move || workflows.clone().keep_current())),
            (EVENTS, factory(move || watch::tail(log.clone(), watched.clone()))),
            (PULSE, factory(move || pulse.clone().beat())),
        ]);
        let slots = Slots::new(backends.keys(), services.iter().map(|(name, _)| *name));
        let bridge = Bridge::new(bridge::Parts {
            queue: slots.queue.clone(),
            store: store.tasks.clone(),
            inputs: store.inputs.clone(),
            hooks: store.hooks.clone(),
            webhooks: slots.webhooks.clone(),
            targets: targets.clone(),
            backends: in_order,
            board: board.clone(),
            catalogues: catalogues.clone(),
            sessions: slots.sessions.clone(),
            validate: config.comfyui.validate,
            metrics: metrics.clone(),
            clock: clock.clone(),
        });
        let public_url = config.server.public_url.as_deref();
        let receivers = Receivers::new(outbound, targets.clone(), &config.webhooks, public_url, clock.clone());
        let settings = settings(config, !store.was_clean);
        let system = Arc::new(system::Parts {
            worker: WorkerId::starting(&config.app.node),
            started_at: clock.now(),
            store: store.tasks,
            source: store.work,
            inputs: store.inputs,
            hooks: store.hooks,
            wire: store.wire,
            hook_sender: Arc::new(receivers),
            targets,
            fetcher: Arc::new(fetcher),
            media: Arc::new(Studio::default()),
            backends,
            edge: Arc::new(edge),
            services,
            clock,
            board,
            catalogues,
            metrics,
            predecessors: Predecessors::new(store.was_alone),
            posts: Posts::default(),
            deadline: Deadline::new(settings.lease * 2 / 3),
            settings,
            slots,
        });
        let args = RootArgs { system: system.clone(), bridge: bridge.clone() };
        let (root, ended) = RootSupervisor::spawn(None, RootSupervisor, args)
            .await
            .map_err(|error| AppError::Tree(error.to_string()))?;
        for warning in config::public_address_warning(&config.server).into_iter().chain(config.storage.warnings()) {
            warn!("{warning}");
        }
        info!(%address, worker = %system.worker, backends = system.backends.len(), "comfyd listens");
        Ok(Self { address, system, bridge, root, ended, presence: store.presence })
    }

    /// The address it listens on, with the real port.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What HTTP handlers hold.
    #[must_use]
    pub fn bridge(&self) -> &Bridge {
        &self.bridge
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
        if let Err(error) = self.presence.leave().await {
            warn!(%error, "could not note the clean end; the next start will be more careful than it needs to be");
        }
        Ok(())
    }
}

/// Binds the socket once, for the life of the process.
fn listen(config: &Config) -> Result<(TcpListener, SocketAddr), AppError> {
    let address = SocketAddr::new(config.server.host, config.server.port);
    let bind = || {
        let listener = TcpListener::bind(address)?;
        let bound = listener.local_addr()?;
        Ok((listener, bound))
    };
    bind().map_err(|source| AppError::Listen { address, source })
}

pub(crate) fn backends(config: &Config) -> Result<Vec<Arc<dyn ComfyTransport>>, AppError> {
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
            ..ComfyConfig::new(url.expose())
        })?;
        backends.push(Arc::new(comfy));
    }
    Ok(backends)
}

fn settings(config: &Config, unclean_start: bool) -> Settings {
    let (comfyui, tasks) = (&config.comfyui, &config.tasks);
    Settings {
        unclean_start,
        validate: comfyui.validate,
        ordering: config.queue.ordering,
        max_pending: config.queue.max_pending,
        prepare_ahead: config.queue.prepare_ahead,
        lease: config.queue.lease,
        renew_every: config.queue.renew_every,
        max_attempts: tasks.max_attempts,
        timeout: tasks.timeout,
        retry: tasks.retry,
        session: SessionSettings {
            client_prefix: comfyui.client_id.clone(),
            reconnect: comfyui.reconnect,
            post_timeout: comfyui.post_timeout,
            validate_grace: comfyui.validate_grace,
            silence: comfyui.silence,
            deaf_after: comfyui.deaf_after,
            backend_lost_after: comfyui.backend_lost_after,
            stop_grace: comfyui.stop_grace,
            free_wait: comfyui.free_wait,
            quiet_after: config.health.quiet_after,
            no_progress_timeout: config.health.no_progress_timeout,
            health: config.health.limits,
            nodes_refresh: comfyui.nodes_refresh,
            nodes_recheck: comfyui.nodes_recheck,
            previews: comfyui.previews,
        },
        uploads: UploadSettings {
            largest: tasks.max_output,
            parallel: tasks.upload_parallel,
            max_tasks: tasks.upload_max_waiting,
            attempts: tasks.upload_attempts,
            backoff: tasks.upload_retry,
            patience: tasks.upload_patience,
        },
        webhooks: config.webhooks.settings.clone(),
        retention: config.retention,
        restarts: config.supervision.limits,
        quarantine: config.supervision.quarantine,
        drain: config.server.drain_grace,
    }
}
