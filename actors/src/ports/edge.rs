//! The HTTP server as a port: the core does not know axum, the supervision tree runs it all the same.

use async_trait::async_trait;
use tokio_util::sync::CancellationToken;

/// Serves clients on a socket that is already bound, so that a restart of the server never loses the port.
#[async_trait]
pub trait HttpEdge: Send + Sync + 'static {
    /// Serves until `stop` is cancelled, then finishes the requests in flight and returns. Returning or panicking before that
    /// is a crash, and the tree calls it again.
    ///
    /// # Errors
    /// When it can no longer accept connections.
    async fn serve(&self, stop: CancellationToken) -> std::io::Result<()>;
}
