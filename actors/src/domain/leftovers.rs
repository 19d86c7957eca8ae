//! What runs that were given up may have left in storage: objects that no manifest names, and none ever will.
//!
//! A key holds the number of the dispatch that wrote it, and a manifest names objects of the newest dispatch only. So an object of an
//! earlier one is a leftover for certain. One of the newest dispatch is, when nothing can add it to the manifest any more: the task is
//! completed, or it ended without files that could still be asked for.

use std::collections::BTreeSet;

use super::{
    artifact::{Artifact, task_prefix},
    task::{Task, TaskState},
};

impl Task {
    /// Whether it is over and a run of it may have left objects behind. Cheap, and wrong on the safe side only: whoever wants to know asks
    /// the storage. A dispatch that never ran counts as well, since what came of it is not remembered.
    #[must_use]
    pub fn may_have_left_objects(&self) -> bool {
        self.state.is_final() && (self.dispatch > 1 || (self.executing_at.is_some() && self.gave_up_newest()))
    }

    /// Whether nobody will ever ask for what its newest dispatch stored.
    fn gave_up_newest(&self) -> bool {
        matches!(self.state, TaskState::Failed | TaskState::Cancelled) && !self.has_planned()
    }
}

/// Tells the leftovers of one task from what it still needs.
#[derive(Debug)]
pub struct Leftovers<'a> {
    prefix: String,
    /// The first dispatch whose objects may still be needed.
    needed_from: i64,
    named: BTreeSet<(&'a str, &'a str)>,
}

impl<'a> Leftovers<'a> {
    /// Of a task that may have gone on since somebody saw that it was over: what is a leftover once, is one for ever.
    #[must_use]
    pub fn of(task: &Task, artifacts: &'a [Artifact]) -> Self {
        let is_settled = task.state == TaskState::Completed || task.gave_up_newest();
        let objects = artifacts.iter().filter_map(|artifact| artifact.object.as_ref());
        Self {
            prefix: task_prefix(task),
            needed_from: task.dispatch + i64::from(is_settled),
            named: objects.map(|object| (object.target.as_str(), object.key.as_str())).collect(),
        }
    }

    /// What all keys of the task begin with, below the prefixes of target and task.
    #[must_use]
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Whether the object under this key of this target, which begins with `before` and [the prefix](Self::prefix), is one. What does not
    /// look like a key of ours is none.
    #[must_use]
    pub fn include(&self, target: &str, before: &str, key: &str) -> bool {
        let ours = key.strip_prefix(before).and_then(|rest| rest.strip_prefix(self.prefix.as_str()));
        let dispatch = ours.and_then(|rest| rest.split_once('_')?.0.parse::<i64>().ok());
        dispatch.is_some_and(|dispatch| dispatch < self.needed_from) && !self.named.contains(&(target, key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{
        artifact::{Facts, FileRef, Kind, Source, StoredObject},
        error::{ErrorCode, TaskError},
        task::{
            Change, Release,
            tests::{claim, new_task},
        },
        time::Timestamp,
    };

    const NOW: Timestamp = Timestamp(2_000);

    fn artifact(index: u32, object: Option<&str>) -> Artifact {
        let object = object.map(|key| StoredObject {
            target: "bucket".into(),
            key: key.into(),
            content_type: "image/png".into(),
            bytes: 1,
            sha256: String::new(),
            facts: Facts::default(),
        });
        let file = FileRef { filename: "a.png".into(), subfolder: String::new(), folder_type: "output".into() };
        Artifact { index, node_id: "9".into(), kind: Kind::Image, source: Source::File(file), object }
    }

    /// A task whose dispatch of this number runs.
    fn running(dispatch: i64) -> Task {
        let mut task = new_task();
        while task.dispatch < dispatch {
            if task.state.is_held() {
                change(&mut task, Change::Release(Release::Recalled));
            }
            task.apply(None, claim(), NOW).unwrap();
        }
        let prompt = task.prompt.clone().unwrap().id;
        change(&mut task, Change::Accept { prompt });
        task
    }

    fn change(task: &mut Task, change: Change) {
        let fence = Some(task.fence);
        task.apply(fence, change, NOW).unwrap();
    }

    fn error() -> TaskError {
        TaskError::new(ErrorCode::UploadFailed, "boom")
    }

    /// Which of the objects of the first three dispatches are leftovers, of which the manifest names what it names.
    fn left(task: &Task, artifacts: &[Artifact]) -> Vec<i64> {
        let leftovers = Leftovers::of(task, artifacts);
        let is_one =
            |number: &i64| leftovers.include("bucket", "a/", &format!("a/{}{number}_9-0.png", leftovers.prefix()));
        (1..=3).filter(is_one).collect()
    }

    #[test]
    fn a_completed_task_needs_what_its_manifest_names() {
        let mut task = running(2);
        let key = format!("a/{}2_9-0.png", task_prefix(&task));
        let manifest = [artifact(0, Some(&key))];
        change(&mut task, Change::Complete { artifacts: manifest.to_vec() });
        assert!(task.may_have_left_objects());
        assert_eq!(left(&task, &manifest), [1]);
        assert_eq!(left(&task, &[]), [1, 2], "nothing is added to a manifest");
        let twin = Leftovers::of(&task, &manifest);
        assert!(twin.include("elsewhere", "a/", &key), "the same file went to another target");
        assert!(!twin.include("bucket", "b/", &key));
        for foreign in ["a/x.png".to_owned(), format!("a/{}", twin.prefix()), format!("a/{}x_9-0.png", twin.prefix())] {
            assert!(!twin.include("bucket", "a/", &foreign), "{foreign}");
        }

        let mut once = running(1);
        change(&mut once, Change::Complete { artifacts: Vec::new() });
        assert!(!once.may_have_left_objects(), "most tasks run once, and nobody is asked about them");
    }

    #[test]
    fn what_can_still_be_asked_for_stays() {
        let mut task = running(2);
        change(&mut task, Change::Plan { artifacts: vec![artifact(0, None), artifact(1, None)] });
        let unstored = Change::Unstored { error: error(), delay: std::time::Duration::ZERO, artifacts: Vec::new() };
        change(&mut task, unstored);
        assert_eq!(task.state, TaskState::Failed);
        assert_eq!(left(&task, &[]), [1], "a retry of its uploads goes on with what is there");

        let mut task = running(2);
        change(&mut task, Change::Fail { error: error() });
        assert!(task.may_have_left_objects());
        assert_eq!(left(&task, &[]), [1, 2], "it can run again only, as another dispatch");
        task.apply(None, Change::Reopen { ordering: crate::domain::order::Ordering::Aged }, NOW).unwrap();
        task.apply(None, claim(), NOW).unwrap();
        assert!(!task.may_have_left_objects());
        assert_eq!(left(&task, &[]), [1, 2], "as before it went on");
    }

    #[test]
    fn nobody_is_asked_about_what_never_ran() {
        let mut task = new_task();
        task.apply(None, Change::Cancel, NOW).unwrap();
        assert!(!task.may_have_left_objects());
        let mut task = new_task();
        task.apply(None, claim(), NOW).unwrap();
        change(&mut task, Change::Fail { error: error() });
        assert!(!task.may_have_left_objects(), "its server refused it");
        let mut task = running(1);
        change(&mut task, Change::Fail { error: error() });
        assert!(task.may_have_left_objects(), "pictures may have come over the WebSocket");
    }
}
