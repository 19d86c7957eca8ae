//! Who watches which task, and what there is to see for them.
//!
//! Two kinds of news, and they are kept apart:
//! - **facts** (`domain::event`) are read from the store's log by one reader for all watchers ([`tail`]) and lie here a while, so that a
//!   thousand watchers cost one read. A watcher that is behind what lies here reads the store itself. Nothing is lost, nothing comes twice.
//! - **glimpses** (progress, a preview, a place in the queue) are overwritten. A slow watcher sees fewer of them.
//!
//! Facts are seen in every process. Glimpses are seen in the one that runs the task, and told to those that watch it ([`afar`]).
//!
//! Who has something to show leaves it here and goes on: nobody ever waits for a watcher. A task nobody watches has no topic, and costs a
//! look into an empty map.

pub mod afar;
mod incoming;
mod outgoing;
mod tail;
mod watcher;

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};

use self::{incoming::Incoming, outgoing::Outgoing};
pub use self::{
    tail::tail,
    watcher::{Sight, Watcher, Watching},
};
use crate::domain::{
    event::{Event, Fact, Stage},
    id::TaskId,
    progress::Progress,
    task::{Fence, Task},
};

/// Facts that lie here per topic: more than one round of reading brings.
const KEPT: usize = 1024;
/// Places in the queue are counted no further than this.
pub const FAR: u32 = 1000;

/// A run of a task, for who shows how far it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// Which task.
    pub task: TaskId,
    /// Grows with each holder of the task.
    pub fence: Fence,
    /// The named workflow it is made from.
    pub workflow: Option<Arc<str>>,
}

impl Run {
    /// The run that its holder makes of it now.
    #[must_use]
    pub fn of(task: &Task) -> Self {
        Self { task: task.id, fence: task.fence, workflow: task.workflow.as_deref().map(Arc::from) }
    }
}

/// A picture of unfinished work.
#[derive(Debug, PartialEq, Eq)]
pub struct Preview {
    /// The node that sent it.
    pub node: Option<String>,
    /// JPEG or PNG.
    pub content_type: &'static str,
    /// The file.
    pub image: Bytes,
}

/// Where a waiting task stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Tasks that are taken before it; from [`FAR`] on, at least so many.
    pub ahead: u32,
    /// Until it is expected to be done.
    pub eta: Option<Duration>,
}

/// The newest of everything about one task.
#[derive(Debug, Clone, Default)]
struct Glimpse {
    workflow: Option<Arc<str>>,
    progress: Option<Progress>,
    preview: Option<Arc<Preview>>,
    place: Option<Place>,
}

/// What a watcher wants to see.
#[derive(Debug, Clone, Default)]
pub struct View {
    /// Of this task; `None` = of all.
    pub task: Option<TaskId>,
    /// Previews too.
    pub previews: bool,
}

/// The facts of a topic that lie here.
#[derive(Debug, Default)]
struct News {
    recent: VecDeque<Arc<Event>>,
    /// Every fact with a higher number is in `recent`. `None`: not known yet.
    whole_after: Option<i64>,
}

/// One task, or all of them, while somebody watches.
#[derive(Debug, Default)]
struct Topic {
    watchers: usize,
    /// Of those, who wants to see previews.
    previews: usize,
    workflow: Option<String>,
    stage: Option<Stage>,
    news: watch::Sender<News>,
    glimpses: watch::Sender<BTreeMap<TaskId, Glimpse>>,
}

#[derive(Debug, Default)]
struct Topics {
    /// The topic of all tasks is under `None`.
    open: HashMap<Option<TaskId>, Topic>,
    watchers: usize,
    /// How far the log was read for those who watch now.
    position: Option<i64>,
    /// What others watch.
    outgoing: Outgoing,
    /// What is seen elsewhere.
    incoming: Incoming,
}

/// A task that is watched and waits for its turn.
#[derive(Debug)]
struct Waiting {
    task: TaskId,
    workflow: Option<String>,
    /// Those who watch know its place, or one it had.
    knows: bool,
}

