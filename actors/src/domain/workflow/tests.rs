use proptest::prelude::*;
use serde_json::json;

use super::{
    super::{graph::tests::any_json, resolve},
    *,
};

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

fn told(file: &str) -> Vec<String> {
    Workflow::parse(file).unwrap_err().iter().map(ToString::to_string).collect()
}

/// Where the short names of a graph lead, or what is said instead.
fn places(graph: &Value, names: &[&str]) -> Vec<String> {
    let place = |name: &&str| match resolve::by_name(graph.as_object().unwrap(), name) {
        Ok(input) => format!("{}.{} {}", input.node, input.field, input.kind.as_str()),
        Err(fault) => fault.split(';').next().unwrap().to_owned(),
    };
    names.iter().map(place).collect()
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
    assert_eq!(
        places(&graph, &["prompt", "negative_prompt", "seed"]),
        ["5.value string", "4.text string", "1.noise_seed seed"]
    );
}

#[test]
fn values_are_found_where_they_are_handed_on_from() {
    let graph = json!({
        "1": {"class_type": "KSampler", "inputs": {"seed": ["3", 0], "steps": ["4", 0], "cfg": ["5", 0], "denoise": 1.0}},
        "2": {"class_type": "KSampler", "inputs": {"seed": ["3", 0], "steps": ["4", 0], "cfg": ["6", 0], "denoise": 0.5}},
        "3": {"class_type": "Reroute", "inputs": {"": ["7", 0]}},
        "4": {"class_type": "PrimitiveInt", "inputs": {"value": 20}},
        "5": {"class_type": "PrimitiveFloat", "inputs": {"value": 8.0}},
        "6": {"class_type": "PrimitiveFloat", "inputs": {"value": 1.0}},
        "7": {"class_type": "PrimitiveInt", "inputs": {"value": 1, "control_after_generate": "fixed"}},
        "8": {"class_type": "EmptyLatentImage", "inputs": {"width": ["9", 0], "height": ["8", 0]}},
        "9": {"class_type": "Multiply", "inputs": {"a": 64, "b": ["4", 0]}},
    });
    assert_eq!(
        places(&graph, &["seed", "steps", "cfg", "denoise", "width", "height"]),
        [
            "7.value seed",
            "4.value integer",
            "input cfg: more than one field fits (5.value, 6.value)",
            "input denoise: more than one field fits (1.denoise, 2.denoise)",
            // What is computed is nobody's field, and a circle leads nowhere.
            "input width: no field of the graph fits",
            "input height: no field of the graph fits",
        ]
    );
}

#[test]
fn one_conditioning_is_the_prompt() {
    let guided = json!({
        "1": {"class_type": "BasicGuider", "inputs": {"model": ["9", 0], "conditioning": ["2", 0]}},
        "2": {"class_type": "FluxGuidance", "inputs": {"guidance": 3.5, "conditioning": ["3", 0]}},
        "3": {"class_type": "CLIPTextEncode", "inputs": {"text": "a boat", "clip": ["9", 1]}},
        "4": {"class_type": "CLIPTextEncode", "inputs": {"text": "unused", "clip": ["9", 1]}},
        "5": {"class_type": "RandomNoise", "inputs": {"noise_seed": 5}},
        "9": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "m"}},
    });
    assert_eq!(places(&guided, &["prompt", "seed"]), ["3.text string", "5.noise_seed seed"]);
    let silenced = json!({
        "1": {"class_type": "KSampler", "inputs": {"positive": ["2", 0], "negative": ["3", 0]}},
        "2": {"class_type": "CLIPTextEncode", "inputs": {"text": "a boat"}},
        "3": {"class_type": "ConditioningZeroOut", "inputs": {"conditioning": ["2", 0]}},
    });
    let nothing = "input negative_prompt: no field of the graph fits";
    assert_eq!(places(&silenced, &["prompt", "negative_prompt"]), ["2.text string", nothing]);
}

