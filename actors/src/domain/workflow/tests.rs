use proptest::prelude::*;
use serde_json::json;

use super::{super::graph::tests::any_json, *};

/// `ComfyUI`'s default graph, its inputs as short names.
fn file(inputs: &Value) -> String {
    json!({"workflow": {
        "3": {"class_type": "KSampler", "inputs": {"seed": 1, "steps": 20, "cfg": 8.0, "model": ["4", 0],
              "positive": ["6", 0], "negative": ["7", 0], "latent_image": ["5", 0]}},
        "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "m.safetensors"}},
        "5": {"class_type": "EmptyLatentImage", "inputs": {"width": 512, "height": 512, "batch_size": 1}},
        "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "a boat", "clip": ["4", 1]}},
        "7": {"class_type": "CLIPTextEncode", "inputs": {"text": "", "clip": ["4", 1]}},
    }, "inputs": inputs})
    .to_string()
}

fn workflow(inputs: &Value) -> Workflow {
    Workflow::parse(&file(inputs)).unwrap()
}

fn map(value: Value) -> Map<String, Value> {
    serde_json::from_value(value).unwrap()
}

#[test]
fn short_names_are_found_in_the_graph() {
    let workflow = workflow(&json!(["prompt", "negative_prompt", "seed", "steps", "width", "height", "cfg"]));
    let places: Vec<String> =
        workflow.inputs().iter().map(|i| format!("{}={}.{} {:?}", i.name, i.node, i.field, i.kind)).collect();
    assert_eq!(
        places,
        [
            "prompt=6.text String",
            "negative_prompt=7.text String",
            "seed=3.seed Seed",
            "steps=3.steps Integer",
            "width=5.width Integer",
            "height=5.height Integer",
            "cfg=3.cfg Number"
        ]
    );
}

#[test]
fn texts_are_found_through_the_nodes_between() {
    let graph = json!({
        "1": {"class_type": "KSamplerAdvanced", "inputs": {"noise_seed": 5, "positive": ["2", 0], "negative": ["2", 1]}},
        "2": {"class_type": "ControlNetApplyAdvanced", "inputs": {"positive": ["3", 0], "negative": ["4", 0]}},
        "3": {"class_type": "CLIPTextEncode", "inputs": {"text": ["5", 0]}},
        "4": {"class_type": "CLIPTextEncode", "inputs": {"text": "bad"}},
        "5": {"class_type": "PrimitiveString", "inputs": {"value": "good"}},
    });
    let text = json!({"workflow": graph, "inputs": ["prompt", "negative_prompt", "seed"]}).to_string();
    let places: Vec<_> =
        Workflow::parse(&text).unwrap().inputs.into_iter().map(|i| format!("{}.{}", i.node, i.field)).collect();
    assert_eq!(places, ["5.value", "4.text", "1.noise_seed"]);
}

#[test]
fn what_is_ambiguous_or_wrong_is_told_at_load() {
    let two = json!({"workflow": {
        "1": {"class_type": "K", "inputs": {"seed": 1, "positive": ["3", 0]}},
        "2": {"class_type": "K", "inputs": {"seed": 2, "positive": ["4", 0]}},
        "3": {"class_type": "T", "inputs": {"text": "a"}},
        "4": {"class_type": "T", "inputs": {"text": "b"}},
    }, "inputs": ["seed", "prompt", "nonsense"], "extra": 1});
    let faults = Workflow::parse(&two.to_string()).unwrap_err();
    for part in ["1.seed, 2.seed", "3.text, 4.text", "nonsense: no field", "`extra`"] {
        assert!(faults.iter().any(|fault| fault.contains(part)), "{part}: {faults:?}");
    }
    for (inputs, part) in [
        (json!([{"name": "x", "node": "3"}]), "field"),
        (json!([{"name": "x", "node": "3", "field": "seeed"}]), "no 3.seeed"),
        (json!([{"name": "x", "node": "3", "field": "model"}]), "`type`"),
        (json!([{"name": "x", "node": "3", "field": "steps", "default": "many"}]), "its default"),
        (json!([{"name": "x", "node": "3", "field": "steps", "minimun": 1}]), "minimun"),
        (json!(["steps", "steps"]), "twice"),
        (json!([7]), "input"),
        (json!({}), "list"),
    ] {
        let faults = Workflow::parse(&file(&inputs)).unwrap_err();
        assert!(faults.len() == 1 && faults[0].contains(part), "{part}: {faults:?}");
    }
    for bad in ["", "[]", "{}", "{\"workflow\": {}}"] {
        assert!(Workflow::parse(bad).is_err(), "{bad}");
    }
}

