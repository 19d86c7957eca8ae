//! Makes folders and sees to it that they survive a power cut.
//!
//! A new file is only safe when the entries of all folders above it are on the disk too. Flushing every one of them for
//! every file would be sure and slow, flushing only those one made oneself would be wrong: the outputs of one task are stored
//! side by side, and the second finds a folder there that the first has made and not yet flushed. So it is known in memory
//! which folders have unflushed entries, and everyone who passes through such a folder flushes it.

use std::{
    collections::HashMap,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc},
};

use tokio::runtime::Handle;

/// The folders below one root.
#[derive(Debug, Default)]
pub(super) struct Folders {
    /// Folders with entries that may not be on the disk yet, and how many puts are about to flush them.
    unflushed: Mutex<HashMap<PathBuf, usize>>,
}

impl Folders {
    /// Makes the folder `below` under `root` with all between. What it returns must be [flushed](Unflushed::flush) once the
    /// file is in its place.
    pub fn make(self: &Arc<Self>, root: &Path, below: &Path) -> io::Result<Unflushed> {
        let mut made = Unflushed { folders: Arc::clone(self), above: Vec::new() };
        let mut folder = root.to_owned();
        for part in below {
            let parent = folder.clone();
            folder.push(part);
            // Under the lock, so that nobody sees the new folder without the note that its parent is unflushed.
            let mut unflushed = self.lock();
            let is_new = match fs::create_dir(&folder) {
                Ok(()) => true,
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => false,
                Err(error) => return Err(error),
            };
            if is_new || unflushed.contains_key(&parent) {
                *unflushed.entry(parent.clone()).or_default() += 1;
                made.above.push(parent);
            }
        }
        Ok(made)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<PathBuf, usize>> {
        // The map is whole between any two statements, so a panic elsewhere leaves it usable.
        self.unflushed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn flushed(&self, folder: &Path) {
        let mut unflushed = self.lock();
        if let Some(waiting) = unflushed.get_mut(folder) {
            *waiting -= 1;
            if *waiting == 0 {
                unflushed.remove(folder);
            }
        }
    }
}

/// Folders that one put has to flush. When it fails before, dropping this flushes them nevertheless, as later puts
/// would rely on it.
#[derive(Debug)]
pub(super) struct Unflushed {
    folders: Arc<Folders>,
    above: Vec<PathBuf>,
}

impl Unflushed {
    /// Flushes `file`, its `folder` and those above that need it.
    pub fn flush(mut self, file: &File, folder: &Path) -> io::Result<()> {
        flush_together(file, folder, &self.above)?;
        for folder in self.above.drain(..) {
            self.folders.flushed(&folder);
        }
        Ok(())
    }
}

impl Drop for Unflushed {
    fn drop(&mut self) {
        for folder in self.above.drain(..) {
            // On an error the note stays, and the next put tries again.
            if flush(&folder).is_ok() {
                self.folders.flushed(&folder);
            }
        }
    }
}

/// Flushes all at the same time. Flushes that wait together share one commit of the journal and one of the disk's cache:
/// four of them took 4.3 ms on a busy disk, one alone 3.9 ms, and one after the other 16 ms. The threads are the runtime's: a
/// new one for each flush costs as much as the flush.
fn flush_together(file: &File, folder: &Path, above: &[PathBuf]) -> io::Result<()> {
    let folders: Vec<_> = std::iter::once(folder).chain(above.iter().map(PathBuf::as_path)).collect();
    let Ok(runtime) = Handle::try_current() else {
        return file.sync_all().and_then(|()| folders.into_iter().try_for_each(flush));
    };
    let (told, outcomes) = mpsc::channel();
    for folder in &folders {
        let (told, folder) = (told.clone(), (*folder).to_owned());
        // If nobody hears it any more, the put was given up.
        runtime.spawn_blocking(move || drop(told.send(flush(&folder))));
    }
    drop(told);
    let flushed = file.sync_all();
    let (outcomes, wanted) = (outcomes.into_iter().collect::<Vec<_>>(), folders.len());
    if outcomes.len() < wanted {
        return Err(io::Error::other("the process is about to stop"));
    }
    outcomes.into_iter().fold(flushed, io::Result::and)
}

fn flush(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_passes_an_unflushed_folder_flushes_it() {
        let root = tempfile::tempdir().unwrap();
        let folders = Arc::new(Folders::default());
        let first = folders.make(root.path(), Path::new("a/b")).unwrap();
        let second = folders.make(root.path(), Path::new("a/b")).unwrap();
        assert_eq!(first.above, [root.path().to_owned(), root.path().join("a")]);
        assert_eq!(second.above, first.above);
        let file = File::create(root.path().join("a/b/file")).unwrap();
        first.flush(&file, &root.path().join("a/b")).unwrap();
        assert_eq!(folders.lock().len(), 2, "the second has not flushed yet");
        drop(second);
        assert!(folders.lock().is_empty());
        let third = folders.make(root.path(), Path::new("a/b")).unwrap();
        assert!(third.above.is_empty());
    }

    #[test]
    fn a_file_in_the_way_is_an_error() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("a"), "x").unwrap();
        let folders = Arc::new(Folders::default());
        assert!(folders.make(root.path(), Path::new("a/b")).is_err());
        assert!(folders.lock().is_empty());
    }
}
