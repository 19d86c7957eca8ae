//! The decoders against recorded traffic of real servers, two generations of them.
//!
//! A trace is `{case, events: [...]}`; protocol facts that the tests rely on can be looked up in the fixture of that name.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use comfyd_actors::domain::{
    artifact::{Source, extension},
    id::PromptId,
    options::OutputOptions,
    prompt::{Finished, Outcome, Sighting, Signal},
};
use serde_json::Value;

use super::{
    frame::{decode_binary, decode_text},
    history, lookup, refusal,
};

const GENERATIONS: [&str; 2] = ["comfyui", "comfyui_v0_3_64"];

/// Types that mean nothing to us.
const UNUSED: [&str; 6] = [
    "progress_state",
    "executed",
    "feature_flags",
    "assets.seed.paused",
    "assets.seed.progress",
    "assets.seed.resumed",
];

fn traces(generation: &str) -> Vec<PathBuf> {
    // Tests run in their package's folder.
    let folder = Path::new("tests/fixtures").join(generation);
    let mut paths: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|ext| ext == "json"));
    paths.sort();
    paths
}

fn events(path: &Path) -> Vec<Value> {
    let trace: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    trace["events"].as_array().cloned().unwrap_or_default()
}

fn all_events() -> impl Iterator<Item = Value> {
    GENERATIONS.into_iter().flat_map(traces).flat_map(|path| events(&path))
}

fn name(signal: &Signal) -> &'static str {
    match signal {
        Signal::Status { .. } => "status",
        Signal::Started { .. } => "started",
        Signal::Cached { .. } => "cached",
        Signal::Executing { .. } => "executing",
        Signal::Stepped { .. } => "stepped",
        Signal::Ended { .. } => "ended",
        Signal::Ending { .. } => "ending",
        Signal::Preview { .. } => "preview",
        Signal::Other => "other",
    }
}

/// What a text frame has to become, told from its raw JSON.
fn expected(frame: &Value) -> &'static str {
    let data = &frame["data"];
    match frame["type"].as_str().unwrap_or_default() {
        "status" => "status",
        "execution_start" => "started",
        "execution_cached" => "cached",
        "executing" if data["node"].is_null() => "ended",
        "executing" => "executing",
        "progress" => "stepped",
        "execution_error" if data["exception_type"] == "ExecutionBlocked" => "other",
        "execution_error" | "execution_success" | "execution_interrupted" => "ending",
        unused if UNUSED.contains(&unused) => "other",
        unknown => panic!("the fixtures hold a new type: {unknown}"),
    }
}

#[test]
fn every_recorded_text_frame_is_understood() {
    let mut counts = BTreeMap::new();
    for event in all_events().filter(|event| event["kind"] == "ws_text") {
        let text = event["data"].as_str().unwrap();
        let frame: Value = serde_json::from_str(text).unwrap();
        let signal = decode_text(text);
        assert_eq!(name(&signal), expected(&frame), "{text}");
        *counts.entry(name(&signal)).or_insert(0) += 1;
    }
    let kinds: BTreeSet<&str> = counts.keys().copied().collect();
    let all = ["cached", "ended", "ending", "executing", "other", "started", "status", "stepped"];
    assert_eq!(kinds, BTreeSet::from(all));
    assert_eq!(counts.values().sum::<i32>(), 4246);
}

#[test]
fn every_recorded_picture_is_understood() {
    let (mut plain, mut described) = (0, 0);
    for event in all_events().filter(|event| event["kind"] == "ws_binary") {
        let length = usize::try_from(event["len"].as_u64().unwrap()).unwrap();
        match (event["event_type"].as_u64().unwrap(), decode_binary(frame(&event, length))) {
            (1, Signal::Preview { prompt: None, node: None, content_type, image }) => {
                assert_eq!(content_type, if event["image_type"] == 2 { "image/png" } else { "image/jpeg" });
                assert_eq!(image.len(), length - 8);
                plain += 1;
            }
            (4, Signal::Preview { prompt: Some(prompt), node: Some(node), content_type, image }) => {
                let metadata: Value = serde_json::from_str(event["metadata_json"].as_str().unwrap()).unwrap();
                assert_eq!(metadata["prompt_id"], prompt.as_str());
                assert_eq!(metadata["display_node_id"], node.as_str());
                assert_eq!(metadata["image_type"], content_type);
                assert_eq!(image.len() as u64, event["image_len"].as_u64().unwrap());
                described += 1;
            }
            (3, Signal::Other) => {}
            (kind, signal) => panic!("type {kind} became {signal:?}"),
        }
    }
    assert_eq!((plain, described), (307, 34));
}

