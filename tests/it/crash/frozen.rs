//! C19: a process is frozen for longer than its lease, another one adopts its task and ends it, and then the first one wakes up.
//!
//! It freezes between two commits: in the midst of one it would hold the database's lock, and everybody else would have to wait for it.

use std::{fs, time::Duration};

use fake_comfyui::{FakeConfig, Fault};
use serde_json::Value;
use tokio::time::timeout;

use super::chain::verdict;
use crate::{
    place::{Place, Process, free_address},
    recorder::{Recorder, gather, newest_event},
    support::{Api, PATIENCE, task},
};

/// Leases that end while a test can wait for it.
const SHORT: [(&str, &str); 4] = [
    ("COMFYD_QUEUE__LEASE", "1500ms"),
    ("COMFYD_QUEUE__RENEW_EVERY", "200ms"),
    ("COMFYD_COMFYUI__POST_TIMEOUT", "500ms"),
    ("COMFYD_COMFYUI__VALIDATE_GRACE", "100ms"),
];

/// Waits until the process has stopped itself.
async fn frozen(process: &Process) {
    let is_stopped = || {
        let status = fs::read_to_string(format!("/proc/{}/stat", process.id())).unwrap();
        status.rsplit(')').next().unwrap().trim_start().starts_with('T')
    };
    let stopping = async {
        while !is_stopped() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    timeout(PATIENCE, stopping).await.expect("it is not frozen");
}

/// The first process freezes after a commit, the second finishes the task, the first wakes up and has its say, to which nobody listens.
async fn wakes_up_too_late(point: &str, fault: Option<Fault>) {
    let config = FakeConfig { node_time: Duration::from_millis(50), ..FakeConfig::default() };
    let place = SHORT.iter().fold(Place::of(config).await, |place, (name, value)| place.with(name, value));
    if let Some(fault) = fault {
        place.control().inject_times(fault, 1).await.unwrap();
    }
    let first = place.launch(&[("FREEZE_AT", point)]);
    let client = Recorder::new(place.api.clone());
    let asking = client.clone();
    // It may be answered by a process that has woken up again.
    let created = tokio::spawn(async move { asking.create(&task(1), "client-0", Some(1)).await });
    frozen(&first).await;

    let address = free_address();
    let second = place.launch(&[("PORT", &address.port().to_string())]);
    let api = Api::new(address);
    let other = client.at(api.clone());
    let listener = other.clone();
    let listening = tokio::spawn(async move { listener.listen().await });
    let page: Value = api.until("/api/tasks", |page| page["tasks"] != Value::Array(Vec::new())).await;
    let id = page["tasks"][0]["task_id"].as_str().unwrap().to_owned();
    let end = other.end(&id).await;
    other.read(&end).await;

    first.signal("CONT");
    assert_eq!(timeout(PATIENCE, created).await.expect("it does not wake up").unwrap(), id);
    place.api.until_status(|status| status["backends"][0]["in_flight"] == 0).await;
    client.see(&id).await;
    other.heard(newest_event(&place.database()).await).await;
    listening.abort();
    drop((first, second));
    let history = gather(&client, std::slice::from_ref(&place.fake), &place).await;
    let broken = verdict(&format!("frozen at {point}"), 1, &history);
    assert!(broken.is_empty(), "\n{}", broken.join("\n"));
}

/// It fences itself: when it wakes up, its lease is too old to send anything.
#[tokio::test(flavor = "multi_thread")]
async fn c19_frozen_before_the_prompt_is_sent() {
    wakes_up_too_late("committed/claimed", None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn c19_frozen_while_the_prompt_runs() {
    wakes_up_too_late("committed/accepted", None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn c19_frozen_while_the_output_is_stored() {
    wakes_up_too_late("committed/planned", Some(Fault::SlowView { bytes_per_second: 100 })).await;
}
