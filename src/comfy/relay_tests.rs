//! Handing requests on to servers and from clients that misbehave, one fault each.

use std::{io, time::Duration};

use axum::{
    Router,
    body::Body,
    extract::Request,
    http::{HeaderMap, HeaderValue, Method, StatusCode, header},
    response::{IntoResponse, Response},
    routing::any,
};
use bytes::Bytes;
use comfyd_actors::{
    domain::passthrough::Target,
    ports::{
        ByteStream,
        comfy::ComfyTransport,
        passthrough::{Relay, RelayError, Relayed},
    },
};
use futures_util::{StreamExt, TryStreamExt, stream};
use tokio::net::TcpListener;

use super::{ComfyConfig, HttpComfy};

const IDLE: Duration = Duration::from_millis(100);

/// A server below `/base` that answers everything like this.
async fn server<A, F>(answer: A) -> HttpComfy
where
    A: Fn(Request) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response> + Send,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://user:pw@{}/base/", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, Router::new().fallback(any(answer))).await });
    comfy(url)
}

fn comfy(url: String) -> HttpComfy {
    let headers = vec![("X-Key".to_owned(), "ours".to_owned())];
    HttpComfy::new(ComfyConfig { relay_idle_timeout: IDLE, headers, ..ComfyConfig::new(url) }).unwrap()
}

fn get(path: &str) -> Relay {
    let target = Target::parse(path).unwrap();
    Relay { method: Method::GET, target, query: None, headers: HeaderMap::new(), body: None }
}

fn post(body: ByteStream) -> Relay {
    Relay { method: Method::POST, body: Some(body), ..get("upload/image") }
}

async fn text(answer: Relayed) -> String {
    let chunks: Vec<Bytes> = answer.into_body().try_collect().await.unwrap();
    String::from_utf8(chunks.concat()).unwrap()
}

#[tokio::test]
async fn a_request_arrives_as_it_was_meant() {
    let comfy = server(|request: Request| async move {
        let of = |name: &str| request.headers().get(name).map_or("", |value| value.to_str().unwrap()).to_owned();
        let seen = [of("authorization"), of("x-key"), of("comfy-user"), of("content-length")].join("|");
        format!("{} {} {seen}", request.method(), request.uri()).into_response()
    })
    .await;
    let mut relay = get("api/userdata/work%20flows%2Fa%25%C3%A4.json");
    relay.query = Some("a=b%20c&d".to_owned());
    relay.headers.insert("comfy-user", HeaderValue::from_static("me"));
    relay.headers.insert("x-key", HeaderValue::from_static("theirs"));
    let answer = comfy.relay(relay).await.unwrap();
    assert_eq!(
        text(answer).await,
        "GET /base/api/userdata/work%20flows%2Fa%25%C3%A4.json?a=b%20c&d Basic dXNlcjpwdw==|ours|me|"
    );
    let mut sized = post(stream::iter([Ok(Bytes::from("abc"))]).boxed());
    sized.headers.insert(header::CONTENT_LENGTH, HeaderValue::from(3));
    assert!(text(comfy.relay(sized).await.unwrap()).await.ends_with("|3"), "the length is told when it is known");
}

#[tokio::test]
async fn a_place_on_the_same_server_is_told_below_its_root() {
    for (told, passed) in [
        ("/base/view?x=1", "/view?x=1"),
        ("next", "/models/next"),
        ("/elsewhere", "/elsewhere-untouched"),
        ("https://else.where/base/view", "https://else.where/base/view"),
    ] {
        let comfy =
            server(move |_| async move { (StatusCode::FOUND, [(header::LOCATION, told)]).into_response() }).await;
        let answer = comfy.relay(get("models/x")).await.unwrap();
        assert_eq!(answer.status(), StatusCode::FOUND, "a redirection is the client's to follow");
        // One beside the root cannot be reached through us, and stays what it was.
        let passed = passed.trim_end_matches("-untouched");
        assert_eq!(answer.headers()[header::LOCATION], passed);
    }
}

#[tokio::test]
async fn who_is_silent_is_told_apart() {
    let silent = server(|_| std::future::pending()).await;
    assert_eq!(silent.relay(get("queue")).await.err(), Some(RelayError::TimedOut));

    let reading = server(|request: Request| async move {
        let read = request.into_body().into_data_stream().try_collect::<Vec<_>>().await;
        read.map_or(StatusCode::BAD_REQUEST, |_| StatusCode::OK).into_response()
    })
    .await;
    let stalled = stream::iter([Ok(Bytes::from("abc"))]).chain(stream::pending());
    assert!(matches!(reading.relay(post(stalled.boxed())).await.err(), Some(RelayError::Body(_))));
    let broken = stream::iter([Ok(Bytes::from("abc")), Err(io::Error::other("gone"))]);
    assert_eq!(reading.relay(post(broken.boxed())).await.err(), Some(RelayError::Body("gone".to_owned())));
}

/// Each piece comes just in time, all of them together do not: only silence is limited.
#[tokio::test]
async fn a_slow_client_may_take_its_time() {
    let comfy = server(|request: Request| async move {
        let pieces: Vec<Bytes> = request.into_body().into_data_stream().try_collect().await.unwrap();
        pieces.concat().len().to_string().into_response()
    })
    .await;
    let pieces = stream::iter(0..6).then(|_| async {
        tokio::time::sleep(IDLE / 2).await;
        Ok(Bytes::from("x"))
    });
    assert_eq!(text(comfy.relay(post(pieces.boxed())).await.unwrap()).await, "6");
}

#[tokio::test]
async fn a_server_that_is_away_got_nothing() {
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let gone = comfy(format!("http://{free}"));
    assert!(matches!(gone.relay(get("queue")).await.err(), Some(RelayError::NotConnected(_))));
    assert!(matches!(gone.tunnel(get("ws"), stream::pending().boxed()).await.err(), Some(RelayError::NotConnected(_))));
    let without = server(|_| async { StatusCode::NOT_FOUND.into_response() }).await;
    let refused = without.tunnel(get("ws"), stream::pending().boxed()).await;
    assert_eq!(refused.err(), Some(RelayError::NotASocket(StatusCode::NOT_FOUND)));
}

#[tokio::test]
async fn an_answer_that_stalls_is_no_answer() {
    let comfy = server(|_| async {
        let first = stream::iter([Ok::<_, io::Error>(Bytes::from("abc"))]);
        Body::from_stream(first.chain(stream::pending())).into_response()
    })
    .await;
    let answer = comfy.relay(get("view")).await.unwrap();
    let end = answer.into_body().try_collect::<Vec<_>>().await;
    assert_eq!(end.map_err(|error| error.kind()), Err(io::ErrorKind::TimedOut));
}
