//! Every kind of output, and what clients can have done to them.

use std::{fs, time::Duration};

use fake_comfyui::{EventKind, FakeConfig, Fault};
use reqwest::{StatusCode, header};
use serde_json::{Value, json};

use crate::{
    support::{World, task_with, world},
    witness::{started, until, until_level},
};

/// What every graph here embeds into its files.
const SECRET: &[u8] = b"EmptyImage";

/// Some images, and one node that does something with them.
fn with_images(batch: u32, class: &str, inputs: &Value) -> Value {
    let mut node = json!({"class_type": class, "inputs": {"images": ["1", 0]}});
    for (name, value) in inputs.as_object().unwrap() {
        node["inputs"][name] = value.clone();
    }
    let image = json!({"width": 24, "height": 16, "batch_size": batch, "color": 255});
    json!({"1": {"class_type": "EmptyImage", "inputs": image}, "2": node})
}

/// The columns of the outputs that tell one kind from another.
fn told(task: &Value) -> Vec<Value> {
    let row = |output: &Value| {
        json!([
            output["node_id"],
            output["kind"],
            output["content_type"],
            output["width"],
            output["height"],
            output["duration_ms"],
            output["frames"]
        ])
    };
    task["outputs"].as_array().unwrap().iter().map(row).collect()
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

impl World {
    /// Runs a graph that must complete.
    async fn run(&self, graph: Value, more: &Value) -> Value {
        let mut body = json!({"workflow": graph});
        for (name, value) in more.as_object().into_iter().flatten() {
            body[name] = value.clone();
        }
        let id = self.create(&body).await;
        self.completed(&id).await
    }

    async fn bytes(&self, task: &Value, index: usize) -> Vec<u8> {
        let url = self.url(&format!("/api/tasks/{}/outputs/{index}", task["task_id"].as_str().unwrap()));
        self.client.get(url).send().await.unwrap().error_for_status().unwrap().bytes().await.unwrap().into()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_saver_is_stored_and_described() {
    let world = world().start().await;
    let audio = json!({
        "1": {"class_type": "EmptyAudio", "inputs": {"duration": 0.5, "sample_rate": 44100, "channels": 2}},
        "2": {"class_type": "SaveAudio", "inputs": {"audio": ["1", 0], "filename_prefix": "it/a"}},
        "3": {"class_type": "SaveAudioOpus", "inputs": {"audio": ["1", 0], "filename_prefix": "it/a", "quality": "128k"}},
        "4": {"class_type": "PreviewAudio", "inputs": {"audio": ["1", 0]}},
    });
    let video = json!({
        "1": {"class_type": "EmptyImage", "inputs": {"width": 128, "height": 128, "batch_size": 8, "color": 1}},
        "2": {"class_type": "CreateVideo", "inputs": {"images": ["1", 0], "fps": 8.0}},
        "3": {"class_type": "SaveVideo", "inputs": {"video": ["2", 0], "filename_prefix": "it/v", "format": "auto", "codec": "auto"}},
    });
    let latent = json!({
        "1": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}},
        "2": {"class_type": "SaveLatent", "inputs": {"samples": ["1", 0], "filename_prefix": "it/l"}},
    });
    let webp = json!({"filename_prefix": "it/w", "fps": 10.0, "lossless": true, "quality": 80, "method": "default"});
    let apng = json!({"filename_prefix": "it/p", "fps": 10.0, "compress_level": 4});
    let webm = json!({"filename_prefix": "it/m", "codec": "vp9", "fps": 8.0, "crf": 40.0});
    for (graph, expected) in [
        (with_images(1, "PreviewImage", &json!({})), json!([["2", "image", "image/png", 24, 16, null, 1]])),
        (with_images(3, "SaveAnimatedWEBP", &webp), json!([["2", "image", "image/webp", 24, 16, 300, 3]])),
        (with_images(3, "SaveAnimatedPNG", &apng), json!([["2", "image", "image/png", 24, 16, 300, 3]])),
        (with_images(3, "LabGifs", &json!({})), json!([["2", "image", "image/gif", 24, 16, 300, 3]])),
        (with_images(4, "SaveWEBM", &webm), json!([["2", "video", "video/webm", 128, 128, 500, 4]])),
        (video, json!([["3", "video", "video/mp4", 128, 128, 1000, 8]])),
        (
            audio,
            json!([
                ["2", "audio", "audio/flac", null, null, 500, null],
                ["3", "audio", "audio/ogg", null, null, 500, null],
                ["4", "audio", "audio/flac", null, null, 500, null]
            ]),
        ),
        (latent, json!([["2", "file", "application/octet-stream", null, null, null, null]])),
    ] {
        let done = world.run(graph, &json!({})).await;
        assert_eq!(json!(told(&done)), expected, "{done}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn texts_are_outputs_and_short_ones_come_with_the_task() {
    let world = world().start().await;
    let long = "x".repeat(20_000);
    let graph = json!({
        "1": {"class_type": "LabTextOut", "inputs": {"text": "hello wörld"}},
        "2": {"class_type": "PreviewAny", "inputs": {"source": ["1", 0]}},
        "3": {"class_type": "SaveText", "inputs": {"text": ["1", 0], "filename_prefix": "it/txt", "format": "txt"}},
        "4": {"class_type": "PreviewAny", "inputs": {"source": long}},
    });
    let done = world.run(graph, &json!({})).await;
    let outputs = done["outputs"].as_array().unwrap();
    // What SaveText shows is what it saved: one output, not two.
    let nodes: Vec<_> = outputs.iter().map(|output| output["node_id"].as_str().unwrap()).collect();
    assert_eq!(nodes, ["1", "2", "3", "4"]);
    for (index, output) in outputs.iter().enumerate() {
        assert_eq!((&output["kind"], &output["content_type"]), (&json!("text"), &json!("text/plain; charset=utf-8")));
        let whole = world.bytes(&done, index).await;
        assert_eq!(whole, if index == 3 { long.as_bytes() } else { "hello wörld".as_bytes() });
        assert_eq!(output["text"], if index == 3 { json!(null) } else { json!("hello wörld") });
    }
    assert_eq!((&outputs[0]["filename"], &outputs[2]["filename"]), (&json!("text_00001.txt"), &json!("txt_00001.txt")));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_subgraph_made_belongs_to_the_node_a_client_knows() {
    let world = world().start().await;
    let graph = |color: u32| {
        json!({
            "7": {"class_type": "LabExpand", "inputs": {"color": color}},
            "2": {"class_type": "SaveImage", "inputs": {"images": ["7", 0], "filename_prefix": "it"}},
        })
    };
    let done = world.run(graph(1), &json!({})).await;
    let image = |node: &str| json!([node, "image", "image/png", 32, 32, null, 1]);
    assert_eq!(told(&done), [image("2"), image("7")]);
    let only = world.run(graph(2), &json!({"output_options": {"nodes": ["7"]}})).await;
    assert_eq!(told(&only), [image("7")]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_sent_over_the_websocket_is_kept_in_order() {
    let world = world().start().await;
    let mut graph = with_images(3, "SaveImageWebsocket", &json!({}));
    graph["10"] = json!({"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "it"}});
    let done = world.run(graph, &json!({})).await;
    let image = |node: &str| json!([node, "image", "image/png", 24, 16, null, 1]);
    assert_eq!(told(&done), [image("2"), image("2"), image("2"), image("10"), image("10"), image("10")]);
    let names: Vec<_> = done["outputs"].as_array().unwrap().iter().map(|output| &output["filename"]).take(3).collect();
    assert_eq!(names, ["websocket_00001.png", "websocket_00002.png", "websocket_00003.png"]);
    assert_eq!(done["attempt"], 1);

    // Options hold for these as for all others.
    let options = json!({"output_options": {"format": "jpeg", "nodes": ["2"]}});
    let done = world.run(with_images(2, "SaveImageWebsocket", &json!({})), &options).await;
    assert_eq!(done["outputs"][1]["content_type"], "image/jpeg");
    assert_eq!(done["outputs"][1]["filename"], "websocket_00002.jpg");
    assert!(world.bytes(&done, 1).await.starts_with(b"\xff\xd8\xff"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_picture_nobody_heard_costs_another_run() {
    let world = world().start().await;
    world.fake().pause_execution();
    let id = world.create(&json!({"workflow": with_images(2, "SaveImageWebsocket", &json!({}))})).await;
    until(&world.fake(), started(&id)).await;
    world.fake().inject(Fault::DropSockets).await.unwrap();
    world.offline(0).await;
    world.online().await;
    // The run goes on for a socket that is gone.
    world.fake().resume();
    let done = world.completed(&id).await;
    assert_eq!((&done["attempt"], world.executions(&id)), (&json!(2), 2), "{done}");
    assert_eq!(done["outputs"].as_array().unwrap().len(), 2);

    // With no attempt left the reason is told.
    world.fake().pause_execution();
    let body = json!({"workflow": with_images(1, "SaveImageWebsocket", &json!({})), "max_attempts": 1});
    let id = world.create(&body).await;
    until(&world.fake(), started(&id)).await;
    world.fake().inject(Fault::DropSockets).await.unwrap();
    world.offline(0).await;
    world.online().await;
    world.fake().resume();
    let failed = world.finished(&id).await;
    assert_eq!(failed["error"]["code"], "output_missing");
    let message = failed["error"]["message"].as_str().unwrap();
    assert!(message.contains("SaveImageWebsocket") && message.contains("connection"), "{message}");
}

/// They were stored as they came. The run that follows has pictures of its own.
#[tokio::test(flavor = "multi_thread")]
async fn pictures_of_a_run_that_died_are_deleted() {
    let world = world().with("COMFYD_RETENTION__LEFTOVERS", "1s").start().await;
    let mut graph = with_images(2, "SaveImageWebsocket", &json!({}));
    let slow = json!({"image": ["1", 0], "steps": 20, "seconds_per_step": 0.05, "preview": false, "preview_format": "PNG", "nonce": 1});
    graph["3"] = json!({"class_type": "LabSlowProgress", "inputs": slow});
    graph["4"] = json!({"class_type": "SaveImage", "inputs": {"images": ["3", 0], "filename_prefix": "it"}});
    let id = world.create(&json!({"workflow": graph})).await;
    let stored = |dispatch: u32| {
        let beginning = format!("{id}_{dispatch}_");
        let days = fs::read_dir(world.dir.path().join("outputs/0")).into_iter().flatten();
        let files = days.flat_map(|day| fs::read_dir(day.unwrap().path()).unwrap());
        files.filter(|file| file.as_ref().unwrap().file_name().to_str().unwrap().starts_with(&beginning)).count()
    };
    until_level("they are stored", || stored(1) == 2).await;
    world.fake().inject(Fault::Restart { down: Duration::from_millis(50) }).await.unwrap();
    let done = world.completed(&id).await;
    assert_eq!((world.executions(&id), done["outputs"].as_array().unwrap().len()), (2, 4), "{done}");
    until_level("they are deleted", || stored(1) == 0).await;
    assert_eq!(stored(2), 4);
    for index in 0..4 {
        assert!(!world.bytes(&done, index).await.is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reused_result_whose_file_is_gone_is_made_afresh() {
    let world = world().start().await;
    let graph = with_images(1, "SaveImage", &json!({"filename_prefix": "it"}));
    world.run(graph.clone(), &json!({})).await;
    world.fake().inject(Fault::FilesGone).await.unwrap();
    // The server says success and names the old file; only when it forgets its results there is a new one.
    let done = world.run(graph.clone(), &json!({})).await;
    assert_eq!((&done["attempt"], &done["outputs"][0]["filename"]), (&json!(2), &json!("it_00002_.png")), "{done}");

    // What is gone again after a fresh run is not made a third time.
    world.fake().inject(Fault::ViewStatus { status: 404 }).await.unwrap();
    let id = world.create(&task_with(7, &json!({"max_attempts": 5}))).await;
    let failed = world.finished(&id).await;
    assert_eq!((&failed["attempt"], world.executions(&id)), (&json!(2), 2), "{failed}");
    assert_eq!((&failed["error"]["code"], &failed["error"]["retryable"]), (&json!("output_missing"), &json!(false)));
    let message = failed["error"]["message"].as_str().unwrap();
    assert!(message.contains("twice in a row"), "{message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_nodes_asked_for_are_kept() {
    let world = world().start().await;
    let mut graph = with_images(1, "SaveImage", &json!({"filename_prefix": "it"}));
    graph["3"] = json!({"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}});
    let done = world.run(graph.clone(), &json!({"output_options": {"nodes": ["3"]}})).await;
    let nodes: Vec<_> = done["outputs"].as_array().unwrap().iter().map(|output| &output["node_id"]).collect();
    assert_eq!(nodes, ["3"]);
    assert_eq!(done["outputs"][0]["index"], 0);

    // A node that makes nothing.
    let id = world.create(&json!({"workflow": graph, "output_options": {"nodes": ["1"]}})).await;
    let failed = world.finished(&id).await;
    assert_eq!(failed["error"]["code"], "no_outputs", "{failed}");
    assert!(failed["error"]["message"].as_str().unwrap().contains("only other nodes than 1"), "{failed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn pictures_are_converted_and_everything_tells_so() {
    let world = world().start().await;
    for (format, ending, media, magic) in
        [("jpeg", "jpg", "image/jpeg", &b"\xff\xd8\xff"[..]), ("webp", "webp", "image/webp", b"RIFF")]
    {
        let options = json!({"output_options": {"format": format, "quality": 60}});
        let done = world.run(with_images(1, "SaveImage", &json!({"filename_prefix": "it"})), &options).await;
        let output = &done["outputs"][0];
        assert_eq!(told(&done), [json!(["2", "image", media, 24, 16, null, 1])]);
        assert!(output["filename"].as_str().unwrap().ends_with(&format!("_.{ending}")), "{output}");
        let url = world.url(&format!("/api/tasks/{}/outputs/0", done["task_id"].as_str().unwrap()));
        let answer = world.client.get(url).send().await.unwrap();
        assert_eq!(answer.headers()[header::CONTENT_TYPE], media);
        let disposition = answer.headers()[header::CONTENT_DISPOSITION].to_str().unwrap().to_owned();
        assert!(disposition.starts_with("inline") && disposition.ends_with(&format!(".{ending}\"")), "{disposition}");
        let bytes = answer.bytes().await.unwrap();
        assert!(bytes.starts_with(magic) && !contains(&bytes, SECRET), "{format}");
    }
    // An animation would lose all but one of its pictures.
    let options = json!({"output_options": {"format": "jpeg"}});
    let done = world.run(with_images(3, "LabGifs", &json!({})), &options).await;
    assert_eq!(told(&done), [json!(["2", "image", "image/gif", 24, 16, 300, 3])]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_picture_that_cannot_be_converted_fails_its_task_clearly() {
    let world = world().start().await;
    // Wider than WebP pictures can be, and easily made.
    let wide = json!({
        "1": {"class_type": "EmptyImage", "inputs": {"width": 16384, "height": 1, "batch_size": 1, "color": 1}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "it"}},
    });
    let id = world.create(&json!({"workflow": wide, "output_options": {"format": "webp"}})).await;
    let failed = world.finished(&id).await;
    assert_eq!((&failed["error"]["code"], &failed["error"]["retryable"]), (&json!("conversion_failed"), &json!(false)));
    assert_eq!((&failed["attempt"], world.executions(&id)), (&json!(1), 1));
    assert!(failed["error"]["message"].as_str().unwrap().contains("16384 x 1"), "{failed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_prompt_is_taken_out_of_files_when_asked() {
    let world = world().start().await;
    let saver = |class: &str, inputs: Value| with_images(3, class, &inputs);
    let apng = json!({"filename_prefix": "it", "fps": 10.0, "compress_level": 4});
    let webm = json!({"filename_prefix": "it", "codec": "vp9", "fps": 8.0, "crf": 40.0});
    for (graph, stripped) in [
        (saver("SaveImage", json!({"filename_prefix": "it"})), true),
        (saver("SaveAnimatedPNG", apng), true),
        (saver("SaveWEBM", webm), true),
        (saver("LabGifs", json!({})), false),
    ] {
        let plain = world.run(graph.clone(), &json!({})).await;
        assert!(plain["outputs"][0].get("metadata_stripped").is_none());
        let before = world.bytes(&plain, 0).await;
        assert_eq!(contains(&before, SECRET), stripped, "{plain}");
        let clean = world.run(graph, &json!({"output_options": {"strip_metadata": true}})).await;
        let output = &clean["outputs"][0];
        assert_eq!(output["metadata_stripped"], stripped, "{clean}");
        assert!(!contains(&world.bytes(&clean, 0).await, SECRET), "{clean}");
        assert_eq!(output["sha256"] == plain["outputs"][0]["sha256"], !stripped);
        assert_eq!(told(&clean), told(&plain));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn small_outputs_come_with_their_task() {
    let world = world().with("COMFYD_SERVER__INLINE_LIMIT", "3000").start().await;
    let files = json!({
        "1": {"class_type": "FakeBytes", "inputs": {"bytes": 2000, "count": 2, "seed": 1, "extension": "bin"}},
        "2": {"class_type": "FakeBytes", "inputs": {"bytes": 500, "count": 1, "seed": 2, "extension": "bin"}},
    });
    let data = |task: &Value| -> Vec<usize> {
        let outputs = task["outputs"].as_array().unwrap().iter();
        outputs.map(|output| output.get("data").map_or(0, |data| data.as_str().unwrap().len())).collect()
    };
    // Four characters for three bytes. The second does not fit under the server's limit.
    for (inline, expected) in [(json!(true), [2668, 0, 668]), (json!(1999), [0, 0, 668]), (json!(false), [0, 0, 0])] {
        let done = world.run(files.clone(), &json!({"output_options": {"inline": inline}})).await;
        assert_eq!(data(&done), expected, "{inline}");
    }
    // As the answer to the creation too.
    let body = json!({"workflow": files, "output_options": {"inline": true}});
    let request = world.client.post(world.url("/api/tasks/create")).json(&body).header("Prefer", "wait=30");
    let answer: Value = request.send().await.unwrap().json().await.unwrap();
    assert_eq!(data(&answer), [2668, 0, 668], "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_or_a_drawing_with_scripts_is_never_shown() {
    let world = world().start().await;
    for extension in ["html", "svg", "xhtml", "js"] {
        let graph = json!({"1": {"class_type": "FakeBytes", "inputs": {"bytes": 9, "count": 1, "seed": 1, "extension": extension}}});
        let done = world.run(graph, &json!({})).await;
        let url = world.url(&format!("/api/tasks/{}/outputs/0", done["task_id"].as_str().unwrap()));
        let answer = world.client.get(url).send().await.unwrap();
        assert_eq!(answer.headers()[header::CONTENT_TYPE], "application/octet-stream", "{extension}");
        assert!(answer.headers()[header::CONTENT_DISPOSITION].to_str().unwrap().starts_with("attachment"));
        assert_eq!(answer.headers()[header::X_CONTENT_TYPE_OPTIONS], "nosniff");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn faulty_output_options_are_told_before_anything_runs() {
    let world = world().fakes([FakeConfig::default()]).start().await;
    let graph = with_images(1, "SaveImage", &json!({"filename_prefix": "it"}));
    let options = json!({"nodes": ["1", "22"], "format": "jpg", "qualty": 5, "inline": "yes"});
    let answer = world.post(&json!({"workflow": graph, "output_options": options})).await;
    assert_eq!(answer.status(), StatusCode::UNPROCESSABLE_ENTITY);
    let problem: Value = answer.json().await.unwrap();
    let faults: Vec<(&str, &Value)> = problem["errors"]
        .as_array()
        .unwrap()
        .iter()
        .map(|fault| (fault["pointer"].as_str().unwrap(), &fault["suggestion"]))
        .collect();
    let expected = [
        ("/output_options/qualty", json!("quality")),
        ("/output_options/format", json!("jpeg")),
        ("/output_options/inline", json!(null)),
    ];
    assert!(faults.iter().copied().eq(expected.iter().map(|(pointer, near)| (*pointer, near))), "{problem}");
    let answer = world.post(&json!({"workflow": graph, "output_options": {"nodes": ["1", "22"]}})).await;
    let problem: Value = answer.json().await.unwrap();
    assert_eq!(problem["errors"][0]["pointer"], "/output_options/nodes/1", "{problem}");
    assert!(!world.fake().log().iter().any(|event| matches!(event.kind, EventKind::Posted { .. })));
}
