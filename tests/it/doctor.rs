//! `comfyd doctor`: the real program looks at servers, workflows, store and storage, and says what to do.

use std::{
    fs,
    net::TcpListener,
    path::Path,
    process::{Command, Output},
};

use fake_comfyui::{FakeComfy, FakeConfig, Generation};
use serde_json::json;
use sqlx::{ConnectOptions, Connection, sqlite::SqliteConnectOptions};
use tempfile::TempDir;

use crate::{
    place::{Place, command},
    support::PATIENCE,
    tools,
};

/// What the doctor finds with these settings, run in `dir`.
async fn examined(dir: &Path, settings: &[(&str, &str)]) -> (String, Option<i32>) {
    let mut doctor: Command = command(dir);
    doctor.arg("doctor").envs(settings.iter().copied());
    let Output { status, stdout, stderr } = tools::run(doctor, PATIENCE).await;
    let text = String::from_utf8(stdout).unwrap();
    assert!(!text.contains('\u{1b}'), "no colours in a pipe");
    (text + &String::from_utf8_lossy(&stderr), status.code())
}

/// A folder and a fake that has everything the shipped workflows need.
async fn well(config: FakeConfig) -> (TempDir, FakeComfy) {
    (tempfile::tempdir().unwrap(), FakeComfy::start(config).await.unwrap())
}

fn files(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[tokio::test(flavor = "multi_thread")]
async fn all_is_well_on_a_sound_machine_and_stays_as_it_was() {
    let (dir, fake) = well(FakeConfig::default()).await;
    let (text, status) = examined(dir.path(), &[("COMFYUI_URL", &fake.url()), ("PORT", "0")]).await;
    assert_eq!(status, Some(0), "{text}");
    for told in [
        "the disk keeps a write in",
        "there is no database yet",
        "stored and read back",
        "its WebSocket opens",
        "clock",
    ] {
        assert!(text.contains(told), "{told} is not in:\n{text}");
    }
    let all = "it can run image-to-image, inpaint, text-to-image, text-to-video, upscale";
    assert!(text.contains(all) && text.contains("Everything is well."), "{text}");
    assert_eq!(files(dir.path()), ["data"], "the storage's folder and nothing else");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_server_lacks_is_told_with_what_to_do() {
    let missing = vec!["EmptyHunyuanLatentVideo".to_owned()];
    let (dir, fake) =
        well(FakeConfig { missing_classes: missing, generation: Generation::V0_3_64, ..FakeConfig::default() }).await;
    let workflows = dir.path().join("config/workflows");
    fs::create_dir_all(&workflows).unwrap();
    let ours = json!({"workflow": {"1": {"class_type": "OurOwnNode", "inputs": {}}}});
    fs::write(workflows.join("ours.json"), ours.to_string()).unwrap();
    let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let urls = format!("{},http://{gone}", fake.url());
    let (text, status) = examined(dir.path(), &[("COMFYUI_URL", &urls), ("PORT", "0")]).await;
    assert_eq!(status, Some(1), "{text}");
    for told in [
        "FAULT  it cannot run ours: node 1: there is no node class OurOwnNode",
        "-> install the custom nodes that it needs on that server, and restart it",
        "note   it cannot run text-to-video",
        "it is of an older generation",
        &format!("ComfyUI  http://{gone}\n  FAULT  it does not answer"),
        "2 faults, 2 notes",
    ] {
        assert!(text.contains(told), "{told} is not in:\n{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn it_may_look_while_the_service_runs() {
    let place = Place::new().await;
    let process = place.start().await;
    let ids = place.create(1).await;
    place.end(&ids, 1).await;
    let before = place.environment();
    let settings: Vec<(&str, &str)> = before.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let (text, status) = examined(place.dir.path(), &settings).await;
    assert_eq!(status, Some(0), "{text}");
    assert!(text.contains("a comfyd is running there") && text.contains("its schema is this program's"), "{text}");
    let ids = place.create(1).await;
    place.end(&ids, 1).await;
    drop(process);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_cannot_be_used_is_told() {
    let (dir, fake) = well(FakeConfig::default()).await;
    let url = fake.url();
    let examine = async |database: &str| {
        let (text, status) =
            examined(dir.path(), &[("COMFYUI_URL", &url), ("PORT", "0"), ("DATABASE_URL", database)]).await;
        assert_eq!(status, Some(1), "{text}");
        text
    };
    fs::write(dir.path().join("text.db"), "this is no database, and long enough to be sure of it".repeat(40)).unwrap();
    let text = examine("sqlite://text.db").await;
    assert!(
        text.contains("it cannot be read") && text.contains("-> see that the file is a database of comfyd"),
        "{text}"
    );

    let newer = dir.path().join("newer.db");
    let mut conn = SqliteConnectOptions::new().filename(&newer).create_if_missing(true).connect().await.unwrap();
    let sql = "CREATE TABLE _sqlx_migrations (version INTEGER, success INTEGER); INSERT INTO _sqlx_migrations VALUES (9999, 1)";
    sqlx::raw_sql(sql).execute(&mut conn).await.unwrap();
    conn.close().await.unwrap();
    let text = examine("sqlite://newer.db").await;
    assert!(text.contains("a newer comfyd wrote it: its schema is 9999"), "{text}");

    let text = examine("sqlite:///proc/nothing/tasks.db").await;
    assert!(text.contains("nothing can be written to /proc"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_is_taken_is_told() {
    let (dir, fake) = well(FakeConfig::default()).await;
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let (text, status) = examined(dir.path(), &[("COMFYUI_URL", &fake.url()), ("PORT", &port)]).await;
    assert_eq!(status, Some(1), "{text}");
    assert!(text.contains("comfyd cannot listen there") && text.contains("set HOST and PORT"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumers_way_to_its_api_is_looked_at() {
    const TOKEN: &str = "a-token-of-many-letters-0";
    let place = Place::new().await.with("CONSUMER_TOKEN", TOKEN);
    let _api = place.start().await;
    let (dir, fake) = well(FakeConfig::default()).await;
    let (api, fake) = (place.api.url("/api/"), fake.url());
    let examine = async |url: &str, token: &str| {
        let settings = [
            ("COMFYUI_URL", fake.as_str()),
            ("TASK_API_URL", url),
            ("CONSUMER_TOKEN", token),
            ("COMFYD_CONSUMER__PORT", "0"),
        ];
        examined(dir.path(), &settings).await
    };
    let (text, status) = examine(&api, TOKEN).await;
    assert_eq!(status, Some(0), "{text}");
    for told in ["it takes this consumer, and answers in", "its clock and ours agree", "in plain text", "it can run"] {
        assert!(text.contains(told), "{told} is not in:\n{text}");
    }
    assert!(!text.contains("Store") && !text.contains(TOKEN), "{text}");
    assert_eq!(files(dir.path()), Vec::<String>::new(), "nothing of a consumer lies here");

    let (text, status) = examine(&api, "another-token-of-letters-0").await;
    assert_eq!(status, Some(1), "{text}");
    assert!(
        text.contains("FAULT  the API answered 401") && text.contains("CONSUMER_TOKEN as a bearer token"),
        "{text}"
    );
    let (text, status) = examine(&fake, TOKEN).await;
    assert_eq!(status, Some(1), "{text}");
    assert!(
        text.contains("FAULT  the API answered 404") && text.contains("-> see that TASK_API_URL is the address"),
        "{text}"
    );
    let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (text, status) = examine(&format!("http://{gone}"), TOKEN).await;
    assert!(status == Some(1) && text.contains("FAULT  the API does not answer"), "{text}");
}
