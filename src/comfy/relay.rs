//! A client's own requests, handed to the server as they are: bodies are streamed both ways, nothing is kept.

use std::{io, pin::pin, time::Duration};

use bytes::Bytes;
use comfyd_actors::ports::{
    ByteStream,
    passthrough::{Relay, RelayError, Relayed},
};
use futures_util::{Stream, StreamExt, stream};
use reqwest::{
    Body, RequestBuilder, Response,
    header::{HeaderMap, HeaderValue, LOCATION},
};
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};
use url::Url;

use super::{
    http::{Fault, Http, fault},
    view,
};
use crate::pace::Pace;

/// Whom a request waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Turn {
    /// For the next piece of the client's body.
    Client,
    /// For the server: to take a piece, or to answer.
    Server,
    /// For nobody: the client's body failed.
    Failed(String),
}

/// Sends a request and returns when its answer begins. `idle` limits each silence of either side.
pub(super) async fn relay(http: &Http, request: Relay, idle: Duration) -> Result<Relayed, RelayError> {
    let Relay { method, target, query, headers, body } = request;
    let url = http.below(&target, query.as_deref());
    let (turn, turns) = watch::channel(Turn::Server);
    let mut builder = http.request_with(method, url.clone(), headers);
    if let Some(body) = body {
        builder = builder.body(Body::wrap_stream(watched(body, idle, turn)));
    }
    let response = send(builder, idle, turns).await?;
    Ok(relayed(http, &url, response, idle))
}

async fn send(
    request: RequestBuilder,
    idle: Duration,
    mut turns: watch::Receiver<Turn>,
) -> Result<Response, RelayError> {
    let mut sending = pin!(request.send());
    loop {
        // While the client is to send, its body watches the time.
        let servers = *turns.borrow_and_update() == Turn::Server;
        let answer = tokio::select! {
            answer = &mut sending => answer,
            Ok(()) = turns.changed() => continue,
            () = sleep(idle), if servers => return Err(RelayError::TimedOut),
        };
        let turn = turns.borrow().clone();
        return answer.map_err(|error| match (turn, fault(error)) {
            (Turn::Failed(why), _) => RelayError::Body(why),
            (_, Fault::NotConnected(why)) => RelayError::NotConnected(why),
            (_, other) => RelayError::Broken(other.to_string()),
        });
    }
}

/// The client's body, piece by piece, saying whose turn it is. The first error is the last item.
fn watched(body: ByteStream, idle: Duration, turn: watch::Sender<Turn>) -> impl Stream<Item = io::Result<Bytes>> {
    stream::unfold(Some((body, turn)), move |state| async move {
        let (mut body, turn) = state?;
        turn.send_replace(Turn::Client);
        let next = timeout(idle, body.next()).await;
        turn.send_replace(Turn::Server);
        let failed = match next {
            Ok(Some(Ok(chunk))) => return Some((Ok(chunk), Some((body, turn)))),
            Ok(None) => return None,
            Ok(Some(Err(error))) => error,
            Err(_) => io::Error::new(io::ErrorKind::TimedOut, "nothing came for too long"),
        };
        turn.send_replace(Turn::Failed(failed.to_string()));
        Some((Err(failed), None))
    })
}

fn relayed(http: &Http, asked: &Url, response: Response, idle: Duration) -> Relayed {
    let (status, mut headers) = (response.status(), response.headers().clone());
    if let Some(place) = place_below(http, asked, &headers) {
        headers.insert(LOCATION, place);
    }
    let mut answer = Relayed::new(view::body(response, Pace::silence(idle), None));
    *answer.status_mut() = status;
    *answer.headers_mut() = headers;
    answer
}

/// A `Location` on the same server as a path below its root; `None` when it is elsewhere, or there is none.
fn place_below(http: &Http, asked: &Url, headers: &HeaderMap) -> Option<HeaderValue> {
    let place = asked.join(headers.get(LOCATION)?.to_str().ok()?).ok()?;
    let base = http.url(&[]);
    let below = place.path().strip_prefix(base.path().trim_end_matches('/'))?;
    if place.origin() != base.origin() || !below.starts_with('/') {
        return None;
    }
    let query = place.query().map(|query| format!("?{query}")).unwrap_or_default();
    HeaderValue::try_from(format!("{below}{query}")).ok()
}