/// Traces keep a frame's first bytes only; description and length are recorded apart, so the frame can be filled up.
fn frame(event: &Value, length: usize) -> Bytes {
    let head = event["head_hex"].as_str().unwrap();
    let mut bytes: Vec<u8> =
        (0..head.len()).step_by(2).map(|at| u8::from_str_radix(&head[at..at + 2], 16).unwrap()).collect();
    if let Some(metadata) = event["metadata_json"].as_str() {
        bytes.truncate(8);
        bytes.extend_from_slice(metadata.as_bytes());
    }
    bytes.resize(length, 0);
    bytes.into()
}

/// The 200 answers below `prefix` as (id in the path, JSON text).
fn answers(prefix: &str) -> Vec<(PromptId, String)> {
    all_events()
        .filter(|event| {
            event["kind"] == "http" && event["request"]["method"] == "GET" && event["response"]["status"] == 200
        })
        .filter_map(|event| {
            let id = event["request"]["path"].as_str()?.strip_prefix(prefix)?;
            let body = event["response"]["body"].as_str().filter(|body| body.starts_with('{'))?;
            (!id.contains(['/', '?'])).then(|| (PromptId::new(id), body.to_owned()))
        })
        .collect()
}

/// What an entry says in its own words: last message and, in any order, files.
fn check(finished: &Finished, status: &Value, outputs: &Value, text: &str) {
    let last = status["messages"].as_array().and_then(|messages| messages.last()).map(|message| &message[0]);
    let outcome = match finished.outcome {
        Outcome::Success => "execution_success",
        Outcome::Failed(_) => "execution_error",
        Outcome::Interrupted => "execution_interrupted",
    };
    assert_eq!(last.unwrap(), outcome, "{text}");
    let mut names = BTreeSet::new();
    collect(outputs, &mut names);
    let files = finished.outputs.iter().filter(|output| matches!(output.source, Source::File(_)));
    let found: BTreeSet<String> = files.map(|output| output.source.filename().to_owned()).collect();
    assert_eq!(found, names, "{text}");
}

fn collect(value: &Value, names: &mut BTreeSet<String>) {
    match value {
        Value::Object(fields) => {
            names.extend(fields.get("filename").and_then(Value::as_str).map(ToOwned::to_owned));
            fields.values().for_each(|field| collect(field, names));
        }
        Value::Array(items) => items.iter().for_each(|item| collect(item, names)),
        _ => {}
    }
}

#[test]
fn every_recorded_history_tells_its_end() {
    let mut outcomes = [0; 4];
    for (id, text) in answers("/history/").into_iter().chain(answers("/api/history/")) {
        let raw: Value = serde_json::from_str(&text).unwrap();
        let entry = &raw[id.as_str()];
        let finished = history::answer(&text, &id).unwrap();
        let kind = match &finished {
            None => 3,
            Some(Finished { outcome: Outcome::Success, .. }) => 0,
            Some(Finished { outcome: Outcome::Failed(error), .. }) => {
                assert!(error.node_id.is_some() && !error.message.contains("/comfyui/"), "{error:?}");
                1
            }
            Some(Finished { outcome: Outcome::Interrupted, .. }) => 2,
        };
        outcomes[kind] += 1;
        match finished {
            Some(finished) => check(&finished, &entry["status"], &entry["outputs"], &text),
            None => assert!(entry.is_null(), "{text}"),
        }
    }
    assert!(outcomes.iter().all(|count| *count > 0), "some kind of end is not in the fixtures: {outcomes:?}");
}

