//! The examples, run as their readers would run them.

use std::{fs, path::Path, process::Command};

use serde_json::Value;

use crate::{
    support::{PATIENCE, World, world},
    tools::{node, python, root, sh, written_by},
};

/// What the README and the mission print; it must not become anything else.
const SEED: &str = r#"
response = requests.post("http://localhost:8000/api/tasks/create",
    json={"workflow": "text-to-image", "inputs": {"prompt": "...", "seed": 42}})
task_id = response.json()["task_id"]
status = requests.get(f"http://localhost:8000/api/tasks/{task_id}")
"#;

/// Runs an example in a folder of its own.
async fn example(world: &World, mut interpreter: Command, name: &str, folder: &Path) -> String {
    interpreter.arg(root().join("examples").join(name)).env("COMFYD_URL", world.url("")).current_dir(folder);
    written_by(interpreter, PATIENCE).await
}

/// The pictures a folder holds, which must be pictures.
fn pictures(folder: &Path) -> usize {
    let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    files.filter(|file| fs::read(file).unwrap().starts_with(b"\x89PNG\r\n\x1a\n")).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_snippet_everybody_starts_with_works_as_it_stands() {
    let source = fs::read_to_string(root().join("examples/seed.py")).unwrap();
    assert!(source.contains(SEED), "the snippet was changed");
    let world = world().start().await;
    let mut script = source.replace("http://localhost:8000", &world.url(""));
    script.push_str("print(task_id, status.status_code)\n");
    let mut command = python();
    command.args(["-c", &script]);
    let printed = written_by(command, PATIENCE).await;
    let (task, status) = printed.trim().split_once(' ').unwrap();
    assert_eq!(status, "200");
    let done = world.completed(task).await;
    assert_eq!((&done["workflow"], &done["inputs"]["seed"]), (&Value::from("text-to-image"), &Value::from(42)));
}

#[tokio::test(flavor = "multi_thread")]
async fn text_to_image_in_every_language() {
    let world = world().start().await;
    for (interpreter, name) in
        [(python(), "text_to_image.py"), (node(), "text_to_image.mjs"), (sh(), "text_to_image.sh")]
    {
        let folder = tempfile::tempdir().unwrap();
        let printed = example(&world, interpreter, name, folder.path()).await;
        assert_eq!(pictures(folder.path()), 1, "{name}: {printed}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_of_comfyuis_with_one_address_changed() {
    let world = world().start().await;
    let folder = tempfile::tempdir().unwrap();
    let printed = example(&world, python(), "comfyui_client.py", folder.path()).await;
    assert_eq!(pictures(folder.path()), 1, "{printed}");
    assert_eq!(world.get("/api/tasks").await["tasks"], serde_json::json!([]), "a prompt of ComfyUI's is no task");
}

/// An example nobody runs is one that does not work.
#[test]
fn no_example_is_left_out() {
    let tests = concat!(include_str!("examples.rs"), include_str!("events.rs"), include_str!("webhooks.rs"));
    for entry in fs::read_dir(root().join("examples")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        // Pages are opened where comfyd serves them.
        let what = name.strip_suffix(".html").map_or_else(|| name.clone(), |page| format!("/examples/{page}"));
        assert!(name == "README.md" || tests.contains(&what), "{name} is not run by any test");
    }
}
