//! A client's WebSocket when its two ends do not keep pace.

use std::time::Duration;

use axum::http::StatusCode;
use bytes::Bytes;
use comfyd_actors::{board::PhaseName, domain::id::BackendId, ports::passthrough::Message};
use futures_util::{StreamExt, stream};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::mpsc,
};

use super::fakes::{App, FakeComfy};

/// A service whose one backend's WebSocket says what is sent here, and the address it listens on.
async fn service() -> (mpsc::Sender<Message>, std::net::SocketAddr) {
    let (say, mut said) = mpsc::channel(1);
    let from_server = stream::poll_fn(move |context| said.poll_recv(context)).map(Ok).boxed();
    let app = App::with(|_| {}, vec![FakeComfy::with_tunnel("http://a", from_server)]).await;
    app.world.board.update_backend(&BackendId::new("http://a"), |status| status.phase = PhaseName::Online);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, app.router).await });
    (say, address)
}

/// A WebSocket as bytes, so that nothing is read unless a test reads it.
async fn open(address: std::net::SocketAddr) -> TcpStream {
    let mut client = TcpStream::connect(address).await.unwrap();
    let request = "GET /api/comfyui/ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                   Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    client.write_all(request.as_bytes()).await.unwrap();
    let mut answer = [0; 12];
    client.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 101");
    client
}

#[tokio::test]
async fn a_client_that_does_not_read_holds_nobody_up_and_is_sent_away() {
    let (say, address) = service().await;
    let mut client = open(address).await;
    let picture = Message::Binary(Bytes::from(vec![7; 1 << 20]));
    let talk = async {
        let mut taken = 0;
        // The server's end is read without pause until it is given up: that ends the loop.
        while say.send(picture.clone()).await.is_ok() {
            taken += 1;
        }
        taken
    };
    let taken = tokio::time::timeout(Duration::from_secs(30), talk).await.expect("the server is held up");
    // What the system's buffers hold comes on top of our own limit.
    assert!((8..64).contains(&taken), "{taken} MiB were taken");
    // What was kept is still delivered, and then the reason.
    let mut rest = Vec::new();
    client.read_to_end(&mut rest).await.unwrap();
    let end = String::from_utf8_lossy(&rest[rest.len().saturating_sub(125)..]).into_owned();
    assert!(end.contains("you read too slowly"), "{end}");
}

#[tokio::test]
async fn a_message_larger_than_the_limit_passes_when_nothing_waits() {
    let (say, address) = service().await;
    let mut client = open(address).await;
    let length = 20 << 20;
    say.send(Message::Binary(Bytes::from(vec![7; length]))).await.unwrap();
    say.send(Message::Close(Some((1000, "done".to_owned())))).await.unwrap();
    let mut rest = Vec::new();
    tokio::time::timeout(Duration::from_secs(30), client.read_to_end(&mut rest)).await.unwrap().unwrap();
    assert!(rest.len() > length && rest.ends_with(b"done"), "{}", rest.len());
}

#[tokio::test]
async fn without_a_server_there_is_no_upgrade() {
    let app = App::with(|_| {}, vec![FakeComfy::up("http://a")]).await;
    let upgrade = [("connection", "upgrade"), ("upgrade", "websocket"), ("sec-websocket-version", "13")];
    let answer = app.get_with("/api/comfyui/ws", &upgrade).await;
    assert_eq!(
        (answer.status, &answer.json()["code"]),
        (StatusCode::SERVICE_UNAVAILABLE, &"comfyui_unavailable".into())
    );
}
