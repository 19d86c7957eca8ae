//! Serves the router on a socket that outlives every crash of the server.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use async_trait::async_trait;
use axum::serve::ListenerExt;
use comfyd_actors::{bridge::Bridge, ports::edge::HttpEdge};
use tokio_util::sync::CancellationToken;

use super::{HttpConfig, router};
use crate::workflows::Workflows;

/// The HTTP server. Owns the listening socket: connections that come while it is restarted wait in the kernel's queue.
pub struct AxumEdge {
    listener: std::net::TcpListener,
    config: Arc<HttpConfig>,
    workflows: Arc<Workflows>,
    drain_grace: Duration,
}

impl AxumEdge {
    /// Will serve on `listener`; requests in flight at the end get `drain_grace`.
    ///
    /// # Errors
    /// When the socket cannot be prepared.
    pub fn new(
        listener: std::net::TcpListener,
        config: HttpConfig,
        workflows: Arc<Workflows>,
        drain_grace: Duration,
    ) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        Ok(Self { listener, config: Arc::new(config), workflows, drain_grace })
    }

    /// Where it listens: the true port when 0 was asked for.
    ///
    /// # Errors
    /// When the socket is gone.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

#[async_trait]
impl HttpEdge for AxumEdge {
    async fn serve(&self, bridge: Bridge, stop: CancellationToken) -> io::Result<()> {
        let listener = tokio::net::TcpListener::from_std(self.listener.try_clone()?)?;
        // Answers are small and whole: waiting to fill a packet only delays them.
        let listener = listener.tap_io(|stream| {
            if let Err(error) = stream.set_nodelay(true) {
                tracing::trace!(%error, "TCP_NODELAY could not be set");
            }
        });
        let app = router(bridge, self.config.clone(), self.workflows.clone(), stop.clone());
        let server = axum::serve(listener, app).with_graceful_shutdown(stop.clone().cancelled_owned());
        let grace_over = async {
            stop.cancelled().await;
            tokio::time::sleep(self.drain_grace).await;
        };
        tokio::select! {
            ended = async { server.await } => ended,
            () = grace_over => {
                tracing::warn!("requests were still in flight when the grace ended");
                Ok(())
            }
        }
    }
}
