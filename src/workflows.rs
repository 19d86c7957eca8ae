//! The named workflows of this process: what is built in, over it the files of a folder, over these what was published through the API.
//!
//! - **Owns** the [catalogue](catalogue::Catalogue) of what each name means now. Reading it takes no lock for longer than a look.
//! - **Kept current** by [`Workflows::keep_current`], a service of the tree: the folder by the events of the file system, what is
//!   published (other processes publish too) by asking the store now and then.
//! - **When that dies** names mean what they meant, until the next incarnation reads everything anew.
//! - **Versions** are the store's: a content has a number from the first moment it is known here, see
//!   [`WorkflowStore`].

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use comfyd_actors::{
    domain::workflow::{Reference, Workflow},
    ports::{
        store::StoreError,
        workflow_store::{Kept, Publication, WorkflowStore},
    },
};
use tokio::sync::watch as cell;
use tracing::{debug, error, info, warn};

pub mod catalogue;
mod folder;
mod watch;

use catalogue::{Catalogue, Change, Entry, Loaded, Source};
use watch::FolderWatch;

/// The largest file. Files are told by reference; a graph of two thousand nodes has a third of this.
pub const MAX_FILE: usize = 1 << 20;

/// How often what other processes published is looked for.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Shipped in the binary, so that it runs from any folder.
const BUILT_IN: [(&str, &str); 5] = [
    ("image-to-image", include_str!("../config/workflows/image-to-image.json")),
    ("inpaint", include_str!("../config/workflows/inpaint.json")),
    ("text-to-image", include_str!("../config/workflows/text-to-image.json")),
    ("text-to-video", include_str!("../config/workflows/text-to-video.json")),
    ("upscale", include_str!("../config/workflows/upscale.json")),
];

/// The workflows. Shared by all handlers.
pub struct Workflows {
    dir: PathBuf,
    store: Arc<dyn WorkflowStore>,
    catalogue: cell::Sender<Catalogue>,
}

/// A workflow to be run.
#[derive(Debug, Clone)]
pub struct Found {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: u32,
    /// The workflow.
    pub workflow: Arc<Workflow>,
}

/// Why there is none to be run.
#[derive(Debug, Clone, thiserror::Error)]
pub enum FindError {
    /// Nothing has this name.
    #[error("there is no such workflow; there are: {}", .0.join(", "))]
    Unknown(Vec<String>),
    /// The name has no such version (any more).
    #[error("there is no such version; the newest 100 are kept, see GET /api/workflows/{{name}}")]
    NoVersion,
    /// Its file cannot be used, and never could since this process started.
    #[error("{source_of} has a workflow of this name that cannot be used: {}", .faults.join("; "))]
    Broken {
        /// Where it comes from.
        source_of: Source,
        /// What is wrong with it.
        faults: Vec<String>,
    },
    /// Its version cannot be told now.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A name and what it means.
#[derive(Debug, Clone)]
pub struct Listed {
    /// The name.
    pub name: String,
    /// Where its meaning comes from, first, and where else the name has one.
    pub sources: Vec<Source>,
    /// What it means.
    pub entry: Entry,
}

impl Listed {
    /// A version that the name does not mean any more.
    #[must_use]
    pub fn exactly(found: Found) -> Self {
        let Found { name, version, workflow } = found;
        let loaded = Loaded { text: Arc::default(), workflow };
        Self {
            name,
            sources: Vec::new(),
            entry: Entry { loaded: Some(loaded), version: Some(version), faults: Vec::new() },
        }
    }
}

impl Workflows {
    /// Reads the folder, and what is published, once. A folder that is not there is empty; a file that is broken is listed as such.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn open(dir: &Path, store: Arc<dyn WorkflowStore>) -> Result<Self, StoreError> {
        // A relative path means the folder it means now.
        let dir = std::path::absolute(dir).unwrap_or_else(|_| dir.to_owned());
        let workflows = Self { catalogue: cell::Sender::new(Catalogue::new(BUILT_IN)), dir, store };
        workflows.take_files(folder::read(&workflows.dir));
        workflows.sync().await?;
        Ok(workflows)
    }

