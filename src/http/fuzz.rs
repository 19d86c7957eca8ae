//! What clients send.

use std::collections::BTreeSet;

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use bytes::Bytes;
use comfyd_actors::domain::{
    artifact::{Artifact, FileRef, Kind, Source, extension},
    graph,
    input::{self, InputId, Source as Place, places, plain_name, put_names, references},
    passthrough::{Gate, Rule, Target as Path},
    workflow::Workflow,
};
use futures_util::{StreamExt, stream};
use serde_json::{Map, Value};
use url::Url;

use super::{body, create, files::Terms, form::Form, serve, tasks};
use crate::{
    fuzz::{Target, text},
    inputs::sniff,
    json::count_values,
    storage::check_key,
};

pub const TARGETS: &[Target] = &[
    Target {
        name: "http_create",
        run: create,
        seeds: &[
            br#"{"workflow": {"1": {"class_type": "LoadImage", "inputs": {"image": "data:image/png;base64,iVBORw0KGgo="}}, "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0]}}}, "inputs": {"2.filename_prefix": "x"}, "priority": "high", "run_at": "2030-01-01T00:00:00Z", "timeout": "5m", "max_attempts": 2, "metadata": {"a": [1, 2]}, "output_options": {"format": "webp", "quality": 80, "nodes": ["2"], "inline": true}}"#,
            br#"{"workflow": {"1": {"class_type": "LoadImage", "inputs": {"image": "https://example.org/a b.png#c", "mask": "comfyd://url/https://a.example"}}, "2": {"class_type": "LoadAudio", "inputs": {"audio": {"url": "HTTPS://A.example:443/?x"}}}}, "inputs": {"1.image": "https://u:p@a.example"}}"#,
            br#"{"workflow": {"1": {"class_type": "A", "inputs": {"a": {"base64": "aGFsbG8", "filename": "../x"}, "b": {"ref": "comfyd://inputs/x"}, "c": ["1", 0]}}}, "delay": 5, "workflow": 7}"#,
            br#"{"workflow": {"nodes": [], "links": []}, "priorty": 1e999}"#,
        ],
    },
    Target {
        name: "http_graph",
        run: read_graph,
        seeds: &[
            br#"{"1": {"class_type": "A", "inputs": {"a": ["2", 0], "b~/": "comfyd://inputs/2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"}}, "2": {"class_type": "CLIPTextEncode", "inputs": {"text": "x"}}}"#,
            br#"{"workflow": {"3": {"class_type": "KSampler", "inputs": {"seed": 1, "steps": 20, "positive": ["6", 0]}}, "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "x"}}}, "inputs": ["prompt", "seed", {"name": "steps", "node": "3", "field": "steps", "type": "integer", "minimum": 1, "maximum": 50, "default": 20}], "description": "d"}"#,
        ],
    },
    Target {
        name: "http_headers",
        run: headers,
        seeds: &[
            b"bytes=0-4", b"bytes=-18446744073709551615", b"wait=60, respond-async", b"W/\"a\", *", b"18b8c3f2a00-00000000000070008000000000000007",
            b"2030-01-01T08:00:00+23:59", b"text/html; charset=x", b"\xe9\"\r\n;.png", b"localhost:8000",
        ],
    },
    Target {
        name: "http_path",
        run: passed_path,
        seeds: &[
            b"api/queue", b"view/%2e%2e/x", b"userdata/a%2Fb.json", b"GET /history/*", b"POST /prompt", b"history/%252e%252e", b"a\\..\\b",
        ],
    },
    Target {
        name: "http_form",
        run: form,
        seeds: &[
            b"--x\r\nContent-Disposition: form-data; name=\"a\"; filename=\"a.png\"\r\nContent-Type: image/png\r\n\r\nbytes\r\n--x--\r\n",
            b"--x\r\nContent-Disposition: form-data; name=\"a/~\"\r\n\r\n\r\n--x\r\n\r\n\r\n--x--",
        ],
    },
    Target {
        name: "http_names",
        run: names,
        seeds: &[b"../../etc/passwd", b"C:\\x\\cat.PNG", b"a\r\nb\0.png", b"\x89PNG\r\n\x1a\n", "фото (1).webp".as_bytes(), b"1:2.0/../x"],
    },
];

fn create(data: &[u8]) {
    if let Ok(value) = serde_json::from_slice::<Value>(data) {
        assert!(values(&value) <= count_values(data) + 1, "a text is never larger than it was taken for");
    }
    let key = HeaderValue::from_bytes(data.get(..40).unwrap_or(data)).ok();
    let Ok((request, files)) = create::parse(data, key.as_ref(), create::Subject::Body, Terms::default()) else {
        return;
    };
    let graph: Value = serde_json::from_str(&request.payload.graph).unwrap_or_default();
    assert!(graph::check(&graph).is_ok(), "what is taken is a graph");
    let referred: BTreeSet<_> = places(&graph).into_iter().map(|place| place.source).collect();
    let files = files.ids().cloned().map(Place::Stored).chain(files.urls().keys().cloned().map(Place::Url));
    assert_eq!(referred, files.collect(), "a graph refers to the files of its task, and to no others");
    assert!(!request.payload.graph.contains("base64,"), "and its bytes are not in the row");
}

fn values(value: &Value) -> usize {
    1 + match value {
        Value::Array(items) => items.iter().map(values).sum(),
        Value::Object(fields) => fields.values().map(values).sum(),
        _ => 0,
    }
}

