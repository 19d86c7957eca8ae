//! The API and its consumers as processes of their own: in whatever order they come and go, on one store or over HTTP.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc, time::Duration};

use comfyd::{
    config::{SecretUrl, values::Secret},
    remote::ApiClient,
};
use comfyd_actors::{
    domain::{
        id::{BackendId, ClientId, WorkerId},
        lane::Lanes,
        task::{Change, Intent, Refusal, Release, TaskState},
        tenant::Caps,
    },
    ports::store::{Claim, ClaimSlot, StoreError, WorkSource},
};
use fake_comfyui::{EventKind, FakeComfy, FakeConfig};
use rand::RngExt;
use reqwest::StatusCode;
use serde_json::Value;
use tokio::time::{Instant, timeout};

use crate::{
    chaos::with_seed,
    databases::database,
    inputs,
    place::{Place, Process, command, free_address},
    support::{Api, PATIENCE, id, task},
    tenants,
    witness::until_level,
};

/// Leases that end soon: what a test waits for when a consumer is killed.
const LEASE: &[(&str, &str)] = &[("COMFYD_QUEUE__LEASE", "3s"), ("COMFYD_QUEUE__RENEW_EVERY", "500ms")];
const TOKEN: &str = "a-token-of-forty-characters-for-the-tests";

/// Processes around one API.
pub struct Apart {
    pub place: Place,
}

impl Apart {
    pub async fn new() -> Self {
        Self::of(FakeConfig::default()).await
    }

    pub async fn of(config: FakeConfig) -> Self {
        Self::with(config, &[]).await
    }

    /// With these settings for all of them.
    pub async fn with(config: FakeConfig, settings: &[(&str, &str)]) -> Self {
        let mut place = Place::of(config).await.with("CONSUMER_TOKEN", TOKEN);
        for (name, value) in LEASE.iter().chain(settings) {
            place = place.with(name, value);
        }
        Self { place }
    }

    /// A client of the consumers' side of an API.
    pub fn client(api: SocketAddr) -> Arc<ApiClient> {
        let url = SecretUrl::new(format!("http://{api}"));
        ApiClient::new(&url, Some(Secret::new(TOKEN)), BTreeMap::new()).unwrap()
    }

    /// With its tasks in another database.
    fn on(self, database: &str) -> Self {
        Self { place: self.place.with("DATABASE_URL", database) }
    }

    fn launch(&self, role: &str, without: &[&str], more: &[(&str, &str)]) -> Process {
        let mut program = command(self.place.dir.path());
        program.arg(role);
        let mut env = self.place.environment();
        env.retain(|(name, _)| !without.contains(&name.as_str()));
        for (name, value) in more {
            env.retain(|(known, _)| known != name);
            env.push(((*name).to_owned(), (*value).to_owned()));
        }
        program.envs(env);
        Process::spawn(program, self.place.dir.path())
    }

    /// Starts the API and waits until it is ready.
    pub async fn api(&self) -> Process {
        ready(self.launch("api", &[], &[]), &self.place.api).await
    }

    /// Another API on the same store.
    pub async fn second_api(&self) -> (Process, Api) {
        let address = free_address();
        let api = Api::new(address);
        let process = self.launch("api", &[], &[("PORT", &address.port().to_string())]);
        (ready(process, &api).await, api)
    }

    /// A consumer on the API's store; its address.
    pub fn consumer(&self, comfyui: &str) -> (Process, Api) {
        let address = free_address();
        let port = address.port().to_string();
        let process = self.launch("consumer", &[], &[("COMFYUI_URL", comfyui), ("COMFYD_CONSUMER__PORT", &port)]);
        (process, Api::new(address))
    }

    /// All tasks are over; these are complete, and each ran once.
    pub async fn end(&self, ids: &[String]) {
        let over = |list: &Value| list["tasks"].as_array().is_some_and(Vec::is_empty);
        self.place.api.until("/api/tasks?status=pending,processing&limit=1", over).await;
        self.place.end(ids, 1).await;
    }

    /// As [`Self::consumer`], with the leases that users have.
    fn patient_consumer(&self, comfyui: &str) -> (Process, Api) {
        let address = free_address();
        let port = address.port().to_string();
        let more = [
            ("COMFYUI_URL", comfyui),
            ("COMFYD_CONSUMER__PORT", port.as_str()),
            ("COMFYD_QUEUE__LEASE", "30s"),
            ("COMFYD_QUEUE__RENEW_EVERY", "10s"),
        ];
        (self.launch("consumer", &[], &more), Api::new(address))
    }