    /// What is shipped, without a store that numbers its versions.
    #[must_use]
    pub fn built_in() -> Vec<(String, Arc<Workflow>)> {
        let read = |(name, text): (&str, &str)| Some((name.to_owned(), Loaded::parse(text).ok()?.workflow));
        BUILT_IN.into_iter().filter_map(read).collect()
    }

    /// The good files of a folder, by name.
    #[must_use]
    pub fn in_folder(dir: &Path) -> Vec<(String, Arc<Workflow>)> {
        let files = folder::read(dir).unwrap_or_default().into_iter();
        files.filter_map(|(name, file)| Some((name, file.ok()?.workflow))).collect()
    }

    /// Everything wrong with the files of a folder, each fault with its file's name.
    #[must_use]
    pub fn faults(dir: &Path) -> Vec<String> {
        match folder::read(dir) {
            Ok(files) => files
                .into_iter()
                .filter_map(|(name, file)| Some((dir.join(name + ".json"), file.err()?)))
                .flat_map(|(path, faults)| faults.into_iter().map(move |fault| format!("{}: {fault}", path.display())))
                .collect(),
            Err(error) => vec![format!("{}: {error}", dir.display())],
        }
    }

    /// All names, in order.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        self.catalogue.borrow().names().into_iter().map(str::to_owned).collect()
    }

    /// Every name with what it means, in order.
    #[must_use]
    pub fn list(&self) -> Vec<Listed> {
        let catalogue = self.catalogue.borrow();
        catalogue.names().into_iter().filter_map(|name| listed(&catalogue, name)).collect()
    }

    /// What a name means.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<Listed> {
        listed(&self.catalogue.borrow(), name)
    }

    /// Finds the workflow to be run for a reference.
    ///
    /// # Errors
    /// [`FindError`].
    pub async fn find(&self, reference: &Reference) -> Result<Found, FindError> {
        let name = &reference.name;
        let known =
            self.catalogue.borrow().all(name).map(|(source, entry)| (source, entry.clone())).collect::<Vec<_>>();
        if let Some(version) = reference.version {
            let here = known.into_iter().find(|(_, entry)| entry.version == Some(version));
            let here = here.and_then(|(_, entry)| entry.loaded).map(|loaded| loaded.workflow);
            let workflow = match here {
                Some(workflow) => workflow,
                None => self.fetch(name, version).await?,
            };
            return Ok(Found { name: name.clone(), version, workflow });
        }
        let Some((source_of, entry)) = known.into_iter().next() else { return Err(FindError::Unknown(self.names())) };
        let Entry { loaded: Some(Loaded { workflow, text }), version, .. } = entry else {
            return Err(FindError::Broken { source_of, faults: entry.faults });
        };
        let version = match version {
            Some(version) => version,
            None => self.number(name, &text).await?,
        };
        Ok(Found { name: name.clone(), version, workflow })
    }

    /// A version that is not the newest.
    async fn fetch(&self, name: &str, version: u32) -> Result<Arc<Workflow>, FindError> {
        let Some(text) = self.store.version(name, version).await? else {
            let known = self.catalogue.borrow().all(name).next().is_some();
            let known = known || !self.store.versions(name).await?.is_empty();
            return Err(if known { FindError::NoVersion } else { FindError::Unknown(self.names()) });
        };
        match Loaded::parse(&text) {
            Ok(loaded) => Ok(loaded.workflow),
            Err(faults) => Err(FindError::Broken { source_of: Source::Api, faults }),
        }
    }

    async fn number(&self, name: &str, text: &str) -> Result<u32, StoreError> {
        let version = self.store.record(name, text).await?;
        self.catalogue.send_modify(|catalogue| catalogue.number(name, text, version));
        Ok(version)
    }

    /// The versions of a name that are kept, newest first.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn versions(&self, name: &str) -> Result<Vec<Kept>, StoreError> {
        self.store.versions(name).await
    }

    /// Makes a name mean this file from now on; `text` is its canonical spelling.
    ///
    /// # Errors
    /// `Unavailable`: whether it was stored is not known; repeating it does no harm.
    pub async fn publish(&self, name: &str, text: &str) -> Result<Publication, StoreError> {
        let publication = self.store.publish(name, text).await?;
        self.take_over().await;
        Ok(publication)
    }

    /// Takes back what was published under a name. False when nothing was.
    ///
    /// # Errors
    /// `Unavailable`, as for [`Self::publish`].
    pub async fn withdraw(&self, name: &str) -> Result<bool, StoreError> {
        let withdrawn = self.store.withdraw(name).await?;
        self.take_over().await;
        Ok(withdrawn)
    }

    /// Keeps the catalogue current for as long as it runs, which is for ever.
    pub async fn keep_current(self: Arc<Self>) {
        let mut eyes = match FolderWatch::new(&self.dir) {
            Ok(eyes) => Some(eyes),
            Err(error) => {
                warn!(folder = %self.dir.display(), %error, "cannot watch the folder of workflows; its changes count after a restart");
                None
            }
        };
        loop {
            eyes = self.look(eyes).await;
            self.until_seen(eyes.as_ref()).await;
        }
    }

    /// Reads the folder and sees to it that the next change is noticed.
    async fn look(&self, eyes: Option<FolderWatch>) -> Option<FolderWatch> {
        let dir = self.dir.clone();
        let look = move || {
            let mut eyes = eyes;
            if let Some(eyes) = &mut eyes {
                eyes.arm();
            }
            (eyes, folder::read(&dir))
        };
        let Ok((eyes, files)) = tokio::task::spawn_blocking(look).await else { return None };
        self.take_files(files);
        eyes
    }

    async fn until_seen(&self, eyes: Option<&FolderWatch>) {
        let seen = async {
            match eyes {
                Some(eyes) => eyes.changed().await,
                None => std::future::pending().await,
            }
        };
        tokio::pin!(seen);
        loop {
            self.take_over().await;
            self.number_all().await;
            tokio::select! {
                () = &mut seen => return,
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
        }
    }

    /// A content that has no number yet, because the store was away, gets it when somebody uses it.
    async fn number_all(&self) {
        let unnumbered = self.catalogue.borrow().unnumbered();
        for (name, text) in unnumbered {
            if let Err(error) = self.number(&name, &text).await {
                debug!(workflow = name, %error, "could not number a workflow's version");
                return;
            }
        }
    }

    fn take_files(&self, files: std::io::Result<folder::Files>) {
        match files {
            Ok(files) => {
                self.catalogue.send_modify(|catalogue| tell(&catalogue.set_folder(files), Source::Folder));
            }
            Err(error) => error!(folder = %self.dir.display(), %error, "cannot read the folder of workflows"),
        }
    }

    async fn take_over(&self) {
        if let Err(error) = self.sync().await {
            warn!(%error, "cannot read the published workflows; names mean what they meant until it works again");
        }
    }

    async fn sync(&self) -> Result<(), StoreError> {
        let published = self.store.published().await?;
        let missing = self.catalogue.borrow().missing(&published);
        let mut fetched = BTreeMap::new();
        for (name, version) in missing {
            if let Some(text) = self.store.version(&name, version).await? {
                fetched.insert(name, Entry::read(&text, Some(version)));
            }
        }
        self.catalogue.send_modify(|catalogue| tell(&catalogue.set_published(&published, fetched), Source::Api));
        Ok(())
    }
}

fn listed(catalogue: &Catalogue, name: &str) -> Option<Listed> {
    let (_, entry) = catalogue.all(name).next()?;
    let sources = catalogue.all(name).map(|(source, _)| source).collect();
    Some(Listed { name: name.to_owned(), sources, entry: entry.clone() })
}

fn tell(changes: &[(String, Change)], source: Source) {
    for (workflow, change) in changes {
        match change {
            Change::Loaded => info!(workflow, %source, "a workflow was loaded"),
            Change::Gone => info!(workflow, %source, "a workflow is gone"),
            Change::Broken { faults, kept: true } => {
                error!(workflow, %source, ?faults, "a workflow is broken; its last good version goes on");
            }
            Change::Broken { faults, kept: false } => {
                error!(workflow, %source, ?faults, "a workflow is broken and cannot be run");
            }
        }
    }
}

#[cfg(test)]
mod tests;
