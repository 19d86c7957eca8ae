//! The input, output and temp folders.
//!
//! Small files live in memory; when the cap is reached, and for large ones, a temporary folder takes them. Generated files are
//! never stored at all: their bytes follow from a seed.

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::SystemTime;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// Files above this size go to the disk at once.
const LARGE: usize = 4 * 1024 * 1024;

/// One of ComfyUI's three folders.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Folder {
    Input,
    Output,
    Temp,
}

impl Folder {
    pub(crate) fn parse(name: &str) -> Option<Self> {
        match name {
            "input" => Some(Self::Input),
            "output" => Some(Self::Output),
            "temp" => Some(Self::Temp),
            _ => None,
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Input => "input",
            Self::Output => "output",
            Self::Temp => "temp",
        }
    }
}

/// Where a file is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Place {
    pub folder: Folder,
    /// Without slashes at its ends; empty for the folder itself.
    pub subfolder: String,
    pub filename: String,
}

/// The bytes of a file, or how to get them.
#[derive(Debug, Clone)]
pub(crate) enum Content {
    Memory(Bytes),
    Disk {
        path: PathBuf,
        length: u64,
    },
    /// Pseudo-random bytes that follow from the seed.
    Generated {
        seed: u64,
        length: u64,
    },
}

impl Content {
    pub fn length(&self) -> u64 {
        match self {
            Self::Memory(bytes) => bytes.len() as u64,
            Self::Disk { length, .. } | Self::Generated { length, .. } => *length,
        }
    }

    /// All bytes at once; for pictures, which are small.
    pub fn read(&self) -> io::Result<Bytes> {
        match self {
            Self::Memory(bytes) => Ok(bytes.clone()),
            Self::Disk { path, .. } => std::fs::read(path).map(Bytes::from),
            Self::Generated { .. } => Err(io::Error::other("generated files are only streamed")),
        }
    }
}

/// Fills `buffer` with the bytes of a generated file from `offset` on.
pub(crate) fn generate(seed: u64, offset: u64, buffer: &mut [u8]) {
    let mut position = offset;
    let mut filled = 0;
    while filled < buffer.len() {
        let word = mix(seed ^ (position / 8).wrapping_mul(0x9E37_79B9_7F4A_7C15)).to_le_bytes();
        let skip = (position % 8) as usize;
        let count = (8 - skip).min(buffer.len() - filled);
        buffer[filled..filled + count].copy_from_slice(&word[skip..skip + count]);
        filled += count;
        position += count as u64;
    }
}

