//! Order, deletion, duplicates, interrupts and history: traces 07, 08 and 12.

use fake_comfyui::{EventKind, Outcome};
use serde_json::{Value as Json, json};

use crate::client::{Rig, kinds, simple, slow};

fn started(rig: &Rig) -> Vec<String> {
    let events = rig.control.log().into_iter();
    events
        .filter_map(|event| match event.kind {
            EventKind::Started { prompt_id, .. } => Some(prompt_id),
            _ => None,
        })
        .collect()
}

async fn wait_outcome(rig: &Rig, id: &str, outcome: Outcome) {
    rig.wait("an outcome", |event| *event == EventKind::Finished { prompt_id: id.to_owned(), outcome }).await;
}

#[tokio::test]
async fn the_order_is_number_then_id() {
    let rig = Rig::new().await;
    rig.control.pause_execution();
    let first = rig.run(simple(0), "me").await;
    rig.wait_gated(&first).await;
    let mut posted = Vec::new();
    for extra in
        [json!({}), json!({"front": true}), json!({"front": true}), json!({"number": -0.5}), json!({"number": 0.5})]
    {
        let mut request = json!({"prompt": simple(1)});
        for (key, value) in extra.as_object().expect("an object") {
            request[key] = value.clone();
        }
        posted.push(rig.submit(&request).await);
    }
    let ids = ["ffffffff-0000-4000-8000-000000000001", "00000000-0000-4000-8000-000000000002"];
    for id in ids {
        rig.submit(&json!({"prompt": simple(2), "prompt_id": id, "number": 500})).await;
    }
    assert_eq!(rig.get_json("/prompt").await["exec_info"]["queue_remaining"], 8);
    rig.control.resume();
    rig.wait_finished(ids[0]).await;
    // The latest `front` first, as recorded in trace 08; equal numbers by id.
    let order = [&first, &posted[2], &posted[1], &posted[3], &posted[4], &posted[0]].map(String::as_str);
    assert_eq!(started(&rig), [&order[..], &[ids[1], ids[0]]].concat());
}

#[tokio::test]
async fn deleted_prompts_leave_no_trace() {
    let rig = Rig::new().await;
    let mut socket = rig.socket("me").await;
    rig.control.pause_execution();
    let running = rig.run(simple(0), "other").await;
    rig.wait_gated(&running).await;
    let waiting = rig.run(simple(1), "me").await;
    socket.drain().await;
    rig.post("/queue", &json!({"delete": [waiting, "unknown", running]})).await;
    assert_eq!(kinds(&socket.drain().await), ["status"]);
    assert!(rig.history(&waiting).await.is_none());
    assert_eq!(rig.get(&format!("/api/jobs/{waiting}")).await.status(), 404);
    let second = rig.run(simple(2), "me").await;
    rig.post("/queue", &json!({"clear": true})).await;
    assert_eq!(rig.get_json("/queue").await["queue_pending"], json!([]));
    rig.control.resume();
    rig.wait_finished(&running).await;
    assert_eq!(rig.control.executions(&second), 0);
}

#[tokio::test]
async fn a_posted_id_runs_as_often_as_it_is_posted() {
    let rig = Rig::new().await;
    rig.control.pause_execution();
    let id = "00000000-0000-4000-8000-000000000001";
    let request = json!({"prompt": simple(1), "prompt_id": id});
    rig.submit(&request).await;
    rig.wait_gated(id).await;
    rig.submit(&request).await;
    // An equal number too: ComfyUI stumbles, yet takes the prompt.
    let tied = json!({"prompt": simple(1), "prompt_id": id, "number": 7});
    assert_eq!(rig.post("/prompt", &tied).await.status(), 200);
    assert_eq!(rig.post("/prompt", &tied).await.status(), 500);
    rig.control.resume();
    let last = rig.run(simple(9), "me").await;
    rig.wait_finished(&last).await;
    assert_eq!(rig.control.executions(id), 4);
    assert_eq!(rig.get_json("/history").await.as_object().expect("an object").len(), 2);
}

#[tokio::test]
async fn interrupts_hit_what_runs() {
    let rig = Rig::new().await;
    let mut socket = rig.socket("me").await;
    // Without a body, with a matching id, with nonsense for a body.
    for body in ["", "match", "{bad"] {
        rig.control.pause_execution();
        let id = rig.run(slow(1, 3, 600.0), "me").await;
        rig.wait_gated(&id).await;
        rig.control.resume();
        socket.until(|frame| frame.kind() == "executing" && frame.data()["node"] == "2").await;
        let body = if body == "match" { json!({"prompt_id": id}).to_string() } else { body.to_owned() };
        let answer = rig.http.post(rig.url("/interrupt")).body(body).send().await.expect("an answer");
        assert_eq!(answer.status(), 200);
        let frames = socket.until(|frame| frame.ends(&id)).await;
        assert_eq!(kinds(&frames), ["execution_interrupted", "status", "executing"]);
        let data = frames[0].data();
        assert_eq!(
            (&data["node_id"], &data["node_type"], &data["executed"]),
            (&json!("2"), &json!("LabSlowProgress"), &json!(["1"]))
        );
        let entry = rig.history(&id).await.expect("history");
        assert_eq!(entry["status"]["status_str"], "error");
        assert_eq!(rig.get_json(&format!("/api/jobs/{id}")).await["status"], "cancelled");
        rig.post("/free", &json!({"free_memory": true})).await;
    }
}

