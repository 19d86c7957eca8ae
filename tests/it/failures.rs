//! What is done about a task that failed depends on how it failed: each class of failures and its action.

use std::time::Duration;

use comfyd_actors::domain::{
    error::TaskError,
    event::{Fact, Stage},
    failure::{Class, Next},
};
use fake_comfyui::{Control, EventKind, FakeConfig, Fault, Outcome};
use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::{
    support::{World, id, task, task_with, world},
    witness::{until, until_from},
};

const GIB: u64 = 1 << 30;

impl World {
    async fn post_path(&self, path: &str) {
        let answer = self.client.post(self.url(path)).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK, "{path}");
    }

    /// Pauses or resumes one backend.
    async fn control_backend(&self, index: usize, what: &str) {
        let name = self.fakes[index].url().trim_start_matches("http://").to_owned();
        self.post_path(&format!("/api/backends/{name}/{what}")).await;
    }

    /// The failures of a task that were told, in order.
    async fn told(&self, task: &str) -> Vec<(Stage, TaskError)> {
        let events = self.desk().store.events(Some(id(task)), 0, 1_000).await.unwrap();
        let failures = events.into_iter().filter_map(|event| match event.fact {
            Fact::Stage { stage, error: Some(error), .. } => Some((stage, error)),
            _ => None,
        });
        failures.collect()
    }
}

fn memory(vram: u64) -> FakeConfig {
    FakeConfig { vram, ..FakeConfig::default() }
}

