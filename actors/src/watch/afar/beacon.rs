//! Tells those who watch in other processes what is seen of the tasks that run in this one.
//!
//! Runs as a service under the root · is woken by what is watched and by what is seen · when it dies its successor reads from the wire what
//! is watched, and tells anew · it must never tell what nobody watches.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use futures_util::future::join_all;
use tokio::{
    sync::broadcast::error::RecvError,
    time::{Instant, MissedTickBehavior, interval, sleep, sleep_until},
};
use tracing::debug;

use super::{
    AFTER_FAILURE, GOOD_FOR, LARGEST_PREVIEW, LOOK_FOR_INTEREST, LOOK_FOR_INTEREST_DEAF, PER_ROUND, RENEW_EVERY,
    ROUND_EVERY,
    word::{Glimpse, Watched, names},
};
use crate::{
    board::Board,
    domain::{id::WorkerId, interest::Interest},
    ports::{
        store::StoreError,
        wire::{Kind, Notice, Wire},
    },
    watch::{incoming::Seen, outgoing::Fresh},
};

/// Of a process that runs tasks.
pub struct Beacon {
    worker: WorkerId,
    wire: Arc<dyn Wire>,
    board: Board,
    /// The number of what was told last.
    told: AtomicU64,
}

/// What others watch, by process.
#[derive(Default)]
struct Others(HashMap<String, Other>);

struct Other {
    watched: Watched,
    until: Instant,
    /// When it was last told everything again.
    answered_at: Instant,
}

impl Others {
    /// Somebody tells what it watches; what of it is to be told again: what is new, and now and then all, because words get lost.
    fn hear(&mut self, name: &str, watched: Watched) -> Interest {
        let now = Instant::now();
        let known = self.0.get(name);
        if known.is_some_and(|known| known.watched.number >= watched.number) {
            return Interest::default();
        }
        let known = known.filter(|known| now < known.answered_at + RENEW_EVERY);
        let again =
            known.map_or_else(|| watched.interest.clone(), |known| watched.interest.beyond(&known.watched.interest));
        let answered_at = known.map_or(now, |known| known.answered_at);
        self.0.insert(name.to_owned(), Other { watched, until: now + GOOD_FOR, answered_at });
        again
    }

    /// All that is watched.
    fn interest(&mut self) -> Interest {
        let now = Instant::now();
        self.0.retain(|_, other| other.until > now);
        let mut all = Interest::default();
        self.0.values().for_each(|other| all.extend(&other.watched.interest));
        all
    }
}

impl Beacon {
    /// Of this process, on this wire.
    #[must_use]
    pub fn new(worker: WorkerId, wire: Arc<dyn Wire>, board: Board) -> Arc<Self> {
        Arc::new(Self { worker, wire, board, told: AtomicU64::default() })
    }

    /// Tells for ever.
    pub async fn shine(self: Arc<Self>) {
        tokio::select! {
            () = self.learn() => {}
            () = self.tell() => {}
        }
    }

    /// Learns what is watched.
    async fn learn(&self) {
        let mut heard = self.wire.heard();
        let mut ticks = interval(if self.wire.hears_others() { LOOK_FOR_INTEREST } else { LOOK_FOR_INTEREST_DEAF });
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut others = Others::default();
        loop {
            let notices = tokio::select! {
                _ = ticks.tick() => match self.wire.notices(Kind::Watched).await {
                    Ok(notices) => notices,
                    Err(error) => {
                        debug!(%error, "could not read what others watch");
                        Vec::new()
                    }
                },
                notice = heard.recv() => match notice {
                    Ok(notice) if notice.kind == Kind::Watched => vec![Notice::clone(&notice)],
                    Ok(_) | Err(RecvError::Lagged(_)) => continue,
                    Err(RecvError::Closed) => return,
                },
            };
            self.take_note(&mut others, &notices);
        }
    }

    fn take_note(&self, others: &mut Others, notices: &[Notice]) {
        let mut fresh = Interest::default();
        for notice in notices.iter().filter(|notice| notice.name != self.worker.as_str()) {
            // One of another version, perhaps.
            let Some(watched) = Watched::read(notice) else { continue };
            fresh.extend(&others.hear(&notice.name, watched));
        }
        self.board.watch().set_wanted_afar(others.interest());
        if !fresh.is_empty() {
            self.board.tell_again(&fresh);
        }
    }

    /// Tells what is seen.
    async fn tell(&self) {
        let mut last = None;
        loop {
            let (fresh, over) = self.board.watch().to_tell(last, PER_ROUND).await;
            let next = Instant::now() + ROUND_EVERY;
            last = fresh.last().map(|fresh| fresh.run.task).or(last);
            let posts = fresh.into_iter().flat_map(|fresh| self.notices(fresh));
            let posted = join_all(posts.map(|notice| self.wire.post(notice, GOOD_FOR))).await;
            let gone = over.into_iter().flat_map(names);
            let gone = join_all(gone.map(|name| async move { self.wire.withdraw(Kind::Glimpse, &name).await })).await;
            let outcome: Result<(), StoreError> = posted.into_iter().chain(gone).collect();
            if let Err(error) = outcome {
                debug!(%error, "could not tell those who watch elsewhere how far their tasks are");
                sleep(AFTER_FAILURE).await;
            }
            sleep_until(next).await;
        }
    }

    fn notices(&self, fresh: Fresh) -> impl Iterator<Item = Notice> + use<> {
        let Fresh { run, progress, preview } = fresh;
        let preview = preview.filter(|preview| preview.image.len() <= LARGEST_PREVIEW);
        let seen = [progress.map(Seen::Progress), preview.map(Seen::Preview)];
        let notices = seen.map(|seen| {
            let number = self.told.fetch_add(1, Ordering::Relaxed);
            Some(Glimpse { from: self.worker.clone(), number, run: run.clone(), seen: seen? }.notice())
        });
        notices.into_iter().flatten()
    }
}
