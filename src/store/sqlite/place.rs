//! Where the database may lie: on a disk of this machine. `SQLite`'s log and locks need shared memory and working file locks, which
//! network file systems only pretend to have; the damage shows weeks later.

use std::path::{Path, PathBuf};

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

/// The remote file system `folder` lies on, if it does. Systems without Linux's list of mounts are taken at their word.
pub(super) fn remote_file_system(folder: &Path) -> Option<String> {
    let mounts = std::fs::read_to_string("/proc/self/mounts").ok()?;
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
