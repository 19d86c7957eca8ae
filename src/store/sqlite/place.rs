//! Where the database may lie: on a disk of this machine. `SQLite`'s log and locks need shared memory and working file locks, which
//! network file systems only pretend to have; the damage shows weeks later. And where it has to stay: a file that was deleted or
//! replaced takes writes as before, and loses all of them with the process.

use std::{
    fs::{self, File, Metadata},
    io,
    path::{Path, PathBuf},
};

/// File systems that are a network, or another machine, behind a folder.
const REMOTE: &[&str] = &[
    "nfs",
    "nfs4",
    "cifs",
    "smb3",
    "smbfs",
    "9p",
    "afs",
    "ceph",
    "lustre",
    "gpfs",
    "ncpfs",
    "fuse.sshfs",
    "fuse.glusterfs",
    "fuse.ceph",
    "fuse.s3fs",
    "fuse.gcsfuse",
    "fuse.rclone",
    "fuse.juicefs",
];

/// The database's files, and which file it is.
#[derive(Debug, Clone)]
pub(super) struct Files {
    pub(super) database: PathBuf,
    /// The write-ahead log, which commits go to first.
    pub(super) log: PathBuf,
    identity: (u64, u64),
}

impl Files {
    /// The files of a database that is there.
    pub(super) fn of(database: &Path) -> io::Result<Self> {
        let mut log = database.as_os_str().to_owned();
        log.push("-wal");
        Ok(Self { database: database.into(), log: log.into(), identity: identity(&fs::metadata(database)?) })
    }

    /// Whether the database is still where it was, and still the same.
    ///
    /// # Errors
    /// It is not: what is written now would be lost with this process.
    pub(super) fn check(&self) -> io::Result<()> {
        let path = self.database.display();
        let found = fs::metadata(&self.database).map_err(|error| {
            io::Error::new(error.kind(), format!("the database {path} is gone ({error}): put it back"))
        })?;
        if identity(&found) == self.identity {
            return Ok(());
        }
        Err(io::Error::other(format!(
            "{path} is not the file it was: put the database back, or start comfyd again to use the new one"
        )))
    }

    /// Waits until the disk has the log of the database that is at its place.
    pub(super) fn flush(&self) -> io::Result<()> {
        // Opened each time: it is another file when SQLite made it anew.
        File::open(&self.log)?.sync_data()?;
        self.check()
    }
}

/// What tells a file from every other.
#[cfg(unix)]
fn identity(file: &Metadata) -> (u64, u64) {
    use std::os::unix::fs::MetadataExt;
    (file.dev(), file.ino())
}

/// Elsewhere only a missing file is noticed.
#[cfg(not(unix))]
fn identity(_: &Metadata) -> (u64, u64) {
    (0, 0)
}

/// The remote file system `folder` lies on, if it does. Systems without Linux's list of mounts are taken at their word.
#[must_use]
pub fn remote_file_system(folder: &Path) -> Option<String> {
    let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
    let kind = file_system(&mounts, &folder.canonicalize().ok()?)?;
    REMOTE.contains(&kind).then(|| kind.to_owned())
}

/// The type of the deepest mount that holds `folder`; of several on one spot the last, which covers the others.
fn file_system<'m>(mounts: &'m str, folder: &Path) -> Option<&'m str> {
    let mut deepest: Option<(PathBuf, &str)> = None;
    for line in mounts.lines() {
        let mut fields = line.split(' ').skip(1);
        let (Some(point), Some(kind)) = (fields.next(), fields.next()) else { continue };
        let point = PathBuf::from(unescape(point));
        let deeper = deepest.as_ref().is_none_or(|(best, _)| point.components().count() >= best.components().count());
        if folder.starts_with(&point) && deeper {
            deepest = Some((point, kind));
        }
    }
    deepest.map(|(_, kind)| kind)
}

/// The kernel writes blanks and the like in octal.
fn unescape(text: &str) -> String {
    text.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "/dev/sda / ext4 rw 0 0\n\
                          box:/x /mnt nfs4 rw 0 0\n\
                          /dev/sdb /mnt/fast\\040disk xfs rw 0 0\n\
                          tmpfs /run tmpfs rw 0 0\n\
                          //nas/y /run cifs rw 0 0\n";

    #[test]
    fn the_deepest_and_newest_mount_counts() {
        let kind = |folder: &str| file_system(MOUNTS, Path::new(folder));
        assert_eq!(kind("/var/lib"), Some("ext4"));
        assert_eq!(kind("/mnt/data"), Some("nfs4"));
        assert_eq!(kind("/mntdata"), Some("ext4"));
        assert_eq!(kind("/mnt/fast disk/data"), Some("xfs"));
        assert_eq!(kind("/run"), Some("cifs"));
    }

    #[test]
    fn a_temporary_folder_is_local() {
        assert_eq!(remote_file_system(&std::env::temp_dir()), None);
    }
}
