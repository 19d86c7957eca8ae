//! What a process stands on: a store of its own, or an API that has one.

use std::sync::Arc;

use comfyd_actors::{
    board::Board,
    bridge::{self, Bridge},
    catalogues::Catalogues,
    domain::id::{BackendId, WorkerId},
    files::NearFiles,
    kit::service::{Factory, factory},
    metrics::Metrics,
    muster::{Herald, Muster},
    ports::{
        clock::Clock,
        comfy::ComfyTransport,
        input_files::InputFiles,
        outputs::Outputs,
        store::{Hints, TaskStore, WorkSource},
        wire::Wire,
    },
    system::{Desk, Role, Slots},
    watch::{
        self,
        afar::{Beacon, Lookout},
    },
};
use tracing::warn;

use super::{AppError, BEACON, EVENTS, HEARING, HERALD, LOOKOUT, MUSTER, PULSE, WORKFLOWS};
use crate::{
    config::{Config, SecretUrl},
    fetch::UrlFetcher,
    http::{self, ConsumerPages, Consumers, HttpConfig, Pages},
    outbound::Outbound,
    remote::{ApiClient, Hearing},
    storage,
    store::{self, Presence},
    webhooks::Receivers,
    workflows::Workflows,
};

/// What is the same on either.
pub(super) struct Common<'a> {
    pub(super) role: Role,
    pub(super) config: &'a Config,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) board: Board,
    pub(super) catalogues: Catalogues,
    pub(super) metrics: Metrics,
    /// The `ComfyUI` servers, in the order of the configuration.
    pub(super) in_order: Vec<Arc<dyn ComfyTransport>>,
}

/// What differs.
pub(super) struct Ground {
    pub(super) store: Option<Arc<dyn TaskStore>>,
    pub(super) source: Arc<dyn WorkSource>,
    pub(super) hints: Arc<dyn Hints>,
    pub(super) files: Arc<dyn InputFiles>,
    pub(super) outputs: Arc<dyn Outputs>,
    pub(super) wire: Arc<dyn Wire>,
    pub(super) desk: Option<Desk>,
    pub(super) services: Vec<(&'static str, Factory)>,
    pub(super) slots: Slots,
    pub(super) bridge: Option<Bridge>,
    pub(super) pages: Pages,
    /// The name under which it holds tasks.
    pub(super) worker: WorkerId,
    pub(super) was_clean: bool,
    pub(super) was_alone: bool,
    pub(super) presence: Option<Box<dyn Presence>>,
}

impl Common<'_> {
    /// On a store.
    pub(super) async fn near(&self) -> Result<Ground, AppError> {
        let config = self.config;
        let store = store::open(&config.store, self.clock.clone(), &self.metrics).await?;
        let hints: Arc<dyn Hints> = store.hints.clone();
        let targets = storage::open(&config.storage, config.tasks.upload_retry)?;
        storage::prove(&targets).await?;
        let outbound = Outbound::new(&config.outbound).map_err(AppError::Outbound)?;
        let (metrics, clock) = (self.metrics.clone(), self.clock.clone());
        let (inputs, objects) = (store.inputs.clone(), targets.inputs().clone());
        let fetcher = UrlFetcher::new(outbound.clone(), inputs, objects, config.inputs, metrics, clock);
        let (files, outputs): (Arc<dyn InputFiles>, Arc<dyn Outputs>) = match self.api()? {
            Some(api) => (api.clone(), api),
            None => {
                let (inputs, objects) = (store.inputs.clone(), targets.inputs().clone());
                let near = NearFiles { inputs, objects, fetcher: Arc::new(fetcher) };
                (Arc::new(near), Arc::new(targets.clone()))
            }
        };
        if !store.wire.hears_others() {
            self.board.set_deaf();
        }
        let mut services = store.services;
        services.push(self.pulse());
        let worker = WorkerId::starting(&config.app.node);
        if self.role.runs_tasks() {
            services.push(self.herald(&worker, store.wire.clone()));
            services.push(self.beacon(&worker, store.wire.clone()));
        }
        let hearing = Arc::new(Hearing::default());
        let workflows = match self.role {
            Role::Consumer => None,
            Role::Both | Role::Api => {
                let workflows = Arc::new(Workflows::open(&config.workflows.dir, store.workflows.clone()).await?);
                let (current, log, watched) = (workflows.clone(), store.tasks.clone(), self.board.clone());
                let (ear, told, wire) = (hearing.clone(), hints.clone(), store.wire.clone());
                let muster = Arc::new(Muster {
                    worker: worker.clone(),
                    wire: store.wire.clone(),
                    own: self.backends().cloned().collect(),
                    board: self.board.clone(),
                    catalogues: self.catalogues.clone(),
                });
                let lookout = Lookout::new(worker.clone(), store.wire.clone(), self.board.clone());
                services.extend([
                    (LOOKOUT, factory(move || lookout.clone().keep())),
                    (WORKFLOWS, factory(move || current.clone().keep_current())),
                    (EVENTS, factory(move || watch::tail(log.clone(), watched.clone()))),
                    (MUSTER, factory(move || muster.clone().keep())),
                    (HEARING, factory(move || ear.clone().listen(told.clone(), wire.clone()))),
                ]);
                Some(workflows)
            }
        };
        let slots = Slots::new(self.backends(), services.iter().map(|(name, _)| *name));
        let (mut desk, mut bridge) = (None, None);
        let pages = if let Some(workflows) = workflows {
            let public_url = config.server.public_url.as_deref();
            let receivers = Receivers::new(outbound, targets.clone(), &config.webhooks, public_url, self.clock.clone());
            desk = Some(Desk {
                store: store.tasks.clone(),
                inputs: store.inputs.clone(),
                targets: targets.clone(),
                hooks: store.hooks.clone(),
                hook_sender: Arc::new(receivers),
            });
            let consumers = Consumers {
                store: store.tasks.clone(),
                work: store.work.clone(),
                hints: hints.clone(),
                hearing,
                files: files.clone(),
                targets: targets.clone(),
                wire: store.wire.clone(),
                token: config.consumer.token.clone(),
                caps: config.tenants.limits.caps(),
                largest: config.tasks.max_output,
            };
            let held = Bridge::new(bridge::Parts {
                queue: slots.queue.clone(),
                store: store.tasks.clone(),
                inputs: store.inputs.clone(),
                hooks: store.hooks.clone(),
                webhooks: slots.webhooks.clone(),
                targets: targets.clone(),
                backends: self.in_order.clone(),
                board: self.board.clone(),
                catalogues: self.catalogues.clone(),
                sessions: slots.sessions.clone(),
                validate: config.comfyui.validate,
                metrics: self.metrics.clone(),
                clock: self.clock.clone(),
            });
            bridge = Some(held.clone());
            let settings = HttpConfig::from(config);
            // Consumers that are not there yet may take some workflows only.
            let workflow_lanes = settings.workflow_lanes || self.role == Role::Api;
            let (settings, consumers) =
                (Arc::new(HttpConfig { workflow_lanes, ..settings }), Some(Arc::new(consumers)));
            Box::new(move |stop| {
                http::router(held.clone(), settings.clone(), workflows.clone(), consumers.clone(), stop)
            })
        } else {
            self.consumer_pages(hints.clone(), &slots)
        };
        Ok(Ground {
            store: Some(store.tasks),
            source: store.work,
            hints,
            files,
            outputs,
            wire: store.wire,
            desk,
            services,
            slots,
            bridge,
            pages,
            worker,
            was_clean: store.was_clean,
            was_alone: store.was_alone,
            presence: Some(store.presence),
        })
    }

