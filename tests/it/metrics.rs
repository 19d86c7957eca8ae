//! What is counted and timed moves as things happen, and the text is what Prometheus reads.

use std::collections::BTreeMap;

use fake_comfyui::Fault;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::support::{PATIENCE, World, task, task_with, world};

/// A scrape: each sample by its name with its labels in the order of their names, as `name{a="b"}`.
#[derive(Debug)]
struct Scrape(BTreeMap<String, f64>);

impl Scrape {
    fn value(&self, sample: &str) -> f64 {
        self.0.get(sample).copied().unwrap_or(0.0)
    }
}

/// Reads the text format and believes nothing: every sample belongs to the family announced before it, once; labels are well-formed;
/// a histogram's steps grow and end with its count.
fn parse(text: &str) -> Scrape {
    assert!(text.ends_with('\n'), "the last line has an end");
    let (mut samples, mut families) = (BTreeMap::new(), BTreeMap::new());
    let mut family = (String::new(), String::new());
    let mut helped = String::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').expect("a name and a text");
            assert!(!help.is_empty() && is_name(name), "{line}");
            helped = name.to_owned();
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').expect("a name and a type");
            assert!(matches!(kind, "counter" | "gauge" | "histogram"), "{line}");
            assert_eq!(helped, name, "told what it means just before");
            assert_eq!(families.insert(name.to_owned(), kind.to_owned()), None, "{name} is there twice");
            family = (name.to_owned(), kind.to_owned());
        } else {
            assert!(!line.starts_with('#') && !line.is_empty(), "{line}");
            let (series, value) = line.rsplit_once(' ').expect("a series and a value");
            let value: f64 = value.parse().unwrap_or_else(|_| panic!("no number: {line}"));
            assert!(value.is_finite() && value >= 0.0, "{line}");
            let (name, labels) = split(series);
            let of_family = match family.1.as_str() {
                "histogram" => ["_bucket", "_sum", "_count"].iter().any(|end| name == format!("{}{end}", family.0)),
                "counter" => name == family.0 && name.ends_with("_total"),
                _ => name == family.0,
            };
            assert!(of_family, "{line} does not belong to {family:?}");
            assert_eq!(labels.contains_key("le"), name.ends_with("_bucket"), "{line}");
            let labels: Vec<_> = labels.iter().map(|(name, value)| format!("{name}=\"{value}\"")).collect();
            let key = if labels.is_empty() { name } else { format!("{name}{{{}}}", labels.join(",")) };
            assert_eq!(samples.insert(key, value), None, "{line} is there twice");
        }
    }
    for (name, kind) in &families {
        if kind == "histogram" {
            check_histogram(name, text, &samples);
        }
    }
    Scrape(samples)
}

/// Steps are written in order, never shrink, and the last one, without a bound, is the count.
fn check_histogram(name: &str, text: &str, samples: &BTreeMap<String, f64>) {
    let mut before: Option<(String, f64, f64)> = None;
    for line in text.lines().filter(|line| line.starts_with(&format!("{name}_bucket"))) {
        let (series, count) = line.rsplit_once(' ').unwrap();
        let (_, mut labels) = split(series);
        let bound = labels.remove("le").unwrap();
        let of = labels.iter().map(|(name, value)| format!("{name}=\"{value}\"")).collect::<Vec<_>>().join(",");
        let (bound, count): (f64, f64) = (bound.replace("+Inf", "inf").parse().unwrap(), count.parse().unwrap());
        if let Some((same, least, fewer)) = before.take().filter(|(same, ..)| *same == of) {
            assert!(least < bound && fewer <= count, "{line} comes after {same} {least}");
        }
        if bound.is_infinite() {
            let counted = if of.is_empty() { format!("{name}_count") } else { format!("{name}_count{{{of}}}") };
            assert_eq!(samples[&counted], count, "{line}");
        } else {
            before = Some((of, bound, count));
        }
    }
    assert!(before.is_none(), "{name} ends without a last step");
}

fn is_name(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    name.starts_with(|first: char| !first.is_ascii_digit()) && name.chars().all(plain) && !name.is_empty()
}

