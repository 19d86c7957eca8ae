//! Signals: the first asks the service to drain and stop, the second ends the process now.

use std::time::Duration;

use tracing::{info, warn};

use crate::app::{App, AppError};

/// How a process that was ended by a second signal reports it, as shells do for SIGINT.
const ENDED_BY_SIGNAL: i32 = 130;

/// Waits until the service ends: by itself, or after a signal. Between SIGTERM and the end it goes on for `delay`, and says that it is about
/// to stop.
///
/// # Errors
/// `GaveUp` when it ended by itself.
pub async fn until_stopped(app: &mut App, delay: Duration) -> Result<(), AppError> {
    let mut signals = Signals::listen();
    let patience = tokio::select! {
        ended = app.ended() => return ended,
        signal = signals.next() => match signal {
            // Somebody sits there and waits.
            Signal::Interrupt => Duration::ZERO,
            Signal::Terminate => delay,
        },
    };
    info!(?patience, "asked to stop");
    app.announce_end();
    let ended = async {
        tokio::select! {
            ended = app.ended() => return ended,
            () = tokio::time::sleep(patience) => app.shut_down(),
        }
        app.ended().await
    };
    tokio::select! {
        ended = ended => ended,
        _ = signals.next() => {
            warn!("asked to stop again: ending now; the next start takes up what runs");
            std::process::exit(ENDED_BY_SIGNAL);
        }
    }
}

enum Signal {
    Interrupt,
    Terminate,
}

/// The signals of this process. When the system gives us no handlers, only a kill ends the process, which loses nothing.
#[cfg(unix)]
struct Signals(Option<(tokio::signal::unix::Signal, tokio::signal::unix::Signal)>);

#[cfg(unix)]
impl Signals {
    /// From here on none is missed.
    fn listen() -> Self {
        use tokio::signal::unix::{SignalKind, signal};
        let both = signal(SignalKind::interrupt()).and_then(|int| Ok((int, signal(SignalKind::terminate())?)));
        Self(both.ok())
    }

    async fn next(&mut self) -> Signal {
        let Some((interrupt, terminate)) = &mut self.0 else { return std::future::pending().await };
        tokio::select! {
            _ = interrupt.recv() => Signal::Interrupt,
            _ = terminate.recv() => Signal::Terminate,
        }
    }
}

/// As above, with the one signal there is.
#[cfg(not(unix))]
struct Signals;

#[cfg(not(unix))]
impl Signals {
    fn listen() -> Self {
        Self
    }

    async fn next(&mut self) -> Signal {
        if tokio::signal::ctrl_c().await.is_err() {
            return std::future::pending().await;
        }
        Signal::Interrupt
    }
}
