//! Serves the router on a socket that outlives every crash of the server.
//!
//! The loop is our own because axum's has no time limits (decision 038): [`register`] says who may be connected, [`door`] gives each
//! connection its place, and [`wire`] is where a silent one runs out of time.

mod door;
mod register;
mod wire;

use std::{
    convert::Infallible,
    io::{self, Write},
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use async_trait::async_trait;
use axum::{
    Router,
    body::{Body, Bytes, HttpBody},
    http::{Request, Response, StatusCode},
};
use comfyd_actors::ports::edge::HttpEdge;
use hyper::{
    body::{Frame, Incoming, SizeHint},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use tokio::{
    net::{TcpListener, TcpStream},
    time::{MissedTickBehavior, interval, sleep},
};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use self::{
    door::{Door, Place},
    wire::Wire,
};
use super::{consumers::Peer, problem::Problem};
use crate::config::Connections;

/// Largest head of a request, in bytes: several times what browsers and proxies send. Kept once per connection that is not done with it.
const MAX_HEAD: usize = 64 << 10;
/// What is read ahead of a handler, or written ahead of a client, per connection.
const MAX_BUFFER: usize = 128 << 10;
/// Pause after a failed accept, so that the loop does not spin while there are no descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// How often it is told that connections were turned away.
const REPORT_EVERY: Duration = Duration::from_secs(60);

/// What is served: made anew for each start of the server, with the token that ends the patience of requests.
pub type Pages = Box<dyn Fn(CancellationToken) -> Router + Send + Sync>;

/// The HTTP server. Owns the listening socket: connections that come while it is restarted wait in the kernel's queue.
pub struct AxumEdge {
    listener: std::net::TcpListener,
    pages: Pages,
    door: Arc<Door>,
    drain_grace: Duration,
}

impl AxumEdge {
    /// Will serve on `listener`; requests in flight at the end get `drain_grace`.
    ///
    /// # Errors
    /// When the socket cannot be prepared.
    pub fn new(
        listener: std::net::TcpListener,
        connections: Connections,
        pages: Pages,
        drain_grace: Duration,
    ) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        Ok(Self { listener, pages, door: Door::new(connections), drain_grace })
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
    async fn serve(&self, stop: CancellationToken) -> io::Result<()> {
        let listener = TcpListener::from_std(self.listener.try_clone()?)?;
        let app = (self.pages)(stop.clone());
        tokio::select! {
            () = accept(&listener, &self.door, &app, &stop) => {}
            () = stop.cancelled() => {}
        }
        // Nobody is let in any more; whoever is in gets the answer to what was asked.
        drop(listener);
        tokio::select! {
            () = self.door.emptied() => {}
            () = sleep(self.drain_grace) => tracing::warn!("requests were still in flight when the grace ended"),
        }
        Ok(())
    }
}

/// Lets clients in for ever.
async fn accept(listener: &TcpListener, door: &Arc<Door>, app: &Router, stop: &CancellationToken) {
    let mut report = interval(REPORT_EVERY);
    report.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = report.tick() => {
                match door.turned_away() {
                    0 => {}
                    connections => tracing::warn!(
                        connections,
                        "connections were turned away in the last minute to make room for others; [connections] sets how many there may be"
                    ),
                }
                continue;
            }
        };
        match accepted {
            Ok((socket, address)) => match door.enter(address.ip()) {
                Ok(place) => drop(tokio::spawn(attend(socket, Peer(address.ip()), place, app.clone(), stop.clone()))),
                Err(register::Full) => refuse(socket),
            },
            // The client has gone again.
            Err(error) if is_of_connection(&error) => {}
            Err(error) => {
                // Most likely there are no descriptors left. The next one that works is worth more than one that waits.
                door.make_room();
                tracing::warn!(%error, "a connection could not be accepted");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

fn is_of_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

/// Serves one connection to its end, or until the server stops: then to the end of the request in flight.
async fn attend(socket: TcpStream, peer: Peer, place: Place, app: Router, stop: CancellationToken) {
    // Answers are small and whole: waiting to fill a packet only delays them.
    if let Err(error) = socket.set_nodelay(true) {
        tracing::trace!(%error, "TCP_NODELAY could not be set");
    }
    let handler = service_fn(|mut request: Request<Incoming>| {
        place.busy();
        request.extensions_mut().insert(peer);
        let (app, place) = (app.clone(), place.clone());
        async move { Ok::<_, Infallible>(answer(app, request, place).await) }
    });
    let io = TokioIo::new(Wire::new(socket, place.clone()));
    let connection = http1::Builder::new()
        // The wire's limits count from the first byte of a request and leave idle connections alone; hyper's one does neither.
        .header_read_timeout(None)
        .max_header_size(MAX_HEAD)
        .max_buf_size(MAX_BUFFER)
        .serve_connection(io, handler)
        .with_upgrades();
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = &mut connection => ended,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection broke off");
    }
}

/// The router's answer; its connection is idle again once it is written out, unless it is not HTTP any more.
async fn answer(app: Router, request: Request<Incoming>, place: Place) -> Response<Body> {
    let Ok(response) = app.oneshot(request.map(Body::new)).await;
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        return response;
    }
    response.map(|body| Body::new(Watched { body, place }))
}

/// The body of an answer, whose end is the end of its request.
struct Watched {
    body: Body,
    place: Place,
}

impl HttpBody for Watched {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.place.idle();
    }
}

/// Tells a client for whom there is no room, as far as that can be done without waiting for it.
fn refuse(socket: TcpStream) {
    let detail = "too many connections are open, of everybody or from your address (connections.max, connections.max_per_address)";
    let problem = Problem::unavailable("too_many_connections", detail);
    let told = socket.into_std().and_then(|mut socket| socket.write_all(&problem.raw()));
    if let Err(error) = told {
        tracing::trace!(%error, "a refusal could not be told");
    }
}
