//! Two ComfyUI servers that differ: what nobody can run is refused before anything is stored, what only one can run goes to that one.

use fake_comfyui::FakeConfig;
use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::{
    support::{World, image, task, world},
    witness::posted,
};

/// The first has no `ImageInvert`, the second no checkpoint but one of its own.
fn different() -> [FakeConfig; 2] {
    let no_invert = FakeConfig { missing_classes: vec!["ImageInvert".to_owned()], ..FakeConfig::default() };
    let other_model = FakeConfig { checkpoints: vec!["second.safetensors".to_owned()], ..FakeConfig::default() };
    [no_invert, other_model]
}

fn invert(color: u32) -> Value {
    let mut graph = image(color);
    graph["2"]["inputs"]["images"] = json!(["3", 0]);
    graph["3"] = json!({"class_type": "ImageInvert", "inputs": {"image": ["1", 0]}});
    graph
}

fn load(checkpoint: &str) -> Value {
    json!({
        "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": checkpoint}},
        "2": {"class_type": "EmptyLatentImage", "inputs": {"width": 16, "height": 16, "batch_size": 1}},
        "3": {"class_type": "VAEDecode", "inputs": {"samples": ["2", 0], "vae": ["1", 2]}},
        "4": {"class_type": "SaveImage", "inputs": {"images": ["3", 0], "filename_prefix": "it"}},
    })
}

impl World {
    /// Creates a task that must be refused; the problem.
    async fn refused(&self, body: &Value) -> Value {
        let response = self.post(body).await;
        let status = response.status();
        let problem: Value = response.json().await.unwrap();
        assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{problem}");
        assert_eq!(problem["code"], "invalid_graph");
        problem
    }

    fn posts_to(&self, fake: usize, id: &str) -> usize {
        let is_it = posted(id);
        self.fakes[fake].control().log().iter().filter(|event| is_it(&event.kind)).count()
    }
}

