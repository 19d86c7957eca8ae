//! The listening side: every accepted TCP connection gets a [`Link`], by which it can be cut, reset or frozen from outside.
//!
//! Faults below HTTP (a lost answer, a half-open peer, a killed process) cannot be played by handlers; they happen here.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::extract::connect_info::Connected;
use axum::serve::IncomingStream;
use futures_util::task::AtomicWaker;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

/// Pause after a failed accept (out of file descriptors), so that the loop does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Connections the kernel may hold ready; benchmarks open many at once.
const BACKLOG: u32 = 1024;

/// What the outside has decided about a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Mode {
    Open = 0,
    /// Neither read from nor written to, yet not closed.
    Frozen = 1,
    /// Closed without ceremony.
    Closed = 2,
    /// Closed with a TCP reset.
    Reset = 3,
}

#[derive(Debug)]
struct LinkState {
    id: u64,
    mode: AtomicU8,
    /// How many more bytes may be written before the connection is closed.
    allowance: AtomicU64,
    websocket: AtomicBool,
    reader: AtomicWaker,
    writer: AtomicWaker,
}

/// A hold on one TCP connection.
#[derive(Debug, Clone)]
pub(crate) struct Link(Arc<LinkState>);

impl Link {
    pub fn id(&self) -> u64 {
        self.0.id
    }

    pub fn set(&self, mode: Mode) {
        self.0.mode.store(mode as u8, Ordering::SeqCst);
        self.0.reader.wake();
        self.0.writer.wake();
    }

    /// Closes the connection after so many more bytes.
    pub fn close_after(&self, bytes: u64) {
        self.0.allowance.store(bytes, Ordering::SeqCst);
    }

    /// Notes that the connection carries a WebSocket from now on.
    pub fn mark_websocket(&self) {
        self.0.websocket.store(true, Ordering::SeqCst);
    }

    fn mode(&self) -> Mode {
        match self.0.mode.load(Ordering::SeqCst) {
            0 => Mode::Open,
            1 => Mode::Frozen,
            2 => Mode::Closed,
            _ => Mode::Reset,
        }
    }
}

/// The connections that are open.
#[derive(Debug, Default)]
pub(crate) struct Links {
    next: AtomicU64,
    open: Mutex<HashMap<u64, Link>>,
}

impl Links {
    fn register(&self) -> Link {
        let link = Link(Arc::new(LinkState {
            id: self.next.fetch_add(1, Ordering::Relaxed),
            mode: AtomicU8::new(Mode::Open as u8),
            allowance: AtomicU64::new(u64::MAX),
            websocket: AtomicBool::new(false),
            reader: AtomicWaker::new(),
            writer: AtomicWaker::new(),
        }));
        self.lock().insert(link.id(), link.clone());
        link
    }

    /// Sets the mode of every WebSocket connection.
    pub fn set_websockets(&self, mode: Mode) {
        let open: Vec<Link> =
            self.lock().values().filter(|link| link.0.websocket.load(Ordering::SeqCst)).cloned().collect();
        open.iter().for_each(|link| link.set(mode));
    }

    /// Sets the mode of every connection but the one that asks.
    pub fn set_all(&self, mode: Mode, except: Option<u64>) {
        let open: Vec<Link> = self.lock().values().filter(|link| Some(link.id()) != except).cloned().collect();
        open.iter().for_each(|link| link.set(mode));
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Link>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A TCP stream that obeys its link.
pub(crate) struct Stream {
    tcp: TcpStream,
    link: Link,
    links: Arc<Links>,
}

impl Stream {
    /// What the mode says about an operation: go on, wait for ever, or fail.
    fn permission(&self, waker: &AtomicWaker, context: &Context<'_>) -> Poll<io::Result<()>> {
        // The waker is registered before the mode is read, so that a change in between is not lost.
        waker.register(context.waker());
        match self.link.mode() {
            Mode::Open => Poll::Ready(Ok(())),
            Mode::Frozen => Poll::Pending,
            Mode::Closed | Mode::Reset => Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        std::task::ready!(self.permission(&self.link.0.reader, context))?;
        Pin::new(&mut self.tcp).poll_read(context, buffer)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        std::task::ready!(self.permission(&self.link.0.writer, context))?;
        let left = self.link.0.allowance.load(Ordering::SeqCst);
        if left == u64::MAX {
            return Pin::new(&mut self.tcp).poll_write(context, bytes);
        }
        if left == 0 {
            self.link.set(Mode::Closed);
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        let part = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
        let written = std::task::ready!(Pin::new(&mut self.tcp).poll_write(context, &bytes[..part]))?;
        self.link.0.allowance.fetch_sub(written as u64, Ordering::SeqCst);
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        std::task::ready!(self.permission(&self.link.0.writer, context))?;
        Pin::new(&mut self.tcp).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        std::task::ready!(self.permission(&self.link.0.writer, context))?;
        Pin::new(&mut self.tcp).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        std::task::ready!(self.permission(&self.link.0.writer, context))?;
        if self.link.0.allowance.load(Ordering::SeqCst) != u64::MAX {
            let first = slices.iter().find(|slice| !slice.is_empty()).map_or(&[][..], |slice| slice);
            return self.poll_write(context, first);
        }
        Pin::new(&mut self.tcp).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.tcp.is_write_vectored()
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.links.lock().remove(&self.link.id());
        if self.link.mode() == Mode::Reset {
            // Failing leaves an ordinary close, which is all that is left to do.
            let _ = self.tcp.set_zero_linger();
        }
    }
}

/// The listener handed to the HTTP server.
pub(crate) struct Doorway {
    listener: TcpListener,
    links: Arc<Links>,
}

impl Doorway {
    /// Starts to accept on a reserved address.
    pub fn open(reserved: TcpSocket, links: Arc<Links>) -> io::Result<Self> {
        Ok(Self { listener: reserved.listen(BACKLOG)?, links })
    }

    pub fn addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// Binds an address without listening: connections to it are refused, and nobody else can take it meanwhile.
pub(crate) fn reserve(addr: SocketAddr) -> io::Result<TcpSocket> {
    let socket = if addr.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    // So that an address can be reserved while it is still listened on.
    #[cfg(unix)]
    socket.set_reuseport(true)?;
    socket.bind(addr)?;
    Ok(socket)
}

impl axum::serve::Listener for Doorway {
    type Io = Stream;
    type Addr = Option<Link>;

    async fn accept(&mut self) -> (Stream, Option<Link>) {
        loop {
            match self.listener.accept().await {
                Ok((tcp, _)) => {
                    // Small answers must not wait for Nagle; failing only makes them slower.
                    let _ = tcp.set_nodelay(true);
                    let link = self.links.register();
                    return (Stream { tcp, link: link.clone(), links: self.links.clone() }, Some(link));
                }
                Err(error) => {
                    tracing::warn!(%error, "failed to accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<Option<Link>> {
        Ok(None)
    }
}

/// The connection a request came by.
#[derive(Debug, Clone)]
pub(crate) struct Peer(pub Option<Link>);

impl Peer {
    /// Cuts the connection: whatever is written to it from now on is lost.
    pub fn cut(&self) {
        if let Some(link) = &self.0 {
            link.set(Mode::Closed);
        }
    }
}

impl Connected<IncomingStream<'_, Doorway>> for Peer {
    fn connect_info(stream: IncomingStream<'_, Doorway>) -> Self {
        Self(stream.remote_addr().clone())
    }
}
