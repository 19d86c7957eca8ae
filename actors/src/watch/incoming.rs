//! What runs in other processes and is watched here: which of the glimpses that come from there are news.
//!
//! They come late, twice, or in another order than they were sent in, beside the facts, which come another way. So each carries its
//! run's fence and a number of its process, and none is shown of a task that by the last fact waits or is over.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use tokio::time::Instant;

use super::{Preview, Run, Topics, Watch};
use crate::domain::{
    event::Stage,
    id::TaskId,
    interest::{Interest, MOST_NAMED},
    progress::Progress,
    task::Fence,
};

/// How long a task is wanted after a look at it: clients that look again and again do so more often.
const GLANCE_LASTS: Duration = Duration::from_secs(10);

/// How long a task that does not run is kept in mind: longer than a glimpse of it may be on its way.
const KEPT_IN_MIND: Duration = Duration::from_secs(30);

/// Something seen elsewhere.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Seen {
    Progress(Progress),
    Preview(Arc<Preview>),
}

/// What is known of tasks that run elsewhere.
#[derive(Debug, Default)]
pub(super) struct Incoming {
    /// Others were told what is watched here.
    expected: bool,
    known: HashMap<TaskId, Known>,
    /// Who was noted to be at rest, and when.
    rested: VecDeque<(Instant, TaskId)>,
    /// Who was looked at, and until when it is wanted.
    glanced: HashMap<TaskId, Instant>,
}

#[derive(Debug, Default)]
struct Known {
    /// By the last fact it does not run.
    at_rest: bool,
    fence: Fence,
    /// The numbers of what was shown last.
    progress: Option<u64>,
    preview: Option<u64>,
    newest: Option<Progress>,
}

impl Incoming {
    /// A fact about a watched task says where it stands. Whether glimpses of it are to be forgotten.
    pub(super) fn note(&mut self, task: TaskId, stage: Stage, now: Instant) -> bool {
        if !self.expected {
            return false;
        }
        while self.rested.front().is_some_and(|(at, _)| now.saturating_duration_since(*at) > KEPT_IN_MIND) {
            if let Some((_, task)) = self.rested.pop_front()
                && self.known.get(&task).is_some_and(|known| known.at_rest)
            {
                self.known.remove(&task);
            }
        }
        if !matches!(stage, Stage::Scheduled | Stage::Queued) && !stage.is_final() {
            if let Some(known) = self.known.get_mut(&task) {
                known.at_rest = false;
            }
            return false;
        }
        self.rested.push_back((now, task));
        let known = self.known.entry(task).or_default();
        known.at_rest = true;
        known.progress.is_some() || known.preview.is_some()
    }

    /// Whether this is news; it is none the next time.
    fn accept(&mut self, run: &Run, number: u64, seen: &Seen) -> bool {
        let known = self.known.entry(run.task).or_default();
        if known.at_rest || run.fence < known.fence {
            return false;
        }
        if run.fence > known.fence {
            *known = Known { fence: run.fence, ..Known::default() };
        }
        let last = match seen {
            Seen::Progress(_) => &mut known.progress,
            Seen::Preview(_) => &mut known.preview,
        };
        if last.is_some_and(|last| number <= last) {
            return false;
        }
        *last = Some(number);
        if let Seen::Progress(progress) = seen {
            known.newest = Some(progress.clone());
        }
        true
    }

    fn is_glanced(&self, task: TaskId) -> bool {
        self.glanced.get(&task).is_some_and(|until| *until > Instant::now())
    }

    /// Nobody watches this task alone any more, or nobody watches at all (`None`).
    pub(super) fn forget(&mut self, task: Option<TaskId>) {
        match task {
            Some(task) => drop(self.known.remove(&task)),
            None => {
                self.known.retain(|task, _| self.glanced.contains_key(task));
                self.rested.clear();
            }
        }
    }
}

impl Topics {
    /// A task neither waits nor runs where it was seen: what was seen of it is old.
    pub(super) fn wipe(&self, task: TaskId) {
        for topic in [Some(task), None].iter().filter_map(|key| self.open.get(key)) {
            topic.glimpses.send_if_modified(|glimpses| {
                glimpses.remove(&task);
                false
            });
        }
    }
}

impl Watch {
    /// What is watched here and not over.
    pub(super) fn interest(&self) -> Interest {
        let (topics, now) = (&mut *self.lock(), Instant::now());
        let mut interest = Interest::default();
        let Incoming { glanced, known, .. } = &mut topics.incoming;
        glanced.retain(|task, until| {
            let is_wanted = *until > now;
            if is_wanted {
                interest.add(Some(*task), false);
            } else if !topics.open.contains_key(&Some(*task)) && !topics.open.contains_key(&None) {
                known.remove(task);
            }
            is_wanted
        });
        for (task, topic) in &topics.open {
            if !topic.stage.is_some_and(Stage::is_final) {
                interest.add(*task, topic.previews > 0);
            }
        }
        interest
    }