#[test]
fn every_recorded_job_agrees_with_its_history() {
    let histories: BTreeMap<PromptId, Finished> = answers("/history/")
        .into_iter()
        .filter_map(|(id, text)| history::answer(&text, &id).unwrap().map(|finished| (id, finished)))
        .collect();
    let mut both = 0;
    for (id, text) in answers("/api/jobs/") {
        let Sighting::Ended(job) = lookup::job(&text, &id).unwrap() else { continue };
        let raw: Value = serde_json::from_str(&text).unwrap();
        check(&job, &raw["execution_status"], &raw["outputs"], &text);
        if let Some(finished) = histories.get(&id) {
            assert_eq!(&job, finished);
            both += 1;
        }
    }
    assert!(both >= 5, "only {both} prompts are in both");
}

#[test]
fn recorded_outputs_of_every_kind_of_node() {
    for (case, files) in [
        ("14a_batch4", &[("2", "png"), ("2", "png"), ("2", "png"), ("2", "png")][..]),
        ("14c_preview_temp", &[("2", "png"), ("2", "png")]),
        ("14d_animated_webp", &[("2", "webp")]),
        ("14g_video", &[("3", "mp4")]),
        ("14h_webm", &[("2", "webm")]),
        ("14j_gifs_custom_key", &[("2", "gif")]),
        ("14k_subgraph_expansion", &[("1", "png"), ("2", "png")]),
        ("14l_save_image_websocket", &[]),
        ("14o_latent", &[("2", "latent")]),
        ("14p_text_only", &[("1", "txt")]),
    ] {
        for generation in GENERATIONS {
            let finished = only_history(generation, case);
            let found: Vec<(&str, String)> = finished
                .outputs
                .iter()
                .map(|output| (output.node_id.as_str(), extension(output.source.filename()).unwrap_or_default()))
                .collect();
            let expected: Vec<(&str, String)> = files.iter().map(|(node, ext)| (*node, (*ext).to_owned())).collect();
            assert_eq!(found, expected, "{generation}/{case}");
            assert!(
                finished.artifacts(&OutputOptions::default(), &[]).is_ok() || files.is_empty(),
                "{generation}/{case}"
            );
        }
    }
}

fn only_history(generation: &str, case: &str) -> Finished {
    let path = traces(generation).into_iter().find(|path| path.file_stem().is_some_and(|stem| stem == case)).unwrap();
    events(&path)
        .iter()
        .filter(|event| event["kind"] == "http")
        .find_map(|event| {
            let id = event["request"]["path"].as_str()?.strip_prefix("/history/")?;
            history::answer(event["response"]["body"].as_str()?, &PromptId::new(id)).ok()?
        })
        .unwrap()
}

#[test]
fn every_recorded_refusal_is_explained() {
    let mut refusals = 0;
    for event in all_events().filter(|event| {
        event["kind"] == "http" && event["request"]["path"] == "/prompt" && event["response"]["status"] == 400
    }) {
        let body = event["response"]["body"].as_str().unwrap();
        // The recorder left long bodies out.
        if body == "<dropped>" {
            continue;
        }
        assert!(refusal::is_verdict(body), "{body}");
        let comfyd_actors::ports::comfy::SubmitError::Refused { message, node_id, node_errors, .. } =
            refusal::read(400, body)
        else {
            panic!("not refused: {body}")
        };
        assert!(!message.contains("gave no reason") && !message.contains("/comfyui/"), "{message}");
        let shown = node_errors.as_ref().map(ToString::to_string).unwrap_or_default();
        assert!(!shown.contains("traceback") && !shown.contains("/comfyui/"), "{shown}");
        assert!(node_errors.is_none() || node_id.is_some(), "{body}");
        refusals += 1;
    }
    assert!(refusals > 30, "{refusals}");
}
