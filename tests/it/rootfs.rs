//! The root file system of the image, run as the image is meant to be run but without a container engine: on a read-only root, by a user
//! who is not root. Where this user may not make namespaces the test fails and says so.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use crate::{
    place::{PROGRAM, Place, Process},
    support::{environment, task},
};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
/// Where it is in there.
const INSIDE: &str = "/usr/local/bin/comfyd";
/// The user of the image.
const USER: &str = "65532";

fn script(name: &str) -> Command {
    let mut command = Command::new(Path::new(ROOT).join("docker").join(name));
    command.stdin(Stdio::null());
    command
}

/// Assembles it in a folder.
fn assembled(folder: &Path) -> PathBuf {
    let output = script("rootfs").arg(PROGRAM).arg(folder).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    folder.join("root")
}

/// A command in there, with nothing of our environment but what the scripts need.
fn jailed(root: &Path, data: &Path, place: &Place) -> Command {
    let mut command = script("jail");
    command.arg(root).arg(data).arg(INSIDE).env_clear().env("PATH", std::env::var_os("PATH").unwrap());
    // By its name, so that names are resolved in there.
    let comfyui = place.fake.url().replace("127.0.0.1", "localhost");
    let own = [
        ("HOST".to_owned(), "127.0.0.1".to_owned()),
        ("PORT".to_owned(), place.address().port().to_string()),
        ("DATABASE_URL".to_owned(), String::new()),
        ("STORAGE_LOCAL_DIR".to_owned(), String::new()),
        ("COMFYD_LOG__DIR".to_owned(), "/data/logs".to_owned()),
        ("COMFYD_WORKFLOWS__DIR".to_owned(), String::new()),
    ];
    command.envs(environment(&place.dir, &comfyui, &own));
    command
}

/// The image has no shell to look around with: its processes are looked at.
fn of_process(id: u32, file: &str) -> String {
    fs::read_to_string(format!("/proc/{id}/{file}")).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_root_file_system_of_the_image_is_all_that_is_needed() {
    let place = Place::new().await;
    let root = assembled(&place.dir.path().join("image"));
    let data = place.dir.path().join("data");
    fs::create_dir(&data).unwrap();
    let mut process = Process::spawn(jailed(&root, &data, &place), place.dir.path());
    if let Err(status) = process.ready(&place.api).await {
        panic!("it ended before it was ready, {status}:\n{}", process.output());
    }
    place.end(&[place.api.create(&task(1)).await], 1).await;

    let status = of_process(process.id(), "status");
    let line = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    assert_eq!(line("CapEff:").trim(), "0000000000000000", "it has capabilities");
    // By a user's own namespaces it is this user outside, whoever it is inside.
    let is_root = fs::metadata("/proc/self").is_ok_and(|it| std::os::unix::fs::MetadataExt::uid(&it) == 0);
    if is_root {
        assert!(line("Uid:").split_whitespace().all(|id| id == USER), "{status}");
    }
    let mounts = of_process(process.id(), "mounts");
    let options = |place: &str| {
        let mut mounts_there =
            mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>()).filter(|it| it[1] == place);
        // The last one lies on top.
        mounts_there.next_back().map_or_else(|| panic!("{place} is not in:\n{mounts}"), |it| it[3].to_owned())
    };
    assert!(options("/").starts_with("ro"), "{mounts}");
    assert!(options("/data").starts_with("rw") && options("/tmp").starts_with("rw"), "{mounts}");
    for made in ["comfyd.db", "outputs", "logs/app.log"] {
        // The newest log is a link, and leads to where it is in there.
        assert!(fs::symlink_metadata(data.join(made)).is_ok(), "{made} is not under /data");
    }

    let healthy = jailed(&root, &data, &place).arg("healthcheck").stderr(Stdio::piped()).output().unwrap();
    assert!(healthy.status.success(), "{}", String::from_utf8_lossy(&healthy.stderr));
    process.signal("TERM");
    assert!(process.ended().await.success(), "{}", process.output());
    let dead = jailed(&root, &data, &place).arg("healthcheck").stderr(Stdio::piped()).output().unwrap();
    assert!(!dead.status.success(), "a dead service is healthy");
}

/// Whoever has no library of the host has none of the host's certificates either.
#[test]
fn the_root_file_system_holds_what_libraries_look_for() {
    let dir = tempfile::tempdir().unwrap();
    let root = assembled(&dir.path().join("image"));
    let certificates = fs::read_to_string(root.join("etc/ssl/certs/ca-certificates.crt")).unwrap();
    assert!(certificates.contains("BEGIN CERTIFICATE"));
    let users = fs::read_to_string(root.join("etc/passwd")).unwrap();
    assert!(users.contains(&format!("comfyd:x:{USER}:{USER}:")), "{users}");
    assert!(fs::read_to_string(root.join("etc/nsswitch.conf")).unwrap().contains("hosts: files dns"));
    // Besides libraries there is one program: nobody who gets in finds a shell.
    assert_eq!(fs::read_dir(root.join("usr/local/bin")).unwrap().count(), 1);
    assert!(!root.join("bin").exists() && !root.join("usr/bin").exists());
    let again = script("rootfs").arg(PROGRAM).arg(dir.path().join("image")).output().unwrap();
    assert!(!again.status.success(), "it was laid over what was there");
}
