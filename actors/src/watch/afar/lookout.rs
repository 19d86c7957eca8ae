//! Tells other processes what is watched in this one, and shows here what they see of it.
//!
//! Runs as a service under the root · is woken by who comes and goes and by what others tell · when it dies its successor tells anew what is
//! watched, and is answered with the newest of it · it must never tell while nobody watches, or while no other process runs tasks.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::broadcast::{Receiver, error::RecvError},
    time::{Instant, sleep_until},
};
use tracing::debug;

use super::{
    GOOD_FOR, INTEREST_EVERY, LOOK, LOOK_DEAF, RENEW_EVERY,
    word::{Glimpse, Watched, about},
};
use crate::{
    board::Board,
    domain::{id::WorkerId, interest::Interest},
    ports::{
        store::StoreError,
        wire::{Kind, Notice, Wire},
    },
};

/// How often is looked whether other processes are there, while somebody watches.
const LOOK_AROUND: Duration = Duration::from_secs(1);

/// Of a process with clients.
pub struct Lookout {
    worker: WorkerId,
    wire: Arc<dyn Wire>,
    board: Board,
    /// Of the next word.
    number: AtomicU64,
}

/// What was told.
struct Told {
    interest: Interest,
    at: Instant,
}

impl Lookout {
    /// Of this process, on this wire.
    #[must_use]
    pub fn new(worker: WorkerId, wire: Arc<dyn Wire>, board: Board) -> Arc<Self> {
        Arc::new(Self { worker, wire, board, number: AtomicU64::default() })
    }

    /// Tells and shows for ever.
    pub async fn keep(self: Arc<Self>) {
        let mut heard = self.wire.heard();
        let look_every = if self.wire.hears_others() { LOOK } else { LOOK_DEAF };
        let now = Instant::now();
        let mut told = Told { interest: Interest::default(), at: now };
        // What is watched was compared with what was told then; something else may be watched since.
        let (mut compared_at, mut may_differ, mut look_at) = (now, true, now + look_every);
        loop {
            let now = Instant::now();
            let renew = (!told.interest.is_empty()).then_some(told.at + RENEW_EVERY);
            let around = (told.interest.is_empty() && self.board.watch().watchers() > 0).then_some(LOOK_AROUND);
            let compare = if may_differ { Some(INTEREST_EVERY) } else { around }.map(|pause| compared_at + pause);
            let look = renew.and(Some(look_at));
            if [renew, compare].into_iter().flatten().any(|due| due <= now) {
                (may_differ, compared_at) = (false, now);
                self.compare(&mut told, renew.is_some_and(|due| due <= now)).await;
            } else if look.is_some_and(|due| due <= now) {
                self.look().await;
                look_at = Instant::now() + look_every;
            } else {
                let wake = [renew, compare, look].into_iter().flatten().min();
                tokio::select! {
                    () = self.board.watch().0.interest_changed.notified() => may_differ = true,
                    () = sleep_until(wake.unwrap_or(now)), if wake.is_some() => {}
                    () = self.listen(&mut heard) => return,
                }
            }
        }
    }

    /// Tells what is watched, if more is than before or nothing any more, or if its time has come: who sees less need not be told at once.
    async fn compare(&self, told: &mut Told, renew: bool) {
        let interest = if self.is_alone() { Interest::default() } else { self.board.watch().interest() };
        let is_over = interest.is_empty() && !told.interest.is_empty();
        if renew || is_over || !interest.beyond(&told.interest).is_empty() {
            self.tell(told, interest).await;
        }
    }

    /// Nobody else runs tasks, or this process is about to end.
    fn is_alone(&self) -> bool {
        self.board.company() == 0 || self.board.is_draining()
    }

    /// Tells what is watched. Nothing takes the place of something too, so that others hear of it at once.
    async fn tell(&self, told: &mut Told, interest: Interest) {
        *told = Told { interest, at: Instant::now() };
        self.board.watch().expect_from_afar(!told.interest.is_empty());
        let number = self.number.fetch_add(1, Ordering::Relaxed);
        let watched = Watched { number, interest: told.interest.clone() };
        // What does not get there is told again when its time has come.
        if let Err(error) = self.wire.post(watched.notice(&self.worker), GOOD_FOR).await {
            debug!(%error, "could not tell other processes what is watched here");
        }
    }

    /// Hears glimpses, as long as the wire is there.
    async fn listen(&self, heard: &mut Receiver<Arc<Notice>>) {
        loop {
            match heard.recv().await {
                Ok(notice) if notice.kind == Kind::Glimpse => {
                    if let Err(error) = self.show(&notice).await {
                        debug!(%error, "could not read what another process sees");
                    }
                }
                Ok(_) | Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => return,
            }
        }
    }

    async fn look(&self) {
        match self.wire.notices(Kind::Glimpse).await {
            Ok(notices) => {
                for notice in notices.iter().filter(|notice| self.is_wanted(notice)) {
                    self.show_whole(notice);
                }
            }
            Err(error) => debug!(%error, "could not look for what other processes see"),
        }
    }

    async fn show(&self, notice: &Notice) -> Result<(), StoreError> {
        if !self.is_wanted(notice) {
            return Ok(());
        }
        if !notice.body.is_empty() {
            self.show_whole(notice);
        } else if let Some(whole) = self.wire.notice(Kind::Glimpse, &notice.name).await? {
            self.show_whole(&whole);
        }
        Ok(())
    }

    fn is_wanted(&self, notice: &Notice) -> bool {
        about(notice).is_some_and(|(task, preview)| self.board.watch().wants_from_afar(task, preview))
    }

    fn show_whole(&self, notice: &Notice) {
        if let Some(Glimpse { from, number, run, seen }) = Glimpse::read(notice)
            && from != self.worker
        {
            self.board.watch().show_from_afar(&run, number, &seen);
        }
    }
}
