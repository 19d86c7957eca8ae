//! Watching tasks over real connections: nothing lost, nothing twice, whoever dies in between; and no watcher is ever waited for.

use std::{collections::BTreeMap, time::Duration};

use fake_comfyui::FakeConfig;
use futures_util::{Stream, StreamExt, stream};
use reqwest::{Response, StatusCode};
use serde_json::{Value, json};
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::{self, client::IntoClientRequest};

use crate::{
    docs_page::browser,
    support::{Api, PATIENCE, image, task, world},
};

/// An event as a client gets it.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    pub id: Option<i64>,
    pub kind: String,
    pub data: Value,
}

impl Event {
    /// A stage or an output in a word, without what comes and goes.
    pub fn word(&self) -> Option<String> {
        match self.kind.as_str() {
            "stage" | "end" => Some(self.data["stage"].as_str().unwrap().to_owned()),
            "output" => Some(format!("output {}", self.data["output"]["index"])),
            _ => None,
        }
    }
}

/// Opens a stream.
pub async fn open(api: &Api, path: &str, after: Option<i64>) -> Response {
    let mut request = api.client.get(api.url(path)).timeout(PATIENCE);
    if let Some(after) = after {
        request = request.header("Last-Event-ID", after.to_string());
    }
    request.send().await.unwrap()
}

/// The events of a stream as they come; heartbeats are left out. Ends with the stream, however that ends.
pub fn events(response: Response) -> impl Stream<Item = Event> + Unpin {
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let body = Box::pin(response.bytes_stream());
    Box::pin(stream::unfold((body, String::new()), |(mut body, mut read)| async move {
        loop {
            if let Some(end) = read.find("\n\n") {
                let block: String = read.drain(..end + 2).collect();
                if let Some(event) = parse(&block) {
                    return Some((event, (body, read)));
                }
                continue;
            }
            let chunk = timeout(PATIENCE, body.next()).await.expect("the stream says nothing")?.ok()?;
            read.push_str(std::str::from_utf8(&chunk).unwrap());
        }
    }))
}

fn parse(block: &str) -> Option<Event> {
    let field = |name: &str| block.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
    let data = serde_json::from_str(field("data")?).unwrap();
    Some(Event { id: field("id").map(|id| id.parse().unwrap()), kind: field("event").unwrap().to_owned(), data })
}

async fn words(api: &Api, id: &str, after: Option<i64>) -> Vec<String> {
    let all: Vec<_> = events(open(api, &format!("/api/tasks/{id}/events"), after).await).collect().await;
    all.iter().filter_map(Event::word).collect()
}

/// A graph whose sampler makes previews, in so many steps.
pub fn sampling(steps: u32) -> Value {
    json!({"workflow": "text-to-image", "previews": true,
           "inputs": {"prompt": "a lighthouse", "seed": 7, "steps": steps, "width": 64, "height": 64}})
}

pub const LIFE: [&str; 6] = ["queued", "preparing", "executing", "uploading", "output 0", "completed"];

