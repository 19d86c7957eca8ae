//! The artifacts of one task on their way: which are stored, which are tried again, when to give up. Pure.

use std::{collections::HashMap, sync::Arc, time::Duration};

use super::transfer::Failure;
use crate::{
    domain::{
        artifact::{Artifact, Source, StoredObject, object_stem},
        error::{ErrorCode, TaskError},
        options::TaskOptions,
        task::Task,
        time::Timestamp,
    },
    system::UploadSettings,
};

/// What to do about a failed transfer.
#[derive(Debug, Clone, PartialEq)]
pub enum Verdict {
    /// Try it again after this delay.
    Again(Duration),
    /// The task failed; retryable when only another run can bring the file.
    Fail(TaskError),
    /// The server reused a result whose file is gone. It must forget its results, then another run brings the file.
    Rerun(TaskError),
}

/// The outputs of one task.
#[derive(Debug)]
pub struct Batch {
    /// The task.
    pub task: Task,
    /// What is done differently for it.
    pub options: Arc<TaskOptions>,
    /// Its artifacts, stored or not.
    pub artifacts: Vec<Artifact>,
    begun: Timestamp,
    /// Failed tries per artifact: of reading it, and of anything.
    failures: HashMap<u32, (u32, u32)>,
    /// How many keys of an artifact were found taken by other bytes.
    taken: HashMap<u32, u32>,
}

impl Batch {
    /// A task that just arrived.
    #[must_use]
    pub fn new(task: Task, options: Arc<TaskOptions>, artifacts: Vec<Artifact>, now: Timestamp) -> Self {
        Self { task, options, artifacts, begun: now, failures: HashMap::new(), taken: HashMap::new() }
    }

    /// Artifacts not stored yet.
    pub fn missing(&self) -> impl Iterator<Item = u32> + '_ {
        self.artifacts.iter().filter(|artifact| artifact.object.is_none()).map(|artifact| artifact.index)
    }

    /// Whether all are stored.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.missing().next().is_none()
    }

    /// An artifact and the key it goes under, without its extension, unless it is stored already.
    #[must_use]
    pub fn transfer(&self, index: u32) -> Option<(Artifact, String)> {
        let artifact = self.artifacts.iter().find(|artifact| artifact.index == index && artifact.object.is_none())?;
        let stem = object_stem(&self.task, artifact);
        let stem = self.taken.get(&index).map_or(stem.clone(), |times| format!("{stem}.{times}"));
        Some((artifact.clone(), stem))
    }

    /// An artifact is stored.
    pub fn stored(&mut self, index: u32, object: StoredObject) {
        if let Some(artifact) = self.artifacts.iter_mut().find(|artifact| artifact.index == index) {
            artifact.object = Some(object);
            // The storage has it now.
            if let Source::Text { text, .. } = &mut artifact.source {
                text.clear();
            }
        }
    }

    /// Whether the attempt before this one ended for want of a file.
    fn was_rerun(&self) -> bool {
        self.task.error.as_ref().is_some_and(|error| error.code == ErrorCode::OutputMissing)
    }

    /// A transfer failed. A storage that is away is waited for: the GPU's work is done and must not be done again. A file that cannot be
    /// read is worth some tries, then only another run can bring it.
    pub fn failed(
        &mut self,
        index: u32,
        failure: &Failure,
        now: Timestamp,
        settings: UploadSettings,
        draw: f64,
    ) -> Verdict {
        let was_rerun = self.was_rerun();
        let (of_reading, of_anything) = self.failures.entry(index).or_default();
        *of_anything += 1;
        let delay = settings.backoff.delay_at_least_half(*of_anything, draw);
        match failure {
            Failure::Storage(reason) if now.since(self.begun) >= settings.patience => Verdict::Fail(fatal(format!(
                "output {index} could not be stored within {}: {reason}. Mend the storage, then retry the task with `{{\"only\": \"uploads\"}}`: nothing has to run again",
                humantime::format_duration(settings.patience)
            ))),
            Failure::Storage(_) => Verdict::Again(delay),
            // An earlier try of the same dispatch left them there: they stay, and this one goes beside them.
            Failure::Taken => {
                *self.taken.entry(index).or_default() += 1;
                Verdict::Again(delay)
            }
            Failure::Refused(reason) => Verdict::Fail(fatal(format!("the storage refused output {index}: {reason}"))),
            Failure::Unfit(reason) => Verdict::Fail(TaskError::new(
                ErrorCode::ConversionFailed,
                format!("output {index} cannot be made into what output_options ask for: {reason}"),
            )),
            Failure::TooLarge(_) => Verdict::Fail(fatal(format!(
                "output {index} was not stored: {failure}. Save less in one file, or raise the limit and retry the task with \
                 `{{\"only\": \"uploads\"}}`"
            ))),
            // It would fail before it ran again, so there is nothing for the server to forget.
            Failure::Missing if self.task.uploads_only => Verdict::Fail(missing(
                index,
                "only its files were asked for: retry the task as a whole to make them again",
            )),
            // Once. If the file of a fresh run is gone as well, more runs would be burnt for nothing.
            Failure::Missing if was_rerun => {
                let why = "twice in a row; something deletes files on it before they are fetched";
                Verdict::Fail(missing(index, why).permanent())
            }
            Failure::Missing => {
                Verdict::Rerun(missing(index, "most likely it reused an earlier result whose file was deleted"))
            }
            Failure::Lost(reason) | Failure::Source(reason) | Failure::Crashed(reason) => {
                *of_reading += 1;
                if *of_reading < settings.attempts {
                    return Verdict::Again(delay);
                }
                Verdict::Fail(TaskError::new(
                    ErrorCode::OutputMissing,
                    format!("output {index} could not be fetched from the ComfyUI server: {reason}"),
                ))
            }
        }
    }
}

fn missing(index: u32, why: &str) -> TaskError {
    let message = format!("the run reported output {index}, but the ComfyUI server does not have the file: {why}");
    TaskError::new(ErrorCode::OutputMissing, message)
}

fn fatal(message: String) -> TaskError {
    TaskError::new(ErrorCode::UploadFailed, message)
}
