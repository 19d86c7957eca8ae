//! Who gets which frame, and what reconnecting does: traces 09a to 09e, 10 and 17.

use fake_comfyui::{EventKind, Fault};
use serde_json::json;

use crate::client::{Frame, Rig, Socket, kinds, simple, slow, within};
use crate::trace::Trace;

const CURRENT: &str = "comfyui";

/// The kinds of frames a recorded socket got, from its opening on.
fn recorded_kinds(number: &str, socket: &str) -> Vec<String> {
    kinds(&Trace::load(CURRENT, number).frames(socket))
}

#[tokio::test]
async fn a_client_that_reconnects_gets_the_running_node_and_plain_previews() {
    let rig = Rig::new().await;
    let mut socket = rig.socket("me").await;
    socket.negotiate().await;
    rig.control.pause_execution();
    let id = rig.run(slow(1, 3, 0.0), "me").await;
    rig.wait_gated(&id).await;
    let position = rig.control.position();
    drop(socket);
    within(
        "the end of the socket",
        rig.control.wait_from(position, |event| matches!(event, EventKind::SocketClosed { .. })),
    )
    .await;

    let mut again = Socket::open(&rig.fake, "/ws?clientId=me").await;
    let status = again.next().await;
    assert_eq!(status.data()["sid"], "me");
    // As in trace 09a: the node and nothing else, not even the prompt.
    let executing = again.next().await;
    assert_eq!(*executing.data(), json!({"node": "1"}));
    rig.control.resume();
    let frames = again.until(|frame| frame.ends(&id)).await;
    let previews: Vec<String> = kinds(&frames).into_iter().filter(|kind| kind.starts_with("BIN")).collect();
    assert_eq!(previews, ["BIN1", "BIN1", "BIN1"]);
}

#[tokio::test]
async fn a_client_that_reconnects_after_the_end_gets_status_only() {
    let rig = Rig::new().await;
    let id = rig.run(simple(1), "me").await;
    rig.wait_finished(&id).await;
    let mut socket = Socket::open(&rig.fake, "/ws?clientId=me").await;
    let frames = socket.drain().await;
    assert_eq!(kinds(&frames), ["status"]);
    assert_eq!(recorded_kinds("09b", "ws2"), ["status"]);
}

#[tokio::test]
async fn the_newest_twin_gets_everything_until_the_older_one_closes() {
    let rig = Rig::new().await;
    let mut older = rig.socket("me").await;
    let mut newer = rig.socket("me").await;
    let id = rig.run(simple(1), "me").await;
    newer.until(|frame| frame.ends(&id)).await;
    assert_eq!(kinds(&older.drain().await), [""; 0]);

    let position = rig.control.position();
    older.close().await;
    within(
        "the end of the socket",
        rig.control.wait_from(position, |event| matches!(event, EventKind::SocketClosed { .. })),
    )
    .await;
    let id = rig.run(simple(2), "me").await;
    rig.wait_finished(&id).await;
    // Alive, and deaf.
    assert_eq!(kinds(&newer.drain().await), [""; 0]);
}

#[tokio::test]
async fn frames_go_to_the_owner_and_those_of_nobody_to_everybody() {
    let rig = Rig::new().await;
    let mut owner = rig.socket("owner").await;
    let mut bystander = rig.socket("bystander").await;
    let id = rig.run(slow(1, 2, 0.0), "owner").await;
    owner.until(|frame| frame.ends(&id)).await;
    assert_eq!(kinds(&bystander.drain().await), ["status"; 3]);

    // Trace 09d: a job without client_id.
    let id = rig.submit(&json!({"prompt": slow(2, 3, 0.0)})).await;
    rig.wait_finished(&id).await;
    let mine = kinds(&owner.drain().await);
    assert_eq!(mine, kinds(&bystander.drain().await));
    let mut expected = vec!["status", "status"];
    expected.extend(["progress_state"; 3]);
    expected.extend(["progress_state", "progress", "BIN1"].repeat(3));
    expected.extend(["progress_state"; 3]);
    expected.push("status");
    assert_eq!(mine, expected);

    // One that fails tells nobody why, one that is interrupted tells everybody.
    rig.control.inject_times(Fault::node_error("x"), 1).await.expect("injected");
    let id = rig.submit(&json!({"prompt": simple(3)})).await;
    rig.wait_finished(&id).await;
    assert_eq!(kinds(&owner.drain().await), ["status", "status", "progress_state", "status"]);
    rig.control.pause_execution();
    let id = rig.submit(&json!({"prompt": simple(4)})).await;
    rig.wait_gated(&id).await;
    rig.post("/interrupt", &json!({})).await;
    rig.wait_finished(&id).await;
    assert!(kinds(&bystander.drain().await).contains(&"execution_interrupted".to_owned()));
    rig.control.resume();

    // A client id nobody is connected with: the frames are lost.
    owner.drain().await;
    let id = rig.run(simple(5), "nobody").await;
    rig.wait_finished(&id).await;
    assert_eq!(kinds(&owner.drain().await), ["status"; 3]);
}

#[tokio::test]
async fn a_socket_without_client_id_gets_one() {
    let rig = Rig::new().await;
    let mut socket = Socket::open(&rig.fake, "/ws").await;
    let greeting = socket.next().await;
    let sid = greeting.data()["sid"].as_str().expect("a sid").to_owned();
    assert_eq!(sid.len(), 32);
    let id = rig.run(simple(1), &sid).await;
    socket.until(|frame| frame.ends(&id)).await;
}

#[tokio::test]
async fn only_the_first_text_negotiates_and_only_once() {
    let rig = Rig::new().await;
    let mut socket = rig.socket("me").await;
    socket.send("[1, 2]").await;
    socket.send(r#"{"type": "feature_flags", "data": {"supports_preview_metadata": true}}"#).await;
    assert_eq!(kinds(&socket.drain().await), [""; 0]);
    let mut socket = rig.socket("other").await;
    socket.negotiate().await;
    socket.send(r#"{"type": "feature_flags", "data": {"supports_preview_metadata": false}}"#).await;
    assert_eq!(kinds(&socket.drain().await), [""; 0]);
}

#[tokio::test]
async fn too_large_a_message_ends_the_socket() {
    let rig = Rig::new().await;
    let mut socket = rig.socket("me").await;
    socket.send(&"x".repeat(3 << 20)).await;
    assert_eq!(kinds(&socket.drain().await), [""; 0]);
    socket.try_send(&"x".repeat(5 << 20)).await;
    loop {
        if matches!(socket.next().await, Frame::Closed(_)) {
            break;
        }
    }
}

#[tokio::test]
async fn a_prompt_behind_another_clients_prompt_is_seen_after_reconnecting() {
    // Trace 09e: while another's prompt runs, one's own waiting prompt brings nothing but status.
    let rig = Rig::new().await;
    rig.control.pause_execution();
    let theirs = rig.run(simple(1), "theirs").await;
    rig.wait_gated(&theirs).await;
    let mine = rig.run(simple(2), "me").await;
    let mut socket = rig.socket("me").await;
    assert_eq!(kinds(&socket.drain().await), [""; 0]);
    rig.control.resume();
    let frames = socket.until(|frame| frame.ends(&mine)).await;
    assert!(frames.iter().all(|frame| frame.data()["prompt_id"] != theirs.as_str()));
    assert!(kinds(&frames).contains(&"execution_start".to_owned()));
}