#[tokio::test(flavor = "multi_thread")]
async fn a_task_tells_its_story_from_the_beginning_and_the_stream_ends_with_it() {
    let world = world().start().await;
    world.fake().pause_execution();
    let id = world.create(&task(1)).await;
    let mut watched = events(open(&world, &format!("/api/tasks/{id}/events"), None).await);
    assert_eq!(watched.next().await.unwrap().word().unwrap(), "queued");
    world.running(&id).await;
    world.fake().resume();
    let rest: Vec<Event> = watched.collect().await;
    let told: Vec<_> = rest.iter().filter_map(Event::word).collect();
    assert_eq!(told, LIFE[1..]);
    let output = rest.iter().find(|event| event.kind == "output").unwrap();
    let url = output.data["output"]["url"].as_str().unwrap();
    assert_eq!(world.client.get(url).send().await.unwrap().status(), StatusCode::OK, "stored when it is told");
    assert!(rest.iter().map_while(|event| event.id).is_sorted());
    // Later the same, from the store alone.
    assert_eq!(words(&world, &id, None).await, LIFE);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_comes_back_goes_on_where_it_left() {
    let world = world().start().await;
    world.fake().pause_execution();
    let id = world.create(&task(1)).await;
    world.running(&id).await;
    let path = format!("/api/tasks/{id}/events");
    let mut first = events(open(&world, &path, None).await);
    let queued = first.next().await.unwrap();
    drop(first);
    world.fake().resume();
    world.completed(&id).await;
    assert_eq!(words(&world, &id, queued.id).await, LIFE[1..]);
    let by_parameter = format!("{path}?after={}", queued.id.unwrap());
    let rest: Vec<_> = events(open(&world, &by_parameter, None).await).collect().await;
    assert_eq!(rest.iter().filter_map(Event::word).collect::<Vec<_>>(), LIFE[1..]);
    // Nothing more to come: also a browser stays away then.
    let end = rest.last().unwrap();
    assert_eq!((end.kind.as_str(), &end.data["status"]), ("end", &json!("completed")));
    assert_eq!(open(&world, &path, end.id).await.status(), StatusCode::NO_CONTENT);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_task_says_why() {
    let world = world().start().await;
    world.fake().inject(fake_comfyui::Fault::node_error("again and again")).await.unwrap();
    let mut body = task(3);
    body["max_attempts"] = json!(2);
    let id = world.create(&body).await;
    let all: Vec<_> = events(open(&world, &format!("/api/tasks/{id}/events"), None).await).collect().await;
    let told: Vec<_> = all.iter().filter_map(Event::word).collect();
    let attempt = ["queued", "preparing", "executing"];
    let expected: Vec<&str> =
        attempt.iter().chain(&["scheduled"]).chain(&attempt).chain(&["failed"]).copied().collect();
    assert_eq!(told, expected);
    for event in all.iter().filter(|event| matches!(event.word().as_deref(), Some("scheduled" | "failed"))) {
        assert_eq!(event.data["error"]["code"], "node_failed", "{event:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn steps_and_previews_are_seen_while_it_runs() {
    let world =
        world().fakes([FakeConfig { node_time: Duration::from_millis(400), ..FakeConfig::default() }]).start().await;
    world.fake().pause_execution();
    let id = world.create(&sampling(8)).await;
    let path = format!("/api/tasks/{id}/events");
    let with = events(open(&world, &format!("{path}?previews=true"), None).await);
    let without = events(open(&world, &path, None).await);
    world.fake().resume();
    let (with, without): (Vec<_>, Vec<_>) = tokio::join!(with.collect(), without.collect());
    let previews: Vec<_> = with.iter().filter(|event| event.kind == "preview").collect();
    assert!(previews.len() > 2, "{with:?}");
    for preview in &previews {
        assert!(preview.data["image"].as_str().unwrap().starts_with("data:image/jpeg;base64,/9j/"), "{preview:?}");
        assert_eq!((&preview.data["task_id"], preview.id), (&json!(id), None));
    }
    let steps = |events: &[Event]| {
        let steps = events.iter().filter_map(|event| event.data["progress"]["step"].as_u64());
        steps.collect::<Vec<_>>()
    };
    assert!(steps(&with).contains(&4) && steps(&with).is_sorted(), "{with:?}");
    assert!(without.iter().all(|event| event.kind != "preview"));
    assert!(!steps(&without).is_empty());
    // What the next one of its kind will take is learned from it.
    let next = world.create(&sampling(9)).await;
    let next: Vec<_> = events(open(&world, &format!("/api/tasks/{next}/events"), None).await).collect().await;
    assert!(next.iter().any(|event| event.data["progress"]["eta_ms"].as_u64().is_some_and(|eta| eta > 0)), "{next:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_make_previews_only_for_who_asked() {
    let world = world().start().await;
    let mut body = sampling(2);
    let asked = world.create(&body).await;
    world.completed(&asked).await;
    body["previews"] = json!(false);
    body["inputs"]["seed"] = json!(8);
    let silent = world.create(&body).await;
    world.fake().pause_execution();
    let watched = events(open(&world, &format!("/api/tasks/{silent}/events?previews=true"), None).await);
    world.fake().resume();
    let seen: Vec<_> = watched.collect().await;
    assert!(seen.iter().all(|event| event.kind != "preview"), "{seen:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_waiting_task_knows_its_place() {
    let world = world().start().await;
    world.completed(&world.create(&task(100)).await).await;
    world.fake().pause_execution();
    let mut ids = Vec::new();
    for color in 0..6 {
        ids.push(world.create(&task(color)).await);
    }
    world.running(&ids[0]).await;
    // One runs and one is prepared.
    let last = world.get_now(&format!("/api/tasks/{}", ids[5])).await;
    assert_eq!(last["progress"]["queue_position"], 4, "{last}");
    assert!(last["progress"]["eta_ms"].is_i64(), "{last}");
    let mut watched = events(open(&world, &format!("/api/tasks/{}/events", ids[5]), None).await);
    let place = loop {
        let event = watched.next().await.unwrap();
        if event.kind == "progress" {
            break event;
        }
    };
    assert_eq!((&place.data["progress"]["queue_position"], place.id), (&json!(4), None));
    world.cancel(&ids[3]).await;
    let moved = watched.next().await.unwrap();
    assert_eq!(moved.data["progress"]["queue_position"], 3, "{moved:?}");
    world.fake().resume();
    assert_eq!(watched.collect::<Vec<_>>().await.last().unwrap().kind, "end");
}

/// Comes again and again, from where it left, until it saw the end of everything.
async fn follow_all(api: &Api, ends: usize, mut each: impl AsyncFnMut(usize)) -> Vec<Event> {
    let mut seen: Vec<Event> = Vec::new();
    let over = |seen: &[Event]| seen.iter().filter(|event| event.kind == "end").count() >= ends;
    while !over(&seen) {
        let after = seen.iter().rev().find_map(|event| event.id).unwrap_or(0);
        let request = api.client.get(api.url("/api/events")).header("Last-Event-ID", after.to_string());
        let Ok(response) = request.timeout(PATIENCE).send().await else { continue };
        if response.status() != StatusCode::OK {
            tokio::task::yield_now().await;
            continue;
        }
        let mut watched = events(response);
        while !over(&seen) {
            let Some(event) = watched.next().await else { break };
            if event.id.is_some() {
                seen.push(event);
                each(seen.len()).await;
            }
        }
    }
    seen
}

fn by_task(seen: &[Event]) -> BTreeMap<String, Vec<String>> {
    let mut told: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for event in seen {
        told.entry(event.data["task_id"].as_str().unwrap().to_owned()).or_default().extend(event.word());
    }
    told
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_or_repeated_while_many_commit_and_the_server_dies() {
    const TASKS: u32 = 40;
    let world = world().start().await;
    let creating = stream::iter(0..TASKS).for_each_concurrent(8, |color| {
        let api = &world;
        async move {
            api.create_stubbornly(&task(color), &format!("key-{color}")).await;
        }
    });
    let killing = async |events: usize| {
        if events.is_multiple_of(30) {
            world.kill(&world.system().slots.http).await;
        }
        if events.is_multiple_of(50) {
            world.kill(&world.system().slots.services[comfyd::app::EVENTS]).await;
        }
    };
    let (seen, ()) = tokio::join!(follow_all(&world, TASKS as usize, killing), creating);
    assert!(seen.iter().map(|event| event.id).is_sorted_by(|a, b| a < b), "in order, none twice");
    let told = by_task(&seen);
    assert_eq!(told.len(), TASKS as usize);
    for (id, words) in told {
        assert_eq!(words, LIFE, "{id}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_watched_before_a_restart_goes_on_after_it() {
    let world = world().start().await;
    world.fake().pause_execution();
    let id = world.create(&task(1)).await;
    world.running(&id).await;
    let path = format!("/api/tasks/{id}/events");
    let mut watched = events(open(&world, &path, None).await);
    let mut last = watched.next().await.unwrap();
    while last.word().as_deref() != Some("executing") {
        last = watched.next().await.unwrap();
    }
    // Streams end when the service stops: they do not hold it up.
    let stopping = timeout(Duration::from_secs(20), world.restart());
    let (world, rest) = tokio::join!(stopping, watched.collect::<Vec<_>>());
    let world = world.unwrap();
    assert!(rest.iter().all(|event| event.kind == "progress"), "{rest:?}");
    world.fake().resume();
    let rest: Vec<_> = events(open(&world, &path, last.id).await).collect().await;
    assert_eq!(rest.iter().filter_map(Event::word).collect::<Vec<_>>(), LIFE[3..]);
}

#[tokio::test(flavor = "multi_thread")]
async fn all_tasks_can_be_watched_and_told_apart() {
    let world = world().start().await;
    let only = "/api/events?workflow=text-to-image&status=completed";
    let mut some = events(open(&world, only, None).await);
    let mut all = events(open(&world, "/api/events", None).await);
    let graph = world.create(&task(1)).await;
    let named = world.create(&sampling(1)).await;
    world.completed(&graph).await;
    world.completed(&named).await;
    let first = some.next().await.unwrap();
    assert_eq!((&first.data["task_id"], first.kind.as_str()), (&json!(named), "end"));
    // Glimpses of a task that is done this fast may overtake the facts.
    let first = loop {
        let event = all.next().await.unwrap();
        if event.kind != "progress" {
            break event;
        }
    };
    assert_eq!((&first.data["task_id"], first.word().unwrap().as_str()), (&json!(graph), "queued"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watcher_that_does_not_read_holds_up_nobody() {
    let world = world().start().await;
    // Connected, and never read from.
    let mut deaf = Vec::new();
    for _ in 0..20 {
        deaf.push(open(&world, "/api/events?after=0&previews=true", None).await);
    }
    for color in 0..60 {
        let id = world.create(&json!({"workflow": image(color), "metadata": {"n": color}})).await;
        world.finished(&id).await;
    }
    drop(deaf);
}

#[tokio::test(flavor = "multi_thread")]
async fn too_many_watchers_are_told_so_and_places_come_free() {
    let world = world().with("COMFYD_EVENTS__MAX_WATCHERS", "1").start().await;
    let first = open(&world, "/api/events", None).await;
    let refused = open(&world, "/api/events", None).await;
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(refused.headers()["retry-after"], "1");
    assert_eq!(refused.json::<Value>().await.unwrap()["code"], "too_many_watchers");
    drop(first);
    let free = async { while open(&world, "/api/events", None).await.status() != StatusCode::OK {} };
    timeout(PATIENCE, free).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quiet_stream_says_that_it_is_alive() {
    let world = world().with("COMFYD_EVENTS__HEARTBEAT", "10ms").start().await;
    let mut body = open(&world, "/api/events", None).await.bytes_stream();
    let mut read = String::new();
    while read.matches(":\n\n").count() < 3 {
        read.push_str(std::str::from_utf8(&body.next().await.unwrap().unwrap()).unwrap());
    }
    assert!(read.starts_with("retry: 1000\n\n"), "{read}");
}

#[tokio::test(flavor = "multi_thread")]
async fn faulty_parameters_are_all_named() {
    let world = world().start().await;
    let refused = open(&world, "/api/events?statuss=x&status=complete&after=-1&previews=maybe", Some(-7)).await;
    assert_eq!(refused.status(), StatusCode::UNPROCESSABLE_ENTITY);
    let problem: Value = refused.json().await.unwrap();
    let named: Vec<_> = problem["errors"].as_array().unwrap().iter().collect();
    assert_eq!(named.len(), 5, "{problem}");
    assert_eq!((&named[0]["suggestion"], &named[1]["suggestion"]), (&json!("status"), &json!("completed")));
    let unknown = open(&world, "/api/tasks/01982d2c-7a4e-7bb0-9d1b-6a0f2f5f9c11/events", None).await;
    assert_eq!(unknown.status(), StatusCode::NOT_FOUND);
}

/// The same over a WebSocket.
pub async fn socket(
    api: &Api,
    path: &str,
    origin: Option<&str>,
) -> Result<Vec<tungstenite::Message>, tungstenite::Error> {
    let mut request = api.url(path).replacen("http", "ws", 1).into_client_request().unwrap();
    if let Some(origin) = origin {
        request.headers_mut().insert("origin", origin.parse().unwrap());
    }
    let (socket, _) = tokio_tungstenite::connect_async(request).await?;
    Ok(timeout(PATIENCE, socket.map(Result::unwrap).collect()).await.unwrap())
}

/// The events of a WebSocket, without those that are pictures.
pub fn told(messages: &[tungstenite::Message]) -> Vec<Event> {
    let texts = messages.iter().filter_map(|message| serde_json::from_str::<Value>(message.to_text().ok()?).ok());
    let event = |text: Value| {
        Some(Event { id: text["id"].as_i64(), kind: text["event"].as_str()?.to_owned(), data: text["data"].clone() })
    };
    texts.filter_map(event).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_comes_over_a_websocket() {
    let world =
        world().fakes([FakeConfig { node_time: Duration::from_millis(300), ..FakeConfig::default() }]).start().await;
    world.fake().pause_execution();
    let id = world.create(&sampling(5)).await;
    let path = format!("/api/tasks/{id}/events?previews=true");
    let watching = socket(&world, &path, None);
    let resume = async {
        world.running(&id).await;
        world.fake().resume();
    };
    let (messages, ()) = tokio::join!(watching, resume);
    let messages = messages.unwrap();
    let texts: Vec<Value> =
        messages.iter().filter_map(|message| serde_json::from_str(message.to_text().ok()?).ok()).collect();
    let told: Vec<_> = told(&messages).iter().filter_map(Event::word).collect();
    assert_eq!(told, LIFE);
    assert!(texts.iter().any(|text| text["event"] == "progress" && text.get("id").is_none()), "{texts:?}");
    let preview = messages.iter().find(|message| message.is_binary()).expect("a preview").clone().into_data();
    let length = u32::from_be_bytes(preview[..4].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&preview[4..4 + length]).unwrap();
    assert_eq!((&header["event"], &header["data"]["task_id"]), (&json!("preview"), &json!(id)));
    assert_eq!(preview[4 + length..][..3], [0xff, 0xd8, 0xff]);
    let Some(tungstenite::Message::Close(Some(close))) = messages.last() else { panic!("{messages:?}") };
    assert_eq!(u16::from(close.code), 1000);
    // Its end was seen: the connection is opened and closed.
    let last = texts.last().unwrap()["id"].as_i64().unwrap();
    let again = socket(&world, &format!("/api/tasks/{id}/events?after={}", last - 1), None).await.unwrap();
    assert_eq!(again.len(), 2, "{again:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_of_other_sites_watch_nothing() {
    let world = world().start().await;
    let id = world.create(&task(1)).await;
    world.completed(&id).await;
    let path = format!("/api/tasks/{id}/events");
    let refused = socket(&world, &path, Some("https://evil.example")).await;
    let Err(tungstenite::Error::Http(answer)) = refused else { panic!("{refused:?}") };
    assert_eq!(answer.status(), 403);
    let own = world.url("");
    assert!(!socket(&world, &path, Some(&own)).await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_example_page_shows_a_picture_sharpening() {
    let world =
        world().fakes([FakeConfig { node_time: Duration::from_secs(1), ..FakeConfig::default() }]).start().await;
    world.fake().pause_execution();
    let id = world.create(&sampling(10)).await;
    let profile = tempfile::tempdir().unwrap();
    let mut browser = browser(profile.path());
    browser.arg("--dump-dom").arg(world.url(&format!("/examples/watch?task={id}")));
    let shown = tokio::task::spawn_blocking(move || browser.output());
    let watched = async {
        while world.system().board.watch().watchers() == 0 {
            tokio::task::yield_now().await;
        }
    };
    // The browser, a whole one, is slow to start on a busy machine.
    timeout(Duration::from_secs(120), watched).await.expect("the page does not watch");
    world.fake().resume();
    let shown = timeout(Duration::from_secs(120), shown).await.unwrap().unwrap();
    let shown = shown.expect("needs Chromium: set CHROMIUM to its program, or have it in PATH");
    let page = String::from_utf8_lossy(&shown.stdout);
    let previews = page.split("data-previews=\"").nth(1).and_then(|rest| rest.split('"').next()?.parse::<u32>().ok());
    assert!(previews.is_some_and(|previews| previews > 2), "{page}");
    assert!(page.contains("data-stage=\"completed\""), "{page}");
    assert!(page.contains(&format!("/api/tasks/{id}/outputs/0\"")), "{page}");
}