    /// A consumer that has nothing but the API's address.
    pub fn remote(&self, comfyui: &str, api: SocketAddr) -> (Process, Api) {
        self.remote_with(comfyui, api, &[])
    }

    fn remote_with(&self, comfyui: &str, api: SocketAddr, settings: &[(&str, &str)]) -> (Process, Api) {
        let address = free_address();
        let (port, url) = (address.port().to_string(), format!("http://{api}/api/"));
        let mine = self.place.dir.path().join("not-the-apis").display().to_string();
        let mut more = vec![
            ("COMFYUI_URL", comfyui),
            ("COMFYD_CONSUMER__PORT", port.as_str()),
            ("TASK_API_URL", url.as_str()),
            ("STORAGE_LOCAL_DIR", mine.as_str()),
        ];
        more.extend(settings);
        (self.launch("consumer", &["DATABASE_URL"], &more), Api::new(address))
    }
}

pub async fn ready(mut process: Process, api: &Api) -> Process {
    if let Err(status) = process.ready(api).await {
        panic!("it ended before it was ready, {status}:\n{}", process.output());
    }
    process
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_and_a_consumer_on_one_store_come_in_any_order() {
    let apart = Apart::new().await;
    let (consumer, pages) = apart.consumer(&apart.place.fake.url());
    let consumer = ready(consumer, &pages).await;
    let api = apart.api().await;
    let first = apart.place.create(3).await;
    apart.end(&first).await;
    drop(consumer);
    let waiting = apart.place.api.create(&task(7)).await;
    drop(api);
    let _api = apart.api().await;
    let (_consumer, pages) = apart.consumer(&apart.place.fake.url());
    apart.end(&[waiting]).await;
    let status: Value = pages.client.get(pages.url("/api/status")).send().await.unwrap().json().await.unwrap();
    assert_eq!((status["role"].as_str(), status["source"]["ok"].as_bool()), (Some("consumer"), Some(true)), "{status}");
    let create = pages.client.post(pages.url("/api/tasks/create")).json(&task(8)).send().await.unwrap();
    assert_eq!(create.status(), StatusCode::NOT_FOUND, "it has no clients");
    let metrics = pages.client.get(pages.url("/metrics")).send().await.unwrap().text().await.unwrap();
    assert!(metrics.contains("comfyd_"), "{metrics}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_without_a_database_runs_tasks_with_files_and_brings_outputs() {
    let apart = Apart::new().await;
    let (consumer, pages) = apart.remote(&apart.place.fake.url(), apart.place.address());
    // It is there before its API.
    pages.until("/api/status", |status| status["source"]["ok"] == false).await;
    let _api = apart.api().await;
    let consumer = ready(consumer, &pages).await;
    let stored = apart.place.api.store(inputs::picture(1, 300_000)).await;
    let id = apart.place.api.create(&inputs::task(&stored)).await;
    apart.place.end(std::slice::from_ref(&id), 1).await;
    let output = apart.place.api.url(&format!("/api/tasks/{id}/outputs/0"));
    let bytes =
        apart.place.api.client.get(output).send().await.unwrap().error_for_status().unwrap().bytes().await.unwrap();
    assert!(bytes.starts_with(b"\x89PNG"));
    assert!(!apart.place.dir.path().join("not-the-apis").exists(), "it keeps nothing itself");
    // A cancellation reaches it at once.
    apart.place.control().pause_execution();
    let id = apart.place.api.create(&task(3)).await;
    apart.place.running(&id).await;
    let asked = Instant::now();
    apart.place.api.cancel(&id).await;
    assert_eq!(apart.place.api.finished(&id).await["status"], "cancelled");
    assert!(asked.elapsed() < Duration::from_secs(5), "{:?}", asked.elapsed());
    apart.place.control().resume();
    drop(consumer);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_that_is_away_costs_nothing() {
    let apart = Apart::new().await;
    let api = apart.api().await;
    let (consumer, pages) = apart.remote(&apart.place.fake.url(), apart.place.address());
    let _consumer = ready(consumer, &pages).await;
    apart.place.control().pause_execution();
    let ids = apart.place.create(1).await;
    let prompt = apart.place.running(&ids[0]).await;
    drop(api);
    // It ends while nobody can be told.
    apart.place.control().resume();
    apart.place.wait_for(|event| matches!(event, EventKind::Finished { .. })).await;
    let _api = apart.api().await;
    apart.place.end(&ids, 1).await;
    assert_eq!(apart.place.control().executions(&prompt), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_api_wants_as_many_consumers() {
    let mut apart = Apart::new().await;
    for (name, value) in [("COMFYD_QUEUE__TARGET_WAIT", "0s"), ("COMFYD_QUEUE__CONSUMER_SERVERS", "2")] {
        apart.place = apart.place.with(name, value);
    }
    let _api = apart.api().await;
    let (_second, replica) = apart.second_api().await;
    let both_want = async |wanted: u64| {
        for api in [&apart.place.api, &replica] {
            // Both are levels, and what is on its way to a consumer is for a moment not counted, or counted twice.
            api.until("/api/status", |status| status["consumers_wanted"] == wanted).await;
            let line = format!("\ncomfyd_consumers_wanted {wanted}\n");
            let metrics = || async { api.client.get(api.url("/metrics")).send().await.unwrap().text().await.unwrap() };
            let told = async {
                while !metrics().await.contains(&line) {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            };
            timeout(PATIENCE, told).await.unwrap_or_else(|_| panic!("/metrics does not say{line}"));
        }
    };
    both_want(0).await;
    // Nobody is there: one is wanted, whatever waits, because nobody knows how long tasks take.
    let ids = apart.place.create(3).await;
    both_want(1).await;
    let (consumer, pages) = apart.consumer(&apart.place.fake.url());
    let consumer = ready(consumer, &pages).await;
    apart.end(&ids).await;
    both_want(0).await;
    // It has one server, so one consumer for each task.
    apart.place.control().pause_execution();
    // The first three are found again.
    let ids = apart.place.create(9).await.split_off(3);
    both_want(6).await;
    // While it is away, two servers each are reckoned with for those that wait; what it held is waited for. How many that is depends on how
    // quick its server seemed.
    drop(consumer);
    let waiting = apart.place.api.get("/api/tasks?status=pending&limit=50").await["tasks"].as_array().unwrap().len();
    both_want(waiting.div_ceil(2).max(1) as u64).await;
    apart.place.control().resume();
    let (_heir, pages) = apart.remote(&apart.place.fake.url(), apart.place.address());
    let _heir = ready(_heir, &pages).await;
    apart.end(&ids).await;
    both_want(0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_without_a_database_keeps_to_the_apis_caps() {
    let mut apart = Apart::new().await;
    for (name, value) in [("COMFYD_TENANTS__HEADER", "X-Tenant"), ("COMFYD_TENANTS__MAX_RUNNING", "1")] {
        apart.place = apart.place.with(name, value);
    }
    let other = FakeComfy::start(FakeConfig::default()).await.unwrap();
    let _api = apart.api().await;
    let both = format!("{},{}", apart.place.fake.url(), other.url());
    // What it has been told itself, or not, counts for nothing.
    let without = [("COMFYD_TENANTS__MAX_RUNNING", "0")];
    let (consumer, pages) = apart.remote_with(&both, apart.place.address(), &without);
    let _consumer = ready(consumer, &pages).await;
    apart.place.control().pause_execution();
    other.control().pause_execution();
    let api = &apart.place.api;
    let (first, second) = (tenants::create(api, "acme", &task(1)).await, tenants::create(api, "acme", &task(2)).await);
    let others = tenants::create(api, "other", &task(3)).await;
    let is_processing = |task: &Value| task["status"] == "processing";
    api.until(&format!("/api/tasks/{first}"), is_processing).await;
    api.until(&format!("/api/tasks/{others}"), is_processing).await;
    assert_eq!(api.get_now(&format!("/api/tasks/{second}")).await["status"], "pending");
    apart.place.control().resume();
    other.control().resume();
    for id in [first, second, others] {
        api.completed(&id).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_consumers_prompt_is_adopted_by_one_that_reaches_its_server() {
    let apart = Apart::new().await;
    let other = FakeComfy::start(FakeConfig::default()).await.unwrap();
    let _api = apart.api().await;
    let (_second, replica) = apart.second_api().await;
    let (first, pages) = apart.consumer(&apart.place.fake.url());
    let first = ready(first, &pages).await;
    apart.place.control().pause_execution();
    let ids = apart.place.create(1).await;
    apart.place.running(&ids[0]).await;
    // One of these could not tell what became of it; the other comes over HTTP.
    let (_stranger, pages) = apart.consumer(&other.url());
    let _stranger = ready(_stranger, &pages).await;
    let (heir, pages) = apart.remote(&apart.place.fake.url(), apart.place.address());
    let _heir = ready(heir, &pages).await;
    let killed = Instant::now();
    drop(first);
    apart.place.control().resume();
    let done = apart.place.api.completed(&ids[0]).await;
    let took = killed.elapsed();
    println!("adopted and done {took:?} after the kill");
    assert!(took < Duration::from_secs(5), "{took:?}");
    assert_eq!(done["attempt"], 1);
    assert_eq!(replica.completed(&ids[0]).await["outputs"][0]["sha256"], done["outputs"][0]["sha256"]);
    assert_eq!(apart.place.control().executions_of_task(&ids[0]), 1);
    assert_eq!(other.control().executions_of_task(&ids[0]), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drained_consumer_hands_over_while_the_gpu_works() {
    let apart = Apart::new().await;
    let _api = apart.api().await;
    let (first, pages) = apart.patient_consumer(&apart.place.fake.url());
    let mut first = ready(first, &pages).await;
    apart.place.control().pause_execution();
    let ids = apart.place.create(1).await;
    apart.place.running(&ids[0]).await;
    let (heir, pages) = apart.patient_consumer(&apart.place.fake.url());
    let heir = ready(heir, &pages).await;
    first.signal("TERM");
    assert_eq!(first.ended().await.code(), Some(0));
    let left = Instant::now();
    until_level("the heir adopts", || heir.output().contains("adopted tasks")).await;
    println!("adopted {:?} after the end", left.elapsed());
    assert!(left.elapsed() < Duration::from_secs(1), "{:?}", left.elapsed());
    apart.place.control().resume();
    apart.end(&ids).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_who_has_the_token_is_served() {
    let apart = Apart::new().await;
    let _api = apart.api().await;
    let ask = async |verb: &str, token: &str, version: &str| {
        let api = &apart.place.api;
        let asked = api.client.post(api.url(&format!("/api/consumer/{verb}"))).header("comfyd-protocol", version);
        let answer = asked.bearer_auth(token).json(&()).send().await.unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    };
    for (verb, token, version, status, says) in [
        ("lanes", TOKEN, "1", 200, "Ok"),
        ("lanes", "another", "1", 401, "CONSUMER_TOKEN"),
        ("lanes", "", "1", 401, "CONSUMER_TOKEN"),
        ("lanes", TOKEN, "2", 409, "same version"),
        ("nonsense", TOKEN, "1", 404, "nothing of that name"),
        ("claim", TOKEN, "1", 422, "invalid type"),
    ] {
        let (answered, text) = ask(verb, token, version).await;
        assert_eq!(answered, status, "{text}");
        assert!(text.contains(says), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn consumers_tell_what_they_have_and_tasks_go_where_they_may_run() {
    let apart = Apart::new().await;
    let (some, all) = (&apart.place.fake, FakeComfy::start(FakeConfig::default()).await.unwrap());
    let _api = apart.api().await;
    let api = &apart.place.api;
    let mut started = Vec::new();
    for (comfyui, workflows, labels) in [(some.url(), "text-to-*", ""), (all.url(), "", "a100")] {
        let more = [("ALLOWED_WORKFLOWS", workflows), ("COMFYD_CONSUMER__LABELS", labels)];
        let (consumer, pages) = apart.remote_with(&comfyui, apart.place.address(), &more);
        started.push(ready(consumer, &pages).await);
    }
    let told =
        |list: &Value| list["backends"].as_array().unwrap().iter().filter(|it| it["nodes"].is_u64()).count() == 2;
    api.until("/api/backends", told).await;
    // What nobody can run is refused by an API that reaches no server itself.
    let mut unknown = task(1);
    unknown["workflow"]["1"]["class_type"] = "NobodyHasThis".into();
    let refused = api.post(&unknown).await;
    assert_eq!(refused.status(), StatusCode::UNPROCESSABLE_ENTITY, "{}", refused.text().await.unwrap());
    let stats = api.until("/api/comfyui-system-stats", |stats| stats["data"]["system"].is_object()).await;
    assert_eq!(stats["backends"].as_array().unwrap().len(), 2, "{stats}");
    // Who takes some workflows takes nothing else.
    let graphs = apart.place.create(4).await;
    let mut labelled = task(8);
    labelled["labels"] = serde_json::json!(["a100"]);
    let labelled = api.create(&labelled).await;
    for id in graphs.iter().chain([&labelled]) {
        api.completed(id).await;
        assert_eq!((some.control().executions_of_task(id), all.control().executions_of_task(id)), (0, 1));
    }
    let mut elsewhere = task(9);
    elsewhere["labels"] = serde_json::json!(["h100"]);
    let elsewhere = api.create(&elsewhere).await;
    let waits = api.get_now(&format!("/api/tasks/{elsewhere}")).await;
    assert_eq!(
        (waits["status"].as_str(), &waits["waiting_for"]["labels"][0]),
        (Some("pending"), &"h100".into()),
        "{waits}"
    );
    // A consumer that is gone is not shown any more, and the other runs what it may.
    drop(started.pop());
    let named = api.create(&serde_json::json!({"workflow": "text-to-image", "inputs": {"prompt": "x"}})).await;
    api.finished(&named).await;
    assert_eq!(some.control().executions_of_task(&named), 1);
    api.until("/api/backends", |list| list["backends"].as_array().unwrap().len() == 1).await;
}

/// An answer gets lost, and the request is repeated: what was done is found done, and what is somebody else's is refused.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_repeated_is_found_done() {
    let apart = Apart::new().await;
    let _api = apart.api().await;
    let task = id(&apart.place.api.create(&task(1)).await);
    let client = Apart::client(apart.place.address());
    let slot = ClaimSlot {
        intent: Intent { backend: BackendId::new("http://gpu:8188"), client: ClientId::new("client") },
        lanes: Lanes::All,
    };
    let claim = Claim {
        worker: WorkerId::new("node:1"),
        lease: Duration::from_secs(30),
        slots: vec![slot],
        caps: Caps::default(),
    };
    let held = client.claim(claim.clone()).await.unwrap().remove(0);
    assert_eq!(client.held(&claim.worker).await.unwrap().len(), 1, "a claim without an answer is found");
    let fence = held.task.fence;
    let recalled = Change::Release(Release::Recalled);
    let once = client.apply(task, fence, recalled.clone()).await.unwrap();
    let twice = client.apply(task, fence, recalled.clone()).await.unwrap();
    assert_eq!((once.state, once), (TaskState::Pending, twice));
    let other = Change::Complete { artifacts: Vec::new() };
    let refused = client.apply(task, fence, other).await;
    assert!(matches!(refused, Err(StoreError::Refused(Refusal::Stale))), "{refused:?}");
    client.claim(claim).await.unwrap();
    let refused = client.apply(task, fence, recalled).await;
    assert!(matches!(refused, Err(StoreError::Refused(Refusal::Stale))), "somebody has it: {refused:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_in_turn_none_loses_a_task() {
    killed_in_turn(Apart::new().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_in_turn_on_postgres_none_loses_a_task() {
    killed_in_turn(Apart::new().await.on(&database().await)).await;
}

/// Two APIs and three consumers, one of them over HTTP: each kind is killed in turn while tasks come and go. None is lost, none runs twice.
async fn killed_in_turn(apart: Apart) {
    with_seed(async |mut rng| {
        let (url, address) = (apart.place.fake.url(), apart.place.address());
        apart.place.control().set_node_time(Duration::from_millis(30));
        let first_api = apart.api().await;
        let (second_api, _) = apart.second_api().await;
        let (beside, remote) = (apart.consumer(&url).0, apart.remote(&url, address).0);
        let _another = apart.consumer(&url).0;
        let place = &apart;
        let killing = async move {
            let mut pause = async || tokio::time::sleep(Duration::from_millis(rng.random_range(100..600))).await;
            pause().await;
            drop(beside);
            let beside = place.consumer(&url);
            pause().await;
            drop(remote);
            let remote = place.remote(&url, address);
            pause().await;
            drop(first_api);
            let first_api = place.api().await;
            pause().await;
            drop(second_api);
            let second_api = place.second_api().await;
            (beside, remote, first_api, second_api)
        };
        let (ids, killed_last) = tokio::join!(apart.place.create(40), killing);
        drop(killed_last);
        // What is left is done by the one that was never killed and one new API.
        let _api = apart.api().await;
        apart.end(&ids).await;
    })
    .await;
}