/// Everybody's topics. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Watch(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    topics: Mutex<Topics>,
    /// Somebody came.
    came: Notify,
    /// A task that waits is watched.
    waits: Notify,
    /// Other things are watched than before.
    interest_changed: Notify,
    /// There is something that others watch.
    to_tell: Notify,
}

/// A seat at a topic; given up when dropped.
#[derive(Debug)]
struct Seat {
    hall: Watch,
    view: View,
    news: watch::Receiver<News>,
    glimpses: watch::Receiver<BTreeMap<TaskId, Glimpse>>,
}

impl Watch {
    /// Takes a seat, unless `limit` are taken.
    fn sit(&self, view: View, limit: usize) -> Option<Seat> {
        let mut topics = self.lock();
        if topics.watchers >= limit {
            return None;
        }
        topics.watchers += 1;
        let position = topics.position;
        let topic = topics.open.entry(view.task).or_insert_with(|| {
            let news = News { whole_after: position, ..News::default() };
            Topic { news: watch::Sender::new(news), ..Topic::default() }
        });
        topic.watchers += 1;
        topic.previews += usize::from(view.previews);
        let is_other = topic.watchers == 1 || (view.previews && topic.previews == 1);
        let (news, glimpses) = (topic.news.subscribe(), topic.glimpses.subscribe());
        drop(topics);
        if is_other {
            self.0.interest_changed.notify_one();
        }
        Some(Seat { hall: self.clone(), view, news, glimpses })
    }

    /// How many watch.
    #[must_use]
    pub fn watchers(&self) -> usize {
        self.lock().watchers
    }

    /// Notes where a watched task stood when somebody came.
    fn introduce(&self, task: TaskId, stage: Stage, workflow: Option<&str>) {
        let topics = &mut *self.lock();
        if let Some(topic) = topics.open.get_mut(&Some(task)) {
            topic.workflow = workflow.map(str::to_owned);
            let stage = *topic.stage.get_or_insert(stage);
            topics.incoming.note(task, stage, Instant::now());
            if stage == Stage::Queued {
                self.0.waits.notify_one();
            }
        }
        self.0.came.notify_one();
    }

    /// A running task moved on.
    pub fn show_progress(&self, run: &Run, progress: &Progress) {
        let show = |glimpse: &mut Glimpse| {
            glimpse.workflow.clone_from(&run.workflow);
            glimpse.progress = Some(progress.clone());
        };
        self.glimpse(run.task, show, |outgoing| outgoing.show_progress(run, progress));
    }

    /// Whether anybody wants to see this task's previews, here or in another process: who has one need not make anything of it otherwise.
    #[must_use]
    pub fn wants_previews(&self, task: TaskId) -> bool {
        let topics = self.lock();
        topics.outgoing.wants_previews(task)
            || [Some(task), None].iter().any(|key| topics.open.get(key).is_some_and(|topic| topic.previews > 0))
    }

    /// A running task has a preview.
    pub fn show_preview(&self, run: &Run, preview: Preview) {
        let preview = Arc::new(preview);
        let show = |glimpse: &mut Glimpse| glimpse.preview = Some(preview.clone());
        self.glimpse(run.task, show, |outgoing| outgoing.show_preview(run, &preview));
    }

    /// A waiting task's place is known: to those who watch this one.
    fn show_place(&self, task: TaskId, place: Place) {
        if let Some(topic) = self.lock().open.get(&Some(task)) {
            topic.glimpses.send_modify(|glimpses| glimpses.entry(task).or_default().place = Some(place));
        }
    }

    /// The task does not run here any more.
    pub fn forget(&self, task: TaskId) {
        let mut topics = self.lock();
        topics.wipe(task);
        let to_tell = topics.outgoing.forget(task);
        drop(topics);
        if to_tell {
            self.0.to_tell.notify_one();
        }
    }

    fn glimpse(&self, task: TaskId, show: impl Fn(&mut Glimpse), tell: impl FnOnce(&mut Outgoing) -> bool) {
        let mut topics = self.lock();
        for topic in [Some(task), None].iter().filter_map(|key| topics.open.get(key)) {
            topic.glimpses.send_modify(|glimpses| show(glimpses.entry(task).or_default()));
        }
        let to_tell = tell(&mut topics.outgoing);
        drop(topics);
        if to_tell {
            self.0.to_tell.notify_one();
        }
    }

