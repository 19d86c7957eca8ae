//! Running prompts: text to image, gate, log, speed.

use std::time::Duration;

use fake_comfyui::{EventKind, FakeComfy, FakeConfig};
use serde_json::{Value as Json, json};

use crate::client::{Frame, Rig, kinds, simple, within};

fn text_to_image(seed: u64, steps: u32) -> Json {
    json!({
        "3": {"class_type": "KSampler", "inputs": {"seed": seed, "steps": steps, "cfg": 8, "sampler_name": "euler",
            "scheduler": "normal", "denoise": 1, "model": ["4", 0], "positive": ["6", 0], "negative": ["7", 0],
            "latent_image": ["5", 0]}},
        "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "v1-5-pruned-emaonly-fp16.safetensors"}},
        "5": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 96, "batch_size": 2}},
        "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "a lake at sunset", "clip": ["4", 1]}},
        "7": {"class_type": "CLIPTextEncode", "inputs": {"text": "text, watermark", "clip": ["4", 1]}},
        "8": {"class_type": "VAEDecode", "inputs": {"samples": ["3", 0], "vae": ["4", 2]}},
        "9": {"class_type": "SaveImage", "inputs": {"filename_prefix": "ComfyUI", "images": ["8", 0]}},
    })
}

#[tokio::test]
async fn text_to_image_yields_pictures_and_previews() {
    let rig = Rig::new().await;
    let mut socket = rig.socket("me").await;
    socket.negotiate().await;
    let request =
        json!({"prompt": text_to_image(u64::MAX, 3), "client_id": "me", "extra_data": {"preview_method": "auto"}});
    let id = rig.submit(&request).await;
    let frames = socket.until(|frame| frame.ends(&id)).await;
    let previews: Vec<&Vec<u8>> = frames
        .iter()
        .filter_map(|frame| match frame {
            Frame::Binary(bytes) => Some(bytes),
            _ => None,
        })
        .collect();
    assert_eq!(previews.len(), 3);
    for preview in previews {
        assert_eq!(preview[..4], [0, 0, 0, 4]);
        let length = u32::from_be_bytes([preview[4], preview[5], preview[6], preview[7]]) as usize;
        let metadata: Json = serde_json::from_slice(&preview[8..8 + length]).expect("JSON");
        assert_eq!((&metadata["node_id"], &metadata["image_type"]), (&json!("3"), &json!("image/jpeg")));
        assert!(image::load_from_memory(&preview[8 + length..]).is_ok());
    }
    let entry = rig.history(&id).await.expect("history");
    let images = entry["outputs"]["9"]["images"].as_array().expect("images").clone();
    assert_eq!(images.len(), 2);
    let bytes = rig.get("/view?filename=ComfyUI_00001_.png").await.bytes().await.expect("bytes");
    assert_eq!(image::load_from_memory(&bytes).expect("a picture").to_rgb8().dimensions(), (64, 96));
}

#[tokio::test]
async fn previews_come_unasked_if_so_configured() {
    let rig = Rig::with(FakeConfig { sampler_previews: true, ..FakeConfig::default() }).await;
    let mut socket = rig.socket("me").await;
    let id = rig.run(text_to_image(1, 2), "me").await;
    let frames = socket.until(|frame| frame.ends(&id)).await;
    assert_eq!(kinds(&frames).iter().filter(|kind| *kind == "BIN1").count(), 2);
}

#[tokio::test]
async fn the_time_of_a_prompt_is_spent_once() {
    let node_time = Duration::from_millis(60);
    let rig = Rig::with(FakeConfig { node_time, ..FakeConfig::default() }).await;
    for graph in [simple(1), text_to_image(1, 4)] {
        let id = rig.run(graph.clone(), "me").await;
        rig.wait_finished(&id).await;
        let job = rig.get_json(&format!("/api/jobs/{id}")).await;
        let time = |key: &str| job[key].as_u64().expect("a time");
        assert!(time("execution_end_time") - time("execution_start_time") >= 59);
        // From the cache it costs nothing: an hour would show.
        rig.control.set_node_time(Duration::from_secs(3600));
        let id = rig.run(graph, "me").await;
        rig.wait_finished(&id).await;
        rig.control.set_node_time(node_time);
    }
}

#[tokio::test]
async fn the_gate_lets_prompts_through_one_by_one() {
    let rig = Rig::new().await;
    rig.control.pause_execution();
    let first = rig.run(simple(1), "me").await;
    let second = rig.run(simple(2), "me").await;
    rig.wait_gated(&first).await;
    assert_eq!(rig.get_json(&format!("/api/jobs/{first}")).await["status"], "in_progress");
    rig.control.step();
    rig.wait_gated(&second).await;
    assert!(rig.history(&first).await.is_some());
    assert!(rig.history(&second).await.is_none());
    rig.control.resume();
    rig.wait_finished(&second).await;
}

