//! Sees the folder of workflows change. The file system tells; nobody looks again and again.
//!
//! The folder may be missing, come later, or be replaced as a whole, so its nearest existing ancestor is watched too, for the next step
//! of the path to appear or go.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use notify::{
    Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher,
    event::{AccessKind, AccessMode},
};
use tokio::{
    sync::Notify,
    time::{Instant, timeout, timeout_at},
};
use tracing::warn;

/// A file is often written in pieces, and a deployment writes several: after this long without another event they are read.
const QUIET: Duration = Duration::from_millis(100);
/// However long it goes on, they are read after this.
const LONGEST: Duration = Duration::from_secs(2);

/// A pair of eyes on the folder.
pub struct FolderWatch {
    dir: PathBuf,
    watcher: RecommendedWatcher,
    watched: Vec<PathBuf>,
    seen: Arc<Notify>,
}

impl FolderWatch {
    /// Eyes on `dir`, an absolute path; closed until [`Self::arm`].
    ///
    /// # Errors
    /// When the system has no more watches to give.
    pub fn new(dir: &Path) -> notify::Result<Self> {
        let seen = Arc::new(Notify::new());
        let (told, of) = (seen.clone(), dir.to_owned());
        let watcher = notify::recommended_watcher(move |event: notify::Result<Event>| {
            if event.map_or(true, |event| concerns(&event, &of)) {
                told.notify_one();
            }
        })?;
        Ok(Self { dir: dir.to_owned(), watcher, watched: Vec::new(), seen })
    }

    /// Looks at what is there now: the folder, if it is, and the nearest ancestor. To be called before the folder is read, so that nothing
    /// falls in between.
    pub fn arm(&mut self) {
        for path in self.watched.drain(..) {
            // What is gone needs no unwatching.
            _ = self.watcher.unwatch(&path);
        }
        let ancestor = self.dir.ancestors().skip(1).find(|path| path.is_dir()).map(Path::to_owned);
        let folder = Some(self.dir.clone()).filter(|dir| dir.is_dir());
        for path in [ancestor, folder].into_iter().flatten() {
            match self.watcher.watch(&path, RecursiveMode::NonRecursive) {
                Ok(()) => self.watched.push(path),
                Err(error) => warn!(path = %path.display(), %error, "cannot watch the folder of workflows"),
            }
        }
    }

    /// Returns when something changed and calm has come back.
    pub async fn changed(&self) {
        self.seen.notified().await;
        let latest = Instant::now() + LONGEST;
        while let Ok(Ok(())) = timeout_at(latest, timeout(QUIET, self.seen.notified())).await {}
    }
}

/// Reading a file makes events too: only what may have changed one counts, in the folder or on the way to it.
fn concerns(event: &Event, dir: &Path) -> bool {
    let only_read = match event.kind {
        EventKind::Access(AccessKind::Close(AccessMode::Write)) => false,
        EventKind::Access(_) => true,
        _ => false,
    };
    let near = |path: &PathBuf| path.starts_with(dir) || dir.starts_with(path);
    !only_read && (event.need_rescan() || event.paths.iter().any(near))
}