#[tokio::test]
async fn interrupts_that_name_another_prompt_or_nothing_running_do_nothing() {
    let rig = Rig::new().await;
    rig.post("/interrupt", &json!({})).await;
    rig.control.pause_execution();
    let id = rig.run(simple(1), "me").await;
    rig.wait_gated(&id).await;
    let waiting = rig.run(simple(2), "me").await;
    rig.post("/interrupt", &json!({"prompt_id": waiting})).await;
    assert_eq!(rig.post("/interrupt", &json!([1])).await.status(), 500);
    rig.control.resume();
    wait_outcome(&rig, &id, Outcome::Success).await;
    wait_outcome(&rig, &waiting, Outcome::Success).await;
}

#[tokio::test]
async fn an_interrupt_in_the_last_node_comes_too_late() {
    let rig = Rig::new().await;
    let graph = json!({
        "1": {"class_type": "EmptyImage", "inputs": {"width": 8, "height": 8, "batch_size": 1, "color": 1}},
        "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}},
    });
    // The whole prompt but its output is in the cache, so the hanging node is the last one.
    let id = rig.run(graph.clone(), "me").await;
    rig.wait_finished(&id).await;
    let mut socket = rig.socket("me").await;
    rig.control.inject_times(fake_comfyui::Fault::Hang, 1).await.expect("injected");
    let mut last = graph;
    last["2"] = json!({"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "x"}});
    let id = rig.run(last, "me").await;
    socket.until(|frame| frame.kind() == "executing").await;
    let cancelled: Json = rig.post(&format!("/api/jobs/{id}/cancel"), &json!({})).await.json().await.expect("JSON");
    assert_eq!(cancelled, json!({"cancelled": true}));
    rig.control.clear();
    wait_outcome(&rig, &id, Outcome::Success).await;
}

#[tokio::test]
async fn cancel_interrupts_or_deletes_and_says_so() {
    let rig = Rig::new().await;
    rig.control.pause_execution();
    let running = rig.run(simple(1), "me").await;
    rig.wait_gated(&running).await;
    let waiting = rig.run(simple(2), "me").await;
    let third = rig.run(simple(3), "me").await;
    let cancel = async |path: &str, body: Json| -> Json { rig.post(path, &body).await.json().await.expect("JSON") };
    assert_eq!(cancel(&format!("/api/jobs/{waiting}/cancel"), json!({})).await, json!({"cancelled": true}));
    let both = json!({"job_ids": [running, third]});
    assert_eq!(cancel("/api/jobs/cancel", both).await, json!({"cancelled": true}));
    wait_outcome(&rig, &running, Outcome::Interrupted).await;
    assert_eq!(cancel(&format!("/api/jobs/{running}/cancel"), json!({})).await, json!({"cancelled": false}));
    assert_eq!(rig.post("/api/jobs/cancel", &json!({"job_ids": ["x"]})).await.status(), 400);
    assert_eq!(rig.control.total_executions(), 1);
}

#[tokio::test]
async fn history_has_windows_and_can_be_deleted() {
    let rig = Rig::new().await;
    let mut ids = Vec::new();
    for color in 0..4 {
        ids.push(rig.run(simple(color), "me").await);
        rig.wait_finished(&ids[ids.len() - 1]).await;
    }
    let keys = async |query: &str| -> Vec<String> {
        let history = rig.get_json(&format!("/history{query}")).await;
        let mut keys: Vec<String> = history.as_object().expect("an object").keys().cloned().collect();
        keys.sort_by_key(|key| ids.iter().position(|id| id == key));
        keys
    };
    assert_eq!(keys("").await, ids);
    assert_eq!(keys("?max_items=2").await, ids[2..]);
    assert_eq!(keys("?max_items=2&offset=1").await, ids[1..3]);
    assert_eq!(keys("?offset=3").await, ids[3..]);
    assert_eq!(keys("?max_items=0").await, [""; 0]);
    assert_eq!(keys("?max_items=-1").await, [""; 0]);
    assert_eq!(rig.get("/history?max_items=abc").await.status(), 500);
    rig.post("/history", &json!({"delete": [ids[0], "unknown"]})).await;
    assert_eq!(keys("").await, ids[1..]);
    let jobs = rig.get_json("/api/jobs?status=completed&limit=2").await;
    assert_eq!(jobs["pagination"], json!({"offset": 0, "limit": 2, "total": 3, "has_more": true}));
    assert_eq!(jobs["jobs"][0]["id"], ids[3].as_str());
    rig.post("/history", &json!({"clear": true})).await;
    assert_eq!(keys("").await, [""; 0]);
}
