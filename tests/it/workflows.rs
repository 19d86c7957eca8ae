//! Named workflows as their authors and their users see them: files, versions, publishing, and the five that are built in.

use std::{fs, io::Cursor, path::PathBuf};

use comfyd::store::sqlite::{SqliteConfig, SqliteStore};
use comfyd_actors::{ports::workflow_store::WorkflowStore, testing::TestClock};
use image::{AnimationDecoder, DynamicImage, Rgb, RgbImage, codecs::webp::WebPDecoder};
use reqwest::{
    Method, StatusCode,
    multipart::{Form, Part},
};
use serde_json::{Value, json};

use crate::support::{World, image as graph, world};

impl World {
    /// A request about workflows; its status and body.
    async fn workflows(&self, method: Method, path: &str, body: Option<&Value>) -> (StatusCode, Value) {
        let mut request = self.client.request(method, self.url(&format!("/api/workflows{path}")));
        if let Some(body) = body {
            request = request.json(body);
        }
        let response = request.send().await.unwrap();
        (response.status(), response.json().await.unwrap_or_default())
    }

    /// Publishes a workflow that must be taken; its version.
    async fn publish(&self, name: &str, file: &Value) -> u64 {
        let (status, answer) = self.workflows(Method::PUT, &format!("/{name}"), Some(file)).await;
        assert!(status.is_success(), "{answer}");
        answer["version"].as_u64().unwrap()
    }

    /// Runs a workflow to its end; the task.
    async fn run_named(&self, reference: &str, inputs: Value) -> Value {
        let body = json!({"inputs": inputs});
        let (status, answer) = self.workflows(Method::POST, &format!("/{reference}/tasks"), Some(&body)).await;
        assert_eq!(status, StatusCode::ACCEPTED, "{answer}");
        self.completed(answer["task_id"].as_str().unwrap()).await
    }

    /// Waits until what a name means looks like that.
    async fn until_workflow(&self, name: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let of_name = |page: &Value| -> Option<Value> {
            page["workflows"].as_array().unwrap().iter().find(|workflow| workflow["name"] == name).cloned()
        };
        let page = self.until("/api/workflows", |page| wanted(&of_name(page).unwrap_or_default())).await;
        of_name(&page).unwrap_or_default()
    }

    fn folder(&self) -> PathBuf {
        self.dir.path().join("config/workflows")
    }

    fn write(&self, name: &str, text: impl ToString) {
        fs::create_dir_all(self.folder()).unwrap();
        fs::write(self.folder().join(format!("{name}.json")), text.to_string()).unwrap();
    }

    /// Puts a picture where ComfyUI's loaders find it.
    async fn hand_over(&self, name: &str, picture: &RgbImage) {
        let mut png = Cursor::new(Vec::new());
        picture.write_to(&mut png, image::ImageFormat::Png).unwrap();
        let part = Part::bytes(png.into_inner()).file_name(name.to_owned());
        let form = Form::new().part("image", part);
        let url = format!("{}/upload/image", self.fakes[0].url());
        self.client.post(url).multipart(form).send().await.unwrap().error_for_status().unwrap();
    }

    async fn output(&self, task: &Value, index: usize) -> Vec<u8> {
        let id = task["task_id"].as_str().unwrap();
        let url = self.url(&format!("/api/tasks/{id}/outputs/{index}"));
        self.client.get(url).send().await.unwrap().bytes().await.unwrap().to_vec()
    }

    async fn picture(&self, task: &Value) -> RgbImage {
        image::load_from_memory(&self.output(task, 0).await).map(DynamicImage::into_rgb8).unwrap()
    }
}

/// A picture of one colour, 16 x 16; `size` is its width.
fn square(color: u32) -> Value {
    json!({"workflow": graph(color), "inputs": ["color", {"name": "size", "node": "1", "field": "width", "minimum": 1, "maximum": 64}]})
}

fn color(pixel: &Rgb<u8>) -> u32 {
    pixel.0.iter().fold(0, |color, channel| color << 8 | u32::from(*channel))
}

