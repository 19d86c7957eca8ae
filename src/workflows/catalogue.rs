//! What each name means now: three layers, of which the first that has a name decides.
//!
//! What the API published comes before the folder's files, and these before what is built in: the one who changed a workflow last and
//! most deliberately wins. A layer whose version of a name is broken and was never good does not let the one below shine through: a
//! picture of something else is worse than none.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
};

use comfyd_actors::{domain::workflow::Workflow, ports::workflow_store::Published};
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

/// Where a workflow comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// Published through the API.
    Api,
    /// A file of the folder.
    Folder,
    /// Part of the program.
    BuiltIn,
}

/// A workflow that can be run.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The workflow.
    pub workflow: Arc<Workflow>,
    /// Its file in the one spelling by which contents are compared.
    pub text: Arc<str>,
}

impl Loaded {
    /// Reads the text of a file.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn parse(text: &str) -> Result<Self, Vec<String>> {
        let file = serde_json::from_str(text).map_err(|error| vec![format!("not JSON: {error}")])?;
        let text = canonical(&file);
        let told = |faults: Vec<_>| faults.iter().map(ToString::to_string).collect::<Vec<_>>();
        Ok(Self { workflow: Arc::new(Workflow::read(file).map_err(told)?), text })
    }
}

/// A file's contents with sorted keys and no spaces.
pub fn canonical(file: &Value) -> Arc<str> {
    file.to_string().into()
}

/// One name in one layer.
#[derive(Debug, Clone, Default)]
pub struct Entry {
    /// What runs: the newest one that was good.
    pub loaded: Option<Loaded>,
    /// The number of that version, or of the one that could not be read; `None` until the store was asked.
    pub version: Option<u32>,
    /// What is wrong with the newest one.
    pub faults: Vec<String>,
}

impl Entry {
    /// The entry of a text that was just read.
    pub fn read(text: &str, version: Option<u32>) -> Self {
        match Loaded::parse(text) {
            Ok(loaded) => Self { loaded: Some(loaded), version, faults: Vec::new() },
            Err(faults) => Self { loaded: None, version, faults },
        }
    }
}

type Layer = BTreeMap<String, Entry>;

/// All layers.
#[derive(Debug, Default)]
pub struct Catalogue {
    published: Layer,
    folder: Layer,
    built_in: Layer,
    revision: u64,
}

/// What became of a name, for the log.
#[derive(Debug, PartialEq, Eq)]
pub enum Change {
    /// It means something new.
    Loaded,
    /// Its file is broken; what it meant before, if anything, stays.
    Broken {
        /// What is wrong.
        faults: Vec<String>,
        /// Whether an earlier version goes on.
        kept: bool,
    },
    /// It is not there any more.
    Gone,
}

impl Catalogue {
    /// Nothing but what is built in.
    pub fn new(built_in: impl IntoIterator<Item = (&'static str, &'static str)>) -> Self {
        let built_in = built_in.into_iter().map(|(name, text)| (name.to_owned(), Entry::read(text, None))).collect();
        Self { built_in, ..Self::default() }
    }

    fn layers(&self) -> [(Source, &Layer); 3] {
        [(Source::Api, &self.published), (Source::Folder, &self.folder), (Source::BuiltIn, &self.built_in)]
    }

    /// A name in every layer that has it, the one that decides first.
    pub fn all(&self, name: &str) -> impl Iterator<Item = (Source, &Entry)> {
        self.layers().into_iter().filter_map(move |(source, layer)| Some((source, layer.get(name)?)))
    }

    /// Every name, in order.
    pub fn names(&self) -> BTreeSet<&str> {
        self.layers().into_iter().flat_map(|(_, layer)| layer.keys().map(String::as_str)).collect()
    }

    /// Every content whose number is not known.
    pub fn unnumbered(&self) -> Vec<(String, Arc<str>)> {
        let layers = self.layers();
        let entries = layers.iter().flat_map(|(_, layer)| layer.iter());
        let unknown = entries.filter(|(_, entry)| entry.version.is_none());
        unknown.filter_map(|(name, entry)| Some((name.clone(), entry.loaded.as_ref()?.text.clone()))).collect()
    }

    /// Notes the number of a content, wherever it is.
    pub fn number(&mut self, name: &str, text: &str, version: u32) {
        for layer in [&mut self.folder, &mut self.built_in] {
            if let Some(entry) = layer.get_mut(name)
                && entry.loaded.as_ref().is_some_and(|loaded| *loaded.text == *text)
            {
                entry.version = Some(version);
            }
        }
    }

    /// Takes over what the folder holds now.
    pub fn set_folder(&mut self, files: BTreeMap<String, Result<Loaded, Vec<String>>>) -> Vec<(String, Change)> {
        let gone = self.folder.keys().filter(|name| !files.contains_key(*name));
        let mut changes: Vec<_> = gone.map(|name| (name.clone(), Change::Gone)).collect();
        self.folder.retain(|name, _| files.contains_key(name));
        for (name, file) in files {
            let entry = self.folder.entry(name.clone()).or_default();
            if let Some(change) = entry.renew(file) {
                changes.push((name, change));
            }
        }
        changes
    }

    /// Those of the published versions that are not here yet.
    pub fn missing(&self, published: &Published) -> Vec<(String, u32)> {
        let here = |name: &str, version| self.published.get(name).is_some_and(|entry| entry.version == Some(version));
        published.workflows.iter().filter(|(name, version)| !here(name, *version)).cloned().collect()
    }