fn read_graph(data: &[u8]) {
    let Ok(mut value) = serde_json::from_slice::<Value>(data) else { return };
    let before = references(&value);
    let stored = |place: input::Place| match place.source {
        Place::Stored(id) => Some(id),
        Place::Url(_) => None,
    };
    assert_eq!(places(&value).into_iter().filter_map(stored).collect::<BTreeSet<_>>(), before);
    if let Ok(nodes) = graph::check(&value) {
        assert!(nodes.len() <= graph::MAX_NODES && graph::is_shallow(&value, graph::MAX_DEPTH));
    }
    if let Ok(workflow) = Workflow::read(value.clone()) {
        // Whatever the inputs are called, some or none are as good as the file lets them be.
        let given: Map<String, Value> =
            workflow.inputs().iter().map(|input| (input.name.clone(), Value::from(7))).collect();
        for given in [Map::new(), given] {
            if let Ok(applied) = workflow.apply(given, || 7) {
                assert!(graph::check(&applied.graph).is_ok());
            }
        }
    }
    put_names(&mut value, |_| Some("comfyd/x"));
    assert!(places(&value).is_empty(), "none is left");
}

fn headers(data: &[u8]) {
    let text = text(data);
    for size in [0, 1, 10, u64::MAX] {
        if let serve::Ranged::Part(range) = serve::parse_range(&text, size) {
            assert!(range.first <= range.last && range.last < size);
        }
    }
    for inline in [true, false] {
        let told = serve::disposition(inline, &text);
        assert!(HeaderValue::try_from(&told).is_ok() && told.is_ascii(), "{told}");
        assert_eq!(told.matches('"').count(), 2, "{told}");
    }
    let (kind, shown) = serve::safe_type(&text);
    assert!(!(shown && (kind.contains("html") || kind.contains("svg") || kind.contains("xml"))), "{kind}");
    if let Ok((moment, id)) = tasks::read_cursor(&text) {
        assert_eq!(tasks::read_cursor(&format!("{:x}-{}", moment.0, id.0.simple())).ok(), Some((moment, id)));
    }
    let _ = (tasks::parse_moment(&text), tasks::parse_id(&text), InputId::from_uri(&text));
    let Ok(value) = HeaderValue::from_bytes(data) else { return };
    let all = ["prefer", "if-none-match", "host", "x-forwarded-proto", "x-request-id"];
    let map: HeaderMap = all.into_iter().map(|name| (HeaderName::from_static(name), value.clone())).collect();
    let _ = (tasks::patience(&map), serve::has(&map, &axum::http::header::IF_NONE_MATCH, "\"a\""));
    assert!(HeaderValue::try_from(super::frame::request_id(&map)).is_ok());
}

fn passed_path(data: &[u8]) {
    let text = text(data);
    let rule = text.parse::<Rule>();
    let Ok(path) = Path::parse(&text) else { return };
    let gate = Gate::new(rule.ok().into_iter().collect(), Vec::new());
    for method in ["GET", "POST", "HEAD", "OPTIONS", ""] {
        let _ = gate.judge(method, &path);
    }
    // What was judged is what is sent: as many parts, none of which leads anywhere else.
    let Ok(mut url) = Url::parse("http://comfyui/base") else { unreachable!("it is a URL") };
    if let Ok(mut segments) = url.path_segments_mut() {
        segments.pop_if_empty().extend(path.parts());
    }
    let sent: Vec<_> = url.path_segments().into_iter().flatten().collect();
    assert_eq!(sent.len(), path.parts().len() + 1, "{url}");
    assert!(sent.iter().all(|part| !matches!(*part, "" | "." | "..")) && url.host_str() == Some("comfyui"), "{url}");
}

/// However the body is cut into pieces, the same files come out, or the same refusal.
fn form(data: &[u8]) {
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().build() else { return };
    let [whole, cut] = [data.len().max(1), 7].map(|size| {
        let pieces: Vec<_> = data.chunks(size).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
        runtime.block_on(parts(stream::iter(pieces).boxed()))
    });
    assert_eq!(whole, cut);
}

async fn parts(body: comfyd_actors::ports::ByteStream) -> Option<Vec<(Option<String>, Vec<u8>)>> {
    let mut form = Form::new("multipart/form-data; boundary=x", body).ok()?;
    let mut found = Vec::new();
    while let Some(field) = form.next().await.ok()? {
        let name = field.file_name().map(str::to_owned);
        found.push((name, field.bytes().await.ok()?.to_vec()));
    }
    Some(found)
}

fn names(data: &[u8]) {
    let text = text(data);
    let name = plain_name(&text);
    assert!((1..=255).contains(&name.len()) && !name.chars().any(char::is_control), "{name:?}");
    assert!(!name.contains(['/', '\\']) && !matches!(name.as_str(), "." | ".."), "{name:?}");
    let (content_type, ending) = sniff(data, &name);
    assert!(HeaderValue::try_from(content_type).is_ok());
    let plain = |ending: &String| ending.bytes().all(|byte| byte.is_ascii_alphanumeric());
    assert!(ending.iter().chain(&extension(&text)).all(plain));
    // A key is made of what a node is called, and goes where no key leaves its folder.
    let file =
        FileRef { filename: text.clone().into_owned(), subfolder: String::new(), folder_type: "output".to_owned() };
    let artifact =
        Artifact { index: 0, node_id: text.into_owned(), kind: Kind::File, source: Source::File(file), object: None };
    let stem = comfyd_actors::domain::artifact::key_stem("0/2030-01-01/task_1_", &artifact);
    let key = ending.map_or_else(|| stem.clone(), |ending| format!("{stem}.{ending}"));
    assert!(check_key(&key).is_ok(), "{key}");
    let _ = body::whole(data);
}
