//! A value that is made anew when it is old, by one asker at a time.

use std::{future::Future, time::Duration};

use tokio::{sync::Mutex, time::Instant};

/// The value, and for how long it is good.
pub struct Cached<T> {
    slot: Mutex<Option<(Instant, T)>>,
    fresh: Duration,
}

impl<T: Clone> Cached<T> {
    /// None yet.
    pub fn new(fresh: Duration) -> Self {
        Self { slot: Mutex::new(None), fresh }
    }

    /// The value, made with `make` if there is none that is good.
    pub async fn get(&self, make: impl Future<Output = T>) -> T {
        let mut slot = self.slot.lock().await;
        if let Some((made, value)) = slot.as_ref()
            && made.elapsed() < self.fresh
        {
            return value.clone();
        }
        let value = make.await;
        *slot = Some((Instant::now(), value.clone()));
        value
    }
}
