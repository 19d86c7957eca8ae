//! A connection's bytes, with all the time limits that lie below HTTP: hyper reads and writes through this and learns of a limit as of a
//! broken connection.

use std::{
    io::{self, ErrorKind, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::http::StatusCode;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep_until},
};

use super::door::{Patience, Place};
use crate::http::problem::Problem;

/// How much is read on, and for how long, when an answer came before its request was read to the end: a socket closed with bytes unread
/// resets the connection, and the answer is lost on its way.
const LINGER: Duration = Duration::from_millis(500);
const LINGER_BYTES: usize = 1 << 20;

/// Bytes between a socket and hyper.
pub struct Wire<T> {
    socket: T,
    place: Place,
    /// Something of a request has come.
    begun: bool,
    /// Rings when the patience with the other side's silence ends.
    reading: Alarm,
    /// Rings when the other side has taken nothing for too long.
    writing: Alarm,
    /// Nothing more is written: until when the rest is read, and how much of it may come.
    lingering: Option<(Instant, usize)>,
}

impl<T> Wire<T> {
    /// Over a socket, from its first byte on.
    pub fn new(socket: T, place: Place) -> Self {
        Self { socket, place, begun: false, reading: Alarm::default(), writing: Alarm::default(), lingering: None }
    }
}

/// A timer that is set and reset without being made anew.
#[derive(Default)]
struct Alarm {
    set: bool,
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Alarm {
    /// Whether it is `deadline` yet; wakes the task then.
    fn poll(&mut self, deadline: Instant, context: &mut Context<'_>) -> Poll<()> {
        self.set = true;
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        if sleep.deadline() != deadline {
            sleep.as_mut().reset(deadline);
        }
        sleep.as_mut().poll(context)
    }
}

impl<T: AsyncWrite + Unpin> Wire<T> {
    /// Says why before the connection ends, if there is a request it would answer, and if there is room for it: nobody waits for it.
    /// hyper does not, as it answers whole requests only.
    fn farewell(&mut self, context: &mut Context<'_>) -> io::Error {
        let detail = "the head of the request did not come in time (connections.header_timeout), or others needed the connection";
        if self.begun {
            let problem = Problem::new(StatusCode::REQUEST_TIMEOUT, "request_timeout", detail);
            // Whether it is read is the other side's business.
            let _ = Pin::new(&mut self.socket).poll_write(context, &problem.raw());
        }
        io::Error::new(ErrorKind::TimedOut, detail)
    }

    /// What becomes of a write: the time starts when nothing is taken, and anything taken ends it.
    fn written<R>(&mut self, written: Poll<io::Result<R>>, context: &mut Context<'_>) -> Poll<io::Result<R>> {
        if written.is_ready() {
            self.writing.set = false;
            return written;
        }
        let deadline = match &self.writing {
            Alarm { set: true, sleep: Some(sleep) } => sleep.deadline(),
            _ => Instant::now() + self.place.write_timeout(),
        };
        ready!(self.writing.poll(deadline, context));
        self.writing.set = false;
        Poll::Ready(Err(io::Error::new(ErrorKind::TimedOut, "nothing of the answer was taken for too long")))
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncRead for Wire<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = buffer.filled().len();
        let read = Pin::new(&mut this.socket).poll_read(context, buffer);
        if read.is_ready() {
            if buffer.filled().len() > before {
                this.begun = true;
                this.place.heard();
            }
            return read;
        }
        match this.place.patience(context.waker()) {
            Patience::Endless => return Poll::Pending,
            Patience::Head(deadline) => ready!(this.reading.poll(deadline, context)),
            Patience::Another(deadline) => {
                this.begun = false;
                ready!(this.reading.poll(deadline, context));
            }
            Patience::Over => {}
        }
        Poll::Ready(Err(this.farewell(context)))
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Wire<T> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        let written = Pin::new(&mut this.socket).poll_write(context, bytes);
        this.written(written, context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        let written = Pin::new(&mut this.socket).poll_write_vectored(context, slices);
        this.written(written, context)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let (until, mut left) = match this.lingering {
            Some(lingering) => lingering,
            None => {
                ready!(Pin::new(&mut this.socket).poll_shutdown(context))?;
                (Instant::now() + LINGER, LINGER_BYTES)
            }
        };
        let mut scratch = [0; 4 << 10];
        while left > 0 {
            let mut buffer = ReadBuf::new(&mut scratch);
            let Poll::Ready(read) = Pin::new(&mut this.socket).poll_read(context, &mut buffer) else {
                this.lingering = Some((until, left));
                ready!(this.reading.poll(until, context));
                break;
            };
            if read.is_err() || buffer.filled().is_empty() {
                break;
            }
            left = left.saturating_sub(buffer.filled().len());
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use std::{net::IpAddr, sync::Arc};

    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
        time::sleep,
    };

    use super::*;
    use crate::{
        config::{self, Connections},
        http::server::door::Door,
    };

    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    fn door() -> Arc<Door> {
        let defaults = config::read(config::Sources::default()).config.connections;
        Door::new(Connections { max_unfinished: 1, ..defaults })
    }

    /// A connection, the client's end of it, and its place.
    fn connect(door: &Arc<Door>) -> (Wire<DuplexStream>, DuplexStream, Place) {
        let place = door.enter(HERE).unwrap();
        let (ours, theirs) = duplex(1 << 10);
        (Wire::new(ours, place.clone()), theirs, place)
    }

    /// Reads until there is an error; how long that took.
    async fn broken_off(wire: &mut Wire<DuplexStream>) -> Duration {
        let began = Instant::now();
        loop {
            match wire.read(&mut [0; 64]).await {
                Ok(read) => assert!(read > 0, "the client is still there"),
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::TimedOut);
                    return began.elapsed();
                }
            }
        }
    }