    /// The API through which a consumer beside the store has its files come and its outputs go, because the local folder is on the API's
    /// machine. Without one it is taken to be on the same.
    fn api(&self) -> Result<Option<Arc<ApiClient>>, AppError> {
        let Config { consumer, storage: places, tasks, store, .. } = self.config;
        if self.role != Role::Consumer {
            return Ok(None);
        }
        let Some(url) = &consumer.api_url else {
            if !store.database_url.expose().starts_with("sqlite:") {
                warn!(
                    "files that clients give, and outputs of the target `local`, are looked for in {} here: on another machine than the \
                     API's set TASK_API_URL, and they go through the API",
                    places.local_dir.display()
                );
            }
            return Ok(None);
        };
        let own = storage::far(places, tasks.upload_retry)?;
        ApiClient::new(url, consumer.token.clone(), own).map(Some).map_err(AppError::Api)
    }

    /// On an API at `url`, which need not be there yet.
    pub(super) fn remote(&self, url: &SecretUrl) -> Result<Ground, AppError> {
        let config = self.config;
        let own = storage::far(&config.storage, config.tasks.upload_retry)?;
        let api = ApiClient::new(url, config.consumer.token.clone(), own).map_err(AppError::Api)?;
        let ear = api.clone();
        // Whoever starts alone on the store takes over what is held under its own name (`store::node_lock`), and cannot see this one.
        let worker = WorkerId::starting(&format!("{}+http", config.app.node));
        let (herald, beacon) = (self.herald(&worker, api.clone()), self.beacon(&worker, api.clone()));
        let services = vec![self.pulse(), herald, beacon, (HEARING, factory(move || ear.clone().listen()))];
        let slots = Slots::new(self.backends(), services.iter().map(|(name, _)| *name));
        let pages = self.consumer_pages(api.clone(), &slots);
        Ok(Ground {
            store: None,
            source: api.clone(),
            hints: api.clone(),
            files: api.clone(),
            outputs: api.clone(),
            wire: api,
            desk: None,
            services,
            slots,
            bridge: None,
            pages,
            worker,
            // What a power cut took from it nobody can tell: it is as careful as after one.
            was_clean: false,
            was_alone: false,
            presence: None,
        })
    }

    fn backends(&self) -> impl Iterator<Item = &BackendId> {
        self.in_order.iter().map(|backend| backend.id())
    }

    fn herald(&self, worker: &WorkerId, wire: Arc<dyn Wire>) -> (&'static str, Factory) {
        let herald = Arc::new(Herald {
            worker: worker.clone(),
            version: env!("CARGO_PKG_VERSION"),
            wire,
            backends: self.in_order.clone(),
            board: self.board.clone(),
            catalogues: self.catalogues.clone(),
        });
        (HERALD, factory(move || herald.clone().tell()))
    }

    fn beacon(&self, worker: &WorkerId, wire: Arc<dyn Wire>) -> (&'static str, Factory) {
        let beacon = Beacon::new(worker.clone(), wire, self.board.clone());
        (BEACON, factory(move || beacon.clone().shine()))
    }

    fn pulse(&self) -> (&'static str, Factory) {
        let pulse = self.board.pulse().clone();
        (PULSE, factory(move || pulse.clone().beat()))
    }

    fn consumer_pages(&self, hints: Arc<dyn Hints>, slots: &Slots) -> Pages {
        let (board, metrics, clock) = (self.board.clone(), self.metrics.clone(), self.clock.clone());
        let (queue, settings) = (slots.queue.clone(), Arc::new(HttpConfig::from(self.config)));
        Box::new(move |stop| {
            let pages = ConsumerPages {
                board: board.clone(),
                metrics: metrics.clone(),
                hints: hints.clone(),
                queue: queue.clone(),
                clock: clock.clone(),
            };
            http::consumer_router(pages, settings.clone(), stop)
        })
    }
}
