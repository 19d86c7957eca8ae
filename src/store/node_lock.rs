//! The lock that says "no other process of this node is alive".
//!
//! A process that holds it may take over the tasks of its predecessors at once instead of waiting for their leases to expire. The
//! operating system releases it with the process, however that ends: a lock file left on disk means nothing.

use std::{
    fs::{File, OpenOptions, TryLockError},
    io,
    path::{Path, PathBuf},
};

/// The held lock. Keep it for as long as the process lives.
#[derive(Debug)]
pub struct NodeLock {
    /// Closing it is what lets go.
    _file: File,
}

impl NodeLock {
    /// Takes the lock that belongs to the database at `database`. `None` when another process has it.
    ///
    /// # Errors
    /// When the lock file next to the database cannot be made or locked at all.
    pub fn try_acquire(database: &Path) -> io::Result<Option<Self>> {
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(Self::path(database))?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Self { _file: file })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    /// The lock file: the database's name with `.lock` after it.
    #[must_use]
    pub fn path(database: &Path) -> PathBuf {
        let mut name = database.as_os_str().to_owned();
        name.push(".lock");
        name.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let database = folder.path().join("tasks.db");
        let first = NodeLock::try_acquire(&database).unwrap();
        assert!(first.is_some());
        assert!(NodeLock::try_acquire(&database).unwrap().is_none());
        drop(first);
        assert!(NodeLock::try_acquire(&database).unwrap().is_some(), "a lock file left behind means nothing");
    }
}
