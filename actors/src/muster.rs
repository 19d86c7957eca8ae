//! Who works where: each process that runs tasks tells so on the wire, and each that has clients keeps a picture of all of them.
//!
//! The picture decides what a client is told (which graphs nobody can run, which servers there are) and nothing that must be right: a task
//! waits in its lane whoever is there, and whoever serves that lane takes it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::{
    sync::broadcast::error::RecvError,
    time::{Instant, MissedTickBehavior, interval, timeout},
};
use tracing::debug;

use crate::{
    board::{BackendStatus, Board, Elsewhere},
    catalogues::Catalogues,
    domain::{
        allowance::Allowance,
        catalogue::Catalogue,
        id::{BackendId, WorkerId},
    },
    ports::{
        comfy::ComfyTransport,
        wire::{Kind, Notice, Wire},
    },
};

/// How often each tells.
const TELL_EVERY: Duration = Duration::from_secs(2);
/// Whoever has not told for so long is gone: three words lost in a row.
const GONE_AFTER: Duration = Duration::from_secs(7);
/// How often what a server has is told again, and how long it is kept: an API that starts anew reads what is there.
const CATALOGUE_EVERY: Duration = Duration::from_secs(120);
const CATALOGUE_KEPT: Duration = Duration::from_secs(400);
/// How often a server is asked about its machine, and how long it may take.
const ASK_EVERY: Duration = Duration::from_secs(10);
const ASK_PATIENCE: Duration = Duration::from_secs(3);

/// What a process tells of itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Announcement {
    /// Its machine's name.
    pub node: String,
    /// Its version.
    pub version: String,
    /// Its servers.
    pub backends: Vec<Announced>,
}

/// What it tells of a server.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Announced {
    /// Which.
    pub backend: BackendId,
    /// What it is doing.
    pub status: BackendStatus,
    /// What it may do.
    #[serde(default)]
    pub allowance: Allowance,
    /// The hash of what it has, if it has told.
    #[serde(default)]
    pub catalogue: Option<String>,
    /// ComfyUI's own `/system_stats`, as it was asked last.
    #[serde(default)]
    pub stats: Option<Value>,
}

/// A process that tells.
pub struct Herald {
    /// Which.
    pub worker: WorkerId,
    /// Its version.
    pub version: &'static str,
    /// Where it tells.
    pub wire: Arc<dyn Wire>,
    /// Its servers.
    pub backends: Vec<Arc<dyn ComfyTransport>>,
    /// What they do.
    pub board: Board,
    /// What they have.
    pub catalogues: Catalogues,
}

