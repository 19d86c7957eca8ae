//! What honest clients notice of 2,000 slow ones: the time of a status read while as many sockets, from another address of this machine,
//! send the head of a request a byte at a time, and come again at once when they are sent away.
//!
//! Twice: with the default settings, under which most of them make room for each other again and again, and with limits that let all of
//! them stay. The honest client asks over one kept connection and over a fresh one each time.
#![expect(clippy::expect_used, reason = "a benchmark that cannot measure says so and ends")]

mod common;

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use common::{Fake, ROUNDS, Report, Service, client, folder, graph, megabytes, millis, quantile, timed};
use reqwest::Client;
use tokio::{
    io::AsyncWriteExt,
    net::TcpSocket,
    task::JoinSet,
    time::{sleep, timeout},
};

const SOCKETS: usize = 2_000;
const SLOW: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));
/// Between two bytes, and before another try.
const PAUSE: Duration = Duration::from_secs(1);
/// Sent again and again: no end of the head is in it.
const HEAD: &[u8] = b"GET /api/status HTTP/1.1\r\nHost: comfyd\r\nX-Slow: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
/// Reads in each round, and the pause between them: as a page does that shows a status.
const READS: usize = 500;
const BETWEEN: Duration = Duration::from_millis(5);
/// All of them as they are, and room for all of them.
const ROOMY: &[(&str, &str)] =
    &[("COMFYD_CONNECTIONS__MAX_UNFINISHED", "8000"), ("COMFYD_CONNECTIONS__MAX_UNFINISHED_PER_ADDRESS", "8000")];

fn main() {
    common::run(hostile());
}

async fn hostile() -> Report {
    let mut report = Report::default();
    for (name, settings) in [("default limits", [].as_slice()), ("room for all", ROOMY)] {
        measure(&mut report, name, settings).await;
    }
    report
}

async fn measure(report: &mut Report, name: &str, settings: &[(&str, &str)]) {
    let (fake, folder) = (Fake::start(), folder());
    let service = Service::start_with(folder.path(), &fake.url, settings).await;
    service.online().await;
    service.run(&graph(1)).await;
    let fresh = Client::builder().no_proxy().pool_max_idle_per_host(0).build().expect("an HTTP client");
    let url = format!("{}/api/status", service.url);
    let calm = quantile(&reads(&client(), &url).await, 0.99);
    let before = service.memory();

    let slow = Slow::start(address(&service.url));
    slow.all_at_it().await;
    let (mut kept_open, mut connecting) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        kept_open.push(millis(quantile(&reads(&client(), &url).await, 0.99)));
        connecting.push(millis(quantile(&reads(&fresh, &url).await, 0.99)));
    }
    // Work goes on as well.
    let (took, ()) = timed(service.run(&graph(2))).await;
    report.note(format!(
        "{name}: calm p99 {:.2} ms; {} connections began, {} stay; {:.1} MB more memory; a task took {:.0} ms",
        millis(calm),
        slow.begun.load(Ordering::Relaxed),
        slow.open.load(Ordering::Relaxed),
        megabytes(service.memory().saturating_sub(before)),
        millis(took),
    ));
    report.at_most(format!("{name}: p99 of a status read"), "ms", &kept_open, 50.0);
    report.at_most(format!("{name}: p99 on a fresh connection"), "ms", &connecting, 50.0);
}

fn address(url: &str) -> SocketAddr {
    url.trim_start_matches("http://").parse().expect("an address")
}

async fn reads(http: &Client, url: &str) -> Vec<Duration> {
    let mut times = Vec::new();
    for _ in 0..READS {
        let read = async { http.get(url).send().await?.error_for_status()?.bytes().await };
        let (took, read) = timed(read).await;
        read.expect("a status");
        times.push(took);
        sleep(BETWEEN).await;
    }
    times
}

/// The slow clients, until it is dropped.
struct Slow {
    begun: Arc<AtomicUsize>,
    open: Arc<AtomicUsize>,
    _sockets: JoinSet<()>,
}

impl Slow {
    fn start(at: SocketAddr) -> Self {
        let (begun, open, mut sockets) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default(), JoinSet::new());
        for number in 0..SOCKETS {
            let (begun, open) = (begun.clone(), open.clone());
            sockets.spawn(async move {
                // Spread over the pause, as real ones are.
                sleep(PAUSE * u32::try_from(number).unwrap_or(0) / u32::try_from(SOCKETS).unwrap_or(1)).await;
                loop {
                    // Sent away or out of descriptors: it comes again.
                    let _ = dawdle(at, &begun, &open).await;
                    sleep(PAUSE).await;
                }
            });
        }
        Self { begun, open, _sockets: sockets }
    }

    async fn all_at_it(&self) {
        let begun = async {
            while self.begun.load(Ordering::Relaxed) < SOCKETS {
                sleep(PAUSE / 10).await;
            }
        };
        timeout(common::PATIENCE, begun).await.expect("all of them connect");
    }
}

async fn dawdle(at: SocketAddr, begun: &AtomicUsize, open: &AtomicUsize) -> std::io::Result<()> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::new(SLOW, 0))?;
    let mut stream = socket.connect(at).await?;
    begun.fetch_add(1, Ordering::Relaxed);
    open.fetch_add(1, Ordering::Relaxed);
    let mut sent = Ok(());
    for byte in HEAD.iter().cycle() {
        sent = stream.write_all(&[*byte]).await;
        if sent.is_err() {
            break;
        }
        sleep(PAUSE).await;
    }
    open.fetch_sub(1, Ordering::Relaxed);
    sent
}
