use std::fs;

use comfyd_actors::testing::{MemoryStore, TestClock};
use serde_json::json;

use super::*;

async fn open(dir: &Path) -> Workflows {
    let store = MemoryStore::new(Arc::new(TestClock::default()));
    Workflows::open(dir, Arc::new(store)).await.unwrap()
}

fn file(value: u32) -> String {
    json!({"workflow": {"1": {"class_type": "A", "inputs": {"x": value}}}, "inputs": ["x"]}).to_string()
}

#[tokio::test]
async fn what_is_built_in_is_sound() {
    let workflows = open(Path::new("/nowhere")).await;
    for (name, text) in BUILT_IN {
        let loaded = Loaded::parse(text).unwrap_or_else(|faults| panic!("{name}: {faults:?}"));
        assert!(loaded.workflow.description().is_some(), "{name}");
        for input in loaded.workflow.inputs() {
            assert!(input.description.is_some(), "{name}.{}", input.name);
        }
    }
    let found = workflows.find(&Reference::parse("text-to-image")).await.unwrap();
    let names: Vec<&str> = found.workflow.inputs().iter().map(|input| input.name.as_str()).collect();
    assert_eq!((found.version, names), (1, vec!["prompt", "negative_prompt", "seed", "steps", "width", "height"]));
}

#[tokio::test]
async fn a_folder_adds_and_replaces_and_what_is_broken_is_told() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["mine.json", "text-to-image.json"] {
        fs::write(dir.path().join(name), file(1)).unwrap();
    }
    fs::write(dir.path().join("README.md"), "").unwrap();
    fs::write(dir.path().join("bad.json"), "{").unwrap();
    fs::write(dir.path().join("bad name.json"), file(1)).unwrap();
    fs::write(dir.path().join("large.json"), " ".repeat(MAX_FILE + 1)).unwrap();
    let workflows = open(dir.path()).await;
    let sources = |name| workflows.get(name).unwrap().sources;
    assert_eq!(sources("mine"), [Source::Folder]);
    assert_eq!(sources("text-to-image"), [Source::Folder, Source::BuiltIn]);
    for (name, part) in [("bad", "not JSON"), ("bad name", "letters"), ("large", "larger than")] {
        let Err(FindError::Broken { faults, .. }) = workflows.find(&Reference::parse(name)).await else {
            panic!("{name}")
        };
        assert!(faults[0].contains(part), "{faults:?}");
    }
    assert_eq!(Workflows::faults(dir.path()).len(), 3);
    assert!(Workflows::faults(Path::new("/nowhere")).is_empty());
}

#[tokio::test]
async fn every_version_can_be_run() {
    let workflows = open(Path::new("/nowhere")).await;
    let steps = async |reference: &str| {
        let found = workflows.find(&Reference::parse(reference)).await?;
        Ok::<_, FindError>((found.version, found.workflow.graph()["1"]["inputs"]["x"].clone()))
    };
    for value in [5, 6] {
        workflows.publish("mine", &file(value)).await.unwrap();
    }
    assert_eq!(steps("mine").await.unwrap(), (2, json!(6)));
    assert_eq!(steps("mine@1").await.unwrap(), (1, json!(5)));
    assert!(matches!(steps("mine@3").await, Err(FindError::NoVersion)));
    assert!(matches!(steps("yours@1").await, Err(FindError::Unknown(names)) if names.contains(&"mine".to_owned())));
    assert!(workflows.withdraw("mine").await.unwrap());
    assert!(matches!(steps("mine").await, Err(FindError::Unknown(_))));
    assert!(matches!(steps("mine@7").await, Err(FindError::NoVersion)));
    assert_eq!(steps("mine@2").await.unwrap(), (2, json!(6)), "whoever asks for exactly that version gets it");
}