#[tokio::test(flavor = "multi_thread")]
async fn every_built_in_workflow_runs_to_its_end() {
    let world = world().start().await;
    let shade = |value: u32| u8::try_from(value).unwrap();
    let before = RgbImage::from_fn(64, 48, |x, y| Rgb([shade(x * 4), shade(y * 5), 7]));
    world.hand_over("before.png", &before).await;
    world.hand_over("mask.png", &RgbImage::from_fn(64, 48, |x, _| Rgb([if x < 32 { 255 } else { 0 }; 3]))).await;
    let words = |more: Value| {
        let mut inputs = json!({"prompt": "a lake at night", "seed": 7, "steps": 2});
        inputs.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        inputs
    };

    let task = world.run_named("text-to-image", words(json!({"width": 64, "height": 48}))).await;
    assert_eq!((&task["workflow"], &task["workflow_version"]), (&json!("text-to-image"), &json!(1)));
    let drawn = world.picture(&task).await;
    assert_eq!(drawn.dimensions(), (64, 48));

    let task = world.run_named("image-to-image", words(json!({"image": "before.png", "strength": 1.0}))).await;
    assert_eq!(world.picture(&task).await, drawn, "at full strength nothing is left of the picture");
    let task = world.run_named("image-to-image", words(json!({"image": "before.png", "strength": 0}))).await;
    assert_eq!(world.picture(&task).await, before);

    let task = world.run_named("inpaint", words(json!({"image": "before.png", "mask": "mask.png", "grow": 0}))).await;
    let painted = world.picture(&task).await;
    for (x, y, pixel) in painted.enumerate_pixels() {
        assert_eq!(pixel, if x < 32 { drawn.get_pixel(x, y) } else { before.get_pixel(x, y) }, "{x},{y}");
    }

    let task = world.run_named("upscale", json!({"image": "before.png", "scale": 0.5})).await;
    assert_eq!(world.picture(&task).await.dimensions(), (128, 96), "four times and a half");

    let task = world.run_named("text-to-video", words(json!({"width": 64, "height": 48, "frames": 9, "fps": 8}))).await;
    assert_eq!(task["outputs"].as_array().unwrap().len(), 1, "{task}");
    let frames = WebPDecoder::new(Cursor::new(world.output(&task, 0).await)).unwrap().into_frames();
    let frames = frames.collect_frames().unwrap();
    assert_eq!(frames.len(), 9);
    assert_ne!(frames[0].buffer(), frames[8].buffer(), "it moves");
    assert_eq!(frames[0].delay().numer_denom_ms(), (125, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_published_has_versions() {
    let world = world().start().await;
    assert_eq!(world.publish("square", &square(1)).await, 1);
    assert_eq!(world.publish("square", &square(2)).await, 2);
    let (status, answer) = world.workflows(Method::PUT, "/square", Some(&square(2))).await;
    assert_eq!((status, &answer["version"]), (StatusCode::OK, &json!(2)), "{answer}");

    for (reference, version, shade) in [("square", 2, 2), ("square@1", 1, 1), ("square@2", 2, 2)] {
        let task = world.run_named(reference, json!({})).await;
        assert_eq!((&task["workflow"], &task["workflow_version"]), (&json!("square"), &json!(version)), "{reference}");
        assert_eq!(color(world.picture(&task).await.get_pixel(0, 0)), shade);
        // The general way to create a task means the same.
        let id = world.create(&json!({"workflow": reference, "inputs": {"size": 3}})).await;
        let task = world.completed(&id).await;
        assert_eq!((&task["workflow"], &task["workflow_version"]), (&json!("square"), &json!(version)), "{reference}");
        assert_eq!(world.picture(&task).await.dimensions(), (3, 16));
    }
    let world = world.restart().await;
    let shown = world.get("/api/workflows/square").await;
    let versions: Vec<&Value> = shown["versions"].as_array().unwrap().iter().map(|kept| &kept["version"]).collect();
    assert_eq!((&shown["source"], &shown["version"], versions), (&json!("api"), &json!(2), vec![&json!(2), &json!(1)]));
    assert_eq!(shown["workflow"]["1"]["inputs"]["color"], 2);
    assert_eq!(world.get("/api/workflows/square@1").await["workflow"]["1"]["inputs"]["color"], 1);

    let (status, _) = world.workflows(Method::DELETE, "/square", None).await;
    assert_eq!(status, StatusCode::NO_CONTENT);
    for (path, method, code) in [
        ("/square", Method::GET, "unknown_workflow"),
        ("/square", Method::DELETE, "unknown_workflow"),
        ("/square@9", Method::GET, "unknown_version"),
        ("/square/schema", Method::GET, "unknown_workflow"),
        ("/squar@1/schema", Method::GET, "unknown_workflow"),
    ] {
        let (status, answer) = world.workflows(method, path, None).await;
        assert_eq!((status, &answer["code"]), (StatusCode::NOT_FOUND, &json!(code)), "{path}: {answer}");
    }
    let task = world.run_named("square@1", json!({})).await;
    assert_eq!(task["workflow_version"], 1, "who names a version gets it");
    assert_eq!(world.publish("square", &square(1)).await, 3, "no number is given twice");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_document_has_an_operation_for_each_workflow() {
    let world = world().start().await;
    world.publish("square", &square(1)).await;
    let document = world.get("/openapi.json").await;
    let operation = &document["paths"]["/api/workflows/square/tasks"]["post"];
    let schema = &operation["requestBody"]["content"]["application/json"]["schema"];
    assert_eq!(operation["operationId"], "run_square");
    assert_eq!(
        schema["properties"]["inputs"]["properties"]["size"],
        json!({"type": "integer", "default": 16, "minimum": 1, "maximum": 64})
    );
    assert!(schema["properties"]["priority"].is_object() && schema["properties"]["workflow"].is_null(), "{schema}");
    let inputs = &document["paths"]["/api/workflows/image-to-image/tasks"]["post"]["requestBody"]["content"]["application/json"]
        ["schema"];
    assert_eq!(inputs["required"], json!(["inputs"]));
    assert_eq!(inputs["properties"]["inputs"]["required"], json!(["image", "prompt"]));

    let shown = world.get("/api/workflows/square/schema").await;
    assert_eq!((&shown["title"], &shown["additionalProperties"]), (&json!("square@1"), &json!(false)));
    assert_eq!(shown["properties"], schema["properties"]["inputs"]["properties"]);

    let options = json!({"inputs": {"size": 4}, "priority": "high", "metadata": {"order": 7}});
    let (_, answer) = world.workflows(Method::POST, "/square/tasks", Some(&options)).await;
    let task = world.completed(answer["task_id"].as_str().unwrap()).await;
    assert_eq!(
        (&task["priority"], &task["metadata"]["order"], &task["inputs"]),
        (&json!(10), &json!(7), &json!({"size": 4}))
    );

    let body = json!({"inputs": {"size": 65, "colour": 1}, "workflow": "square", "pririty": 1});
    let (status, answer) = world.workflows(Method::POST, "/square/tasks", Some(&body)).await;
    let places: Vec<&str> = answer["errors"].as_array().unwrap().iter().filter_map(|e| e["pointer"].as_str()).collect();
    assert_eq!(
        (status, places),
        (StatusCode::UNPROCESSABLE_ENTITY, vec!["/pririty", "/workflow", "/inputs/colour", "/inputs/size"])
    );

    world.workflows(Method::DELETE, "/square", None).await;
    assert!(world.get("/openapi.json").await["paths"]["/api/workflows/square/tasks"].is_null());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_folder_is_read_again_when_it_changes() {
    let world = world().start().await;
    let good = |workflow: &Value| workflow["version"].is_u64() && workflow["faults"] == json!([]);
    // Neither the folder nor the one above it is there yet.
    world.write("mine", square(1));
    let first = world.until_workflow("mine", good).await;
    assert_eq!((&first["source"], &first["version"]), (&json!("folder"), &json!(1)));

    world.write("mine", square(2));
    world.until_workflow("mine", |mine| good(mine) && mine["version"] == 2).await;
    assert_eq!(world.run_named("mine", json!({})).await["workflow_version"], 2);

    world.write("mine", "{\"workflow\": ");
    let broken = world.until_workflow("mine", |mine| !mine["faults"].as_array().is_none_or(Vec::is_empty)).await;
    assert!(broken["faults"][0].as_str().unwrap().contains("not JSON"), "{broken}");
    let task = world.run_named("mine", json!({})).await;
    assert_eq!(color(world.picture(&task).await.get_pixel(0, 0)), 2, "the last good one goes on");
    assert_eq!(task["workflow_version"], 2);

    world.write("new", json!({"workflow": graph(1), "inputs": ["prompt"]}));
    world.until_workflow("new", |new| new["faults"][0].as_str().is_some_and(|fault| fault.contains("/inputs/0"))).await;
    let (status, answer) = world.workflows(Method::POST, "/new/tasks", Some(&json!({}))).await;
    assert_eq!((status, &answer["code"]), (StatusCode::SERVICE_UNAVAILABLE, &json!("workflow_broken")), "{answer}");

    // The whole folder is replaced, as deployments do it.
    let next = world.dir.path().join("config/next");
    fs::create_dir_all(&next).unwrap();
    fs::write(next.join("mine.json"), square(3).to_string()).unwrap();
    fs::rename(world.folder(), world.dir.path().join("config/before")).unwrap();
    fs::rename(&next, world.folder()).unwrap();
    world.until_workflow("mine", |mine| good(mine) && mine["version"] == 3).await;
    world.until_workflow("new", Value::is_null).await;

    // And it is seen after its reader died, too.
    world.kill(&world.system().slots.services[comfyd::app::WORKFLOWS]).await;
    world.write("mine", square(1));
    world.until_workflow("mine", |mine| good(mine) && mine["version"] == 1).await;
    fs::remove_dir_all(world.folder()).unwrap();
    world.until_workflow("mine", Value::is_null).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_api_comes_before_the_folder_and_the_folder_before_the_program() {
    let world = world().start().await;
    let source =
        |name: &'static str| move |workflow: &Value| workflow["source"] == name && workflow["version"].is_u64();
    world.until_workflow("upscale", source("built_in")).await;
    world.publish("upscale", &square(1)).await;
    world.write("upscale", square(2));
    let shown = world.until_workflow("upscale", |upscale| upscale["hides"] == json!(["folder", "built_in"])).await;
    assert_eq!(shown["source"], "api");
    assert_eq!(color(world.picture(&world.run_named("upscale", json!({})).await).await.get_pixel(0, 0)), 1);
    let (status, _) = world.workflows(Method::DELETE, "/upscale", None).await;
    assert_eq!(status, StatusCode::NO_CONTENT);
    assert_eq!(color(world.picture(&world.run_named("upscale", json!({})).await).await.get_pixel(0, 0)), 2);
    let (status, answer) = world.workflows(Method::DELETE, "/upscale", None).await;
    assert_eq!((status, &answer["code"]), (StatusCode::CONFLICT, &json!("not_published")));
    fs::remove_file(world.folder().join("upscale.json")).unwrap();
    world.until_workflow("upscale", source("built_in")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_a_workflow_is_told_with_its_place() {
    let world = world().start().await;
    let places = async |name: &str, file: Value| {
        let (status, answer) = world.workflows(Method::PUT, &format!("/{name}"), Some(&file)).await;
        let errors = answer["errors"].as_array().cloned().unwrap_or_default();
        let place = |error: &Value| error["pointer"].as_str().or(error["parameter"].as_str()).unwrap().to_owned();
        (status.as_u16(), errors.iter().map(place).collect::<Vec<_>>(), answer.to_string())
    };
    let mut twice = square(1);
    twice["workflow"]["3"] = json!({"class_type": "EmptyImage", "inputs": {"color": 1, "image": ["7", 0]}});
    let (status, at, _) = places("a", twice.clone()).await;
    assert_eq!((status, at), (422, vec!["/workflow/3/inputs/image".to_owned()]));
    twice["workflow"]["3"]["inputs"] = json!({"color": 1});
    let (status, at, told) = places("a", twice).await;
    assert_eq!((status, at), (422, vec!["/inputs/0".to_owned()]));
    assert!(told.contains("1.color, 3.color"), "the candidates are named: {told}");
    let (_, at, _) = places("a", json!({"inputs": 5, "name": "x", "description": []})).await;
    assert_eq!(at, ["/name", "/description", "/inputs", "/workflow"]);
    let (status, at, _) = places("a@1", square(1)).await;
    assert_eq!((status, at), (422, vec!["name".to_owned()]));
    let mut large = square(1);
    large["description"] = json!("x".repeat(1 << 20));
    assert_eq!(places("a", large).await.0, 413);
    assert_eq!(world.workflows(Method::GET, "/a", None).await.0, StatusCode::NOT_FOUND, "nothing was published");
}

/// Another process on the same store publishes; this one hears of it.
#[tokio::test(flavor = "multi_thread")]
async fn processes_on_one_store_share_what_is_published() {
    let world = world().start().await;
    let config = SqliteConfig::new(world.dir.path().join("comfyd.db"));
    let other = SqliteStore::open(config, std::sync::Arc::new(TestClock::default())).await.unwrap();
    let writer = tokio::spawn(other.writer());
    other.publish("theirs", &square(5).to_string()).await.unwrap();
    // Long before the next look.
    assert_eq!(world.run_named("theirs@1", json!({})).await["workflow_version"], 1);
    world.until_workflow("theirs", |theirs| theirs["source"] == "api").await;
    other.withdraw("theirs").await.unwrap();
    world.until_workflow("theirs", Value::is_null).await;
    writer.abort();
}
