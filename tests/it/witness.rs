//! What the tests about ComfyUI's troubles share: waiting for what a fake logged, and counting what must not happen twice.

use std::{collections::HashSet, time::Duration};

use comfyd_actors::{
    domain::{
        id::{BackendId, ClientId, WorkerId},
        lane::Lanes,
        task::Intent,
        tenant::Caps,
    },
    ports::store::{Assignment, Claim, ClaimSlot},
};
use fake_comfyui::{Control, Event, EventKind, FakeComfy};
use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::support::{PATIENCE, World, id, image};

/// Waits for an event at or after a position in a fake's log.
pub async fn until_from(fake: &Control, position: u64, wanted: impl Fn(&EventKind) -> bool) -> Event {
    let event = tokio::time::timeout(PATIENCE, fake.wait_from(position, wanted)).await;
    event.unwrap_or_else(|_| panic!("this does not happen; what did: {:#?}", fake.log()))
}

/// Waits for an event, past ones included.
pub async fn until(fake: &Control, wanted: impl Fn(&EventKind) -> bool) -> Event {
    until_from(fake, 0, wanted).await
}

/// Waits for a level that has no event: the phase of a backend, the progress of a task.
pub async fn until_level(what: &str, mut reached: impl FnMut() -> bool) {
    let waiting = async {
        while !reached() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("never: {what}"));
}

/// A prompt of this task was accepted.
pub fn posted(task: &str) -> impl Fn(&EventKind) -> bool {
    let task = task.to_owned();
    move |event| matches!(event, EventKind::Posted { task: Some(of), accepted: true, .. } if *of == task)
}

/// A prompt of this task began to run.
pub fn started(task: &str) -> impl Fn(&EventKind) -> bool {
    let task = task.to_owned();
    move |event| matches!(event, EventKind::Started { task: Some(of), .. } if *of == task)
}

/// The prompts of a task that a fake accepted, in order.
pub fn prompts(fake: &Control, task: &str) -> Vec<String> {
    let of_task = |event: Event| match event.kind {
        EventKind::Posted { task: Some(of), prompt_id, accepted: true, .. } if of == task => Some(prompt_id),
        _ => None,
    };
    fake.log().into_iter().filter_map(of_task).collect()
}

/// The name of the newest socket a fake saw, as of now.
pub fn newest_client(fake: &Control) -> String {
    let opened = |event: Event| match event.kind {
        EventKind::SocketOpened { client_id } => Some(client_id),
        _ => None,
    };
    fake.log().into_iter().rev().find_map(opened).unwrap()
}

const SILENCES: &str = "comfyd_websocket_silences_total";

/// What a counter says: the sum of those with this label, or of all without one.
fn counted(stats: &Value, name: &str, label: Option<&str>) -> f64 {
    let samples = stats["metrics"][name]["samples"].as_array().into_iter().flatten();
    let has = |sample: &&Value| {
        label.is_none_or(|label| sample["labels"].as_object().unwrap().values().any(|value| value == label))
    };
    samples.filter(has).filter_map(|sample| sample["value"].as_f64()).sum()
}

impl World {
    /// Whatever went wrong: nothing was sent twice under one id, and no socket reused a name.
    pub fn assert_nothing_was_repeated(&self) {
        let (mut prompts, mut clients) = (HashSet::new(), HashSet::new());
        for event in self.fakes.iter().flat_map(|fake| fake.control().log()) {
            match event.kind {
                EventKind::Posted { prompt_id, .. } => assert!(prompts.insert(prompt_id.clone()), "{prompt_id} twice"),
                EventKind::SocketOpened { client_id } => {
                    assert!(clients.insert(client_id.clone()), "{client_id} twice");
                }
                _ => {}
            }
        }
    }

    /// The task completed in its first attempt, having run this often.
    pub async fn ran(&self, id: &str, executions: usize) -> Value {
        let done = self.completed(id).await;
        assert_eq!((&done["attempt"], self.executions(id)), (&json!(1), executions), "{done}");
        done
    }

    /// Cancels a task that somebody has. It may be over when the answer is made.
    pub async fn stop(&self, id: &str) {
        let (status, task) = self.cancel(id).await;
        let told = [(StatusCode::ACCEPTED, "cancelling"), (StatusCode::OK, "cancelled")];
        assert!(told.iter().any(|told| *told == (status, task["stage"].as_str().unwrap())), "{status} {task}");
    }

    /// Waits until the backend of a fake is not online.
    pub async fn offline(&self, index: usize) {
        let name = BackendId::new(self.fakes[index].url());
        let is_offline = || {
            let phase = self.system().board.backends()[&name].phase;
            phase != comfyd_actors::board::PhaseName::Online
        };
        until_level("offline", is_offline).await;
    }

    /// How often prompts were asked about of which the socket said nothing.
    pub async fn asked(&self) -> f64 {
        self.counted(SILENCES, None).await
    }

    /// What a counter says: the sum of those with this label, or of all without one.
    pub async fn counted(&self, name: &str, label: Option<&str>) -> f64 {
        counted(&self.get("/api/stats").await, name, label)
    }

    /// Waits until they were asked about so often.
    pub async fn until_asked(&self, times: f64) {
        self.until("/api/stats", |stats| counted(stats, SILENCES, None) >= times).await;
    }

    /// Takes what is next in the order for a worker, past the queue, as if it ran on the first backend.
    pub async fn claim(&self, worker: WorkerId, lease: Duration) -> Vec<Assignment> {
        let intent = Intent { backend: BackendId::new(self.fakes[0].url()), client: ClientId::new("c") };
        let slots = vec![ClaimSlot { intent, lanes: Lanes::All }];
        self.system().source.claim(Claim { worker, lease, slots, caps: Caps::default() }).await.unwrap()
    }

    /// Waits until the session itself has heard that the task runs.
    pub async fn heard(&self, task: &str) {
        until_level("progress", || self.system().board.progress_here(id(task)).is_some()).await;
    }

    /// The task as it is now.
    pub async fn now(&self, id: &str) -> Value {
        let answer = self.client.get(self.url(&format!("/api/tasks/{id}"))).send().await.unwrap();
        answer.error_for_status().unwrap().json().await.unwrap()
    }

    /// Waits until the task is at this stage. Stages of a task that goes on by itself may be missed: for those that last.
    pub async fn stage(&self, id: &str, stage: &str) {
        let waiting = async {
            while self.now(id).await["stage"] != stage {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let waited = tokio::time::timeout(PATIENCE, waiting).await;
        if waited.is_err() {
            panic!("the task never is {stage}: {}", self.now(id).await);
        }
    }

    /// Sends somebody else's prompt straight to a fake; returns its id.
    pub async fn foreign_prompt(&self, fake: &FakeComfy, color: u32) -> String {
        // A client of its own: an idle connection of ours may have been cut with a restart of the fake.
        let stranger = reqwest::Client::builder().no_proxy().timeout(PATIENCE).build().unwrap();
        let request = stranger.post(format!("{}/prompt", fake.url())).json(&json!({"prompt": image(color)}));
        let answer: Value = request.send().await.unwrap().error_for_status().unwrap().json().await.unwrap();
        answer["prompt_id"].as_str().unwrap().to_owned()
    }
}