    /// The newest progress that another process told of a run. From here on it is wanted for a while.
    pub(crate) fn glance(&self, task: TaskId, fence: Fence) -> Option<Progress> {
        let mut topics = self.lock();
        let Incoming { glanced, known, .. } = &mut topics.incoming;
        let is_new = !glanced.contains_key(&task);
        if !is_new || glanced.len() < MOST_NAMED {
            glanced.insert(task, Instant::now() + GLANCE_LASTS);
        }
        let known = known.get(&task).filter(|known| known.fence == fence);
        let newest = known.and_then(|known| known.newest.clone());
        drop(topics);
        if is_new {
            self.0.interest_changed.notify_one();
        }
        newest
    }

    /// Others were told what is watched here, or that nothing is.
    pub(super) fn expect_from_afar(&self, expected: bool) {
        let (topics, now) = (&mut *self.lock(), Instant::now());
        if std::mem::replace(&mut topics.incoming.expected, expected) || !expected {
            return;
        }
        for (task, topic) in &topics.open {
            if let (Some(task), Some(stage)) = (task, topic.stage) {
                topics.incoming.note(*task, stage, now);
            }
        }
    }

    /// Whether anybody here wants to see this.
    pub(super) fn wants_from_afar(&self, task: TaskId, previews: bool) -> bool {
        let topics = self.lock();
        let wants = |key| topics.open.get(key).is_some_and(|topic| !previews || topic.previews > 0);
        [Some(task), None].iter().any(wants) || (!previews && topics.incoming.is_glanced(task))
    }

    /// Shows what was seen in another process, if it is news. Numbers grow in the order in which a process saw it.
    pub(super) fn show_from_afar(&self, run: &Run, number: u64, seen: &Seen) {
        let mut topics = self.lock();
        let keys = [Some(run.task), None];
        let is_wanted = keys.iter().any(|key| topics.open.contains_key(key)) || topics.incoming.is_glanced(run.task);
        if !is_wanted || !topics.incoming.accept(run, number, seen) {
            return;
        }
        for topic in keys.iter().filter_map(|key| topics.open.get(key)) {
            topic.glimpses.send_modify(|glimpses| {
                let glimpse = glimpses.entry(run.task).or_default();
                match seen {
                    Seen::Progress(progress) => {
                        glimpse.workflow.clone_from(&run.workflow);
                        glimpse.progress = Some(progress.clone());
                    }
                    Seen::Preview(preview) => glimpse.preview = Some(preview.clone()),
                }
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expecting() -> Incoming {
        Incoming { expected: true, ..Incoming::default() }
    }

    fn told(incoming: &mut Incoming, task: TaskId, fence: i64, number: u64) -> bool {
        let run = Run { task, fence: Fence(fence), workflow: None };
        incoming.accept(&run, number, &Seen::Progress(Progress::default()))
    }

    #[test]
    fn only_what_is_newer_is_shown() {
        let (mut incoming, task) = (expecting(), TaskId::new());
        for (fence, number, is_news) in
            [(2, 5, true), (2, 5, false), (2, 4, false), (2, 6, true), (1, 9, false), (3, 1, true), (2, 7, false)]
        {
            assert_eq!(told(&mut incoming, task, fence, number), is_news, "{fence} {number}");
        }
        assert!(told(&mut incoming, TaskId::new(), 1, 1), "of another task");
    }

    #[test]
    fn nothing_is_shown_of_what_waits_or_is_over() {
        let (mut incoming, task, now) = (expecting(), TaskId::new(), Instant::now());
        assert!(!incoming.note(task, Stage::Queued, now) && !told(&mut incoming, task, 1, 1));
        assert!(!incoming.note(task, Stage::Executing, now) && told(&mut incoming, task, 1, 2));
        assert!(incoming.note(task, Stage::Failed, now) && !told(&mut incoming, task, 1, 3));
        // It is retried, and the facts come after what it shows.
        incoming.note(task, Stage::Queued, now);
        incoming.note(task, Stage::Preparing, now);
        assert!(told(&mut incoming, task, 2, 1) && !told(&mut incoming, task, 1, 4));
        incoming.note(task, Stage::Completed, now);
        incoming.note(TaskId::new(), Stage::Completed, now + KEPT_IN_MIND * 2);
        assert_eq!(incoming.known.len(), 1, "the others are forgotten");
    }
}