/// What matters here of a fake's log, in words; prompts by the names of their tasks.
fn story(fake: &Control, names: &[(&str, &str)]) -> Vec<String> {
    let mut prompts = Vec::new();
    let mut told = Vec::new();
    for event in fake.log() {
        let name =
            |task: &Option<String>| names.iter().find(|(_, id)| Some(*id) == task.as_deref()).map(|(name, _)| *name);
        match &event.kind {
            EventKind::Posted { prompt_id, task, accepted: true, .. } => {
                let name = name(task).unwrap_or("?");
                prompts.push((prompt_id.clone(), name));
                told.push(format!("{name} sent"));
            }
            EventKind::Finished { prompt_id, .. } => {
                let name = prompts.iter().find(|(id, _)| id == prompt_id).map_or("?", |(_, name)| name);
                told.push(format!("{name} over"));
            }
            EventKind::Freed { models: true, results: true } => told.push("freed".to_owned()),
            _ => {}
        }
    }
    told
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_out_of_memory_waits_until_its_server_has_freed_some() {
    let world = world().start().await;
    let fake = world.fake();
    fake.inject_times(Fault::OutOfMemory, 1).await.unwrap();
    // The wish is heard at once and granted later: whoever does not wait for it sends too early.
    fake.inject_times(Fault::SlowFree { delay: Duration::from_millis(500) }, 1).await.unwrap();
    let id = world.create(&task(1)).await;
    let done = world.completed(&id).await;
    assert_eq!((&done["attempt"], &done["error"]), (&json!(2), &Value::Null), "{done}");
    assert_eq!(story(&fake, &[("it", &id)]), ["it sent", "it over", "freed", "it sent", "it over"]);
    let told = world.told(&id).await;
    let [(stage, error)] = told.as_slice() else { panic!("{told:#?}") };
    assert_eq!((*stage, error.class, error.next), (Stage::Scheduled, Class::OutOfMemory, Next::RetryAlone));
    assert_eq!((error.node_id.as_deref(), error.class_type.as_deref()), (Some("1"), Some("EmptyImage")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_ran_out_of_memory_has_the_server_for_itself() {
    let world = world().start().await;
    let fake = world.fake();
    fake.pause_execution();
    let big = world.create(&task(1)).await;
    fake.inject_times(Fault::OutOfMemory, 1).await.unwrap();
    world.post_path("/api/queue/pause").await;
    fake.step();
    until(&fake, |event| matches!(event, EventKind::Finished { outcome: Outcome::Error, .. })).await;
    let urgent = world.create(&task_with(2, &json!({"priority": "high"}))).await;
    let last = world.create(&task(3)).await;
    world.stage(&big, "queued").await;
    // One comes before it in the order and one after. Both are taken while it waits and runs.
    world.post_path("/api/queue/resume").await;
    world.stage(&big, "preparing").await;
    let before = fake.position();
    fake.step();
    until_from(&fake, before, |event| matches!(event, EventKind::Gated { .. })).await;
    world.stage(&last, "preparing").await;
    fake.resume();
    for id in [&urgent, &big, &last] {
        world.completed(id).await;
    }
    let names = [("big", big.as_str()), ("urgent", urgent.as_str()), ("last", last.as_str())];
    let expected = [
        "big sent",
        "big over",
        "urgent sent",
        "urgent over",
        "freed",
        "big sent",
        "big over",
        "last sent",
        "last over",
    ];
    assert_eq!(story(&fake, &names), expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_does_not_fit_alone_goes_where_more_memory_is() {
    let world = world().fakes([memory(8 * GIB), memory(24 * GIB)]).start().await;
    let [small, large] = [world.fakes[0].control(), world.fakes[1].control()];
    world.control_backend(1, "pause").await;
    small.inject_times(Fault::OutOfMemory, 2).await.unwrap();
    let id = world.create(&task(1)).await;
    // It would succeed on the small one now, which is idle; it waits for the large one all the same.
    let page = format!("/api/tasks/{id}");
    let waiting = world.until(&page, |task| task["attempt"] == 3 && task["stage"] == "queued").await;
    assert_eq!(
        (&waiting["error"]["class"], &waiting["error"]["next"]),
        (&json!("out_of_memory"), &json!("retry_elsewhere"))
    );
    assert_eq!(small.executions_of_task(&id), 2);
    world.control_backend(1, "resume").await;
    world.completed(&id).await;
    assert_eq!((small.executions_of_task(&id), large.executions_of_task(&id)), (2, 1));
    let steps: Vec<Next> = world.told(&id).await.into_iter().map(|(_, error)| error.next).collect();
    assert_eq!(steps, [Next::RetryAlone, Next::RetryElsewhere]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_fits_nowhere_is_given_up_after_three_runs() {
    let world = world().start().await;
    world.fake().inject(Fault::OutOfMemory).await.unwrap();
    let id = world.create(&task_with(1, &json!({"max_attempts": 10}))).await;
    let failed = world.finished(&id).await;
    let error = &failed["error"];
    assert_eq!((&failed["status"], world.executions(&id)), (&json!("failed"), 3), "{failed}");
    assert_eq!(
        (&error["code"], &error["class"], &error["next"]),
        (&json!("out_of_memory"), &json!("out_of_memory"), &json!("nothing"))
    );
    assert_eq!((&error["node_id"], &error["class_type"]), (&json!("1"), &json!("EmptyImage")));
    assert!(error["advice"].as_str().unwrap().contains("smaller"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_client_can_say_breaks_no_server() {
    let world = world().start().await;
    let words = Fault::NodeError {
        exception_type: "ValueError".into(),
        message: "`CUDA error: an illegal memory access was encountered` is no number".into(),
    };
    world.fake().inject_times(words, 1).await.unwrap();
    let [wrong, next] = [world.create(&task(1)).await, world.create(&task(2)).await];
    let failed = world.finished(&wrong).await;
    assert_eq!((&failed["error"]["class"], &failed["attempt"]), (&json!("permanent"), &json!(1)), "{failed}");
    assert_eq!((&failed["error"]["next"], &failed["error"]["retryable"]), (&json!("nothing"), &json!(false)));
    world.ran(&next, 1).await;
}

/// Full jitter: over the whole range, not its upper half. That this fails by chance has a probability of 2^-24.
#[tokio::test(flavor = "multi_thread")]
async fn those_that_failed_together_do_not_come_back_together() {
    let world = world().with("COMFYD_TASKS__RETRY_BASE", "10h").with("COMFYD_TASKS__RETRY_CAP", "10h").start().await;
    world.fake().inject(Fault::node_error("a passing fault")).await.unwrap();
    let mut delays = Vec::new();
    for color in 0..24 {
        let id = world.create(&task(color)).await;
        world.stage(&id, "scheduled").await;
        let record = world.desk().store.get(crate::support::id(&id)).await.unwrap();
        let error = record.task.error.unwrap();
        assert_eq!((error.class, error.next), (Class::Transient, Next::Retry));
        delays.push(record.task.run_at.unwrap().since(record.task.created_at).as_secs());
    }
    let half = 5 * 3600;
    assert!(delays.iter().any(|delay| *delay < half) && delays.iter().any(|delay| *delay >= half), "{delays:?}");
    assert!(delays.iter().all(|delay| *delay <= 10 * 3600 + 60), "{delays:?}");
}
