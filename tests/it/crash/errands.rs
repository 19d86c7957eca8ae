//! What clients come for while the service dies again and again.

use std::time::Duration;

use base64::{Engine, engine::general_purpose::STANDARD};
use fake_comfyui::{Control, Fault};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::{
    inputs,
    recorder::Recorder,
    support::{image, task, task_with},
};

/// One client's business with the service, from a task's creation to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Errand {
    /// A picture.
    Picture,
    /// Three pictures of one task.
    Three,
    /// A task that is cancelled, at once or while it runs.
    Cancelled,
    /// A task for a little later.
    Later,
    /// A task whose first run fails.
    Stumbling,
    /// A task that ComfyUI refuses.
    Refused,
    /// A task with a file.
    WithFile,
    /// A task that fails for good, and is asked for again.
    Again,
    /// A task whose server dies while it runs.
    ServerDies,
}

impl Errand {
    pub const ALL: [Self; 9] = [
        Self::Picture,
        Self::Three,
        Self::Cancelled,
        Self::Later,
        Self::Stumbling,
        Self::Refused,
        Self::WithFile,
        Self::Again,
        Self::ServerDies,
    ];

    /// How long prompts run: what is to be met while it runs, runs for a moment.
    pub fn node_time(self) -> Duration {
        match self {
            Self::Cancelled | Self::ServerDies => Duration::from_millis(100),
            _ => Duration::from_millis(5),
        }
    }

    /// Client number so and so does it. What goes wrong on purpose may strike another one's task: the checker sees whose.
    async fn run(self, recorder: Recorder, fake: Control, number: u32) {
        let strike = async |fault| fake.inject_times(fault, 1).await.unwrap();
        let color = number + 1;
        let (body, color) = match self {
            Self::Picture | Self::Cancelled | Self::ServerDies => (task(color), Some(color)),
            Self::Three => (three(color), Some(color)),
            Self::Later => (task_with(color, &json!({"delay": "30ms"})), Some(color)),
            Self::Stumbling => {
                strike(Fault::node_error("the first time it stumbles")).await;
                (task(color), Some(color))
            }
            Self::Refused => {
                strike(Fault::PostRefused).await;
                (task(color), Some(color))
            }
            Self::WithFile => (with_file(number), None),
            Self::Again => {
                let (exception_type, message) = ("ValueError".to_owned(), "never".to_owned());
                strike(Fault::NodeError { exception_type, message }).await;
                (task(color), Some(color))
            }
        };
        let id = recorder.create(&body, &format!("client-{number}"), color).await;
        match self {
            Self::Cancelled => {
                if number.is_multiple_of(2) {
                    recorder.until_stage(&id, "executing").await;
                }
                recorder.cancel(&id).await;
            }
            Self::ServerDies => {
                recorder.until_stage(&id, "executing").await;
                fake.inject(Fault::Restart { down: Duration::from_millis(50) }).await.unwrap();
            }
            _ => {}
        }
        let mut end = recorder.end(&id).await;
        if self == Self::Again && end.status == "failed" {
            recorder.reopen(&id).await;
            end = recorder.end(&id).await;
        }
        recorder.read(&end).await;
    }
}

/// Three pictures of one colour.
fn three(color: u32) -> Value {
    let mut graph = image(color);
    graph["1"]["inputs"]["batch_size"] = json!(3);
    json!({"workflow": graph})
}

/// A graph with a file that no server has.
fn with_file(number: u32) -> Value {
    let file = inputs::picture(number.to_le_bytes()[0], 0);
    let data = format!("data:image/png;base64,{}", STANDARD.encode(file));
    json!({"workflow": inputs::loading(&json!("to come")), "inputs": {"1.image": data}})
}

/// All the clients.
pub struct Crowd {
    recorder: Recorder,
    fake: Control,
    errands: JoinSet<()>,
    came: u32,
}

impl Crowd {
    pub fn new(recorder: Recorder, fake: Control) -> Self {
        Self { recorder, fake, errands: JoinSet::new(), came: 0 }
    }

    /// So many more come.
    pub fn join(&mut self, errand: Errand, clients: u32) {
        for _ in 0..clients {
            self.errands.spawn(errand.run(self.recorder.clone(), self.fake.clone(), self.came));
            self.came += 1;
        }
    }

    /// Waits until all have what they came for.
    pub async fn all_served(&mut self) {
        while let Some(served) = self.errands.join_next().await {
            served.unwrap();
        }
    }
}
