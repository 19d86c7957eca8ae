//! The places outputs can go to, by name, and which of them an output goes to. Pure but for what the ports do.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use tracing::warn;

use crate::{
    domain::{
        artifact::{Facts, StoredObject},
        leftovers::Leftovers,
        options::StorageChoice,
        storage::{LOCAL, below},
    },
    ports::{
        object_store::{ObjectError, ObjectStore, Written},
        outputs::{Output, Outputs},
    },
};

/// More objects than the runs of one task leave in one place.
const MOST_LISTED: usize = 10_000;

/// One place.
#[derive(Clone)]
pub struct Target {
    /// The place itself.
    pub store: Arc<dyn ObjectStore>,
    /// What all keys there begin with; may be empty.
    pub prefix: String,
    /// The target that gets what this one does not hold.
    pub others: Option<String>,
}

impl Target {
    /// A place without a prefix that holds everything.
    #[must_use]
    pub fn plain(store: Arc<dyn ObjectStore>) -> Self {
        Self { store, prefix: String::new(), others: None }
    }
}

/// All of them. Clones share everything.
#[derive(Clone)]
pub struct Targets(Arc<Parts>);

/// What [`Targets`] are made of.
pub struct Parts {
    /// By name. `local` is always among them.
    pub targets: BTreeMap<String, Target>,
    /// Where inputs are kept: the folder behind `local`.
    pub inputs: Arc<dyn ObjectStore>,
    /// What a task gets that does not say.
    pub usual: String,
    /// What takes over from one that has been away for so long.
    pub fallback: Option<(String, Duration)>,
}

/// Where an object goes.
pub struct Route<'a> {
    /// The target's name.
    pub name: &'a str,
    /// The target.
    pub target: &'a Target,
}

impl fmt::Debug for Targets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.targets.keys()).finish()
    }
}

