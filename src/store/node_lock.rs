//! Who else uses the database: the locks that say "no other process is alive".
//!
//! A process that came when nobody else was there may take over the tasks of its predecessors at once, instead of waiting for their leases
//! to expire; one that goes when nobody else is there may say that the file was left in good order. The operating system drops a lock with
//! its process, however that ends: lock files left on disk mean nothing.
//!
//! Two files, because a lock cannot be weakened in one step. Whoever lives holds the second one, shared. Whoever comes or goes holds the
//! first one for that moment, alone, and so has time to see whether anybody else holds the second.

use std::{
    fs::{File, OpenOptions, TryLockError},
    io,
    path::{Path, PathBuf},
    time::Duration,
};

/// Whoever comes or goes does so in less: a few calls to the system, or one commit, which may have to wait for another process's.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often a lock that somebody has is tried. Nobody is told when it is free.
const TRY_EVERY: Duration = Duration::from_millis(10);

/// The held locks. Keep them for as long as the process lives.
#[derive(Debug)]
pub struct NodeLock {
    gate: File,
    alive: File,
    was_alone: bool,
}

impl NodeLock {
    /// Counts this process among those that use the database at `database`. Waits while another one comes or goes.
    ///
    /// # Errors
    /// When the lock files next to the database cannot be made or locked at all. `TimedOut` when another process neither comes nor goes.
    pub async fn acquire(database: &Path) -> io::Result<Self> {
        let open = |path| OpenOptions::new().create(true).truncate(false).write(true).open(path);
        let (gate, alive) = (open(Self::path(database))?, open(beside(database, ".alive"))?);
        enter(&gate).await?;
        let was_alone = try_alone(&alive)?;
        if was_alone {
            alive.unlock()?;
        }
        alive.lock_shared()?;
        gate.unlock()?;
        Ok(Self { gate, alive, was_alone })
    }

    /// Whether nobody else used the database when this process came: then whoever held a lease in it is dead.
    #[must_use]
    pub fn was_alone(&self) -> bool {
        self.was_alone
    }

    /// Whether nobody else uses the database now that this process goes. Whoever comes has to wait until this is dropped.
    ///
    /// # Errors
    /// As for [`Self::acquire`].
    pub async fn leaves_nobody(&self) -> io::Result<bool> {
        enter(&self.gate).await?;
        try_alone(&self.alive)
    }

    /// The first lock file: the database's name with `.lock` after it.
    #[must_use]
    pub fn path(database: &Path) -> PathBuf {
        beside(database, ".lock")
    }
}

async fn enter(gate: &File) -> io::Result<()> {
    let trying = async {
        while !try_alone(gate)? {
            tokio::time::sleep(TRY_EVERY).await;
        }
        Ok(())
    };
    tokio::time::timeout(PATIENCE, trying).await.unwrap_or_else(|_| {
        let why =
            "another process has been starting or stopping on this database for too long; end it, then start again";
        Err(io::Error::new(io::ErrorKind::TimedOut, why))
    })
}

fn try_alone(file: &File) -> io::Result<bool> {
    match file.try_lock() {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

fn beside(database: &Path, ending: &str) -> PathBuf {
    let mut name = database.as_os_str().to_owned();
    name.push(ending);
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn come(database: &Path) -> NodeLock {
        NodeLock::acquire(database).await.unwrap()
    }

    #[tokio::test]
    async fn who_comes_and_who_goes_knows_whether_it_is_alone() {
        let folder = tempfile::tempdir().unwrap();
        let database = folder.path().join("tasks.db");
        let first = come(&database).await;
        assert!(first.was_alone());
        let second = come(&database).await;
        assert!(!second.was_alone());
        assert!(!first.leaves_nobody().await.unwrap(), "the second lives");
        drop(first);
        let third = come(&database).await;
        assert!(!third.was_alone(), "the second lives, though it was not the first");
        drop(third);
        assert!(second.leaves_nobody().await.unwrap());
        drop(second);
        assert!(come(&database).await.was_alone(), "lock files left behind mean nothing");
    }

    #[tokio::test]
    async fn who_comes_waits_for_who_goes() {
        let folder = tempfile::tempdir().unwrap();
        let database = folder.path().join("tasks.db");
        let going = come(&database).await;
        assert!(going.leaves_nobody().await.unwrap());
        let coming = come(&database);
        tokio::pin!(coming);
        assert!(futures_util::poll!(&mut coming).is_pending());
        drop(going);
        assert!(coming.await.was_alone());
    }

    #[tokio::test(start_paused = true)]
    async fn who_neither_comes_nor_goes_is_told_of() {
        let folder = tempfile::tempdir().unwrap();
        let database = folder.path().join("tasks.db");
        let frozen = come(&database).await;
        frozen.leaves_nobody().await.unwrap();
        assert_eq!(NodeLock::acquire(&database).await.unwrap_err().kind(), io::ErrorKind::TimedOut);
    }
}
