//! What is worth telling about a task while somebody watches it, and for good: each fact becomes a row with a number, written with the
//! change it is about.
//!
//! Steps of a node and previews are no facts: only the newest counts, and nobody who comes later misses them.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{
    artifact::Artifact,
    error::TaskError,
    failure::Next,
    id::TaskId,
    task::{ArtifactEdit, Task, TaskState},
    time::Timestamp,
};

/// Where a task stands in the words of the API: the states, and whether its end was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// Waits for its time.
    Scheduled,
    /// Waits for its turn.
    Queued,
    /// Taken; a server is being given the prompt.
    Preparing,
    /// A server has the prompt.
    Executing,
    /// Its outputs are being stored.
    Uploading,
    /// Its end was asked for and is awaited.
    Cancelling,
    /// Every output is stored.
    Completed,
    /// It failed for good.
    Failed,
    /// It was stopped.
    Cancelled,
}

impl Stage {
    /// Every stage, in the order of a life.
    pub const ALL: [Self; 9] = [
        Self::Scheduled,
        Self::Queued,
        Self::Preparing,
        Self::Executing,
        Self::Uploading,
        Self::Cancelling,
        Self::Completed,
        Self::Failed,
        Self::Cancelled,
    ];

    /// Where a task stands.
    #[must_use]
    pub fn of(task: &Task) -> Self {
        match task.state {
            _ if task.is_cancelling() => Self::Cancelling,
            TaskState::Scheduled => Self::Scheduled,
            TaskState::Pending => Self::Queued,
            TaskState::Dispatching => Self::Preparing,
            TaskState::Executing => Self::Executing,
            TaskState::Uploading => Self::Uploading,
            TaskState::Completed => Self::Completed,
            TaskState::Failed => Self::Failed,
            TaskState::Cancelled => Self::Cancelled,
        }
    }

    /// The word, in the API and in databases.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Scheduled => "scheduled",
            Self::Queued => "queued",
            Self::Preparing => "preparing",
            Self::Executing => "executing",
            Self::Uploading => "uploading",
            Self::Cancelling => "cancelling",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }

    /// The stage a word means.
    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|stage| stage.as_str() == word)
    }

    /// Somebody works on it.
    fn is_held(self) -> bool {
        matches!(self, Self::Preparing | Self::Executing | Self::Uploading)
    }

    /// Nothing follows, unless somebody retries the task.
    #[must_use]
    pub fn is_final(self) -> bool {
        matches!(self, Self::Completed | Self::Failed | Self::Cancelled)
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Something that happened to a task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Fact {
    /// A stage began.
    Stage {
        /// Which.
        stage: Stage,
        /// The attempt it is part of.
        attempt: i32,
        /// Why the task failed, or why its last attempt did.
        error: Option<TaskError>,
    },
    /// An output is stored. Told once per run.
    Output {
        /// The run that made it: outputs of a run that was given up are nobody's.
        dispatch: i64,
        /// Its place among the task's outputs.
        index: u32,
    },
}

/// A fact in the books.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// Its number: events are read, and resumed from, in this order. Numbers only grow, and some are left out.
    pub seq: i64,
    /// The task it is about.
    pub task: TaskId,
    /// The workflow that task is made from.
    pub workflow: Option<String>,
    /// When it happened.
    pub at: Timestamp,
    /// What happened.
    pub fact: Fact,
    /// The output a fact is about, as the task has it now. None when its run was given up.
    pub artifact: Option<Artifact>,
}

impl Event {
    /// Whether the task was over with this.
    #[must_use]
    pub fn is_end(&self) -> bool {
        matches!(&self.fact, Fact::Stage { stage, .. } if stage.is_final())
    }
}