impl Targets {
    /// Joins the parts.
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        Self(Arc::new(parts))
    }

    /// One folder for everything.
    #[must_use]
    pub fn single(store: Arc<dyn ObjectStore>) -> Self {
        let targets = [(LOCAL.to_owned(), Target::plain(store.clone()))].into();
        Self::new(Parts { targets, inputs: store, usual: LOCAL.to_owned(), fallback: None })
    }

    /// Where files that clients give are kept, whatever outputs go to: they are read before each prompt, by this machine.
    #[must_use]
    pub fn inputs(&self) -> &Arc<dyn ObjectStore> {
        &self.0.inputs
    }

    /// A target.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Target> {
        self.0.targets.get(name)
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Target)> {
        self.0.targets.iter().map(|(name, target)| (name.as_str(), target))
    }

    /// Those that tasks need which do not say: the usual one, what gets the rest, and what takes over.
    pub fn needed(&self) -> impl Iterator<Item = (&str, &Target)> {
        let usual = self.get(&self.0.usual);
        let others = usual.and_then(|target| target.others.as_deref());
        let fallback = self.0.fallback.as_ref().map(|(name, _)| name.as_str());
        let names: BTreeSet<&str> = [Some(self.0.usual.as_str()), others, fallback].into_iter().flatten().collect();
        names.into_iter().filter_map(|name| Some((name, self.get(name)?)))
    }

    /// What a task gets that does not say.
    #[must_use]
    pub fn usual(&self) -> &str {
        &self.0.usual
    }

    /// The target that holds an object.
    #[must_use]
    pub fn holder(&self, object: &StoredObject) -> Option<&Target> {
        self.get(&object.target)
    }

    /// The name of the target that a task wants.
    #[must_use]
    pub fn wanted<'a>(&'a self, choice: &'a StorageChoice) -> &'a str {
        choice.target.as_deref().unwrap_or(&self.0.usual)
    }

    /// The target for a task whose usual one has been away for so long.
    ///
    /// # Errors
    /// It is not configured any more; says what to do.
    fn route<'a>(&'a self, choice: &StorageChoice, away: Duration) -> Result<Route<'a>, String> {
        let name = match &self.0.fallback {
            Some((fallback, after)) if away >= *after => fallback,
            _ => self.wanted(choice),
        };
        self.at(name)
    }

    /// Where objects of a task with this choice can lie, whatever befell them: the targets, and what keys there begin with.
    fn places(&self, choice: &StorageChoice) -> impl Iterator<Item = (&str, &Target, String)> {
        let first = [Some(self.wanted(choice)), self.0.fallback.as_ref().map(|(name, _)| name.as_str())];
        let first = first.into_iter().flatten().filter_map(|name| self.0.targets.get_key_value(name));
        let others = first.clone().filter_map(|(_, target)| self.0.targets.get_key_value(target.others.as_ref()?));
        let places: BTreeMap<&str, &Target> =
            first.chain(others).map(|(name, target)| (name.as_str(), target)).collect();
        let within = choice.prefix.clone().unwrap_or_default();
        places.into_iter().map(move |(name, target)| (name, target, below(&[&target.prefix, &within], "")))
    }

    /// Deletes what runs of a task left behind, wherever it may lie, and says how many objects that were. A target that does not let us is
    /// passed over.
    ///
    /// # Errors
    /// `Unavailable`: not all were deleted, and may be later.
    pub async fn sweep(&self, leftovers: &Leftovers<'_>, choice: &StorageChoice) -> Result<u32, ObjectError> {
        let mut deleted = 0;
        for (name, target, before) in self.places(choice) {
            match sweep(name, target, &before, leftovers).await {
                Ok(some) => deleted += some,
                Err(error @ ObjectError::Unavailable(_)) => return Err(error),
                Err(error) => {
                    warn!(target = name, %error, "what runs that were given up left there stays: comfyd may not look for it or delete it");
                }
            }
        }
        Ok(deleted)
    }

    /// Where an output goes, and the whole of its key there.
    ///
    /// # Errors
    /// `Misconfigured`, `Refused`.
    pub fn place_of(
        &self,
        name: &str,
        content_type: &str,
        bytes: Option<u64>,
        choice: &StorageChoice,
        away: Duration,
    ) -> Result<(Route<'_>, String), ObjectError> {
        let from = self.route(choice, away).map_err(ObjectError::Misconfigured)?;
        let route = self.route_of(from, content_type, bytes);
        let route = route.map_err(|unfit| ObjectError::Refused(unfit.to_string()))?;
        let key = below(&[&route.target.prefix, choice.prefix.as_deref().unwrap_or_default()], name);
        Ok((route, key))
    }

    /// Where an output of this type and size goes from there.
    ///
    /// # Errors
    /// Nobody takes it; says why.
    pub fn route_of<'a>(&'a self, from: Route<'a>, content_type: &str, bytes: Option<u64>) -> Result<Route<'a>, Unfit> {
        let Err(why) = from.target.store.takes(content_type, bytes) else { return Ok(from) };
        let Some(others) = &from.target.others else { return Err(Unfit { target: from.name.to_owned(), why }) };
        let next = self.at(others).map_err(|why| Unfit { target: from.name.to_owned(), why })?;
        match next.target.store.takes(content_type, bytes) {
            Ok(()) => Ok(next),
            Err(why) => Err(Unfit { target: next.name.to_owned(), why }),
        }
    }

    fn at(&self, name: &str) -> Result<Route<'_>, String> {
        let found = self.0.targets.get_key_value(name);
        found.map(|(name, target)| Route { name, target }).ok_or_else(|| {
            format!("there is no storage target named {name} (any more): name it in the configuration, then nothing has to run again")
        })
    }
}

/// Deletes what is left over in one place.
async fn sweep(name: &str, target: &Target, before: &str, leftovers: &Leftovers<'_>) -> Result<u32, ObjectError> {
    let keys = target.store.list(&format!("{before}{}", leftovers.prefix()), MOST_LISTED).await?;
    let mut deleted = 0;
    for key in keys.iter().filter(|key| leftovers.include(name, before, key)) {
        target.store.delete(key).await?;
        deleted += 1;
    }
    Ok(deleted)
}

#[async_trait]
impl Outputs for Targets {
    fn wanted(&self, choice: &StorageChoice) -> String {
        Self::wanted(self, choice).to_owned()
    }

    async fn keep(&self, output: Output) -> Result<StoredObject, ObjectError> {
        let Output { name, content_type, bytes, body, choice, away } = output;
        let (route, key) = self.place_of(&name, &content_type, bytes, &choice, away)?;
        let Written { bytes, sha256 } = route.target.store.put(&key, &content_type, bytes, body).await?;
        Ok(StoredObject { target: route.name.to_owned(), key, content_type, bytes, sha256, facts: Facts::default() })
    }
}

/// What no target takes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the target {target} does not take it ({why}), and none is named for what it does not take (`others`)")]
pub struct Unfit {
    /// The last that was asked.
    pub target: String,
    /// Its reason.
    pub why: String,
}
