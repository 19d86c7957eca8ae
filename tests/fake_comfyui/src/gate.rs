//! Holds prompts inside their first node, so that a test can act while one runs, without sleeping.

use tokio::sync::watch;

/// What the gate lets through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Passage {
    Open,
    /// Closed, apart from this many prompts.
    Closed(u64),
}

/// The gate of one server. It survives restarts.
#[derive(Debug)]
pub(crate) struct Gate {
    passage: watch::Sender<Passage>,
}

impl Gate {
    pub fn new() -> Self {
        Self { passage: watch::Sender::new(Passage::Open) }
    }

    /// Closes the gate for every prompt that comes to it from now on.
    pub fn close(&self) {
        self.passage.send_if_modified(|passage| {
            let changed = *passage == Passage::Open;
            if changed {
                *passage = Passage::Closed(0);
            }
            changed
        });
    }

    /// Lets `count` prompts through a closed gate.
    pub fn admit(&self, count: u64) {
        self.passage.send_if_modified(|passage| match passage {
            Passage::Open => false,
            Passage::Closed(admitted) => {
                *admitted = admitted.saturating_add(count);
                true
            }
        });
    }

    pub fn open(&self) {
        self.passage.send_replace(Passage::Open);
    }

    /// Goes through, waiting if need be; `on_wait` is called before the first wait.
    pub async fn pass(&self, on_wait: impl FnOnce()) {
        let mut watch = self.passage.subscribe();
        let mut on_wait = Some(on_wait);
        loop {
            if self.try_pass() {
                return;
            }
            if let Some(on_wait) = on_wait.take() {
                on_wait();
            }
            // The sender lives in `self`, so an error cannot come.
            let _ = watch.changed().await;
        }
    }

    fn try_pass(&self) -> bool {
        let mut passed = false;
        self.passage.send_if_modified(|passage| {
            passed = match passage {
                Passage::Open => true,
                Passage::Closed(0) => false,
                Passage::Closed(admitted) => {
                    *admitted -= 1;
                    true
                }
            };
            // Using up an admission concerns nobody else.
            false
        });
        passed
    }
}
