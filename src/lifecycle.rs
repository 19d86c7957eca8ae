//! Signals: the first asks the service to drain and stop, the second ends the process now.

use tracing::{info, warn};

use crate::app::{App, AppError};

/// How a process that was ended by a second signal reports it, as shells do for SIGINT.
const ENDED_BY_SIGNAL: i32 = 130;

/// Waits until the service ends: by itself, or after a signal.
///
/// # Errors
/// `GaveUp` when it ended by itself.
pub async fn until_stopped(app: &mut App) -> Result<(), AppError> {
    tokio::select! {
        ended = app.ended() => return ended,
        () = signal() => info!("asked to stop"),
    }
    app.shut_down();
    tokio::select! {
        ended = app.ended() => ended,
        () = signal() => {
            warn!("asked to stop again: ending now; the next start takes up what runs");
            std::process::exit(ENDED_BY_SIGNAL);
        }
    }
}

/// SIGINT or SIGTERM. When the system gives us no handlers, only a kill ends the process, which loses nothing.
async fn signal() {
    let interrupt = async {
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    };
    #[cfg(unix)]
    let terminate = async {
        match tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) {
            Ok(mut signals) => _ = signals.recv().await,
            Err(_) => std::future::pending().await,
        }
    };
    #[cfg(not(unix))]
    let terminate = std::future::pending::<()>();
    tokio::select! {
        () = interrupt => {}
        () = terminate => {}
    }
}
