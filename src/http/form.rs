//! Forms with files (`multipart/form-data`), read with bounded memory.
//!
//! The parser keeps all that is there to be read until it finds what it looks for: a sender that is fast, or that never ends the head of a
//! part, would fill the memory with its whole body. So it is given one piece at a time, and only so many while it looks for a part.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::Poll,
};

use axum::http::StatusCode;
use bytes::Bytes;
use comfyd_actors::ports::ByteStream;
use futures_util::{Stream, StreamExt, stream};
use multer::{Field, Multipart};

use super::problem::Problem;

/// Most bytes in which the head of a part must be found: far more than a name takes.
const MAX_HEAD: usize = 64 << 10;

/// A form being read.
pub struct Form {
    parts: Multipart<'static>,
    /// How many more bytes may be read in search of a part.
    room: Arc<AtomicUsize>,
}

impl Form {
    /// Reads a form of this content type.
    ///
    /// # Errors
    /// 400 when the type does not say what stands between the parts.
    pub fn new(content_type: &str, body: ByteStream) -> Result<Self, Problem> {
        let boundary = multer::parse_boundary(content_type).map_err(|error| unreadable(&error))?;
        let room = Arc::new(AtomicUsize::new(MAX_HEAD));
        Ok(Self { parts: Multipart::new(sips(body, room.clone()), boundary), room })
    }

    /// The next part.
    ///
    /// # Errors
    /// 400.
    pub async fn next(&mut self) -> Result<Option<Field<'static>>, Problem> {
        self.room.store(MAX_HEAD, Ordering::Relaxed);
        let field = self.parts.next_field().await;
        let looked_too_long = self.room.swap(usize::MAX, Ordering::Relaxed) == 0;
        field.map_err(|error| if looked_too_long { endless() } else { unreadable(&error) })
    }
}

fn unreadable(error: &multer::Error) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, "invalid_form", format!("the form cannot be read: {error}"))
}

fn endless() -> Problem {
    let detail =
        format!("the form cannot be read: the head of a part is longer than {} KiB, or there is none", MAX_HEAD >> 10);
    Problem::new(StatusCode::BAD_REQUEST, "invalid_form", detail)
}

/// A body that has nothing more to give at once after each piece, so that the piece is looked at before the next one is asked for.
fn sips(mut body: ByteStream, room: Arc<AtomicUsize>) -> impl Stream<Item = io::Result<Bytes>> {
    let (mut rest, mut over) = (false, false);
    stream::poll_fn(move |context| {
        if over {
            return Poll::Ready(None);
        }
        if rest {
            rest = false;
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        let left = room.load(Ordering::Relaxed);
        if left == 0 {
            over = true;
            return Poll::Ready(Some(Err(io::Error::other("it is too long"))));
        }
        let piece = body.poll_next_unpin(context);
        if let Poll::Ready(Some(Ok(bytes))) = &piece {
            rest = true;
            room.store(left.saturating_sub(bytes.len()), Ordering::Relaxed);
        }
        piece
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// A body of pieces that are there at once, and how many were taken.
    fn body(pieces: impl IntoIterator<Item = Bytes, IntoIter: Send + 'static>) -> (ByteStream, Arc<Mutex<usize>>) {
        let taken = Arc::new(Mutex::new(0));
        let count = taken.clone();
        let pieces = stream::iter(pieces).map(move |piece| {
            *count.lock().unwrap() += piece.len();
            Ok(piece)
        });
        (pieces.boxed(), taken)
    }

    const HEAD: &[u8] = b"--x\r\nContent-Disposition: form-data; name=\"a\"; filename=\"a\"\r\n\r\n";

    #[tokio::test]
    async fn a_fast_sender_is_taken_from_as_its_file_is_read() {
        let megabyte = Bytes::from(vec![7; 1 << 20]);
        let pieces = [Bytes::from_static(HEAD)].into_iter().chain(std::iter::repeat_n(megabyte, 200));
        let (body, taken) = body(pieces.chain([Bytes::from_static(b"\r\n--x--\r\n")]));
        let mut form = Form::new("multipart/form-data; boundary=x", body).unwrap();
        let mut field = form.next().await.unwrap().unwrap();
        let mut seen = 0;
        while let Some(chunk) = field.chunk().await.unwrap() {
            seen += chunk.len();
            assert!(*taken.lock().unwrap() <= seen + (3 << 20), "{seen} of {}", taken.lock().unwrap());
        }
        assert_eq!(seen, 200 << 20);
        drop(field);
        assert!(form.next().await.unwrap().is_none());
    }

    #[tokio::test]
    async fn a_head_without_end_is_not_kept() {
        for start in [HEAD.strip_suffix(b"\r\n").unwrap(), b"--x\r\n", b"no part at all"] {
            let endless = std::iter::repeat_n(Bytes::from(vec![b'a'; 8 << 10]), 100_000);
            let (body, taken) = body([Bytes::copy_from_slice(start)].into_iter().chain(endless));
            let mut form = Form::new("multipart/form-data; boundary=x", body).unwrap();
            let problem = form.next().await.err().unwrap();
            assert_eq!(problem.body().status, 400);
            assert!(problem.detail().contains("64 KiB"), "{}", problem.detail());
            assert!(*taken.lock().unwrap() <= 80 << 10, "{}", taken.lock().unwrap());
        }
    }
}