/// A series' name and its labels.
fn split(series: &str) -> (String, BTreeMap<String, String>) {
    let Some((name, rest)) = series.split_once('{') else {
        assert!(is_name(series), "{series}");
        return (series.to_owned(), BTreeMap::new());
    };
    assert!(is_name(name), "{series}");
    let mut rest = rest.strip_suffix('}').expect("a closing brace");
    let mut labels = BTreeMap::new();
    while !rest.is_empty() {
        let (label, after) = rest.split_once("=\"").expect("a label and its value");
        assert!(is_name(label) && !label.contains(':'), "{series}");
        let (value, after) = after.split_once('"').expect("a closing quote");
        assert!(!value.contains('\\'), "nothing here needs an escape: {series}");
        assert_eq!(labels.insert(label.to_owned(), value.to_owned()), None, "{series}");
        rest = after.strip_prefix(',').unwrap_or(after);
    }
    (name.to_owned(), labels)
}

impl World {
    async fn scrape(&self) -> Scrape {
        let answer = self.client.get(self.url("/metrics")).send().await.unwrap().error_for_status().unwrap();
        let kind = answer.headers()["content-type"].to_str().unwrap().to_owned();
        assert_eq!(kind, "text/plain; version=0.0.4; charset=utf-8");
        parse(&answer.text().await.unwrap())
    }

    /// Waits until a scrape looks like that: what is counted follows what happens by a moment.
    async fn until_scrape(&self, wanted: impl Fn(&Scrape) -> bool) -> Scrape {
        let looks = async {
            loop {
                let scrape = self.scrape().await;
                if wanted(&scrape) {
                    return scrape;
                }
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            }
        };
        match tokio::time::timeout(PATIENCE, looks).await {
            Ok(scrape) => scrape,
            Err(_) => panic!("never looks as it should: {:#?}", self.scrape().await),
        }
    }

