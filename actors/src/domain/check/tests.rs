use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::domain::{catalogue::tests::catalogue, graph};

const STRICT: Terms<'static> = Terms { allow_partial: false, is_placeholder: &|_, _, _| false };

fn faults(graph: &Value, terms: Terms<'_>) -> Vec<(String, String, String)> {
    let place = |text: Option<String>| text.unwrap_or_default();
    let found = check(graph.as_object().unwrap(), &catalogue(), terms);
    found.into_iter().map(|fault| (place(fault.node), place(fault.input), fault.detail)).collect()
}

/// The graph of text-to-image with one alteration.
fn text_to_image(alter: impl FnOnce(&mut Value)) -> Value {
    let mut graph = json!({
        "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "sd_xl_base_1.0.safetensors"}},
        "2": {"class_type": "CLIPTextEncode", "inputs": {"text": "a boat", "clip": ["1", 1]}},
        "3": {"class_type": "CLIPTextEncode", "inputs": {"text": "", "clip": ["1", 1]}},
        "4": {"class_type": "EmptyLatentImage", "inputs": {"width": 512, "height": 512, "batch_size": 1}},
        "5": {"class_type": "KSampler", "inputs": {"model": ["1", 0], "seed": u64::MAX, "steps": 20, "cfg": 8, "sampler_name": "euler",
            "scheduler": "normal", "positive": ["2", 0], "negative": ["3", 0], "latent_image": ["4", 0], "denoise": 1.0}},
        "6": {"class_type": "VAEDecode", "inputs": {"samples": ["5", 0], "vae": ["1", 2]}},
        "7": {"class_type": "SaveImage", "inputs": {"images": ["6", 0], "filename_prefix": "x"}},
    });
    alter(&mut graph);
    graph
}

fn set(place: &str, value: Value) -> Value {
    text_to_image(|graph| {
        let (node, field) = place.split_once('.').unwrap();
        graph[node]["inputs"][field] = value;
    })
}

#[test]
fn a_good_graph_has_no_faults() {
    assert_eq!(faults(&text_to_image(|_| ()), STRICT), []);
}

#[test]
fn values_are_judged_as_python_reads_them() {
    for (place, value, word) in [
        ("1.ckpt_name", json!("sd15.safetensors"), "not in the list of ckpt_name: sd_xl_base_1.0.safetensors, v1-5"),
        ("1.ckpt_name", json!(5), "expected one of the list of ckpt_name"),
        ("4.width", json!(8), "from 16 to 16384"),
        ("4.width", json!(16385), "from 16 to 16384"),
        ("4.width", json!("wide"), "a whole number, found `wide`"),
        ("4.width", json!("64.5"), "a whole number, found `64.5`"),
        ("4.width", json!(null), "a whole number, found null"),
        ("4.width", json!({"a": 1}), "a whole number, found an object"),
        ("5.seed", json!(-1), "from 0 to 18446744073709551615"),
        ("5.seed", json!(18_446_744_073_709_551_616.0), "from 0 to 18446744073709551615"),
        ("5.cfg", json!("much"), "a number, found `much`"),
        ("5.cfg", json!(100.5), "from 0.0 to 100.0"),
        ("5.sampler_name", json!("eulerr"), "`eulerr` is not in the list"),
        ("5.scheduler", json!(["2", 0]), "takes COMBO, and output 0 of node 2 (CLIPTextEncode) is CONDITIONING"),
        ("7.images", json!(["6", 1]), "links to output 1 of node 6; a VAEDecode has outputs 0 to 0"),
        ("7.images", json!(["6", -1]), "links to output -1"),
        ("7.images", json!(["6", 0.5]), "links to output 0.5"),
        ("7.images", json!(["6", 0, 3]), "must be a link"),
        ("7.images", json!([6, 0]), "must be a link"),
        ("7.images", json!([]), "must be a link"),
        ("7.images", json!(["99", 0]), "node 99, which the graph does not have"),
        ("7.images", json!(["5", 0]), "takes IMAGE, and output 0 of node 5 (KSampler) is LATENT"),
        ("7.filename_prefix", json!(["6", 0]), "takes STRING, and output 0 of node 6 (VAEDecode) is IMAGE"),
    ] {
        let found = faults(&set(place, value.clone()), STRICT);
        let (node, input) = place.split_once('.').unwrap();
        let hit = found
            .iter()
            .any(|(at, field, detail)| (at.as_str(), field.as_str()) == (node, input) && detail.contains(word));
        assert!(found.len() == 1 && hit, "{place} = {value}: {found:?}");
    }
    for (place, value) in [
        ("4.width", json!("64")),
        ("4.width", json!(64.9)),
        ("4.width", json!(" 1_024 ")),
        ("4.batch_size", json!(true)),
        ("5.cfg", json!("7.5")),
        ("5.denoise", json!(false)),
        ("7.filename_prefix", json!(5)),
        ("7.filename_prefix", json!({"__value__": ["a"]})),
        ("7.nobody_asked", json!(["99", 5, 6])),
        ("1.ckpt_name", json!({"__value__": "sd_xl_base_1.0.safetensors"})),
    ] {
        assert_eq!(faults(&set(place, value.clone()), STRICT), [], "{place} = {value}");
    }
}

