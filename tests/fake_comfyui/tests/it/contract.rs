//! The fake against the recordings: every replayable request of a trace is sent again, answers and frames are compared.
//!
//! Where the fake differs on purpose it is said beside the comparison: see `forgive`.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use fake_comfyui::{FakeConfig, Fault, Folder, Generation};
use serde_json::Value as Json;

use crate::client::{Frame, Rig, Socket, slow};
use crate::trace::{Request, Trace, lines_by_prompt, rename, shape, shapes_by_kind};

const CURRENT: &str = "comfyui";
const OLD: &str = "comfyui_v0_3_64";

/// A trace being replayed, one prompt after the other.
struct Replay {
    rig: Rig,
    trace: Trace,
    /// Recorded prompt ids and ours.
    ids: HashMap<String, String>,
    differences: Vec<String>,
}

impl Replay {
    async fn new(set: &str, number: &str) -> Self {
        let generation = if set == OLD { Generation::V0_3_64 } else { Generation::Current };
        let rig = Rig::with(FakeConfig { generation, ..FakeConfig::default() }).await;
        Self { rig, trace: Trace::load(set, number), ids: HashMap::new(), differences: Vec::new() }
    }

    /// Opens the recorded socket and says what its client said.
    async fn open(&self, name: &str) -> Socket {
        let own = |kind: &str| -> Vec<&Json> {
            self.trace.events.iter().filter(|event| event["ws"] == name && event["kind"] == kind).collect()
        };
        let path = own("ws_open")[0]["path"].as_str().expect("a path").to_owned();
        let mut socket = Socket::open(&self.rig.fake, &path).await;
        for sent in own("ws_send") {
            socket.send(sent["data"].as_str().expect("text")).await;
        }
        socket
    }

    /// Sends every recorded request that can be sent again, in order, and waits for each accepted prompt to end.
    async fn requests(&mut self) {
        let trace = Trace { name: self.trace.name.clone(), events: self.trace.events.clone() };
        for request in trace.requests() {
            if is_form(&request) || is_foreign_route(&request) {
                continue;
            }
            self.request(request).await;
        }
    }

    async fn request(&mut self, request: Request<'_>) {
        let mut path = request.path().to_owned();
        for (recorded, ours) in &self.ids {
            path = path.replace(recorded, ours);
        }
        if request.status() == 404 && path.starts_with("/view?filename=slow_other") {
            // Here the recording's own script had deleted the file.
            self.rig.control.delete_file(Folder::Output, "lab", "slow_other_00002_.png");
        }
        let method = request.method().parse().expect("a method");
        let mut builder = self.rig.http.request(method, self.rig.url(&path));
        for name in ["Content-Type", "Range"] {
            if let Some(value) = request.header(name) {
                builder = builder.header(name, value);
            }
        }
        if let Some(body) = request.body() {
            builder = builder.body(body.to_owned());
        }
        let response = builder.send().await.expect("an answer");
        let what = format!("{}: {} {path} {}", self.trace.name, request.method(), request.note());
        if response.status().as_u16() != request.status() {
            self.differences.push(format!("{what}: status {} instead of {}", response.status(), request.status()));
            return;
        }
        let media = response.headers().get("content-type").and_then(|value| value.to_str().ok());
        if let Some(recorded) = request.answer_header("Content-Type")
            && media != Some(recorded)
            && request.answer() != Some("")
        {
            self.differences.push(format!("{what}: {media:?} instead of {recorded}"));
        }
        let text = response.text().await.unwrap_or_default();
        if let Some(recorded) = request.accepted_id() {
            let answer: Json = serde_json::from_str(&text).expect("JSON");
            let id = answer["prompt_id"].as_str().expect("an id").to_owned();
            self.rig.wait_finished(&id).await;
            self.pair_outputs(&recorded, &id).await;
            self.ids.insert(recorded, id);
        }
        self.compare(&what, &request, &text);
    }

    /// Learns which of our files stands for which recorded one.
    async fn pair_outputs(&mut self, recorded: &str, ours: &str) {
        let Some(history) = self.rig.history(ours).await else {
            return;
        };
        let frames = self.trace.events.iter().filter_map(|event| event["data"].as_str());
        let frames: Vec<Json> = frames.filter_map(|text| serde_json::from_str(text).ok()).collect();
        for frame in frames.iter().filter(|frame| frame["type"] == "executed") {
            let data = &frame["data"];
            if data["prompt_id"] == recorded {
                let node = data["node"].as_str().unwrap_or_default();
                pair_names(&data["output"], &history["outputs"][node], &mut self.ids);
            }
        }
    }

