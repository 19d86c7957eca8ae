//! Several APIs before consumers of their own: whatever runs where, any of them shows it live and has it do what a client wants.

use std::time::Duration;

use comfyd_actors::ports::wire::{Kind, Wire};
use fake_comfyui::FakeConfig;
use futures_util::StreamExt;
use reqwest::StatusCode;
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::{
    apart::{Apart, ready},
    databases,
    events::{Event, LIFE, events, open, sampling, socket, told},
    place::Process,
    redis_server,
    support::{Api, PATIENCE, task},
};

/// How a consumer comes to its tasks.
#[derive(Debug, Clone, Copy)]
enum Way {
    Store,
    Http,
}

/// Two APIs and a consumer.
struct Replicas {
    apart: Apart,
    second: Api,
    _processes: [Process; 3],
}

impl Replicas {
    async fn start(way: Way, node_time: Duration, settings: &[(&str, &str)]) -> Self {
        let apart = Apart::with(FakeConfig { node_time, ..FakeConfig::default() }, settings).await;
        let first = apart.api().await;
        let (process, second) = apart.second_api().await;
        let (consumer, pages) = match way {
            Way::Store => apart.consumer(&apart.place.fake.url()),
            Way::Http => apart.remote(&apart.place.fake.url(), apart.place.address()),
        };
        let consumer = ready(consumer, &pages).await;
        // The APIs have heard of it: from here on it is told what is watched.
        for api in [&apart.place.api, &second] {
            api.until("/api/backends", |list| list["backends"][0]["phase"] == "online").await;
        }
        Self { apart, second, _processes: [first, process, consumer] }
    }

    fn first(&self) -> &Api {
        &self.apart.place.api
    }
}

/// A task is watched on both APIs while it runs in the consumer, over SSE and over a WebSocket, and from where the other left off.
async fn is_watched_anywhere(replicas: Replicas) {
    let (first, second) = (replicas.first(), &replicas.second);
    replicas.apart.place.control().pause_execution();
    let id = first.create(&sampling(20)).await;
    replicas.apart.place.running(&id).await;
    let path = format!("/api/tasks/{id}/events?previews=true");
    let mut interrupted = events(open(first, &path, None).await);
    let stream = events(open(second, &path, None).await);
    let resume = async {
        let mut seen = Vec::new();
        while !seen.iter().any(|event: &Event| event.word().as_deref() == Some("executing")) {
            seen.push(interrupted.next().await.unwrap());
        }
        drop(interrupted);
        replicas.apart.place.control().resume();
        seen
    };
    let (all, messages, seen) = tokio::join!(stream.collect::<Vec<_>>(), socket(second, &path, None), resume);
    let messages = messages.unwrap();
    let previews = |events: &[Event]| events.iter().filter(|event| event.kind == "preview").count();
    let steps = |events: &[Event]| {
        let steps = events.iter().filter_map(|event| event.data["progress"]["step"].as_u64());
        steps.collect::<Vec<_>>()
    };
    for all in [all.clone(), told(&messages)] {
        let words: Vec<_> = all.iter().filter_map(Event::word).collect();
        assert_eq!(words, LIFE);
        let steps = steps(&all);
        assert!(steps.len() > 2 && steps.is_sorted() && steps.iter().all(|step| *step <= 20), "{steps:?}");
        assert_eq!(all.last().unwrap().kind, "end");
    }
    assert!(previews(&all) > 1, "{all:?}");
    let picture = all.iter().find(|event| event.kind == "preview").unwrap();
    assert_eq!(picture.data["task_id"], json!(id));
    assert!(messages.iter().filter(|message| message.is_binary()).count() > 1);
    // Each fact once, wherever one looks on.
    let last = seen.iter().filter_map(|event| event.id).next_back();
    let rest: Vec<_> = events(open(second, &path, last).await).collect().await;
    let both: Vec<_> = seen.iter().chain(&rest).filter_map(Event::word).collect();
    assert_eq!(both, LIFE);
    let ids: Vec<_> = seen.iter().chain(&rest).filter_map(|event| event.id).collect();
    assert!(ids.is_sorted_by(|a, b| a < b), "{ids:?}");
    // Nobody watches any more.
    let wire = Apart::client(replicas.apart.place.address());
    let other = first.create(&sampling(10)).await;
    first.completed(&other).await;
    let posted = wire.notices(Kind::Glimpse).await.unwrap();
    assert!(!posted.iter().any(|notice| notice.name.starts_with(&other)), "{posted:?}");
    // But who looks again and again sees it move.
    let polled = first.create(&sampling(15)).await;
    let moves = |task: &Value| task["progress"]["step"].as_u64().is_some_and(|step| step > 1);
    second.until(&format!("/api/tasks/{polled}"), moves).await;
}

