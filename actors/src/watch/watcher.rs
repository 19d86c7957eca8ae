//! One watcher: what it has seen, and what it sees next.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use tokio::time::{Instant, sleep_until};

use super::{Glimpse, Place, Preview, Seat, View, Watch};
use crate::{
    domain::{
        event::{Event, Stage},
        id::TaskId,
        progress::Progress,
    },
    ports::store::{StoreError, TaskStore},
};

/// Facts read from the store at once.
const PAGE: u32 = 500;
/// Glimpses are shown to a watcher at most this often per watcher there is: what all of them cost stays a small part of the machine, and a
/// few watchers see every step. Of two thousand each sees one in 0.8 s.
const PAUSE: Duration = Duration::from_micros(400);

/// Something to see.
#[derive(Debug, Clone, PartialEq)]
pub enum Sight {
    /// Happened, for good. Its number is where to go on from.
    Fact(Arc<Event>),
    /// How far a running task is.
    Progress(TaskId, Progress),
    /// A picture of its unfinished work.
    Preview(TaskId, Arc<Preview>),
    /// Where a waiting task stands.
    Place(TaskId, Place),
    /// Nothing, for as long as the watcher wanted to wait.
    Quiet,
}

/// What comes of wanting to watch.
pub enum Watching {
    /// There is something to see, or will be.
    On(Box<Watcher>),
    /// The task is over, and the watcher has seen its end.
    Over,
    /// Too many watch.
    Full,
}

/// Somebody who watches a task or all of them.
pub struct Watcher {
    store: Arc<dyn TaskStore>,
    seat: Seat,
    /// Everything up to this number was seen.
    cursor: i64,
    /// There may be facts in the store that do not lie in the hall.
    behind: bool,
    /// The last fact was the end of the task that is watched.
    ended: bool,
    next: VecDeque<Sight>,
    shown: BTreeMap<TaskId, Glimpse>,
    glimpse_at: Instant,
    patience: Duration,
}

impl Watch {
    /// Begins to watch: `after` is the number of the last fact seen (`None`, for all tasks only: from now on). After `patience` without
    /// anything, [`Sight::Quiet`] is seen. At most `limit` watch at a time.
    ///
    /// # Errors
    /// `NotFound`, `Unavailable`.
    pub async fn begin_watching(
        &self,
        store: Arc<dyn TaskStore>,
        view: View,
        after: Option<i64>,
        patience: Duration,
        limit: usize,
    ) -> Result<Watching, StoreError> {
        let task = view.task;
        let Some(seat) = self.sit(view, limit) else { return Ok(Watching::Full) };
        let mut over = false;
        let cursor = match (task, after) {
            (Some(id), after) => {
                let task = store.get(id).await?.task;
                over = task.state.is_final();
                self.introduce(id, Stage::of(&task), task.workflow.as_deref());
                after.unwrap_or(0)
            }
            (None, Some(after)) => after,
            (None, None) => store.newest_event().await?,
        };
        if task.is_none() {
            self.0.came.notify_one();
        }
        let glimpse_at = Instant::now();
        let mut watcher = Watcher {
            store,
            seat,
            cursor,
            behind: true,
            ended: false,
            next: VecDeque::new(),
            shown: BTreeMap::new(),
            glimpse_at,
            patience,
        };
        watcher.look().await?;
        Ok(if over && watcher.next.is_empty() { Watching::Over } else { Watching::On(Box::new(watcher)) })
    }
}

impl Watcher {
    /// What is seen next; `None` after the end of the task that is watched. May be dropped and called again: nothing is lost by that.
    ///
    /// # Errors
    /// `Unavailable`: the store could not be read. Whoever watches may come again.
    pub async fn next(&mut self) -> Result<Option<Sight>, StoreError> {
        let quiet_at = Instant::now() + self.patience;
        loop {
            if let Some(sight) = self.next.pop_front() {
                return Ok(Some(sight));
            }
            if self.behind || self.seat.news.has_changed().unwrap_or(false) {
                self.look().await?;
            } else if self.ended {
                return Ok(None);
            } else if !self.glance() {
                let (glimpse_at, Seat { news, glimpses, .. }) = (self.glimpse_at, &mut self.seat);
                let glimpsed = async {
                    sleep_until(glimpse_at).await;
                    glimpses.changed().await
                };
                // The senders live as long as the seat is taken.
                tokio::select! {
                    _ = news.changed() => self.seat.news.mark_changed(),
                    _ = glimpsed => self.seat.glimpses.mark_changed(),
                    () = sleep_until(quiet_at) => return Ok(Some(Sight::Quiet)),
                }
            }
        }
    }

    /// Takes the facts that are new: from the hall, or, when it does not have all of them, from the store.
    async fn look(&mut self) -> Result<(), StoreError> {
        let (whole_after, fresh) = {
            let news = self.seat.news.borrow_and_update();
            let seen = news.recent.partition_point(|event| event.seq <= self.cursor);
            let fresh: Vec<_> = news.recent.range(seen..).cloned().collect();
            (news.whole_after, fresh)
        };
        if whole_after.is_some_and(|after| after <= self.cursor) {
            self.behind = false;
            self.take(fresh);
            return Ok(());
        }
        let page = self.store.events(self.seat.view.task, self.cursor, PAGE).await?;
        self.behind = u32::try_from(page.len()).is_ok_and(|read| read == PAGE);
        self.take(page.into_iter().map(Arc::new));
        if !self.behind {
            // The rest lies in the hall: what came before it was committed before it was read.
            self.cursor = self.cursor.max(whole_after.unwrap_or(0));
        }
        Ok(())
    }

    fn take(&mut self, events: impl IntoIterator<Item = Arc<Event>>) {
        for event in events {
            self.cursor = event.seq;
            self.ended = self.seat.view.task.is_some() && event.is_end();
            self.next.push_back(Sight::Fact(event));
        }
    }

    /// Takes the glimpses that are new, unless it was shown some a moment ago; whether there were any.
    fn glance(&mut self) -> bool {
        let now = Instant::now();
        if now < self.glimpse_at || !self.seat.glimpses.has_changed().unwrap_or(false) {
            return false;
        }
        let glimpses = self.seat.glimpses.borrow_and_update().clone();
        for (task, glimpse) in &glimpses {
            let shown = self.shown.get(task);
            if let Some(place) = glimpse.place.filter(|place| shown.and_then(|shown| shown.place) != Some(*place)) {
                self.next.push_back(Sight::Place(*task, place));
            }
            let progress = glimpse.progress.as_ref();
            if let Some(progress) = progress.filter(|new| shown.and_then(|shown| shown.progress.as_ref()) != Some(new))
            {
                self.next.push_back(Sight::Progress(*task, progress.clone()));
            }
            let before = shown.and_then(|shown| shown.preview.as_ref());
            let is_new = |new: &&Arc<Preview>| before.is_none_or(|before| !Arc::ptr_eq(before, new));
            if let Some(preview) = glimpse.preview.as_ref().filter(|_| self.seat.view.previews).filter(is_new) {
                self.next.push_back(Sight::Preview(*task, preview.clone()));
            }
        }
        self.shown = glimpses;
        let watchers = u32::try_from(self.seat.hall.watchers()).unwrap_or(u32::MAX);
        self.glimpse_at = now + PAUSE.saturating_mul(watchers);
        !self.next.is_empty()
    }

    /// The workflow of a task whose progress was shown, for who wants to see those of one workflow only.
    #[must_use]
    pub fn workflow_of(&self, task: TaskId) -> Option<&str> {
        self.shown.get(&task)?.workflow.as_deref()
    }
}
