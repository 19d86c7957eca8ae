//! The door: every connection has a place here from its first to its last byte, and loses it to somebody else when it must.

use std::{
    collections::HashMap,
    mem,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::task::AtomicWaker;
use tokio::{sync::Notify, time::Instant};

use super::register::{Full, Id, Register, Standing};
use crate::config::Connections;

/// Who is connected. One for the life of the process: connections outlive a server that is restarted.
#[derive(Debug)]
pub struct Door {
    /// How long each may take for what.
    pub limits: Connections,
    inside: Mutex<Inside>,
    /// Somebody left.
    left: Notify,
}

#[derive(Debug)]
struct Inside {
    register: Register,
    seats: HashMap<Id, Seat>,
    turned_away: u64,
}

#[derive(Debug)]
struct Seat {
    since: Instant,
    waker: Arc<AtomicWaker>,
}

/// How much longer a connection that sends nothing is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Patience {
    /// It is not its turn to send.
    Endless,
    /// For the head of a request, until then.
    Head(Instant),
    /// For another request, until then.
    Another(Instant),
    /// It had to make room.
    Over,
}

impl Door {
    /// An empty room.
    #[must_use]
    pub fn new(limits: Connections) -> Arc<Self> {
        let inside = Inside { register: Register::new(limits), seats: HashMap::new(), turned_away: 0 };
        Arc::new(Self { limits, inside: Mutex::new(inside), left: Notify::new() })
    }

    /// Lets a connection in, for whom another may have to go.
    ///
    /// # Errors
    /// [`Full`].
    pub fn enter(self: &Arc<Self>, address: IpAddr) -> Result<Place, Full> {
        let waker = Arc::new(AtomicWaker::new());
        let mut inside = self.lock();
        let admitted = inside.register.admit(address.into());
        let (id, gone) = admitted.inspect_err(|Full| inside.turned_away += 1)?;
        inside.seats.insert(id, Seat { since: Instant::now(), waker: waker.clone() });
        inside.dismiss(gone);
        Ok(Place(Arc::new(Held { door: self.clone(), id, waker })))
    }

    /// Sends somebody away who does not work, if there is anybody: the system has no room for another connection.
    pub fn make_room(&self) {
        let mut inside = self.lock();
        let gone = inside.register.yield_one();
        inside.dismiss(gone);
    }

    /// How many were turned away or had to make room since it was last asked.
    #[must_use]
    pub fn turned_away(&self) -> u64 {
        mem::take(&mut self.lock().turned_away)
    }

    /// Waits until nobody is connected any more.
    pub async fn emptied(&self) {
        loop {
            // Begun before the look, so that who leaves in between is not missed.
            let left = self.left.notified();
            if self.lock().register.len() == 0 {
                return;
            }
            left.await;
        }
    }

    /// Nothing in the critical sections can panic half-way, so a poisoned lock is still good.
    fn lock(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inside {
    /// Those find out by themselves: their patience is over.
    fn dismiss(&mut self, gone: impl IntoIterator<Item = Id>) {
        for seat in gone.into_iter().filter_map(|id| self.seats.remove(&id)) {
            self.turned_away += 1;
            seat.waker.wake();
        }
    }
}

/// A connection's place, given back when the last copy of it is dropped.
#[derive(Debug, Clone)]
pub struct Place(Arc<Held>);

#[derive(Debug)]
struct Held {
    door: Arc<Door>,
    id: Id,
    waker: Arc<AtomicWaker>,
}

impl Place {
    /// A request is whole, and worked on from now on.
    pub fn busy(&self) {
        self.set(|_| Standing::Busy);
    }

    /// Its answer is written out.
    pub fn idle(&self) {
        self.set(|_| Standing::Idle);
    }

    /// Bytes came: for an idle connection the beginning of another request.
    pub fn heard(&self) {
        self.set(|standing| if standing == Standing::Idle { Standing::Unfinished } else { standing });
    }

    /// How long its next bytes are waited for. `waker` is woken when that changes.
    pub fn patience(&self, waker: &std::task::Waker) -> Patience {
        // Registered before the look, so that a change in between is not missed.
        self.0.waker.register(waker);
        let limits = &self.0.door.limits;
        let inside = self.0.door.lock();
        let standing = inside.register.standing(self.0.id);
        match standing.zip(inside.seats.get(&self.0.id)) {
            None => Patience::Over,
            Some((Standing::Busy, _)) => Patience::Endless,
            Some((Standing::Unfinished, seat)) => Patience::Head(seat.since + limits.header_timeout),
            Some((Standing::Idle, seat)) => Patience::Another(seat.since + limits.idle_timeout),
        }
    }

    /// Longest time in which the other side takes nothing of what is written.
    pub fn write_timeout(&self) -> Duration {
        self.0.door.limits.write_timeout
    }

    fn set(&self, next: impl FnOnce(Standing) -> Standing) {
        let mut inside = self.0.door.lock();
        let Some(before) = inside.register.standing(self.0.id) else { return };
        let standing = next(before);
        if standing == before {
            return;
        }
        let gone = inside.register.set(self.0.id, standing);
        if let Some(seat) = inside.seats.get_mut(&self.0.id) {
            seat.since = Instant::now();
        }
        inside.dismiss(gone);
        drop(inside);
        // hyper does not read again by itself when there was nothing to read while it wrote the answer: how long it is to be waited for
        // would never be asked.
        self.0.waker.wake();
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut inside = self.door.lock();
        inside.register.leave(self.id);
        inside.seats.remove(&self.id);
        drop(inside);
        self.door.left.notify_waiters();
    }
}
