//! Clients over bare sockets. A limit is waited for by reading until the connection ends; nothing here measures how long that takes.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use reqwest::StatusCode;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    time::timeout,
};

use crate::{
    place::Place,
    support::{Builder, PATIENCE, World, task, world},
};

/// Another address of this machine.
const ELSEWHERE: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));
const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// Without a ComfyUI: clients are met before anything is asked of one.
fn limits(settings: &[(&str, &str)]) -> Builder {
    settings.iter().fold(world(), |world, (name, value)| world.with(&format!("COMFYD_CONNECTIONS__{name}"), value))
}

struct Client(TcpStream);

impl Client {
    async fn connect(world: &World, from: IpAddr) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(SocketAddr::new(from, 0)).unwrap();
        Self(socket.connect(world.app.address()).await.unwrap())
    }

    /// One that begins a request and leaves it at that.
    async fn dawdling(world: &World, from: IpAddr) -> Self {
        let mut client = Self::connect(world, from).await;
        client.send("GET /livez HTTP/1.1\r\nhost: x\r\nx-slow: ").await;
        client
    }

    async fn send(&mut self, text: &str) {
        self.0.write_all(text.as_bytes()).await.unwrap();
    }

    /// One whole answer that says its length, on a connection that goes on.
    async fn answer(&mut self) -> String {
        let mut text = Vec::new();
        let whole = |text: &[u8]| {
            let text = String::from_utf8_lossy(text);
            let (head, body) = text.split_once("\r\n\r\n")?;
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: "))?;
            (body.len() >= length.parse().unwrap()).then(|| text.into_owned())
        };
        loop {
            if let Some(answer) = whole(&text) {
                return answer;
            }
            let read = timeout(PATIENCE, self.0.read_buf(&mut text)).await.expect("no answer").unwrap();
            assert!(read > 0, "it ended after {:?}", String::from_utf8_lossy(&text));
        }
    }

    /// Everything until the connection is ended by the other side.
    async fn rest(&mut self) -> String {
        let mut text = Vec::new();
        // A reset is an end as well; what came before it is kept.
        let _ = timeout(PATIENCE, self.0.read_to_end(&mut text)).await.expect("the connection is kept");
        String::from_utf8_lossy(&text).into_owned()
    }

    async fn is_served(&mut self) {
        self.send("GET /livez HTTP/1.1\r\nhost: x\r\n\r\n").await;
        let answer = self.answer().await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_that_does_not_end_is_answered_and_cut_off() {
    let world = limits(&[("HEADER_TIMEOUT", "300ms")]).start().await;
    let mut slow = Client::dawdling(&world, HERE).await;
    let answer = slow.rest().await;
    assert!(answer.starts_with("HTTP/1.1 408 ") && answer.contains("application/problem+json"), "{answer}");
    assert!(answer.contains("connections.header_timeout"), "{answer}");
    // The second request of a connection has no more time than the first; one that never began is not told anything.
    let mut second = Client::connect(&world, HERE).await;
    second.is_served().await;
    second.send("GET /livez HTTP/1.1\r\nx-slow: ").await;
    assert!(second.rest().await.starts_with("HTTP/1.1 408 "));
    assert_eq!(Client::connect(&world, HERE).await.rest().await, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_may_take_longer_than_a_head_and_an_idle_connection_has_its_own_time() {
    let world = limits(&[("HEADER_TIMEOUT", "300ms"), ("IDLE_TIMEOUT", "300ms")]).start().await;
    world.fake().pause_execution();
    let id = world.create(&task(1)).await;
    let mut waiting = Client::connect(&world, HERE).await;
    waiting.send(&format!("GET /api/tasks/{id} HTTP/1.1\r\nhost: x\r\nprefer: wait=1\r\n\r\n")).await;
    let answer = waiting.answer().await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert_eq!(waiting.rest().await, "", "nobody asked for anything any more");
    world.fake().resume();
    world.completed(&id).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_stops_is_answered_with_its_own_problem() {
    let world = limits(&[("BODY_TIMEOUT", "300ms")]).start().await;
    for path in ["/api/tasks/create", "/api/inputs"] {
        let mut slow = Client::connect(&world, HERE).await;
        let kind = if path.ends_with("inputs") { "image/png" } else { "application/json" };
        slow.send(&format!("POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: {kind}\r\ncontent-length: 99\r\n\r\n{{"))
            .await;
        let answer = slow.rest().await;
        assert!(answer.starts_with("HTTP/1.1 408 ") && answer.contains("\"body_timeout\""), "{path}: {answer}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_clients_push_out_each_other_and_nobody_else() {
    let world = limits(&[("MAX_UNFINISHED_PER_ADDRESS", "20"), ("MAX_UNFINISHED", "30")]).start().await;
    let mut slow = Vec::new();
    for _ in 0..100 {
        slow.push(Client::dawdling(&world, ELSEWHERE).await);
    }
    // The oldest have gone, each with its reason; the newest are still waited for.
    for gone in &mut slow[..80] {
        assert!(gone.rest().await.starts_with("HTTP/1.1 408 "));
    }
    let mut honest = Client::connect(&world, ELSEWHERE).await;
    honest.is_served().await;
    let mut others = Client::connect(&world, HERE).await;
    others.is_served().await;
    let newest = slow.last_mut().unwrap();
    newest.send("x\r\n\r\n").await;
    assert!(newest.answer().await.starts_with("HTTP/1.1 200"), "one that ends its request in time is served");
    let id = world.create(&task(1)).await;
    world.completed(&id).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_work_are_kept_and_one_too_many_is_told() {
    let world = limits(&[("MAX_PER_ADDRESS", "3")]).start().await;
    let mut watching = Vec::new();
    for _ in 0..3 {
        let mut watcher = Client::connect(&world, ELSEWHERE).await;
        watcher.send("GET /api/events HTTP/1.1\r\nhost: x\r\n\r\n").await;
        let mut first = [0; 12];
        watcher.0.read_exact(&mut first).await.unwrap();
        assert_eq!(&first, b"HTTP/1.1 200");
        watching.push(watcher);
    }
    let refused = Client::connect(&world, ELSEWHERE).await.rest().await;
    assert!(refused.starts_with("HTTP/1.1 503 ") && refused.contains("retry-after: 1"), "{refused}");
    assert!(refused.contains("connections.max_per_address"), "{refused}");
    Client::connect(&world, HERE).await.is_served().await;
    drop(watching);
    // Their end is noticed when it is.
    let served = async {
        loop {
            let mut again = Client::connect(&world, ELSEWHERE).await;
            let sent = again.0.write_all(b"GET /livez HTTP/1.1\r\nconnection: close\r\nhost: x\r\n\r\n").await;
            if sent.is_ok() && again.rest().await.starts_with("HTTP/1.1 200") {
                return;
            }
        }
    };
    timeout(PATIENCE, served).await.expect("their places are not given back");
}

#[tokio::test(flavor = "multi_thread")]
async fn heads_beyond_measure_are_refused() {
    let world = world().start().await;
    let long = "x".repeat(70 << 10);
    let many: String = (0..200).map(|n| format!("x-{n}: y\r\n")).collect();
    for head in [
        format!("GET /livez HTTP/1.1\r\nhost: x\r\nx-long: {long}\r\n\r\n"),
        format!("GET /livez?{long} HTTP/1.1\r\nhost: x\r\n\r\n"),
        format!("GET /livez HTTP/1.1\r\nhost: x\r\n{many}\r\n"),
        "GET /livez HTTP/1.1\r\nhost: x\r\nbad header\r\n\r\n".to_owned(),
        "GET /livez HTTP/1.1\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n".to_owned(),
        "POST /api/tasks/create HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nffffffffffffffffff\r\n".to_owned(),
    ] {
        let mut client = Client::connect(&world, HERE).await;
        // It may be refused before it is sent.
        let _ = client.0.write_all(head.as_bytes()).await;
        let answer = client.rest().await;
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{head:.60}: {answer}");
    }
    Client::connect(&world, HERE).await.is_served().await;
}

/// Bodies that are small on the way and would be large here (semantics 7, API4).
#[tokio::test(flavor = "multi_thread")]
async fn bodies_that_would_grow_are_refused_and_cost_little_memory() {
    let place = Place::new().await;
    let process = place.start().await;
    let warm = place.create(1).await;
    place.end(&warm, 1).await;
    let before = process.peak_memory();
    let mb = 1 << 20;
    let zeros = format!("{{\"workflow\": [{}0]}}", "0,".repeat(15 * mb));
    let deep = format!("{{\"workflow\": {}{}}}", "[".repeat(4 * mb), "]".repeat(4 * mb));
    let objects = format!("{{\"workflow\": {}1{}}}", "{\"a\":".repeat(mb), "}".repeat(mb));
    let wide =
        format!("{{\"metadata\": {{{}\"z\": 1}}}}", (0..500_000).map(|n| format!("\"{n}\":0,")).collect::<String>());
    for (body, statuses) in [(zeros, [422, 422]), (deep, [422, 400]), (objects, [422, 400]), (wide, [422, 422])] {
        let request =
            place.api.client.post(place.api.url("/api/tasks/create")).header("content-type", "application/json");
        let answer = request.body(body).send().await.unwrap();
        let status = answer.status().as_u16();
        let problem: Value = answer.json().await.unwrap();
        assert!(statuses.contains(&status), "{status}: {problem}");
    }
    let large = place.api.client.post(place.api.url("/api/tasks/create")).header("content-type", "application/json");
    if let Ok(answer) = large.body(vec![b' '; 40 * mb]).send().await {
        assert_eq!(answer.status(), StatusCode::PAYLOAD_TOO_LARGE);
    }
    // A part whose head never ends.
    let form =
        place.api.client.post(place.api.url("/api/inputs")).header("content-type", "multipart/form-data; boundary=x");
    let mut endless = b"--x\r\nContent-Disposition: form-data; name=\"".to_vec();
    endless.resize(100 * mb, b'a');
    if let Ok(answer) = form.body(endless).send().await {
        assert_eq!(answer.status(), StatusCode::BAD_REQUEST);
    }
    let grown = process.peak_memory().saturating_sub(before);
    println!("bombs cost {} MiB at the most", grown >> 20);
    assert!(grown < 128 << 20, "{} MiB", grown >> 20);
    assert_eq!(place.api.get("/api/status").await["queue"]["pending"], json!(0));
}