fn pointers(problem: &Value) -> Vec<&str> {
    problem["errors"].as_array().unwrap().iter().map(|fault| fault["pointer"].as_str().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_graph_nobody_can_run_is_refused_with_every_fault() {
    let world = world().fakes(different()).start().await;
    let mut graph = load("v1-5-pruned-emaonly");
    graph["2"]["inputs"]["width"] = json!(3);
    graph["3"]["inputs"]["vae"] = json!(["1", 0]);
    graph["4"]["inputs"].as_object_mut().unwrap().remove("filename_prefix");
    graph["5"] = json!({"class_type": "SaveImag", "inputs": {}});
    graph["6"] = json!({"class_type": "ImageInvert", "inputs": {"image": ["3", 0]}});
    let problem = world.refused(&json!({"workflow": graph})).await;
    let places = [
        "/workflow/1/inputs/ckpt_name",
        "/workflow/2/inputs/width",
        "/workflow/3/inputs/vae",
        "/workflow/4/inputs/filename_prefix",
        "/workflow/5/class_type",
        "/workflow/6/class_type",
    ];
    let mut found = pointers(&problem);
    found.sort_unstable();
    assert_eq!(found, places, "{problem}");
    let fault = |pointer: &str| {
        problem["errors"].as_array().unwrap().iter().find(|fault| fault["pointer"] == pointer).unwrap().clone()
    };
    assert_eq!(fault(places[4])["suggestion"], "SaveImage");
    let near = fault(places[0]);
    assert!(near["suggestion"].as_str().unwrap().starts_with("v1-5-pruned-emaonly"), "{near}");
    // One server has what the other lacks, and is told.
    let (first, second) = (world.fakes[0].url(), world.fakes[1].url());
    let lacking = fault(places[5])["detail"].as_str().unwrap().to_owned();
    assert!(lacking.contains(&format!("on {first}; {second} has it")), "{lacking}");
    assert_eq!(world.get("/api/tasks").await["tasks"], json!([]), "nothing was stored");
    assert!(world.fakes.iter().all(|fake| fake.control().total_executions() == 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn faults_of_inputs_point_at_the_inputs() {
    let world = world().start().await;
    let problem = world.refused(&json!({"workflow": image(0), "inputs": {"1.width": 0}})).await;
    assert_eq!(pointers(&problem), ["/inputs/1.width"], "{problem}");
    let request = json!({"workflow": "text-to-image", "inputs": {"prompt": "x", "width": 8}});
    let response = world.post(&request).await;
    let status = response.status();
    let problem: Value = response.json().await.unwrap();
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{problem}");
    assert_eq!(pointers(&problem), ["/inputs/width"], "{problem}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_only_one_can_run_goes_to_that_one() {
    let world = world().fakes(different()).start().await;
    for round in 0..4 {
        let inverted = world.create(&json!({"workflow": invert(round)})).await;
        let model = world.create(&json!({"workflow": load("sd_xl_base_1.0.safetensors")})).await;
        let other = world.create(&json!({"workflow": load("second.safetensors")})).await;
        for id in [&inverted, &model, &other] {
            world.completed(id).await;
        }
        assert_eq!([world.posts_to(0, &inverted), world.posts_to(1, &inverted)], [0, 1]);
        assert_eq!([world.posts_to(0, &model), world.posts_to(1, &model)], [1, 0]);
        assert_eq!([world.posts_to(0, &other), world.posts_to(1, &other)], [0, 1]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_for_a_busy_server_holds_up_nobody() {
    let world = world().fakes(different()).start().await;
    world.fakes.iter().for_each(|fake| fake.control().pause_execution());
    let first = world.create(&json!({"workflow": invert(1)})).await;
    assert_eq!(world.running(&first).await, 1);
    // More of them than the second server takes, and all of them before what anybody can run.
    let mut inverted = vec![first];
    for n in 2..6 {
        inverted.push(world.create(&json!({"workflow": invert(n)})).await);
    }
    let anybody = world.create(&task(7)).await;
    world.fakes[0].control().resume();
    world.completed(&anybody).await;
    assert_eq!([world.posts_to(0, &anybody), world.posts_to(1, &anybody)], [1, 0]);
    world.fakes[1].control().resume();
    for id in &inverted {
        world.completed(id).await;
        assert_eq!([world.posts_to(0, id), world.posts_to(1, id)], [0, 1]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_whose_server_is_away_waits_and_says_so() {
    let world = world().fakes(different()).start().await;
    world.fakes[1].control().inject(fake_comfyui::Fault::Kill).await.unwrap();
    world.until_status(|status| status["backends"].as_array().unwrap().iter().any(|it| it["phase"] != "online")).await;
    let id = world.create(&json!({"workflow": invert(9)})).await;
    let shown = world.get_now(&format!("/api/tasks/{id}")).await;
    assert_eq!(
        (&shown["status"], &shown["waiting_for"]["classes"]),
        (&json!("pending"), &json!(["ImageInvert"])),
        "{shown}"
    );
    let status = world.until_status(|status| status["waiting_for"] != json!([])).await;
    assert_eq!(
        (&status["waiting_for"][0]["classes"][0], &status["waiting_for"][0]["tasks"]),
        (&json!("ImageInvert"), &json!(1))
    );
    // It stands in nobody's way.
    world.completed(&world.create(&task(1)).await).await;
    world.fakes[1].control().inject(fake_comfyui::Fault::Revive).await.unwrap();
    let task = world.completed(&id).await;
    assert_eq!(task["waiting_for"], Value::Null);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_was_just_installed_is_found() {
    let world = world().start().await;
    let body = json!({"workflow": load("new.safetensors")});
    world.refused(&body).await;
    world.fake().set_checkpoints(&["new.safetensors"]);
    let id = world.create(&body).await;
    world.completed(&id).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lanes_survive_a_restart() {
    let world = world().fakes(different()).start().await;
    world.fakes[1].control().pause_execution();
    let mut inverted = Vec::new();
    for n in 0..4 {
        inverted.push(world.create(&json!({"workflow": invert(n)})).await);
    }
    world.running(&inverted[0]).await;
    let world = world.restart().await;
    world.surveyed().await;
    world.fakes[1].control().resume();
    for id in &inverted {
        world.completed(id).await;
        assert_eq!(world.posts_to(0, id), 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_part_is_taken_only_where_that_is_allowed() {
    let world = world().start().await;
    let mut graph = image(3);
    graph["3"] = json!({"class_type": "SaveImage", "inputs": {"images": ["1", 0]}});
    let problem = world.refused(&json!({"workflow": graph})).await;
    assert_eq!(pointers(&problem), ["/workflow/3/inputs/filename_prefix"]);
    let id = world.create(&json!({"workflow": graph, "allow_partial": true})).await;
    let task = world.completed(&id).await;
    assert_eq!(task["outputs"].as_array().unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_validation_the_server_decides() {
    let world = world().fakes(different()).with("COMFYD_COMFYUI__VALIDATE", "off").start().await;
    let id = world.create(&json!({"workflow": {"1": {"class_type": "Nowhere", "inputs": {}}}})).await;
    let task = world.finished(&id).await;
    assert_eq!((&task["status"], &task["error"]["code"]), (&json!("failed"), &json!("invalid_prompt")), "{task}");
    let response = world.client.get(world.url("/api/nodes")).send().await.unwrap();
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
}

#[tokio::test(flavor = "multi_thread")]
async fn node_classes_are_listed_and_described() {
    let world = world().fakes(different()).start().await;
    let (first, second) = (world.fakes[0].url(), world.fakes[1].url());
    let page = world.get("/api/nodes?limit=3").await;
    assert_eq!(page["nodes"].as_array().unwrap().len(), 3);
    let mut seen = Vec::new();
    let mut cursor = String::new();
    loop {
        let page = world.get(&format!("/api/nodes?limit=10{cursor}")).await;
        seen.extend(page["nodes"].as_array().unwrap().iter().map(|node| node["class_type"].clone()));
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    assert_eq!(json!(seen.len()), page["total"]);
    let inverted = world.get("/api/nodes?search=invert").await;
    assert_eq!(inverted["nodes"][0]["backends"], json!([second]));
    assert_eq!(world.get(&format!("/api/nodes?search=invert&backend={first}")).await["total"], 0);
    let outputs = world.get("/api/nodes?output_node=true&category=image").await;
    assert!(outputs["nodes"].as_array().unwrap().iter().any(|node| node["class_type"] == "SaveImage"), "{outputs}");

    let sampler = world.get("/api/nodes/KSampler").await;
    assert_eq!(sampler["variants"].as_array().unwrap().len(), 1);
    let inputs = sampler["variants"][0]["inputs"].as_array().unwrap();
    assert_eq!((&inputs[1]["name"], &inputs[1]["maximum"]), (&json!("seed"), &json!(u64::MAX)));
    let loader = world.get("/api/nodes/CheckpointLoaderSimple").await;
    assert_eq!(loader["variants"].as_array().unwrap().len(), 2, "their models differ");
    let missing = world.client.get(world.url("/api/nodes/KSamplr")).send().await.unwrap();
    assert_eq!(missing.status(), StatusCode::NOT_FOUND);
    assert_eq!(missing.json::<Value>().await.unwrap()["errors"][0]["suggestion"], "KSampler");
    let faulty = world.client.get(world.url("/api/nodes?limit=0&serch=x&backend=y")).send().await.unwrap();
    assert_eq!(faulty.status(), StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(faulty.json::<Value>().await.unwrap()["errors"].as_array().unwrap().len(), 3);
}