    /// Tasks that are watched and wait for their turn.
    fn waiting(&self) -> Vec<Waiting> {
        let topics = self.lock();
        let waiting = |(key, topic): (&Option<TaskId>, &Topic)| match (key, topic.stage) {
            (Some(task), Some(Stage::Queued)) => {
                let knows = topic.glimpses.borrow().get(task).is_some_and(|glimpse| glimpse.place.is_some());
                Some(Waiting { task: *task, workflow: topic.workflow.clone(), knows })
            }
            _ => None,
        };
        topics.open.iter().filter_map(waiting).collect()
    }

    /// How far the log was read. Forgotten when nobody watches.
    fn position(&self) -> Option<i64> {
        self.lock().position
    }

    /// The log is read from here on: what comes after lies here for every topic. Those that were here before have it since then.
    fn begin(&self, position: i64) {
        let mut topics = self.lock();
        topics.position = Some(position);
        for topic in topics.open.values() {
            topic.news.send_if_modified(|news| {
                let is_first = news.whole_after.is_none();
                news.whole_after.get_or_insert(position);
                is_first
            });
        }
    }

    /// These facts come next.
    fn publish(&self, events: Vec<Event>) {
        let (topics, now) = (&mut *self.lock(), Instant::now());
        for event in events.into_iter().map(Arc::new) {
            topics.position = Some(event.seq);
            let mut is_watched = false;
            for key in [Some(event.task), None] {
                if let Some(topic) = topics.open.get_mut(&key) {
                    topic.publish(&event);
                    is_watched = true;
                }
            }
            if let Fact::Stage { stage, .. } = event.fact
                && is_watched
            {
                if topics.incoming.note(event.task, stage, now) {
                    topics.wipe(event.task);
                }
                if stage == Stage::Queued {
                    self.0.waits.notify_one();
                }
                if stage.is_final() && topics.open.contains_key(&Some(event.task)) {
                    self.0.interest_changed.notify_one();
                }
            }
        }
    }

    /// Returns when somebody watches.
    async fn watched(&self) {
        loop {
            let came = self.0.came.notified();
            {
                let mut topics = self.lock();
                if topics.watchers > 0 {
                    return;
                }
                topics.position = None;
            }
            came.await;
        }
    }

    /// Every critical section here cannot panic half-way, so a poisoned lock is still good.
    fn lock(&self) -> MutexGuard<'_, Topics> {
        self.0.topics.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Topic {
    fn publish(&mut self, event: &Arc<Event>) {
        if let Fact::Stage { stage, .. } = event.fact {
            self.stage = Some(stage);
            if stage != Stage::Queued {
                self.glimpses.send_if_modified(|glimpses| {
                    if let Some(glimpse) = glimpses.get_mut(&event.task) {
                        glimpse.place = None;
                    }
                    false
                });
            }
        }
        self.news.send_modify(|news| {
            if news.recent.len() == KEPT
                && let Some(gone) = news.recent.pop_front()
            {
                news.whole_after = Some(gone.seq);
            }
            news.recent.push_back(event.clone());
        });
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let topics = &mut *self.hall.lock();
        topics.watchers = topics.watchers.saturating_sub(1);
        let Some(topic) = topics.open.get_mut(&self.view.task) else { return };
        topic.watchers -= 1;
        topic.previews -= usize::from(self.view.previews);
        if topic.watchers == 0 || (self.view.previews && topic.previews == 0) {
            self.hall.0.interest_changed.notify_one();
        }
        if topic.watchers == 0 {
            topics.open.remove(&self.view.task);
            if topics.open.is_empty() {
                topics.incoming.forget(None);
            } else if !topics.open.contains_key(&None) {
                topics.incoming.forget(self.view.task);
            }
        }
    }
}

#[cfg(test)]
#[cfg(feature = "testing")]
mod tests;
