//! What runs here and is watched in other processes: the newest of it, until somebody ([`super::afar`]) takes it to tell them.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Bound,
    sync::Arc,
};

use super::{Preview, Run, Watch};
use crate::domain::{id::TaskId, interest::Interest, progress::Progress};

/// What is wanted, and what was seen of it.
#[derive(Debug, Default)]
pub(super) struct Outgoing {
    interest: Interest,
    runs: BTreeMap<TaskId, Seen>,
    /// Told, and over.
    over: BTreeSet<TaskId>,
}

/// The newest of one run, and what of it was not told yet.
#[derive(Debug)]
struct Seen {
    run: Run,
    progress: Progress,
    preview: Option<Arc<Preview>>,
    moved: bool,
    changed_picture: bool,
    told: bool,
}

impl Seen {
    fn of(run: &Run) -> Self {
        let progress = Progress::default();
        Self { run: run.clone(), progress, preview: None, moved: false, changed_picture: false, told: false }
    }
}

/// What is to be told of one run.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Fresh {
    pub(super) run: Run,
    pub(super) progress: Option<Progress>,
    pub(super) preview: Option<Arc<Preview>>,
}

impl Outgoing {
    pub(super) fn wants_previews(&self, task: TaskId) -> bool {
        self.interest.wants_previews(task)
    }

    /// Whether there is something to tell now.
    pub(super) fn show_progress(&mut self, run: &Run, progress: &Progress) -> bool {
        let Some(seen) = self.seen(run) else { return false };
        (seen.progress, seen.moved) = (progress.clone(), true);
        true
    }

    /// As [`Self::show_progress`].
    pub(super) fn show_preview(&mut self, run: &Run, preview: &Arc<Preview>) -> bool {
        if !self.wants_previews(run.task) {
            return false;
        }
        let Some(seen) = self.seen(run) else { return false };
        (seen.preview, seen.changed_picture) = (Some(preview.clone()), true);
        true
    }

    fn seen(&mut self, run: &Run) -> Option<&mut Seen> {
        if !self.interest.wants(run.task) {
            return None;
        }
        let seen = self.runs.entry(run.task).or_insert_with(|| Seen::of(run));
        if seen.run.fence != run.fence {
            *seen = Seen { told: seen.told, ..Seen::of(run) };
        }
        Some(seen)
    }

    /// As [`Self::show_progress`].
    pub(super) fn forget(&mut self, task: TaskId) -> bool {
        let told = self.runs.remove(&task).is_some_and(|seen| seen.told);
        told && self.over.insert(task)
    }

    /// What is to be told of the next `most` tasks after one, in turn.
    fn take(&mut self, after: Option<TaskId>, most: usize) -> Vec<Fresh> {
        let start = after.map_or(Bound::Unbounded, Bound::Excluded);
        let is_fresh = |seen: &Seen| seen.moved || seen.changed_picture;
        let fresh = |(task, seen): (&TaskId, &Seen)| is_fresh(seen).then_some(*task);
        let (later, sooner) = (self.runs.range((start, Bound::Unbounded)), self.runs.iter());
        let mut turn: Vec<TaskId> = later.filter_map(fresh).take(most).collect();
        let rest = most - turn.len();
        turn.extend(sooner.filter_map(fresh).take_while(|task| after.is_some_and(|after| *task <= after)).take(rest));
        let mut taken = Vec::new();
        for task in turn {
            let Some(seen) = self.runs.get_mut(&task) else { continue };
            seen.told = true;
            let progress = std::mem::take(&mut seen.moved).then(|| seen.progress.clone());
            let preview = std::mem::take(&mut seen.changed_picture).then(|| seen.preview.clone()).flatten();
            taken.push(Fresh { run: seen.run.clone(), progress, preview });
        }
        taken
    }
}

impl Watch {
    /// From here on this is what others want to see.
    pub(super) fn set_wanted_afar(&self, interest: Interest) {
        let mut topics = self.lock();
        let outgoing = &mut topics.outgoing;
        outgoing.runs.retain(|task, seen| {
            if !interest.wants_previews(*task) {
                (seen.preview, seen.changed_picture) = (None, false);
            }
            interest.wants(*task)
        });
        outgoing.interest = interest;
    }

    /// Has the newest of a run told again, to who came to watch it.
    pub(crate) fn tell_again(&self, run: &Run, progress: &Progress, previews: bool) {
        let mut topics = self.lock();
        let Some(seen) = topics.outgoing.seen(run) else { return };
        (seen.progress, seen.moved) = (progress.clone(), true);
        seen.changed_picture |= previews && seen.preview.is_some();
        drop(topics);
        self.0.to_tell.notify_one();
    }

    /// What is to be told of the next tasks, at most so many, and which told ones are over; waits until there is something.
    pub(super) async fn to_tell(&self, after: Option<TaskId>, most: usize) -> (Vec<Fresh>, BTreeSet<TaskId>) {
        loop {
            let come = self.0.to_tell.notified();
            {
                let outgoing = &mut self.lock().outgoing;
                let (fresh, over) = (outgoing.take(after, most), std::mem::take(&mut outgoing.over));
                if !fresh.is_empty() || !over.is_empty() {
                    return (fresh, over);
                }
            }
            come.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::domain::task::Fence;

    fn run(task: TaskId) -> Run {
        Run { task, fence: Fence(1), workflow: None }
    }

    fn wanting(interest: &[(Option<TaskId>, bool)]) -> Outgoing {
        let mut outgoing = Outgoing::default();
        interest.iter().for_each(|(task, previews)| outgoing.interest.add(*task, *previews));
        outgoing
    }

    fn tasks(fresh: &[Fresh]) -> Vec<TaskId> {
        fresh.iter().map(|fresh| fresh.run.task).collect()
    }

    #[test]
    fn everybody_has_a_turn() {
        let mut ids: Vec<_> = std::iter::repeat_with(TaskId::new).take(5).collect();
        ids.sort_unstable();
        let mut outgoing = wanting(&[(None, false)]);
        let mut after = None;
        let mut told = Vec::new();
        for _ in 0..5 {
            // All of them move all the time.
            for id in &ids {
                assert!(outgoing.show_progress(&run(*id), &Progress::default()));
            }
            let taken = tasks(&outgoing.take(after, 2));
            after = taken.last().copied();
            told.extend(taken);
        }
        assert_eq!(told, [ids.as_slice(), &ids].concat());
        assert_eq!(outgoing.take(None, 9).len(), 3, "what moved since it was told");
        assert_eq!(outgoing.take(after, 9), []);
    }

    #[test]
    fn only_what_is_wanted_is_kept_and_only_the_newest() {
        let (wanted, other) = (TaskId::new(), TaskId::new());
        let mut outgoing = wanting(&[(Some(wanted), false)]);
        let preview = Arc::new(Preview { node: None, content_type: "image/png", image: Bytes::new() });
        assert!(!outgoing.show_progress(&run(other), &Progress::default()));
        assert!(!outgoing.show_preview(&run(wanted), &preview));
        for percent in 0..9 {
            outgoing.show_progress(&run(wanted), &Progress { percent, ..Progress::default() });
        }
        outgoing.interest.add(Some(wanted), true);
        assert!(outgoing.show_preview(&run(wanted), &preview));
        let progress = Some(Progress { percent: 8, ..Progress::default() });
        let told = Fresh { run: run(wanted), progress, preview: Some(preview) };
        assert_eq!(outgoing.take(None, 9), [told]);
        assert!(!outgoing.forget(other) && outgoing.forget(wanted));
        assert_eq!(outgoing.over, BTreeSet::from([wanted]));
    }
}