#[tokio::test]
async fn the_log_can_be_read_over_http() {
    let rig = Rig::new().await;
    let id = rig
        .submit(
            &json!({"prompt": simple(1), "client_id": "me", "extra_data": {"comfyd": {"task": "t7", "attempt": 1}}}),
        )
        .await;
    rig.wait_finished(&id).await;
    let log = rig.get_json("/fake/log").await;
    let find = |kind: &str| log.as_array().expect("a list").iter().find(|event| event["event"] == kind).cloned();
    let posted = find("posted").expect("posted");
    assert_eq!(
        (&posted["task"], &posted["accepted"], &posted["client_id"]),
        (&json!("t7"), &json!(true), &json!("me"))
    );
    assert_eq!(find("started").expect("started")["task"], "t7");
    assert_eq!(find("finished").expect("finished")["outcome"], "success");
    let since = rig.control.position();
    assert_eq!(rig.get_json(&format!("/fake/log?since={since}")).await, json!([]));
    assert_eq!(rig.get_json("/fake/stats").await["executions"], 1);
}

#[tokio::test]
async fn idle_time_is_what_lies_between_prompts() {
    let rig = Rig::new().await;
    for color in 0..3 {
        let id = rig.run(simple(color), "me").await;
        rig.wait_finished(&id).await;
    }
    let idle = rig.control.idle_time();
    assert_eq!(idle.executions, 3);
    assert!(idle.idle_us > 0 && idle.idle_us < idle.span_us);
    assert!(idle.share() < 1.0);
    rig.control.reset_idle_time();
    assert_eq!(rig.control.idle_time().executions, 0);
}

#[tokio::test]
async fn the_log_forgets_its_oldest_events() {
    let rig = Rig::with(FakeConfig { log_capacity: 5, ..FakeConfig::default() }).await;
    for color in 0..5 {
        let id = rig.run(simple(color), "me").await;
        rig.wait_finished(&id).await;
    }
    let log = rig.control.log();
    assert_eq!(log.len(), 5);
    assert!(log[0].seq > 0 && log.windows(2).all(|pair| pair[0].seq + 1 == pair[1].seq));
}

#[tokio::test]
async fn several_servers_live_in_one_process() {
    let (one, other) = (Rig::new().await, Rig::new().await);
    one.control.inject(fake_comfyui::Fault::Unhealthy).await.expect("injected");
    assert_eq!(one.get("/queue").await.status(), 500);
    assert_eq!(other.get("/queue").await.status(), 200);
}

#[tokio::test]
async fn a_dropped_server_frees_its_port() {
    let fake = FakeComfy::start(FakeConfig::default()).await.expect("a port");
    let config = FakeConfig { addr: fake.addr(), ..FakeConfig::default() };
    fake.shutdown().await;
    let again = FakeComfy::start(config).await.expect("the same port");
    drop(again);
}

#[tokio::test]
async fn foreign_web_pages_are_kept_out() {
    let rig = Rig::new().await;
    let with = async |name: &str, value: &str| {
        let answer = rig.http.get(rig.url("/queue")).header(name, value).send().await.expect("an answer");
        answer.status().as_u16()
    };
    assert_eq!(with("Origin", "http://evil.example").await, 403);
    assert_eq!(with("Sec-Fetch-Site", "cross-site").await, 403);
    assert_eq!(with("Origin", &rig.fake.url()).await, 200);
}

/// Not a measurement: it shows that eight clients at once leave no prompt behind, run each once, and wait for no timer.
#[tokio::test]
async fn many_clients_at_once_lose_nothing() {
    let rig = Rig::new().await;
    let mut posts = tokio::task::JoinSet::new();
    for part in 0..8u32 {
        let (http, url) = (rig.http.clone(), rig.url("/prompt"));
        posts.spawn(async move {
            for color in 0..100 {
                let body = json!({"prompt": simple(part * 1000 + color), "client_id": "me"}).to_string();
                let answer = http.post(&url).body(body).send().await.expect("an answer");
                assert_eq!(answer.status(), 200);
            }
        });
    }
    within("the posts", posts.join_all()).await;
    let last = rig.run(simple(0xFFFF), "me").await;
    rig.wait_finished(&last).await;
    assert_eq!(rig.control.total_executions(), 801);
    let finished = rig.control.log().iter().filter(|event| matches!(event.kind, EventKind::Finished { .. })).count();
    assert_eq!(finished, 801);
}

#[tokio::test]
async fn graphs_cannot_ask_for_more_memory_than_there_is() {
    let rig = Rig::new().await;
    let mut huge = simple(1);
    huge["1"]["inputs"]["width"] = json!(16_384);
    huge["1"]["inputs"]["height"] = json!(16_384);
    let scaled = json!({
        "1": {"class_type": "EmptyImage", "inputs": {"width": 8, "height": 8, "batch_size": 1, "color": 1}},
        "2": {"class_type": "ImageScale", "inputs": {"image": ["1", 0], "upscale_method": "area", "width": 16_384,
            "height": 16_384, "crop": "disabled"}},
        "3": {"class_type": "PreviewImage", "inputs": {"images": ["2", 0]}},
    });
    let mut latent = text_to_image(1, 1);
    latent["5"]["inputs"]["batch_size"] = json!(4096);
    latent["5"]["inputs"]["width"] = json!(4096);
    for graph in [huge, scaled, latent] {
        let id = rig.run(graph, "me").await;
        rig.wait_finished(&id).await;
        let entry = rig.history(&id).await.expect("history");
        assert_eq!(entry["status"]["messages"][2][1]["exception_type"], "torch.OutOfMemoryError");
    }
}
