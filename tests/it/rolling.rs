//! Stops and restarts of the real program under load: `/readyz` says what is true, nobody who was let in is sent away, and what runs goes on.

use std::{
    process::ExitStatus,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use comfyd_actors::{domain::id::WorkerId, janitor::JanitorMsg, queue::QueueMsg};
use fake_comfyui::{EventKind, Fault};
use futures_util::future::join_all;
use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::{
    inputs,
    place::{Place, Process, free_address},
    support::{Api, PATIENCE, id, task, world},
    witness::{posted, prompts},
};

/// Longer than any test waits: what depends on it does not happen.
const NEVER: &str = "10m";

impl Api {
    async fn readiness(&self) -> (StatusCode, Value) {
        let answer = self.client.get(self.url("/readyz")).send().await.unwrap();
        let status = answer.status();
        (status, answer.json().await.unwrap_or_default())
    }

    /// Waits until it says that it is about to stop.
    async fn leaving(&self) {
        let asking = async {
            loop {
                let (status, answer) = self.readiness().await;
                if status == StatusCode::SERVICE_UNAVAILABLE {
                    assert_eq!(answer["errors"][0]["pointer"], "/draining", "{answer}");
                    return;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, asking).await.expect("it does not say that it is about to stop");
    }
}

async fn good_end(process: &mut Process) {
    let status: ExitStatus = process.ended().await;
    assert_eq!(status.code(), Some(0), "{status}:\n{}", process.output());
}

#[tokio::test(flavor = "multi_thread")]
async fn when_asked_to_stop_it_says_so_and_goes_on_for_a_while() {
    let place = Place::new().await.with("COMFYD_SERVER__DRAIN_DELAY", NEVER);
    let mut process = place.start().await;
    let mut ids = place.create(2).await;
    process.signal("TERM");
    place.api.leaving().await;
    assert_eq!(place.api.get_now("/api/status").await["status"], "draining");
    // All else is as before: whoever has not heard yet is served.
    ids.push(place.api.create(&task(7)).await);
    place.end(&ids, 1).await;
    assert_eq!(place.api.readiness().await.0, StatusCode::SERVICE_UNAVAILABLE);
    process.signal("TERM");
    assert_eq!(process.ended().await.code(), Some(130));
}

#[tokio::test(flavor = "multi_thread")]
async fn at_a_keyboard_nobody_waits() {
    let place = Place::new().await.with("COMFYD_SERVER__DRAIN_DELAY", NEVER);
    let mut process = place.start().await;
    process.signal("INT");
    good_end(&mut process).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_being_stored_is_stored_and_the_answers_come_until_then() {
    let place = Place::new().await.with("COMFYD_SERVER__DRAIN_GRACE", NEVER);
    let mut process = place.start().await;
    place.control().inject_times(Fault::SlowView { bytes_per_second: 50 }, 1).await.unwrap();
    let ids = place.create(1).await;
    place.wait_for(|event| matches!(event, EventKind::Viewed { .. })).await;
    process.signal("TERM");
    place.api.leaving().await;
    // Nothing new, and somebody to say so. The end comes a moment after it is announced.
    let store = || place.api.client.post(place.api.url("/api/inputs")).header("content-type", "image/png");
    while store().body(inputs::picture(1, 0)).send().await.unwrap().status().is_success() {}
    let refused = place.api.post(&task(9)).await;
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(refused.headers().contains_key("retry-after"));
    assert_eq!(refused.json::<Value>().await.unwrap()["code"], "draining");
    let path = format!("/api/tasks/{}", ids[0]);
    assert_eq!(place.api.get_now(&path).await["status"], "processing");
    good_end(&mut process).await;
    let _process = place.start().await;
    assert_eq!(place.api.get_now(&path).await["status"], "completed", "it was done before the end");
    place.end(&ids, 1).await;
    let views = place.control().log().iter().filter(|event| matches!(event.kind, EventKind::Viewed { .. })).count();
    assert_eq!(views, 1, "the next process had nothing left to do");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_not_sent_waits_for_nothing_afterwards() {
    // Whoever took it for sent would look for it for so long.
    let place = Place::new().await.with("COMFYD_COMFYUI__VALIDATE_GRACE", NEVER);
    let mut process = place.start().await;
    let stored = place.api.store(inputs::picture(1, 100_000)).await;
    place.control().inject_times(Fault::SlowUpload { bytes_per_second: 1 }, 1).await.unwrap();
    let id = place.api.create(&inputs::task(&stored)).await;
    place.wait_for(|event| matches!(event, EventKind::UploadBegun)).await;
    process.signal("TERM");
    good_end(&mut process).await;
    let _process = place.start().await;
    place.end(&[id], 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prompt_on_its_way_arrives_first() {
    let place = Place::new().await.with("COMFYD_SERVER__DRAIN_GRACE", NEVER);
    let mut process = place.start().await;
    place.control().inject_times(Fault::PostHeld { delay: Duration::from_millis(1500) }, 1).await.unwrap();
    let id = place.api.create(&task(1)).await;
    let path = format!("/api/tasks/{id}");
    place.api.until(&path, |task| task["stage"] == "preparing").await;
    process.signal("TERM");
    good_end(&mut process).await;
    assert_eq!(prompts(&place.control(), &id).len(), 1, "it ended before the server had it");
    let _process = place.start().await;
    place.end(&[id], 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_after_the_other_under_load_loses_nothing() {
    let place = Place::new().await;
    place.control().set_node_time(Duration::from_millis(10));
    let first = place.start().await;
    let restarting = async {
        let mut process = first;
        for task in [5, 15, 25, 35] {
            let ids = place.create(task).await;
            place.wait_for(posted(&ids[ids.len() - 1])).await;
            process.signal("TERM");
            good_end(&mut process).await;
            process = place.start().await;
        }
        process
    };
    let (ids, _process) = tokio::join!(place.create(60), restarting);
    place.end(&ids, 1).await;
}

/// Clients behind a balancer that sends them to whoever was ready when it looked last.
struct Balancer {
    servers: [Api; 2],
    /// The one to go to, by the newest look.
    ready: AtomicUsize,
    created: Mutex<Vec<String>>,
    closing: AtomicBool,
}

impl Balancer {
    async fn watch(&self) {
        while !self.closing.load(Ordering::Relaxed) {
            for (index, api) in self.servers.iter().enumerate() {
                let answer = api.client.get(api.url("/readyz")).send().await;
                if answer.is_ok_and(|answer| answer.status() == StatusCode::OK) {
                    self.ready.store(index, Ordering::Relaxed);
                }
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Waits until there are so many tasks.
    async fn has_created(&self, tasks: usize) {
        let created = async {
            while self.created.lock().unwrap().len() < tasks {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, created).await.expect("clients create tasks");
    }

    /// Creates one task after the other. Not one request may fail, and none is repeated.
    async fn create(&self, client: u32) {
        for n in 0.. {
            if self.closing.load(Ordering::Relaxed) {
                return;
            }
            let api = &self.servers[self.ready.load(Ordering::Relaxed)];
            let id = api.create(&task(client * 10_000 + n)).await;
            let shown = api.get_now(&format!("/api/tasks/{id}")).await;
            assert_eq!(shown["task_id"], json!(id));
            self.created.lock().unwrap().push(id);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// Two processes on one database for as long as the restart takes: the new one is ready before the old one goes.
#[tokio::test(flavor = "multi_thread")]
async fn a_rolling_restart_under_load_fails_no_request() {
    let settings = [
        // Above the interval of the balancer's looks.
        ("COMFYD_SERVER__DRAIN_DELAY", "500ms"),
        // What is handed over is looked for six times in this time.
        ("COMFYD_QUEUE__LEASE", "6s"),
        ("COMFYD_QUEUE__RENEW_EVERY", "1s"),
    ];
    let place = settings.into_iter().fold(Place::new().await, |place, (name, value)| place.with(name, value));
    place.control().set_node_time(Duration::from_millis(5));
    let second = free_address();
    let balancer = Balancer {
        servers: [place.api.clone(), Api::new(second)],
        ready: AtomicUsize::new(0),
        created: Mutex::default(),
        closing: AtomicBool::new(false),
    };
    let first = place.start().await;
    let rolling = async {
        let mut old = first;
        for round in 1..=4 {
            let index = round % 2;
            let mut new = if index == 1 { place.start_at(second).await } else { place.start().await };
            assert_eq!(balancer.servers[index].readiness().await.0, StatusCode::OK);
            // Tasks came while there were two, however long that took.
            balancer.has_created(15 * round).await;
            old.signal("TERM");
            good_end(&mut old).await;
            assert!(new.status().is_none());
            old = new;
        }
        balancer.closing.store(true, Ordering::Relaxed);
        old
    };
    let clients = join_all((0..3).map(|client| balancer.create(client)));
    let (_process, (), _) = tokio::join!(rolling, balancer.watch(), clients);
    let ids = balancer.created.into_inner().unwrap();
    place.end(&ids, 1).await;
    println!("{} tasks over 4 restarts: no request failed, none ran twice", ids.len());
}

/// Who came first does not take who came second for dead, whatever happens to it.
#[tokio::test(flavor = "multi_thread")]
async fn the_living_are_not_taken_over() {
    let world = world().with("COMFYD_QUEUE__PREPARE_AHEAD", "0").start().await;
    world.fake().pause_execution();
    let mine = world.create(&task(1)).await;
    world.running(&mine).await;
    let (mut second, api) = world.beside().await;
    // The first has no place left.
    let theirs = api.create(&task(2)).await;
    world.stage(&theirs, "executing").await;
    let holder = async || world.desk().store.get(id(&theirs)).await.unwrap().task.lease.unwrap().worker;
    assert_eq!(holder().await, second.system().worker);
    let held = async || world.system().source.held(&world.system().worker).await.unwrap().len();
    world.kill(&world.system().slots.queue).await;
    // It reads back what it holds, and does so once more for the session.
    world.kill(world.session(0)).await;
    world.online().await;
    assert_eq!((held().await, holder().await), (1, second.system().worker.clone()));
    world.fake().resume();
    world.ran(&mine, 1).await;
    world.ran(&theirs, 1).await;
    second.shut_down();
    second.ended().await.unwrap();
}

/// What it hands over is for others: its own janitor does not take it up again.
#[tokio::test(flavor = "multi_thread")]
async fn who_is_about_to_stop_takes_up_nothing_that_was_abandoned() {
    let world = world().start().await;
    let system = world.system();
    world.client.post(world.url("/api/queue/pause")).send().await.unwrap().error_for_status().unwrap();
    let abandoned = id(&world.create(&task(1)).await);
    let later = world.create(&json!({"workflow": task(2)["workflow"], "delay": "1s"})).await;
    system.board.set_draining();
    let gone = WorkerId::new("gone:1");
    assert_eq!(world.claim(gone.clone(), Duration::from_millis(1)).await.len(), 1);
    assert!(system.slots.janitor.cast(JanitorMsg::Sweep));
    // It does this after it heard of the sweep.
    world.stage(&later, "queued").await;
    let task = world.desk().store.get(abandoned).await.unwrap().task;
    assert_eq!(task.lease.map(|lease| lease.worker), Some(gone));
}

/// The answer to a claim comes to a process that was frozen before it, for longer than its leases: the task may be somebody else's.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_taken_before_a_freeze_is_given_back_unsent() {
    let world = world().start().await;
    let system = world.system();
    world.client.post(world.url("/api/queue/pause")).send().await.unwrap().error_for_status().unwrap();
    let task_id = world.create(&task(1)).await;
    let claimed = world.claim(system.worker.clone(), system.settings.lease).await;
    let stretch = system.deadline.stretch().wrapping_sub(1);
    assert!(system.slots.queue.cast(QueueMsg::Claimed { kept: Vec::new(), stretch, result: Ok(Ok(claimed)) }));
    world.stage(&task_id, "queued").await;
    assert_eq!(prompts(&world.fake(), &task_id), [""; 0]);
    world.client.post(world.url("/api/queue/resume")).send().await.unwrap().error_for_status().unwrap();
    world.ran(&task_id, 1).await;
}
