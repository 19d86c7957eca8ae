//! The memory of the pretended device: what a run leaves taken, and what `/free` gives back.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// What a client wants freed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Free {
    /// The models that are loaded.
    pub models: bool,
    /// The results that would be reused.
    pub results: bool,
}

/// The memory of one server.
#[derive(Debug)]
pub(crate) struct Memory {
    total: u64,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    models: u64,
    results: u64,
    wanted: Option<Free>,
}

impl Memory {
    pub fn new(total: u64) -> Self {
        Self { total, taken: Mutex::default() }
    }

    pub fn total(&self) -> u64 {
        self.total
    }

    pub fn free(&self) -> u64 {
        let taken = self.lock();
        self.total - taken.models - taken.results
    }

    /// A prompt ended. After an error for want of memory the models are unloaded, as ComfyUI does by itself.
    pub fn ran(&self, was_out_of_memory: bool) {
        let mut taken = self.lock();
        taken.models = if was_out_of_memory { 0 } else { self.total / 8 };
        taken.results = self.total / 8;
    }

    /// Only a flag: the worker reads it when it has nothing to run, or after its next prompt.
    pub fn request(&self, wish: Free) {
        let mut taken = self.lock();
        let before = taken.wanted.unwrap_or_default();
        taken.wanted = Some(Free { models: before.models || wish.models, results: before.results || wish.results });
    }

    /// Does what was asked for, if anything was.
    pub fn take_wish(&self) -> Option<Free> {
        let mut taken = self.lock();
        let wish = taken.wanted.take()?;
        if wish.models {
            taken.models = 0;
        }
        if wish.results {
            taken.results = 0;
        }
        Some(wish)
    }

    /// The process died.
    pub fn forget(&self) {
        *self.lock() = Taken::default();
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
