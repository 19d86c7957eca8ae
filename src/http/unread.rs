//! Tells the client to ask for the next thing on another connection, when its answer came before its request was read to the end.
//!
//! hyper ends such a connection, as what is left of the body is in the way, but it has promised to keep it by then: the head of the answer
//! was written before the body was given up. A client that believes it sends its next request into a connection that is just being closed,
//! and sees it break (RFC 9112, 9.6: who is going to close says so).

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
};

use axum::{
    body::{Body, Bytes},
    extract::Request,
    http::{HeaderValue, header},
    middleware::Next,
    response::Response,
};
use hyper::body::{Body as _, Frame, SizeHint};

/// The layer around everything that may leave a body unread.
pub async fn close(request: Request, next: Next) -> Response {
    let ended = Arc::new(AtomicBool::new(request.body().is_end_stream()));
    let seen = ended.clone();
    let mut response = next.run(request.map(|body| Body::new(Observed { body, ended }))).await;
    if !seen.load(Ordering::Relaxed) {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// A body that notes its end.
struct Observed {
    body: Body,
    ended: Arc<AtomicBool>,
}

impl hyper::body::Body for Observed {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        // Not every reader asks once more when it has all it was told of.
        if frame.is_none() || self.body.is_end_stream() {
            self.ended.store(true, Ordering::Relaxed);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