/// Whatever a client wants, it says it to an API that did not create the task and does not run it.
async fn is_obeyed_anywhere(replicas: Replicas) {
    let (first, second) = (replicas.first(), &replicas.second);
    let place = &replicas.apart.place;
    let ask = async |api: &Api, path: &str| {
        let answer = api.client.post(api.url(path)).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK, "{path}: {}", answer.text().await.unwrap());
    };
    // One runs, one is prepared, and the last of those that wait is to be the next.
    place.control().pause_execution();
    let mut ids = Vec::new();
    for color in 0..5 {
        ids.push(first.create(&task(color)).await);
    }
    place.running(&ids[0]).await;
    let raised = second.client.patch(second.url(&format!("/api/tasks/{}", ids[4]))).json(&json!({"priority": 100}));
    assert_eq!(raised.send().await.unwrap().status(), StatusCode::OK);
    let mut waiting = events(open(first, &format!("/api/tasks/{}/events", ids[4]), None).await);
    let at_the_head = async { while waiting.next().await.unwrap().data["progress"]["queue_position"] != json!(1) {} };
    timeout(PATIENCE, at_the_head).await.expect("it does not come to the head of the queue");
    // What waits and what runs.
    for id in [&ids[3], &ids[0]] {
        assert!(second.cancel(id).await.0.is_success());
        assert_eq!(first.finished(id).await["status"], "cancelled");
    }
    ask(second, "/api/queue/pause").await;
    place.control().resume();
    let later = first.create(&task(9)).await;
    first.until("/api/status", |status| status["paused"] == json!(true)).await;
    ask(first, "/api/queue/resume").await;
    for id in [&ids[1], &ids[2], &ids[4], &later] {
        first.completed(id).await;
    }
    // All that runs.
    place.control().pause_execution();
    let running = first.create(&task(10)).await;
    first.until(&format!("/api/tasks/{running}"), |task| task["stage"] == "executing").await;
    let interrupted = second.client.post(second.url("/api/comfyui-interrupt")).send().await.unwrap();
    let interrupted: Value = interrupted.json().await.unwrap();
    assert_eq!(interrupted["data"]["task_ids"], json!([running]));
    assert_eq!(first.finished(&running).await["status"], "cancelled");
    place.control().resume();
    let started = |id: &String| -> Value { json!(place.control().executions_of_task(id)) };
    assert_eq!(ids.iter().map(started).collect::<Vec<_>>(), [1, 1, 1, 0, 1].map(|n| json!(n)));
}

const STEPS: Duration = Duration::from_secs(2);

#[tokio::test(flavor = "multi_thread")]
async fn a_task_of_a_consumer_on_the_same_file_is_watched_on_any_api() {
    is_watched_anywhere(Replicas::start(Way::Store, STEPS, &[]).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_of_a_consumer_without_a_database_is_watched_on_any_api() {
    is_watched_anywhere(Replicas::start(Way::Http, STEPS, &[]).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_is_watched_on_any_api_over_postgres() {
    for way in [Way::Store, Way::Http] {
        let settings = [("DATABASE_URL", &*databases::database().await)];
        is_watched_anywhere(Replicas::start(way, STEPS, &settings).await).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_is_watched_on_any_api_over_redis() {
    let place = redis_server::fresh();
    let settings = [("DATABASE_URL", &*place.url), ("COMFYD_STORE__REDIS_PREFIX", &*place.prefix)];
    is_watched_anywhere(Replicas::start(Way::Store, STEPS, &settings).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tasks_obey_any_api() {
    is_obeyed_anywhere(Replicas::start(Way::Store, Duration::ZERO, &[]).await).await;
    // What the heartbeat would tell as well is told before: that is far.
    let database = databases::database().await;
    let settings = [("DATABASE_URL", &*database), ("COMFYD_QUEUE__LEASE", "1h"), ("COMFYD_QUEUE__RENEW_EVERY", "20m")];
    is_obeyed_anywhere(Replicas::start(Way::Http, Duration::ZERO, &settings).await).await;
}