#[test]
fn files_are_what_loaders_load() {
    let graph = json!({
        "1": {"class_type": "LoadImage", "inputs": {"image": "a.png"}},
        "2": {"class_type": "LoadImageMask", "inputs": {"image": "m.png", "channel": "red"}},
        "3": {"class_type": "LoadAudio", "inputs": {"audio": "a.wav"}},
        "4": {"class_type": "LoadVideo", "inputs": {"file": "a.mp4"}},
        "5": {"class_type": "Blend", "inputs": {"image": ["1", 0], "mask": ["2", 0]}},
    });
    assert_eq!(
        places(&graph, &["image", "mask", "audio", "video"]),
        ["1.image image", "2.image mask", "3.audio audio", "4.file video"]
    );
    let text =
        json!({"workflow": graph, "inputs": ["image", {"name": "voice", "node": "3", "field": "audio"}]}).to_string();
    let workflow = Workflow::parse(&text).unwrap();
    assert!(workflow.inputs()[0].required && workflow.inputs()[1].kind == Kind::Audio);
    for (given, fits) in [
        (json!({"image": "b.png", "voice": {"id": "x"}}), true),
        (json!({"image": {"url": "https://example.org/a.png"}}), true),
        (json!({}), false),
        (json!({"image": ""}), false),
        (json!({"image": 7}), false),
        (json!({"image": ["1", 0]}), false),
    ] {
        let applied = workflow.apply(map(given.clone()), || 0);
        assert_eq!(applied.is_ok(), fits, "{given}");
        if let Ok(applied) = applied {
            assert_eq!(applied.graph["1"]["inputs"]["image"], given["image"]);
        }
    }
}

#[test]
fn the_schema_says_what_is_taken() {
    let workflow = workflow(&json!([
        "prompt", "seed", "cfg",
        {"name": "steps", "node": "3", "field": "steps", "minimum": 1, "maximum": 200, "description": "How many."},
        {"name": "size", "node": "5", "field": "width", "choices": [512.0, 1024], "default": 512.0},
        {"name": "model", "node": "4", "field": "ckpt_name", "type": "file"},
    ]));
    assert_eq!(
        workflow.schema(),
        json!({
            "type": "object",
            "properties": {
                "prompt": {"type": "string"},
                "seed": {"type": "integer", "minimum": 0, "maximum": u64::MAX},
                "cfg": {"type": "number", "default": 8.0},
                "steps": {"type": "integer", "minimum": 1, "maximum": 200, "default": 20, "description": "How many."},
                "size": {"enum": [512, 1024], "default": 512},
                "model": {"type": ["string", "object"], "minLength": 1, "x-comfyd-file": "file", "default": "m.safetensors"},
            },
            "required": ["prompt"],
            "additionalProperties": false,
        })
    );
}

#[test]
fn what_is_ambiguous_or_wrong_is_told_at_load() {
    let two = json!({"workflow": {
        "1": {"class_type": "K", "inputs": {"seed": 1, "positive": ["3", 0]}},
        "2": {"class_type": "K", "inputs": {"seed": 2, "positive": ["4", 0]}},
        "3": {"class_type": "T", "inputs": {"text": "a"}},
        "4": {"class_type": "T", "inputs": {"text": "b"}},
    }, "inputs": ["seed", "prompt", "nonsense"], "extra": 1});
    let faults = told(&two.to_string());
    for part in [
        "/inputs/0: input seed: more than one field fits (1.seed, 2.seed)",
        "3.text, 4.text",
        "nonsense: no field",
        "/extra: ",
    ] {
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
        (json!({}), "/inputs: expected a list"),
        (json!([{"name": "x", "node": "3", "field": "steps", "minimum": 5, "maximum": 4}]), "/inputs/0/minimum: "),
        (json!([{"name": "x", "node": "6", "field": "text", "maximum": 4}]), "has no range"),
        (json!([{"name": "x", "node": "6", "field": "text", "type": "choice"}]), "lists its choices"),
        (
            json!([{"name": "x", "node": "3", "field": "steps", "type": "integer", "choices": [1, "2"]}]),
            "\"2\": expected a whole",
        ),
        (json!([{"name": "x", "node": "3", "field": "steps", "default": 1, "required": true}]), "has no default"),
        (json!([{"name": "", "node": "3", "field": "steps"}]), "/inputs/0/name: "),
        (json!(["steps", {"name": "x", "node": "3", "field": "steps"}]), "another input writes to 3.steps"),
    ] {
        let faults = told(&file(&inputs));
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
        let names = ["prompt", "negative_prompt", "seed", "text", "image"];
        for name in names {
            if let Value::Object(nodes) = &graph {
                let _ = resolve::by_name(nodes, name);
            }
        }
        let _ = Workflow::parse(&json!({"workflow": graph, "inputs": names}).to_string()).map(|found| found.schema());
        let workflow = workflow(&json!(["prompt", "seed", "steps"]));
        if let Value::Object(given) = given {
            let _ = workflow.apply(given.clone(), || 7);
            let mut raw = workflow.graph.clone();
            let _ = apply_raw(&mut raw, &given);
        }
    }
}