    fn compare(&mut self, what: &str, request: &Request<'_>, text: &str) {
        let Some(recorded) = request.answer() else { return };
        match (serde_json::from_str::<Json>(recorded), serde_json::from_str::<Json>(text)) {
            (Ok(recorded), Ok(ours)) => {
                let recorded = shape(&forgive(rename(&recorded, &self.ids)));
                let ours = shape(&forgive(ours));
                if recorded != ours {
                    self.differences.push(format!("{what}:\n  recorded {recorded}\n  ours     {ours}"));
                }
            }
            _ if recorded == text => {}
            // Files other than JSON are compared by their tests.
            _ if request.path().contains("/view") => {}
            _ => self.differences.push(format!("{what}: {text:?} instead of {recorded:?}")),
        }
    }

    /// Compares what a socket got with what the recorded one got, prompt by prompt.
    async fn frames(&mut self, name: &str, socket: &mut Socket) {
        let ours = socket.drain().await;
        self.compare_frames(name, &ours);
    }

    fn compare_frames(&mut self, name: &str, ours: &[Frame]) {
        let recorded = self.trace.frames(name);
        let our_lines = lines_by_prompt(ours);
        for (id, lines) in lines_by_prompt(&recorded) {
            let Some(our_id) = self.ids.get(&id) else { continue };
            if lines.iter().any(|line| line.starts_with("execution_interrupted")) {
                // This replay waits for the end of each prompt; interrupts have their own tests.
                continue;
            }
            let own = our_lines.get(our_id).cloned().unwrap_or_default();
            if own != lines {
                let text = |lines: &[String]| lines.join("\n    ");
                let (recorded, own) = (text(&lines), text(&own));
                self.differences
                    .push(format!("{} {name}: frames\n  recorded\n    {recorded}\n  ours\n    {own}", self.trace.name));
            }
        }
        let our_shapes = shapes_by_kind(ours);
        for (kind, shapes) in shapes_by_kind(&recorded) {
            let own = our_shapes.get(&kind).cloned().unwrap_or_default();
            if !own.is_subset(&shapes) {
                self.differences
                    .push(format!("{} {name}: {kind}\n  recorded {shapes:?}\n  ours     {own:?}", self.trace.name));
            }
        }
    }

    fn judge(self) {
        assert!(
            self.differences.is_empty(),
            "{} differences:\n{}",
            self.differences.len(),
            self.differences.join("\n")
        );
    }

    /// The whole of a simple case: one socket, prompts one after the other.
    async fn run(set: &str, number: &str) {
        let mut replay = Self::new(set, number).await;
        let mut socket = replay.open("ws1").await;
        replay.requests().await;
        replay.frames("ws1", &mut socket).await;
        replay.judge();
    }
}

/// Uploads are recorded without their bodies; they have their own tests.
fn is_form(request: &Request<'_>) -> bool {
    request.path().contains("/upload/")
}

/// Collects the file names two alike answers give, since some are random.
fn pair_names(recorded: &Json, ours: &Json, names: &mut HashMap<String, String>) {
    match (recorded, ours) {
        (Json::Object(recorded), Json::Object(ours)) => {
            for (key, value) in recorded {
                match (value.as_str(), ours.get(key)) {
                    (Some(name), Some(Json::String(own))) if key == "filename" => {
                        names.insert(name.to_owned(), own.clone());
                    }
                    (_, Some(own)) => pair_names(value, own, names),
                    _ => {}
                }
            }
        }
        (Json::Array(recorded), Json::Array(ours)) => {
            recorded.iter().zip(ours).for_each(|(recorded, ours)| pair_names(recorded, ours, names));
        }
        _ => {}
    }
}

/// Routes of the web interface, which the fake does not have.
fn is_foreign_route(request: &Request<'_>) -> bool {
    ["/users", "/settings", "/api/api/", "/internal", "/view_metadata", "/API/"]
        .iter()
        .any(|route| request.path().contains(route))
}

/// Takes out what differs on purpose: the recorded server keeps numbers as converted by validation, and names its own versions,
/// paths and argument lists.
fn forgive(mut value: Json) -> Json {
    match &mut value {
        Json::Object(members) => {
            for (key, member) in members.iter_mut() {
                *member = match key.as_str() {
                    // Echoed combos and ranges of nodes carry tooltips and more in the original.
                    "input_config" | "system" | "devices" => Json::Null,
                    // What Python objects look like.
                    "current_inputs" => Json::Null,
                    _ => forgive(member.take()),
                };
            }
        }
        Json::Array(items) => items.iter_mut().for_each(|item| *item = forgive(item.take())),
        _ => {}
    }
    value
}

macro_rules! replayed {
    ($($name:ident: $set:ident $number:literal;)*) => {
        $(
            #[tokio::test]
            async fn $name() {
                Replay::run($set, $number).await;
            }
        )*
    };
}