#[test]
fn a_missing_seed_is_drawn_and_told() {
    let workflow = workflow(&json!(["prompt", "seed"]));
    let applied = workflow.apply(map(json!({"prompt": "x"})), || u64::MAX).unwrap();
    let seed = applied.inputs["seed"].as_u64().unwrap();
    assert_eq!(applied.graph["3"]["inputs"]["seed"], seed);
    assert_eq!(seed, SEED_DRAW - 1, "a double holds it exactly");
    assert_eq!(applied.graph["6"]["inputs"]["text"], "x");
    let given = workflow.apply(map(json!({"prompt": "x", "seed": u64::MAX})), || 0).unwrap();
    assert_eq!(given.graph["3"]["inputs"]["seed"], u64::MAX);
}

#[test]
fn values_are_checked_and_all_faults_told() {
    let workflow = workflow(&json!([
        "prompt", "seed", "cfg",
        {"name": "steps", "node": "3", "field": "steps", "minimum": 1, "maximum": 200, "default": 30},
        {"name": "size", "node": "5", "field": "width", "choices": [512, 1024]},
        {"name": "batch", "node": "5", "field": "batch_size", "minimum": 1},
    ]));
    let given = json!({"promt": "x", "seed": -1, "steps": 201, "size": 700, "batch": 0, "cfg": "8"});
    let faults = workflow.apply(map(given), || 0).unwrap_err();
    let told: Vec<(&str, bool)> = faults.iter().map(|fault| (fault.name.as_str(), fault.unknown)).collect();
    let expected = [
        ("promt", true),
        ("prompt", false),
        ("seed", false),
        ("cfg", false),
        ("steps", false),
        ("size", false),
        ("batch", false),
    ];
    assert_eq!(told, expected, "{faults:?}");
    let applied = workflow.apply(map(json!({"prompt": "", "size": 1024.0, "cfg": 7})), || 0).unwrap();
    assert_eq!(applied.graph["5"]["inputs"]["width"], json!(1024));
    assert_eq!(applied.graph["3"]["inputs"]["steps"], 30);
    for bad in [json!(true), json!("20"), json!(1.5), json!(null), json!([1])] {
        let given = map(json!({"prompt": "", "steps": bad}));
        assert_eq!(workflow.apply(given, || 0).unwrap_err().len(), 1, "{bad}");
    }
}

#[test]
fn raw_graphs_are_addressed_by_node_and_field() {
    let graph = json!({"1": {"class_type": "A", "inputs": {"text": "a", "images.image0": 1, "link": ["1", 0]}}});
    let mut changed = graph.clone();
    apply_raw(&mut changed, &map(json!({"1.text": "b", "1.images.image0": 2}))).unwrap();
    assert_eq!((&changed["1"]["inputs"]["text"], &changed["1"]["inputs"]["images.image0"]), (&json!("b"), &json!(2)));
    let mut untouched = graph.clone();
    let given = json!({"1.text": "b", "2.text": 1, "1.txet": 1, "text": 1, "1.link": ["9", 0]});
    let faults = apply_raw(&mut untouched, &map(given)).unwrap_err();
    assert_eq!(faults.len(), 4, "{faults:?}");
    let all: Vec<String> = addresses(graph.as_object().unwrap()).collect();
    assert_eq!(all.len(), 3);
}

proptest! {
    #[test]
    fn no_file_and_no_input_makes_it_panic(graph in any_json(), given in any_json()) {
        let names = ["prompt", "negative_prompt", "seed", "text"];
        for name in names {
            if let Value::Object(nodes) = &graph {
                let _ = resolve::by_name(nodes, name);
            }
        }
        let _ = Workflow::parse(&json!({"workflow": graph, "inputs": names}).to_string());
        let workflow = workflow(&json!(["prompt", "seed", "steps"]));
        if let Value::Object(given) = given {
            let _ = workflow.apply(given.clone(), || 7);
            let mut raw = workflow.graph.clone();
            let _ = apply_raw(&mut raw, &given);
        }
    }
}