    /// Takes over what is published, unless something newer is known already. `fetched` are the missing ones.
    pub fn set_published(
        &mut self,
        published: &Published,
        mut fetched: BTreeMap<String, Entry>,
    ) -> Vec<(String, Change)> {
        if published.revision < self.revision {
            return Vec::new();
        }
        self.revision = published.revision;
        let mut before = std::mem::take(&mut self.published);
        let mut changes = Vec::new();
        for (name, version) in &published.workflows {
            let old = before.remove(name);
            let entry = match (fetched.remove(name), old) {
                (Some(new), _) if new.version == Some(*version) => {
                    changes.push((name.clone(), new.change()));
                    new
                }
                (_, Some(old)) => old,
                (_, None) => continue,
            };
            self.published.insert(name.clone(), entry);
        }
        changes.extend(before.into_keys().map(|name| (name, Change::Gone)));
        changes
    }
}

impl Entry {
    /// Takes a newer text over, or keeps the last good one.
    fn renew(&mut self, file: Result<Loaded, Vec<String>>) -> Option<Change> {
        let same = |new: &Loaded| self.loaded.as_ref().is_some_and(|old| old.text == new.text);
        match file {
            Ok(new) if same(&new) => {
                let mended = !std::mem::take(&mut self.faults).is_empty();
                mended.then_some(Change::Loaded)
            }
            Ok(new) => {
                *self = Self { loaded: Some(new), ..Self::default() };
                Some(Change::Loaded)
            }
            Err(faults) if faults == self.faults => None,
            Err(faults) => {
                self.faults = faults;
                Some(self.change())
            }
        }
    }

    fn change(&self) -> Change {
        if self.faults.is_empty() {
            return Change::Loaded;
        }
        Change::Broken { faults: self.faults.clone(), kept: self.loaded.is_some() }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Api => "the API",
            Self::Folder => "the folder of workflows",
            Self::BuiltIn => "what is built in",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(value: u32) -> String {
        format!("{{\"workflow\": {{\"1\": {{\"class_type\": \"A\", \"inputs\": {{\"x\": {value}}}}}}}}}")
    }

    fn files(files: &[(&str, &str)]) -> BTreeMap<String, Result<Loaded, Vec<String>>> {
        files.iter().map(|(name, text)| ((*name).to_owned(), Loaded::parse(text))).collect()
    }

    fn published(revision: u64, workflows: &[(&str, u32)]) -> Published {
        Published {
            revision,
            workflows: workflows.iter().map(|(name, version)| ((*name).to_owned(), *version)).collect(),
        }
    }

    fn fetched(name: &str, version: u32) -> BTreeMap<String, Entry> {
        BTreeMap::from([(name.to_owned(), Entry::read(&text(version), Some(version)))])
    }

    fn sources(catalogue: &Catalogue, name: &str) -> Vec<Source> {
        catalogue.all(name).map(|(source, _)| source).collect()
    }

    #[test]
    fn the_api_comes_before_the_folder_and_the_folder_before_what_is_built_in() {
        let built_in: &'static str = text(1).leak();
        let mut catalogue = Catalogue::new([("a", built_in), ("b", built_in)]);
        assert_eq!(catalogue.set_folder(files(&[("a", &text(2)), ("c", "{")])).len(), 2);
        catalogue.set_published(&published(1, &[("a", 7)]), fetched("a", 7));
        assert_eq!(sources(&catalogue, "a"), [Source::Api, Source::Folder, Source::BuiltIn]);
        assert_eq!(sources(&catalogue, "b"), [Source::BuiltIn]);
        assert_eq!(catalogue.names().into_iter().collect::<Vec<_>>(), ["a", "b", "c"]);
        assert_eq!(catalogue.unnumbered().len(), 3, "what is broken has no number, what is published has one");
        let changes = catalogue.set_published(&published(2, &[]), BTreeMap::new());
        assert_eq!(
            (changes, sources(&catalogue, "a")),
            (vec![("a".to_owned(), Change::Gone)], vec![Source::Folder, Source::BuiltIn])
        );
    }

    #[test]
    fn a_broken_file_keeps_the_last_good_one() {
        let mut catalogue = Catalogue::default();
        assert_eq!(catalogue.set_folder(files(&[("a", &text(1))])), [("a".to_owned(), Change::Loaded)]);
        catalogue.number("a", &catalogue.unnumbered()[0].1.clone(), 3);
        let [(_, Change::Broken { kept: true, .. })] = &catalogue.set_folder(files(&[("a", "{")]))[..] else {
            panic!()
        };
        assert_eq!(catalogue.set_folder(files(&[("a", "{")])), [], "told once");
        let (_, entry) = catalogue.all("a").next().unwrap();
        assert!(entry.loaded.is_some() && entry.version == Some(3) && entry.faults.len() == 1);
        let spaced = text(1).replace(':', ":  ");
        assert_eq!(catalogue.set_folder(files(&[("a", &spaced)])), [("a".to_owned(), Change::Loaded)], "mended");
        assert_eq!(catalogue.all("a").next().unwrap().1.version, Some(3), "the same content, however it is written");
        catalogue.set_folder(files(&[("a", &text(2))]));
        assert_eq!(catalogue.all("a").next().unwrap().1.version, None);
        assert_eq!(catalogue.set_folder(BTreeMap::new()), [("a".to_owned(), Change::Gone)]);
    }

    #[test]
    fn an_older_answer_of_the_store_changes_nothing() {
        let mut catalogue = Catalogue::default();
        let newer = published(5, &[("a", 2)]);
        assert_eq!(catalogue.missing(&newer), [("a".to_owned(), 2)]);
        catalogue.set_published(&newer, fetched("a", 2));
        assert_eq!(catalogue.set_published(&published(4, &[("a", 1)]), fetched("a", 1)), []);
        assert_eq!(catalogue.all("a").next().unwrap().1.version, Some(2));
        assert_eq!((catalogue.missing(&newer), catalogue.set_published(&newer, BTreeMap::new())), (vec![], vec![]));
    }
}