/// A cheap, well-mixing hash of one word (the finaliser of SplitMix64).
pub(crate) fn mix(mut word: u64) -> u64 {
    word = (word ^ (word >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    word ^ (word >> 31)
}

/// A stored file.
#[derive(Debug, Clone)]
pub(crate) struct Stored {
    pub content: Content,
    pub modified: SystemTime,
    /// Distinguishes versions of one name; part of the ETag and of the cache key of loaders.
    pub version: u64,
}

/// The three folders of one server.
#[derive(Debug)]
pub(crate) struct Files {
    memory_cap: u64,
    memory_used: AtomicU64,
    next_version: AtomicU64,
    stored: Mutex<HashMap<Place, Stored>>,
    /// The last number given out for a name in a folder.
    counters: Mutex<HashMap<(Folder, String, String), u32>>,
    disk: OnceLock<Option<tempfile::TempDir>>,
}

impl Files {
    pub fn new(memory_cap: u64) -> Self {
        Self {
            memory_cap,
            memory_used: AtomicU64::new(0),
            next_version: AtomicU64::new(1),
            stored: Mutex::new(HashMap::new()),
            counters: Mutex::new(HashMap::new()),
            disk: OnceLock::new(),
        }
    }

    /// Stores bytes under a name, replacing what was there.
    pub fn write(&self, place: Place, bytes: Bytes) {
        let length = bytes.len() as u64;
        let fits = bytes.len() <= LARGE && self.memory_used.load(Ordering::Relaxed) + length <= self.memory_cap;
        let content = if fits { Content::Memory(bytes) } else { self.spill(bytes) };
        self.put(place, content);
    }

    /// Stores content that is already somewhere.
    pub fn put(&self, place: Place, content: Content) {
        let version = self.next_version.fetch_add(1, Ordering::Relaxed);
        self.memory_used.fetch_add(in_memory(&content), Ordering::Relaxed);
        let stored = Stored { content, modified: SystemTime::now(), version };
        let old = self.lock().insert(place, stored);
        self.release(old);
    }

    pub fn get(&self, place: &Place) -> Option<Stored> {
        self.lock().get(place).cloned()
    }

    /// Deletes a file; tells whether it was there.
    pub fn delete(&self, place: &Place) -> bool {
        let old = self.lock().remove(place);
        let found = old.is_some();
        self.release(old);
        found
    }

    /// Finds the file a loader names: `"name"`, `"sub/name"`, with an optional ` [input]`, ` [output]` or ` [temp]` behind it.
    pub fn find_annotated(&self, name: &str) -> Option<Stored> {
        let (name, folder) = split_annotation(name);
        let (subfolder, filename) = name.rsplit_once('/').unwrap_or(("", name));
        let place = Place {
            folder: folder.unwrap_or(Folder::Input),
            subfolder: clean_subfolder(subfolder)?,
            filename: filename.to_owned(),
        };
        self.get(&place)
    }

    /// The names directly in a folder, sorted.
    pub fn names(&self, folder: Folder) -> Vec<String> {
        let stored = self.lock();
        let top = stored.keys().filter(|place| place.folder == folder && place.subfolder.is_empty());
        let mut names: Vec<String> = top.map(|place| place.filename.clone()).collect();
        names.sort_unstable();
        names
    }

    /// The next free number for `prefix` in a folder, from 1.
    pub fn next_number(&self, folder: Folder, subfolder: &str, prefix: &str) -> u32 {
        let mut counters = self.counters.lock().unwrap_or_else(PoisonError::into_inner);
        let counter = counters.entry((folder, subfolder.to_owned(), prefix.to_owned())).or_insert(0);
        *counter += 1;
        *counter
    }

    /// Empties a folder, as ComfyUI does with temp when it starts.
    pub fn clear(&self, folder: Folder) {
        let mut stored = self.lock();
        let gone: Vec<Place> = stored.keys().filter(|place| place.folder == folder).cloned().collect();
        let old: Vec<Stored> = gone.iter().filter_map(|place| stored.remove(place)).collect();
        drop(stored);
        old.into_iter().for_each(|old| self.release(Some(old)));
    }

    fn spill(&self, bytes: Bytes) -> Content {
        let disk = self.disk.get_or_init(|| tempfile::Builder::new().prefix("fake-comfyui-").tempdir().ok());
        let Some(disk) = disk else {
            return Content::Memory(bytes);
        };
        let path = disk.path().join(self.next_version.fetch_add(1, Ordering::Relaxed).to_string());
        match std::fs::write(&path, &bytes) {
            Ok(()) => Content::Disk { path, length: bytes.len() as u64 },
            Err(error) => {
                tracing::warn!(%error, "failed to store a file on disk, kept in memory");
                Content::Memory(bytes)
            }
        }
    }

    fn release(&self, old: Option<Stored>) {
        let Some(old) = old else { return };
        self.memory_used.fetch_sub(in_memory(&old.content), Ordering::Relaxed);
        if let Content::Disk { path, .. } = old.content {
            // The whole folder goes with the server; a file left behind until then is harmless.
            let _ = std::fs::remove_file(path);
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Place, Stored>> {
        self.stored.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn in_memory(content: &Content) -> u64 {
    match content {
        Content::Memory(bytes) => bytes.len() as u64,
        _ => 0,
    }
}

/// Splits `"name [output]"` into the name and the folder.
pub(crate) fn split_annotation(name: &str) -> (&str, Option<Folder>) {
    for (suffix, folder) in [(" [input]", Folder::Input), (" [output]", Folder::Output), (" [temp]", Folder::Temp)] {
        if let Some(bare) = name.strip_suffix(suffix) {
            return (bare, Some(folder));
        }
    }
    (name, None)
}

/// A subfolder in its one spelling; `None` when it leaves its folder.
pub(crate) fn clean_subfolder(subfolder: &str) -> Option<String> {
    if subfolder.starts_with('/') {
        return None;
    }
    let mut parts: Vec<&str> = Vec::new();
    for part in subfolder.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop()?;
            }
            part => parts.push(part),
        }
    }
    Some(parts.join("/"))
}
