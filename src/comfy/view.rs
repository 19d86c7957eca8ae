//! Downloads: the bytes of an output file, chunk by chunk, checked to be all of it.

use std::{io, time::Duration};

use bytes::Bytes;
use comfyd_actors::ports::{ByteStream, comfy::Download};
use futures_util::{StreamExt, stream};
use reqwest::{Response, header::CONTENT_TYPE};

use crate::{describe::describe, pace::Pace};

/// Makes a download of an answer whose body is yet to be read. No limit on the whole: files may be large and links slow, and whoever
/// stores it has one. Each `period` must bring something instead.
pub(super) fn download(response: Response, period: Duration) -> Download {
    let content_type =
        response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).map(ToOwned::to_owned);
    let bytes = response.content_length();
    Download { content_type, bytes, body: body(response, Pace::new(period), bytes) }
}

struct Reading {
    response: Response,
    pace: Pace,
    expected: Option<u64>,
    seen: u64,
}

/// The chunks as they come. The first error is the last item.
pub(super) fn body(response: Response, pace: Pace, expected: Option<u64>) -> ByteStream {
    let reading = Reading { response, pace, expected, seen: 0 };
    stream::unfold(Some(reading), |reading| async {
        let mut reading = reading?;
        match reading.next().await {
            Ok(Some(chunk)) => Some((Ok(chunk), Some(reading))),
            Ok(None) => None,
            Err(error) => Some((Err(error), None)),
        }
    })
    .boxed()
}

impl Reading {
    async fn next(&mut self) -> io::Result<Option<Bytes>> {
        let next = async { self.response.chunk().await.transpose() };
        let chunk = self.pace.keep(next, |chunk| chunk.as_ref().map_or(0, Bytes::len)).await;
        let chunk = chunk
            .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "the server stopped sending, or sent too slowly"))?
            .transpose()
            .map_err(|error| io::Error::other(describe(error)))?;
        self.seen += chunk.as_ref().map_or(0, |chunk| chunk.len() as u64);
        // The HTTP client checks this as well. A short file stored as a whole one is too bad to rely on that alone.
        match (&chunk, self.expected) {
            (Some(_), Some(expected)) if self.seen > expected => Err(wrong_length(self.seen, expected)),
            (None, Some(expected)) if self.seen < expected => Err(wrong_length(self.seen, expected)),
            _ => Ok(chunk),
        }
    }
}

fn wrong_length(seen: u64, expected: u64) -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, format!("the server sent {seen} bytes of {expected}"))
}