replayed! {
    success: CURRENT "01";
    previews_without_flags: CURRENT "02a";
    previews_with_flags: CURRENT "02b";
    png_previews_with_flags: CURRENT "02c";
    png_previews_without_flags: CURRENT "02d";
    previews_after_other_first_message: CURRENT "02e";
    batch: CURRENT "14a";
    temp_preview_output: CURRENT "14c";
    animated_webp: CURRENT "14d";
    animated_png: CURRENT "14e";
    video: CURRENT "14g";
    webm: CURRENT "14h";
    text_outputs: CURRENT "14i";
    gifs: CURRENT "14j";
    subgraph_expansion: CURRENT "14k";
    images_over_the_websocket: CURRENT "14l";
    images_over_the_websocket_with_flags: CURRENT "14m";
    latent: CURRENT "14o";
    text_only: CURRENT "14p";
    api_prefix: CURRENT "15";
    text_to_image: CURRENT "20";
    old_success: OLD "01";
    old_previews_without_flags: OLD "02a";
    old_previews_with_flags: OLD "02b";
    old_png_previews_with_flags: OLD "02c";
    old_png_previews_without_flags: OLD "02d";
    old_previews_after_other_first_message: OLD "02e";
    old_temp_preview_output: OLD "14c";
    old_gifs: OLD "14j";
    old_images_over_the_websocket: OLD "14l";
}

/// In which order savers that wait for the same node run is chance in the original, so only the answers are compared.
#[tokio::test]
async fn audio() {
    for set in [CURRENT, OLD] {
        let mut replay = Replay::new(set, "14f").await;
        replay.requests().await;
        replay.judge();
    }
}

#[tokio::test]
async fn validation() {
    Replay::run(CURRENT, "04").await;
}

#[tokio::test]
async fn old_validation() {
    Replay::run(OLD, "04").await;
}

#[tokio::test]
async fn out_of_memory() {
    Replay::run(CURRENT, "06").await;
}

#[tokio::test]
async fn cache() {
    Replay::run(CURRENT, "03").await;
}

#[tokio::test]
async fn old_cache() {
    Replay::run(OLD, "03").await;
}

/// Cases that depend on timing (interrupts, reconnects, kills) cannot be replayed request by request: `queue`, `sockets` and
/// `faults` play them with a gate instead. Here only what does not depend on timing is compared with them: the keys of every kind
/// of frame, and the way an interrupted prompt ends.
#[tokio::test]
async fn frames_of_the_timed_cases() {
    let mut recorded: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let sockets = [
        ("05", "ws1"),
        ("07", "ws1"),
        ("08", "ws1"),
        ("09a", "ws1"),
        ("09a", "ws2"),
        ("09b", "ws2"),
        ("09c", "B"),
        ("09d", "owner"),
        ("09e", "mine2"),
        ("10", "ws1"),
        ("17", "ff"),
    ];
    for (number, socket) in sockets {
        let frames = Trace::load(CURRENT, number).frames(socket);
        assert!(!frames.is_empty(), "{number} {socket}");
        for (kind, shapes) in shapes_by_kind(&frames) {
            recorded.entry(kind).or_default().extend(shapes);
        }
    }

    let rig = Rig::new().await;
    let mut socket = Socket::open(&rig.fake, "/ws?clientId=me").await;
    let mut ours = vec![socket.next().await];
    rig.control.inject_times(Fault::node_error("x"), 1).await.expect("injected");
    let failed = rig.run(slow(1, 2, 0.0), "me").await;
    ours.extend(socket.until(|frame| frame.ends(&failed)).await);
    let interrupted = rig.run(slow(2, 2, 600.0), "me").await;
    ours.extend(socket.until(|frame| frame.data()["node"] == "2").await);
    let mut again = Socket::open(&rig.fake, "/ws?clientId=me").await;
    ours.extend(again.drain().await);
    rig.post("/interrupt", &serde_json::json!({"prompt_id": interrupted})).await;
    ours.extend(again.until(|frame| frame.ends(&interrupted)).await);
    for (kind, shapes) in shapes_by_kind(&ours) {
        let known = recorded.get(&kind).cloned().unwrap_or_default();
        assert!(shapes.is_subset(&known), "{kind}\n  recorded {known:?}\n  ours     {shapes:?}");
    }

    // How many steps were made before the interrupt is a matter of time; all else is not.
    let steady = |lines: Vec<String>| -> Vec<String> {
        let steps =
            |line: &String| line.starts_with("progress ") || line.starts_with("BIN") || line.contains("=running");
        lines.into_iter().filter(|line| !steps(line)).collect()
    };
    let is_interrupted = |lines: &Vec<String>| lines.iter().any(|line| line.starts_with("execution_interrupted"));
    let first = |frames: &[Frame]| lines_by_prompt(frames).into_values().find(is_interrupted).map(steady);
    // Ours reconnected meanwhile, so it got the running node once more.
    let mut mine = first(&ours).expect("an interrupted prompt");
    let repeated = mine.iter().rposition(|line| line == "executing 2").expect("the running node");
    mine.remove(repeated);
    let theirs = Trace::load(CURRENT, "07").frames("ws1");
    assert_eq!(Some(mine), first(&theirs));
}