#[test]
fn every_fault_is_found_at_once() {
    let graph = text_to_image(|graph| {
        graph["1"]["inputs"]["ckpt_name"] = json!("none");
        graph["2"]["class_type"] = json!("NoSuchNode");
        graph["4"]["inputs"]["width"] = json!(0);
        graph["5"]["inputs"].as_object_mut().unwrap().remove("steps");
        graph["7"]["inputs"]["images"] = json!(["5", 0]);
    });
    let found = faults(&graph, STRICT);
    let places: Vec<_> = found.iter().map(|(node, input, _)| format!("{node}.{input}")).collect();
    assert_eq!(places, ["1.ckpt_name", "2.", "4.width", "5.steps", "7.images"]);
}

#[test]
fn nodes_that_lead_to_no_output_do_not_matter() {
    let graph = text_to_image(|graph| graph["8"] = json!({"class_type": "EmptyLatentImage", "inputs": {"width": 0}}));
    assert_eq!(faults(&graph, STRICT), []);
    // But their class must be there.
    let graph = text_to_image(|graph| graph["8"] = json!({"class_type": "Gone", "inputs": {}}));
    assert_eq!(faults(&graph, STRICT).len(), 1);
}

#[test]
fn a_graph_needs_an_output() {
    let graph = json!({"1": {"class_type": "EmptyImage", "inputs": {"width": 1}}});
    let found = faults(&graph, STRICT);
    assert!(found.len() == 1 && found[0].2.contains("SaveImage"), "{found:?}");
    // What is not understood may be one.
    assert_eq!(
        faults(&json!({"1": {"class_type": "OddNode", "inputs": {"x": ["1", 7]}}}), STRICT).len(),
        1,
        "a circle"
    );
    assert_eq!(faults(&json!({"1": {"class_type": "OddNode", "inputs": {}}}), STRICT), []);
}

#[test]
fn circles_are_found() {
    let graph = json!({
        "1": {"class_type": "ImageInvert", "inputs": {"image": ["2", 0]}},
        "2": {"class_type": "ImageInvert", "inputs": {"image": ["1", 0]}},
        "3": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "x"}},
    });
    let found = faults(&graph, STRICT);
    assert!(found.len() == 1 && found[0].0 == "2" && found[0].2.contains("1, 2"), "{found:?}");
    // Deep graphs are walked without a deep stack.
    let mut chain =
        json!({"0": {"class_type": "EmptyImage", "inputs": {"width": 1, "height": 1, "batch_size": 1, "color": 0}}});
    for n in 1..50_000 {
        chain[n.to_string()] = json!({"class_type": "ImageInvert", "inputs": {"image": [(n - 1).to_string(), 0]}});
    }
    chain["x"] = json!({"class_type": "PreviewImage", "inputs": {"images": ["49999", 0]}});
    assert_eq!(faults(&chain, STRICT), []);
}

