//! The WebSocket against servers that close, fall silent or misbehave.

use std::time::Duration;

use comfyd_actors::{
    domain::{id::ClientId, prompt::Signal},
    ports::comfy::{ComfyError, ComfyTransport, Signals},
};
use futures_util::{SinkExt, StreamExt};
use tokio::{
    io::AsyncReadExt,
    net::{TcpListener, TcpStream},
    time::timeout,
};
use tokio_tungstenite::{
    WebSocketStream, accept_hdr_async,
    tungstenite::{
        Message,
        handshake::server::{ErrorResponse, Request, Response},
    },
};

use super::{ComfyConfig, HttpComfy};

const INTERVAL: Duration = Duration::from_millis(60);
const STATUS: &str = r#"{"type": "status", "data": {"status": {"exec_info": {"queue_remaining": 2}}}}"#;

/// A client of `listener` and the server's end of its connection.
async fn pair() -> (Signals, WebSocketStream<TcpStream>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://user:pw@{}/base/", listener.local_addr().unwrap());
    let comfy = HttpComfy::new(ComfyConfig { ping_interval: INTERVAL, ..ComfyConfig::new(url) }).unwrap();
    let server = tokio::spawn(async move {
        #[expect(clippy::result_large_err, reason = "the callback's type is the library's")]
        let check = |request: &Request, response: Response| -> Result<Response, ErrorResponse> {
            assert_eq!(request.uri(), "/base/ws?clientId=me%26you");
            assert_eq!(request.headers()["authorization"], "Basic dXNlcjpwdw==");
            Ok(response)
        };
        accept_hdr_async(listener.accept().await.unwrap().0, check).await.unwrap()
    });
    let signals = comfy.connect(&ClientId::new("me&you")).await.unwrap();
    let mut server = server.await.unwrap();
    let first = server.next().await.unwrap().unwrap();
    assert_eq!(first, Message::text(r#"{"type":"feature_flags","data":{"supports_preview_metadata":true}}"#));
    (signals, server)
}

async fn end(mut signals: Signals) -> String {
    let Some(Err(ComfyError::Unavailable(why))) = timeout(Duration::from_secs(5), signals.next()).await.unwrap() else {
        panic!("not an end")
    };
    assert!(signals.next().await.is_none(), "the reason is the last item");
    why
}

#[tokio::test]
async fn frames_become_signals_until_the_server_closes() {
    let (mut signals, mut server) = pair().await;
    server.send(Message::text(STATUS)).await.unwrap();
    server.send(Message::binary(&b"\0\0\0\x01\0\0\0\x02png"[..])).await.unwrap();
    server.send(Message::text("garbage")).await.unwrap();
    server.close(None).await.unwrap();
    assert_eq!(signals.next().await, Some(Ok(Signal::Status { queue_remaining: 2, sid: None })));
    assert!(matches!(signals.next().await, Some(Ok(Signal::Preview { .. }))));
    assert_eq!(signals.next().await, Some(Ok(Signal::Other)));
    assert!(end(signals).await.contains("closed"));
}

#[tokio::test]
async fn pongs_alone_keep_a_quiet_connection() {
    let (mut signals, mut server) = pair().await;
    // Polling is what answers pings.
    tokio::spawn(async move { while let Some(Ok(_)) = server.next().await {} });
    assert!(timeout(INTERVAL * 6, signals.next()).await.is_err(), "it must still be open");
}

#[tokio::test]
async fn a_server_that_answers_no_ping_is_given_up() {
    let (signals, _server) = pair().await;
    assert!(end(signals).await.contains("silent"));
}

#[tokio::test]
async fn a_cut_connection_says_so() {
    let (signals, server) = pair().await;
    drop(server);
    assert!(end(signals).await.contains("failed"));
}

#[tokio::test]
async fn a_handshake_that_is_refused_or_garbled_fails() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let comfy = HttpComfy::new(ComfyConfig::new(format!("http://{}", listener.local_addr().unwrap()))).unwrap();
    tokio::spawn(async move {
        for answer in ["HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n", "garbage\r\n\r\n", ""] {
            let (mut socket, _) = listener.accept().await.unwrap();
            let _ = socket.read(&mut [0; 4096]).await;
            let _ = tokio::io::AsyncWriteExt::write_all(&mut socket, answer.as_bytes()).await;
        }
    });
    let mut reasons = Vec::new();
    for _ in 0..4 {
        let Err(ComfyError::Unavailable(why)) = comfy.connect(&ClientId::new("t")).await else { panic!("connected") };
        reasons.push(why);
    }
    assert!(reasons[0].contains("403"), "{reasons:?}");
}

#[tokio::test(start_paused = true)]
async fn a_handshake_without_an_answer_ends_in_time() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let comfy = HttpComfy::new(ComfyConfig::new(format!("http://{}", listener.local_addr().unwrap()))).unwrap();
    let started = tokio::time::Instant::now();
    assert!(comfy.connect(&ClientId::new("t")).await.is_err());
    assert!(started.elapsed() <= Duration::from_secs(11));
}