/// What a change of a task is worth telling: `before` is where it stood (`None` for a new one), `edit` what became of its outputs.
#[must_use]
pub fn facts(before: Option<Stage>, task: &Task, edit: &ArtifactEdit) -> Vec<Fact> {
    let output = |index| Fact::Output { dispatch: task.dispatch, index };
    let outputs: Vec<Fact> = match edit {
        ArtifactEdit::Stored(index, _) => vec![output(*index)],
        // A plan has nothing stored; a manifest has everything, some of it told before.
        ArtifactEdit::Replace(artifacts) => artifacts
            .iter()
            .filter(|artifact| artifact.object.is_some())
            .map(|artifact| output(artifact.index))
            .collect(),
        ArtifactEdit::Keep => Vec::new(),
    };
    let stage = Stage::of(task);
    // The evidence of a stage may be late or lost, and nobody waits for it. What is being stored has run all the same.
    let passed: &[Stage] = match (before, stage) {
        (Some(Stage::Preparing), Stage::Uploading) => &[Stage::Executing],
        (Some(Stage::Preparing), Stage::Completed) => &[Stage::Executing, Stage::Uploading],
        (Some(Stage::Executing), Stage::Completed) => &[Stage::Uploading],
        _ => &[],
    };
    let told = |stage: &Stage| Fact::Stage { stage: *stage, attempt: task.attempt, error: None };
    let mut facts: Vec<Fact> = passed.iter().map(told).chain(outputs).collect();
    if before != Some(stage) {
        let given_back = stage == Stage::Queued && before.is_some_and(Stage::is_held);
        let is_news = |error: &TaskError| match stage {
            Stage::Failed | Stage::Scheduled => true,
            _ => given_back && error.next == Next::Elsewhere,
        };
        let error = task.error.clone().filter(is_news);
        facts.push(Fact::Stage { stage, attempt: task.attempt, error });
    }
    facts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{
        error::ErrorCode,
        id::PromptId,
        task::{
            Change,
            tests::{artifact, claim, new_task},
        },
    };

    fn after(task: &mut Task, change: Change) -> Vec<Fact> {
        let before = Stage::of(task);
        let edit = task.apply(Some(task.fence), change, Timestamp(5)).unwrap();
        facts(Some(before), task, &edit)
    }

    fn stage(stage: Stage) -> Fact {
        Fact::Stage { stage, attempt: 1, error: None }
    }

    #[test]
    fn a_life_is_told_in_stages_and_outputs() {
        let mut task = new_task();
        assert_eq!(facts(None, &task, &ArtifactEdit::Keep), [stage(Stage::Queued)]);
        assert_eq!(after(&mut task, claim()), [stage(Stage::Preparing)]);
        assert_eq!(after(&mut task, Change::Renew { until: Timestamp(99) }), []);
        let prompt = PromptId::of(task.id, 1);
        assert_eq!(after(&mut task, Change::Accept { prompt }), [stage(Stage::Executing)]);
        assert_eq!(after(&mut task, Change::Plan { artifacts: vec![artifact(false)] }), [stage(Stage::Uploading)]);
        let manifest = Change::Complete { artifacts: vec![artifact(true)] };
        let output = Fact::Output { dispatch: 1, index: 0 };
        assert_eq!(after(&mut task, manifest), [output, stage(Stage::Completed)]);
    }

    #[test]
    fn a_stage_that_nobody_recorded_is_told_in_its_place() {
        let claimed = || {
            let mut task = new_task();
            after(&mut task, claim());
            task
        };
        let passed = [stage(Stage::Executing), stage(Stage::Uploading)];
        let plan = Change::Plan { artifacts: vec![artifact(false)] };
        assert_eq!(after(&mut claimed(), plan), passed);
        let manifest = Change::Complete { artifacts: vec![artifact(true)] };
        let told = after(&mut claimed(), manifest.clone());
        assert_eq!(told[..2], passed);
        assert_eq!(told[2..], [Fact::Output { dispatch: 1, index: 0 }, stage(Stage::Completed)]);
        let mut executing = claimed();
        let prompt = PromptId::of(executing.id, 1);
        after(&mut executing, Change::Accept { prompt });
        assert_eq!(after(&mut executing, manifest)[0], stage(Stage::Uploading));
    }

    #[test]
    fn a_failed_attempt_says_why_and_the_next_one_forgets_it() {
        let mut task = new_task();
        after(&mut task, claim());
        let error = TaskError::new(ErrorCode::NodeFailed, "no");
        let retry = Change::Retry { error: error.clone(), delay: std::time::Duration::ZERO };
        let told = after(&mut task, retry);
        let error = Some(TaskError { next: Next::Retry, ..error });
        assert_eq!(told, [Fact::Stage { stage: Stage::Scheduled, attempt: 2, error }]);
        let told = after(&mut task, Change::Promote);
        assert_eq!(told, [Fact::Stage { stage: Stage::Queued, attempt: 2, error: None }]);
        after(&mut task, claim());
        let broken = TaskError::new(ErrorCode::BackendFault, "no device");
        let told = after(&mut task, Change::Elsewhere { error: broken.clone(), blamed: false });
        let error = Some(TaskError { next: Next::Elsewhere, ..broken });
        assert_eq!(told, [Fact::Stage { stage: Stage::Queued, attempt: 2, error }]);
        assert_eq!(
            after(&mut task, Change::Cancel),
            [Fact::Stage { stage: Stage::Cancelled, attempt: 2, error: None }]
        );
    }

    #[test]
    fn every_word_is_read_back() {
        for stage in Stage::ALL {
            assert_eq!(Stage::parse(stage.as_str()), Some(stage));
            assert_eq!(serde_json::to_value(stage).unwrap(), stage.as_str());
        }
    }
}