    async fn pause(&self, paused: bool) {
        let verb = if paused { "pause" } else { "resume" };
        let answer = self.client.post(self.url(&format!("/api/queue/{verb}"))).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tasks_way_is_counted_and_timed() {
    let world = world().start().await;
    let backend = world.fakes[0].url();
    let before = world.scrape().await;
    assert_eq!(before.value("comfyd_tasks_created_total"), 0.0);
    assert_eq!(before.value(&format!("comfyd_backend_phase{{backend=\"{backend}\",phase=\"online\"}}")), 1.0);
    assert_eq!(before.value(&format!("comfyd_backend_phase{{backend=\"{backend}\",phase=\"disconnected\"}}")), 0.0);
    assert!(before.value(&format!("comfyd_backend_vram_total_bytes{{backend=\"{backend}\",device=\"0\"}}")) > 0.0);
    assert_eq!(before.value(&format!("comfyd_websocket_connections_total{{backend=\"{backend}\"}}")), 1.0);

    let named = json!({"workflow": "text-to-image", "inputs": {"prompt": "x", "steps": 1, "width": 64, "height": 64}});
    let good = [world.create(&task(1)).await, world.create(&named).await];
    for id in &good {
        world.completed(id).await;
    }
    world.fake().inject_times(Fault::OutOfMemory, 2).await.unwrap();
    let failing = world.create(&task_with(2, &json!({"max_attempts": 2}))).await;
    assert_eq!(world.finished(&failing).await["status"], "failed");
    world.pause(true).await;
    let cancelled = world.create(&task(3)).await;
    world.cancel(&cancelled).await;
    world.pause(false).await;

    let ended = |status: &str, code: &str, workflow: &str| {
        format!("comfyd_tasks_ended_total{{code=\"{code}\",status=\"{status}\",workflow=\"{workflow}\"}}")
    };
    let expected = [
        ("comfyd_tasks_created_total".to_owned(), 4.0),
        (ended("completed", "none", "(graph)"), 1.0),
        (ended("completed", "none", "text-to-image"), 1.0),
        (ended("failed", "out_of_memory", "(graph)"), 1.0),
        (ended("cancelled", "none", "(not running)"), 1.0),
        ("comfyd_task_attempts_failed_total{code=\"out_of_memory\"}".to_owned(), 1.0),
        ("comfyd_task_stage_seconds_count{stage=\"execute\"}".to_owned(), 3.0),
        ("comfyd_task_stage_seconds_count{stage=\"upload\"}".to_owned(), 2.0),
        ("comfyd_task_stage_seconds_count{stage=\"total\"}".to_owned(), 3.0),
        ("comfyd_upload_seconds_count".to_owned(), 2.0),
        (format!("comfyd_dispatch_gap_seconds_count{{backend=\"{backend}\"}}"), 4.0),
        ("comfyd_tasks{status=\"pending\"}".to_owned(), 0.0),
        ("comfyd_tasks{status=\"processing\"}".to_owned(), 0.0),
        ("comfyd_queue_paused".to_owned(), 0.0),
    ];
    let scrape = world.until_scrape(|scrape| expected.iter().all(|(name, value)| scrape.value(name) == *value)).await;
    assert!(scrape.value("comfyd_upload_bytes_total") > 100.0);
    assert!(scrape.value("comfyd_store_commit_seconds_count") >= 8.0, "{scrape:#?}");
    assert!(scrape.value("comfyd_store_batch_operations_sum") >= scrape.value("comfyd_store_commit_seconds_count"));
    assert!(scrape.value("comfyd_store_write_seconds_count") >= 8.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn depth_and_age_are_told_by_priority() {
    let world = world().start().await;
    world.pause(true).await;
    for priority in [json!("high"), json!("high"), json!(0)] {
        world.create(&task_with(1, &json!({"priority": priority}))).await;
    }
    let moved = world.create(&task_with(1, &json!({"priority": -5}))).await;
    world.create(&task_with(1, &json!({"delay": "1h"}))).await;
    let depth = |level: &str| format!("comfyd_queue_depth{{priority=\"{level}\"}}");
    let scrape = world
        .until_scrape(|scrape| {
            [("10", 2.0), ("0", 1.0), ("-5", 1.0)].iter().all(|(level, depth_)| scrape.value(&depth(level)) == *depth_)
                && scrape.value("comfyd_tasks{status=\"scheduled\"}") == 1.0
        })
        .await;
    assert_eq!((scrape.value("comfyd_tasks{status=\"pending\"}"), scrape.value("comfyd_queue_paused")), (4.0, 1.0));
    let oldest = "comfyd_queue_oldest_seconds{priority=\"10\"}";
    let age = scrape.value(oldest);
    world.until_scrape(|scrape| scrape.value(oldest) > age).await;

    let path = world.url(&format!("/api/tasks/{moved}"));
    world.client.request(Method::PATCH, path).json(&json!({"priority": 10})).send().await.unwrap();
    world.until_scrape(|scrape| scrape.value(&depth("10")) == 3.0 && !scrape.0.contains_key(&depth("-5"))).await;
    world.pause(false).await;
    world.until_scrape(|scrape| !scrape.0.keys().any(|name| name.starts_with("comfyd_queue_depth"))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn troubles_are_counted() {
    let world = world().start().await;
    let backend = world.fakes[0].url();
    world.fake().inject_times(Fault::CutView { bytes: 10 }, 1).await.unwrap();
    let id = world.create(&task(1)).await;
    world.completed(&id).await;
    world.kill(&world.system().slots.janitor).await;
    world.kill(world.session(0)).await;
    let connections = format!("comfyd_websocket_connections_total{{backend=\"{backend}\"}}");
    world.until_scrape(|scrape| scrape.value(&connections) == 2.0).await;
    world.fake().inject(Fault::DropSockets).await.unwrap();
    let lost = format!("comfyd_websocket_losses_total{{backend=\"{backend}\",reason=\"closed\"}}");
    let restarts = |actor: &str| format!("comfyd_actor_restarts_total{{actor=\"{actor}\"}}");
    world
        .until_scrape(|scrape| {
            scrape.value("comfyd_upload_failures_total{reason=\"source\"}") == 1.0
                && scrape.value(&restarts("janitor")) == 1.0
                && scrape.value(&restarts(&format!("session {backend}"))) == 1.0
                && scrape.value(&lost) == 1.0
                && scrape.value(&connections) == 3.0
        })
        .await;
    // The server says nothing of a prompt that runs: it is asked about instead.
    world.fake().inject(Fault::Silence).await.unwrap();
    world.fake().pause_execution();
    let id = world.create(&task(2)).await;
    world
        .until_scrape(|scrape| {
            scrape.value(&format!("comfyd_websocket_silences_total{{backend=\"{backend}\"}}")) >= 1.0
        })
        .await;
    world.fake().clear();
    world.fake().resume();
    world.completed(&id).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_is_told_as_json() {
    let world = world().start().await;
    let id = world.create(&task(1)).await;
    world.completed(&id).await;
    let scrape = world.until_scrape(|scrape| scrape.value("comfyd_upload_seconds_count") == 1.0).await;
    let stats = world.get("/api/stats").await;
    let metrics = stats["metrics"].as_object().unwrap();
    let family = |sample: &str| {
        let name = sample.split('{').next().unwrap();
        let ends = ["", "_bucket", "_sum", "_count"];
        ends.iter()
            .filter_map(|end| metrics.get(name.strip_suffix(end)?))
            .next()
            .unwrap_or_else(|| panic!("{sample}"))
            .clone()
    };
    for sample in scrape.0.keys() {
        assert!(family(sample)["help"].is_string());
    }
    let upload = &metrics["comfyd_upload_seconds"];
    assert_eq!((&upload["type"], &upload["samples"][0]["count"]), (&json!("histogram"), &json!(1)));
    assert_eq!(upload["samples"][0]["sum"].as_f64(), Some(scrape.value("comfyd_upload_seconds_sum")));
    let steps = upload["samples"][0]["buckets"].as_array().unwrap();
    for step in steps {
        let name = format!("comfyd_upload_seconds_bucket{{le=\"{}\"}}", step["le"].as_f64().unwrap());
        assert_eq!(step["count"].as_f64(), Some(scrape.value(&name)), "{name}");
    }
    let ended = &metrics["comfyd_tasks_ended_total"]["samples"][0];
    assert_eq!(*ended, json!({"labels": {"status": "completed", "code": "none", "workflow": "(graph)"}, "value": 1.0}));
}

#[tokio::test(flavor = "multi_thread")]
async fn autoscalers_are_told_how_many_consumers_are_wanted() {
    // Whatever waits should have begun at once: a server for each.
    let world = world().with("COMFYD_QUEUE__TARGET_WAIT", "0s").start().await;
    let wanted = "comfyd_consumers_wanted";
    assert_eq!(world.scrape().await.0.get(wanted), Some(&0.0), "told, not missing");
    let id = world.create(&task(1)).await;
    world.completed(&id).await;
    world.fake().pause_execution();
    let mut ids = Vec::new();
    for seed in 2..7 {
        ids.push(world.create(&task(seed)).await);
    }
    world.until_scrape(|scrape| scrape.value(wanted) == 5.0).await;
    let status = world.get("/api/status").await;
    assert_eq!(status["consumers_wanted"], 5, "{status}");
    // Nobody begins anything while the queue is paused; what runs goes on.
    world.pause(true).await;
    world.until_scrape(|scrape| scrape.value(wanted) == 1.0).await;
    world.pause(false).await;
    world.until_scrape(|scrape| scrape.value(wanted) == 5.0).await;
    world.fake().resume();
    for id in &ids {
        world.completed(id).await;
    }
    world.until_scrape(|scrape| scrape.value(wanted) == 0.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_services_in_one_process_count_apart() {
    let (one, other) = (world().start().await, world().start().await);
    let id = one.create(&task(1)).await;
    one.completed(&id).await;
    one.until_scrape(|scrape| scrape.value("comfyd_tasks_created_total") == 1.0).await;
    assert_eq!(other.scrape().await.value("comfyd_tasks_created_total"), 0.0);
    let phases = |stats: &Value| stats["metrics"]["comfyd_backend_phase"]["samples"].as_array().unwrap().len();
    assert_eq!(phases(&other.get("/api/stats").await), 4, "its own backend alone");
}