#[test]
fn files_are_looked_up_by_their_plain_names() {
    let load = |file: Value| {
        json!({
            "1": {"class_type": "LoadImage", "inputs": {"image": file}},
            "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}},
        })
    };
    assert_eq!(faults(&load(json!("photo.jpg")), STRICT), []);
    assert_eq!(faults(&load(json!("none.jpg")), STRICT).len(), 1);
    // The server's list does not show these, and it takes them.
    for elsewhere in ["folder/none.jpg", "none.jpg [output]"] {
        assert_eq!(faults(&load(json!(elsewhere)), STRICT), [], "{elsewhere}");
    }
    let placeholders =
        Terms { allow_partial: false, is_placeholder: &|node, input, _| (node, input) == ("1", "image") };
    assert_eq!(faults(&load(json!("https://example.org/a.png")), placeholders), []);
}

#[test]
fn inputs_that_grow_are_followed_and_not_judged() {
    let graph = json!({
        "1": {"class_type": "EmptyImage", "inputs": {"width": 0, "height": 1, "batch_size": 1, "color": 0}},
        "2": {"class_type": "BatchImagesNode", "inputs": {"images.image0": ["1", 0], "images.image1": ["1", 0]}},
        "3": {"class_type": "ResizeImageMaskNode", "inputs": {"input": ["2", 0], "resize_type": "scale by multiplier",
            "resize_type.multiplier": 2, "scale_method": "area"}},
        "4": {"class_type": "SaveImage", "inputs": {"images": ["3", 0], "filename_prefix": "x"}},
    });
    let found = faults(&graph, STRICT);
    assert!(found.len() == 1 && found[0].0 == "1", "{found:?}");
}

#[test]
fn several_may_be_chosen_where_the_class_says_so() {
    let with = |tags: Value| {
        json!({
            "1": {"class_type": "PrimitiveInt", "inputs": {"value": 1}},
            "2": {"class_type": "StringOrNumber", "inputs": {"value": ["1", 0], "tags": {"__value__": tags}, "level": 2.0}},
            "3": {"class_type": "PreviewAny", "inputs": {"source": ["2", 0]}},
        })
    };
    assert_eq!(faults(&with(json!(["a", "c"])), STRICT), []);
    assert_eq!(faults(&with(json!(["a", "d"])), STRICT).len(), 1);
}

#[test]
fn a_part_will_do_when_that_is_allowed() {
    let partial = Terms { allow_partial: true, ..STRICT };
    let with_second_output =
        |graph: &mut Value| graph["8"] = json!({"class_type": "SaveImage", "inputs": {"images": ["6", 0]}});
    assert_eq!(faults(&text_to_image(with_second_output), STRICT).len(), 1);
    assert_eq!(faults(&text_to_image(with_second_output), partial), []);
    // A fault that every output needs is one all the same, and so is a class that is not there.
    let graph = text_to_image(|graph| {
        with_second_output(graph);
        graph["4"]["inputs"]["width"] = json!(0);
    });
    assert_eq!(faults(&graph, partial).len(), 2);
    let graph = text_to_image(|graph| {
        with_second_output(graph);
        graph["9"] = json!({"class_type": "Gone", "inputs": {}});
    });
    assert_eq!(faults(&graph, partial).len(), 2);
}

proptest! {
    #[test]
    fn no_graph_makes_it_panic(graph in graph::tests::any_json()) {
        if let Some(nodes) = graph.as_object() {
            let _ = check(nodes, &catalogue(), STRICT);
            let _ = needed(nodes, &catalogue(), STRICT);
        }
    }
}