    async fn told(mut client: DuplexStream, wire: Wire<DuplexStream>) -> String {
        drop(wire);
        let mut text = String::new();
        client.read_to_string(&mut text).await.unwrap();
        text
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_that_trickles_is_answered_408_in_time() {
        let (mut wire, client, _place) = connect(&door());
        let (mut reading, mut sending) = tokio::io::split(client);
        let trickle = async {
            while sending.write_all(b"x").await.is_ok() {
                sleep(Duration::from_secs(1)).await;
            }
        };
        let took = tokio::select! {
            took = broken_off(&mut wire) => took,
            () = trickle => unreachable!("it goes on for ever"),
        };
        assert_eq!(took.as_secs(), 10);
        drop(wire);
        let mut text = String::new();
        reading.read_to_string(&mut text).await.unwrap();
        assert!(text.starts_with("HTTP/1.1 408 Request Timeout\r\n") && text.contains("request_timeout"), "{text}");
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_is_told_anything_between_two_requests() {
        let (mut wire, mut client, place) = connect(&door());
        client.write_all(b"x").await.unwrap();
        wire.read_exact(&mut [0]).await.unwrap();
        place.busy();
        let working = tokio::time::timeout(Duration::from_secs(3_600), wire.read(&mut [0; 8])).await;
        assert!(working.is_err(), "an answer may take as long as it takes");
        place.idle();
        assert_eq!(broken_off(&mut wire).await.as_secs(), 75);
        assert_eq!(told(client, wire).await, "");
        let (mut fresh, client, _place) = connect(&door());
        assert_eq!(broken_off(&mut fresh).await.as_secs(), 10);
        assert_eq!(told(client, fresh).await, "", "it has not asked for anything");
    }

    #[tokio::test(start_paused = true)]
    async fn another_request_must_be_as_quick_as_the_first() {
        let (mut wire, mut client, place) = connect(&door());
        place.busy();
        place.idle();
        sleep(Duration::from_secs(70)).await;
        client.write_all(b"x").await.unwrap();
        assert_eq!(broken_off(&mut wire).await.as_secs(), 10);
        assert!(told(client, wire).await.contains("408"));
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_to_make_room_is_woken() {
        let door = door();
        let (mut wire, mut client, _place) = connect(&door);
        client.write_all(b"x").await.unwrap();
        let (took, newer) = tokio::join!(broken_off(&mut wire), async { door.enter(HERE).unwrap() });
        assert_eq!((took, door.turned_away()), (Duration::ZERO, 1));
        assert!(told(client, wire).await.contains("408"));
        drop((newer, _place));
        door.emptied().await;
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_left_of_a_request_is_read_before_the_end() {
        let (mut wire, mut client, _place) = connect(&door());
        let sending = async {
            let sent = client.write_all(&[0; 64 << 10]).await;
            drop(client);
            sent
        };
        let (shut, sent) = tokio::join!(wire.shutdown(), sending);
        assert!(shut.is_ok() && sent.is_ok(), "{shut:?}, {sent:?}");
        let (mut wire, _client, _place) = connect(&door());
        let began = Instant::now();
        wire.shutdown().await.unwrap();
        assert_eq!(began.elapsed(), LINGER, "who neither sends nor goes is not waited for");
        let (mut wire, mut client, _place) = connect(&door());
        let endless = async { while client.write_all(&[0; 1 << 10]).await.is_ok() {} };
        tokio::select! {
            shut = wire.shutdown() => shut.unwrap(),
            () = endless => unreachable!("it goes on for ever"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_that_takes_nothing_is_cut_off_and_a_slow_one_is_not() {
        let (mut wire, mut client, place) = connect(&door());
        place.busy();
        let slow = async {
            for _ in 0..10 {
                sleep(Duration::from_secs(59)).await;
                client.read_exact(&mut [0; 1 << 10]).await.unwrap();
            }
        };
        let (written, ()) = tokio::join!(wire.write_all(&[0; 10 << 10]), slow);
        assert!(written.is_ok());
        let began = Instant::now();
        let error = wire.write_all(&[0; 2 << 10]).await.unwrap_err();
        assert_eq!((error.kind(), began.elapsed().as_secs()), (ErrorKind::TimedOut, 60));
    }
}