impl Herald {
    /// Tells for ever.
    pub async fn tell(self: Arc<Self>) {
        let mut ticks = interval(TELL_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut told: BTreeMap<String, Instant> = BTreeMap::new();
        let (mut stats, mut asked): (BTreeMap<BackendId, Value>, Option<Instant>) = (BTreeMap::new(), None);
        loop {
            ticks.tick().await;
            if self.board.is_draining() {
                // Its time would be over soon anyway.
                let _ = self.wire.withdraw(Kind::Consumer, self.worker.as_str()).await;
                continue;
            }
            if asked.is_none_or(|asked| asked.elapsed() >= ASK_EVERY) {
                asked = Some(Instant::now());
                stats = self.ask().await;
            }
            if let Err(error) = self.tell_once(&stats, &mut told).await {
                debug!(%error, "could not tell others what this process does");
            }
        }
    }

    async fn ask(&self) -> BTreeMap<BackendId, Value> {
        let asked = self.backends.iter().map(|backend| async move {
            let answer = timeout(ASK_PATIENCE, backend.system_stats()).await;
            Some((backend.id().clone(), answer.ok()?.ok()?))
        });
        futures_util::future::join_all(asked).await.into_iter().flatten().collect()
    }

    async fn tell_once(
        &self,
        stats: &BTreeMap<BackendId, Value>,
        told: &mut BTreeMap<String, Instant>,
    ) -> Result<(), crate::ports::store::StoreError> {
        let (fleet, known) = (self.catalogues.fleet(), self.board.backends());
        let mut catalogues: BTreeMap<String, Arc<Catalogue>> = BTreeMap::new();
        let backends = self.backends.iter().map(|backend| {
            let id = backend.id();
            let catalogue = fleet.catalogue(id).map(|catalogue| {
                let name = catalogue.print();
                catalogues.insert(name.clone(), catalogue.clone());
                name
            });
            Announced {
                backend: id.clone(),
                status: known.get(id).cloned().unwrap_or_else(BackendStatus::unknown),
                allowance: fleet.allowance(id),
                catalogue,
                stats: stats.get(id).cloned(),
            }
        });
        let backends = backends.collect();
        told.retain(|name, _| catalogues.contains_key(name));
        for (name, catalogue) in catalogues {
            if told.get(&name).is_none_or(|at| at.elapsed() >= CATALOGUE_EVERY) {
                let body = serde_json::to_vec(&*catalogue).unwrap_or_default().into();
                let notice = Notice { kind: Kind::Catalogue, name: name.clone(), body };
                self.wire.post(notice, CATALOGUE_KEPT).await?;
                told.insert(name, Instant::now());
            }
        }
        let announcement =
            Announcement { node: self.worker.node().to_owned(), version: self.version.to_owned(), backends };
        let body = serde_json::to_vec(&announcement).unwrap_or_default().into();
        let notice = Notice { kind: Kind::Consumer, name: self.worker.as_str().to_owned(), body };
        self.wire.post(notice, GONE_AFTER).await
    }
}

/// A server, and who told of it.
struct Told {
    consumer: String,
    node: String,
    announced: Announced,
}

/// Who keeps the picture of all others.
pub struct Muster {
    /// Its own process, which is not among the others.
    pub worker: WorkerId,
    /// Where they tell.
    pub wire: Arc<dyn Wire>,
    /// Its own servers.
    pub own: BTreeSet<BackendId>,
    /// Where it notes what they do.
    pub board: Board,
    /// Where it notes what they have.
    pub catalogues: Catalogues,
}

impl Muster {
    /// Looks for ever.
    pub async fn keep(self: Arc<Self>) {
        let mut heard = self.wire.heard();
        let mut ticks = interval(TELL_EVERY / 2);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                notice = heard.recv() => match notice {
                    Ok(notice) if notice.kind == Kind::Catalogue => {}
                    Ok(_) | Err(RecvError::Lagged(_)) => continue,
                    Err(RecvError::Closed) => return,
                },
            }
            if let Err(error) = self.look().await {
                debug!(%error, "could not read who works where");
            }
        }
    }

    async fn look(&self) -> Result<(), crate::ports::store::StoreError> {
        let mut others: BTreeMap<BackendId, Told> = BTreeMap::new();
        let mut notices = self.wire.notices(Kind::Consumer).await?;
        notices.retain(|notice| notice.name != self.worker.as_str());
        self.board.set_company(notices.len());
        for notice in notices {
            // One of another version, perhaps.
            let Ok(told) = serde_json::from_slice::<Announcement>(&notice.body) else { continue };
            let (consumer, node) = (notice.name, told.node);
            for announced in told.backends.into_iter().filter(|announced| !self.own.contains(&announced.backend)) {
                // Of two that reach the same server, the one that is online knows best.
                let known = others.get(&announced.backend).is_some_and(|known| known.announced.status.takes_work());
                if !known {
                    let told = Told { consumer: consumer.clone(), node: node.clone(), announced };
                    others.insert(told.announced.backend.clone(), told);
                }
            }
        }
        self.learn(&others).await?;
        let shown = others.into_iter().map(|(backend, Told { consumer, node, announced })| {
            (backend, Elsewhere { consumer, node, status: announced.status, stats: announced.stats })
        });
        self.board.set_elsewhere(shown.collect());
        Ok(())
    }

    /// What they have, as far as it is news.
    async fn learn(&self, others: &BTreeMap<BackendId, Told>) -> Result<(), crate::ports::store::StoreError> {
        let fleet = self.catalogues.fleet();
        let is_news =
            |backend: &BackendId, print: &String| fleet.catalogue(backend).is_none_or(|known| known.print() != *print);
        let news: Vec<(&BackendId, &String)> = others
            .iter()
            .filter_map(|(backend, told)| Some((backend, told.announced.catalogue.as_ref()?)))
            .filter(|(backend, print)| is_news(backend, print))
            .collect();
        let mut read: BTreeMap<String, Catalogue> = BTreeMap::new();
        if !news.is_empty() {
            for notice in self.wire.notices(Kind::Catalogue).await? {
                if news.iter().any(|(_, print)| **print == notice.name)
                    && let Ok(catalogue) = serde_json::from_slice(&notice.body)
                {
                    read.insert(notice.name, catalogue);
                }
            }
        }
        let learned = news.into_iter().filter_map(|(backend, print)| Some((backend.clone(), read.get(print)?.clone())));
        let allowed = others.iter().map(|(backend, told)| (backend.clone(), told.announced.allowance.clone()));
        self.catalogues.muster(&self.own, allowed.collect(), learned.collect());
        Ok(())
    }
}
