use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use async_trait::async_trait;
use axum::{
    Router,
    extract::{Request, State},
    http::StatusCode,
    response::{IntoResponse, Response as Answer},
};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::config::{Sources, read};

const LIMIT: Duration = Duration::from_secs(5);

/// Where all that must not be reached would arrive, were it let through: every address of this machine, in both families.
struct Trap {
    listener: TcpListener,
    port: u16,
}

impl Trap {
    async fn set() -> Self {
        match TcpListener::bind("[::]:0").await {
            Ok(listener) => Self::of(listener),
            Err(_) => Self::of(TcpListener::bind("0.0.0.0:0").await.unwrap()),
        }
    }

    fn of(listener: TcpListener) -> Self {
        let port = listener.local_addr().unwrap().port();
        Self { listener, port }
    }

    /// Connections are taken in the order they came: when ours is the first, there was none before.
    async fn is_untouched(&self) -> bool {
        let ours = TcpStream::connect(("127.0.0.1", self.port)).await.unwrap();
        let (_, first) = self.listener.accept().await.unwrap();
        let ours = ours.local_addr().unwrap();
        (first.ip().to_canonical(), first.port()) == (ours.ip(), ours.port())
    }
}

/// Answers what the name says, in turn: `127-0-0-1.10-0-0-1.dns` is the first at first and the second from then on.
#[derive(Default)]
struct SpokenNames(AtomicUsize);

#[async_trait]
impl Names for SpokenNames {
    async fn lookup(&self, name: &str) -> io::Result<Vec<IpAddr>> {
        let asked = self.0.fetch_add(1, Ordering::SeqCst);
        let spoken: Vec<&str> = name.trim_end_matches(".dns").split('.').collect();
        let now = spoken[asked.min(spoken.len() - 1)];
        let together = now.split("-and-").map(|one| {
            let v4 = one.replace('-', ".").parse();
            v4.or_else(|_| one.replace('-', ":").parse()).unwrap_or(IpAddr::from([127, 0, 0, 1]))
        });
        Ok(together.collect())
    }
}

fn outbound(pairs: &[(&str, &str)]) -> (Outbound, Arc<SpokenNames>) {
    let common = [("COMFYD_OUTBOUND__HTTP", "true"), ("COMFYD_OUTBOUND__PORTS", " ,")];
    let env = common.iter().chain(pairs).map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let loaded = read(Sources { env, ..Sources::default() });
    assert_eq!(loaded.faults, []);
    let names = Arc::new(SpokenNames::default());
    (Outbound::with_names(&loaded.config.outbound, names.clone()).unwrap(), names)
}

/// Each leads to this machine, to its network, or to what only it can reach; `PORT` stands for the trap's.
const HOSTILE: &[&str] = &[
    // Loopback in every notation.
    "http://127.0.0.1:PORT/",
    "http://127.0.0.2:PORT/",
    "http://127.1:PORT/",
    "http://127.0.1:PORT/",
    "http://127.255.255.254:PORT/",
    "http://2130706433:PORT/",
    "http://0x7f000001:PORT/",
    "http://0x7f.0x0.0x0.0x1:PORT/",
    "http://0x7f.1:PORT/",
    "http://0177.0.0.1:PORT/",
    "http://0177.1:PORT/",
    "http://017700000001:PORT/",
    "http://00000177.0.0.01:PORT/",
    "http://127.0.0x1:PORT/",
    "http://127.0.0.1.:PORT/",
    "http://127.0.0.1..:PORT/",
    "http://0.0.0.0:PORT/",
    "http://0:PORT/",
    "http://0.0:PORT/",
    "http://0x0:PORT/",
    "http://0.1.2.3:PORT/",
    "http://①②⑦.⓪.⓪.①:PORT/",
    "http://127。0。0。1:PORT/",
    "http://127.0.0.1:PORT/",
    "http://%31%32%37.0.0.1:PORT/",
    "http://127%2e0%2e0%2e1:PORT/",
    "http://localhost:PORT/",
    "http://LOCALHOST:PORT/",
    "http://localhost.:PORT/",
    "http://localhoſt:PORT/",
    "http://ⓛⓞⓒⓐⓛⓗⓞⓢⓣ:PORT/",
    "http://a.localhost:PORT/",
    "http://localhost.localdomain:PORT/",
    "http://ip6-localhost:PORT/",
    "http://[::1]:PORT/",
    "http://[0:0:0:0:0:0:0:1]:PORT/",
    "http://[0000::0001]:PORT/",
    "http://[::]:PORT/",
    "http://[::ffff:127.0.0.1]:PORT/",
    "http://[::ffff:7f00:1]:PORT/",
    "http://[0:0:0:0:0:ffff:127.0.0.1]:PORT/",
    "http://[::127.0.0.1]:PORT/",
    "http://[::ffff:0:127.0.0.1]:PORT/",
    "http://[::1%25lo]:PORT/",
    "http://[::1%lo]:PORT/",
    // Translated and tunnelled forms of it.
    "http://[64:ff9b::127.0.0.1]:PORT/",
    "http://[64:ff9b::7f00:1]:PORT/",
    "http://[64:ff9b:1::7f00:1]:PORT/",
    "http://[2002:7f00:1::1]:PORT/",
    "http://[2002:a9fe:a9fe::1]:PORT/",
    "http://[2001:0:7f00:1::1]:PORT/",
    "http://[2001::ffff:ffff:80ff:fffe]:PORT/",
    // Metadata services.
    "http://169.254.169.254/latest/meta-data/iam/security-credentials/",
    "http://169.254.169.254:PORT/",
    "http://2852039166/latest/meta-data/",
    "http://0xa9fea9fe/",
    "http://0251.0376.0251.0376/",
    "http://169.254.43518/",
    "http://169.16689662/",
    "http://[::ffff:169.254.169.254]/",
    "http://[::ffff:a9fe:a9fe]/",
    "http://[64:ff9b::a9fe:a9fe]/",
    "http://[fd00:ec2::254]/latest/meta-data/",
    "http://[fe80::a9fe:a9fe]/",
    "http://169.254.170.2/v2/credentials",
    "http://169.254.170.23/v1/credentials",
    "http://metadata.google.internal/computeMetadata/v1/",
    "http://metadata/computeMetadata/v1/",
    "http://instance-data.ec2.internal/latest/",
    "http://100.100.100.200/latest/meta-data/",
    "http://192.0.0.192/latest/",
    "http://168.63.129.16/metadata/instance",
    // Private and special networks.
    "http://10.0.0.1:PORT/",
    "http://10.255.255.255:PORT/",
    "http://0xa000001/",
    "http://012.0.0.1/",
    "http://172.16.0.1:PORT/",
    "http://172.31.255.254:PORT/",
    "http://192.168.0.1:PORT/",
    "http://192.168.1:PORT/",
    "http://3232235777/",
    "http://100.64.0.1:PORT/",
    "http://100.127.255.254:PORT/",
    "http://198.18.0.1:PORT/",
    "http://198.19.255.254:PORT/",
    "http://192.0.2.1:PORT/",
    "http://198.51.100.7:PORT/",
    "http://203.0.113.7:PORT/",
    "http://192.88.99.1:PORT/",
    "http://224.0.0.1:PORT/",
    "http://239.255.255.250:1900/",
    "http://240.0.0.1:PORT/",
    "http://255.255.255.255:PORT/",
    "http://[fc00::1]:PORT/",
    "http://[fd12:3456:789a::1]:PORT/",
    "http://[fe80::1]:PORT/",
    "http://[fe80::1%25eth0]:PORT/",
    "http://[fec0::1]:PORT/",
    "http://[ff02::1]:PORT/",
    "http://[2001:db8::1]:PORT/",
    "http://[3fff::1]:PORT/",
    "http://[100::1]:PORT/",
    "http://[5f00::1]:PORT/",
    "http://[::10.0.0.1]:PORT/",
    "http://router:PORT/",
    "http://printer.local:PORT/",
    "http://nas.lan:PORT/",
    "http://wiki.intranet:PORT/",
    "http://db.home.arpa:PORT/",
    "http://kubernetes.default.svc.cluster.local/",
    // Names that mean such addresses, one of them among others, or only the second time.
    "http://127-0-0-1.dns:PORT/",
    "https://127-0-0-1.dns:PORT/",
    "http://10-0-0-1.dns:PORT/",
    "http://169-254-169-254.dns/",
    "http://--1.dns:PORT/",
    "http://--ffff-7f00-1.dns:PORT/",
    "http://fe80--1.dns:PORT/",
    "http://64-ff9b--7f00-1.dns:PORT/",
    "http://0-0-0-0.dns:PORT/",
    "http://127-0-0-1-and-10-0-0-1.dns:PORT/",
    "http://127-0-0-1.127-0-0-2.dns:PORT/",
    // What parsers disagree about.
    "http://example.org@127.0.0.1:PORT/",
    "http://example.org:80@127.0.0.1:PORT/",
    "http://127.0.0.1:PORT\\@example.org/",
    "http://example.org\\@127.0.0.1:PORT/",
    "http://127.0.0.1:PORT#@example.org/",
    "http://127.0.0.1:PORT?@example.org/",
    "http://user:pw@127.0.0.1:PORT/",
    "http:127.0.0.1:PORT/",
    "http:/127.0.0.1:PORT/",
    "http:////127.0.0.1:PORT/",
    "http:\\\\127.0.0.1:PORT/",
    "http://127.0.0.1:PORT/\r\nHost: example.org",
    "http://127.0.\t0.1:PORT/",
    " http://127.0.0.1:PORT/",
    "HTTP://127.0.0.1:PORT/",
    "http://[::1]@127.0.0.1:PORT/",
    "http://127.0.0.1:00000PORT/",
    "//127.0.0.1:PORT/",
    "127.0.0.1:PORT/",
    "http://",
    "http:///",
    "http://:PORT/",
    "http://.:PORT/",
    // What is not HTTP.
    "file:///etc/passwd",
    "file://localhost/etc/passwd",
    "FILE:///etc/passwd",
    "ftp://127.0.0.1:PORT/",
    "gopher://127.0.0.1:PORT/_GET",
    "dict://127.0.0.1:PORT/info",
    "ldap://127.0.0.1:PORT/",
    "sftp://127.0.0.1:PORT/",
    "ws://127.0.0.1:PORT/",
    "jar:http://127.0.0.1:PORT/!/",
    "view-source:http://127.0.0.1:PORT/",
    "javascript:fetch('http://127.0.0.1:PORT/')",
    "unix:/var/run/docker.sock",
    "http+unix://%2Fvar%2Frun%2Fdocker.sock/info",
];

#[tokio::test]
async fn no_hostile_url_is_connected_to() {
    let trap = Trap::set().await;
    assert!(HOSTILE.len() >= 100);
    let mut reached = Vec::new();
    for hostile in HOSTILE {
        let (outbound, _) = outbound(&[]);
        let url = hostile.replace("PORT", &trap.port.to_string());
        let Ok(target) = outbound.read(&url) else { continue };
        match outbound.get(&target, 3, LIMIT).await {
            Err(DialError::Refused(_)) => {}
            other => reached.push(format!("{hostile}: {other:?}")),
        }
    }
    assert!(reached.is_empty(), "{reached:#?}");
    assert!(trap.is_untouched().await, "something was connected to");
}

/// What an honest host saw.
#[derive(Clone, Default)]
struct Seen(Arc<Mutex<Vec<Visit>>>);

/// The host that was meant, and the login that came along.
type Visit = (String, Option<String>);

/// A host at the one address that is allowed. `/?<URL>` redirects there.
async fn host(address: [u8; 4]) -> (SocketAddr, Seen) {
    async fn answer(State(seen): State<Seen>, request: Request) -> Answer {
        let header = |name: &str| request.headers().get(name).map(|value| value.to_str().unwrap().to_owned());
        seen.0.lock().unwrap().push((header("host").unwrap_or_default(), header("authorization")));
        match request.uri().query() {
            Some(location) => (StatusCode::FOUND, [(LOCATION, location.to_owned())]).into_response(),
            None => "here".into_response(),
        }
    }
    let seen = Seen::default();
    let listener = TcpListener::bind(SocketAddr::from((address, 0))).await.unwrap();
    let bound = listener.local_addr().unwrap();
    tokio::spawn(axum::serve(listener, Router::new().fallback(answer).with_state(seen.clone())).into_future());
    (bound, seen)
}

const ALLOWED: (&str, &str) = ("OUTBOUND_ALLOW_PRIVATE", "127.0.0.2");

#[tokio::test]
async fn a_redirect_is_checked_like_any_url() {
    let (trap, (host, seen)) = (Trap::set().await, host([127, 0, 0, 2]).await);
    let port = trap.port;
    for location in [
        format!("http://127.0.0.1:{port}/"),
        format!("//127.0.0.1:{port}/"),
        format!("http://[::1]:{port}/"),
        format!("http://[::ffff:7f00:1]:{port}/"),
        format!("http://2130706433:{port}/"),
        format!("http://127-0-0-1.dns:{port}/"),
        format!("http://u:p@127.0.0.2:{port}/"),
        "http://169.254.169.254/".to_owned(),
        "file:///etc/passwd".to_owned(),
        "gopher://127.0.0.1/".to_owned(),
    ] {
        let (outbound, _) = outbound(&[ALLOWED]);
        let target = outbound.read(&format!("http://{host}/?{location}")).unwrap();
        let end = outbound.get(&target, 3, LIMIT).await;
        assert!(matches!(end, Err(DialError::Refused(_))), "{location}: {end:?}");
    }
    assert_eq!(seen.0.lock().unwrap().len(), 10, "each was asked for once");
    assert!(trap.is_untouched().await);
}

#[tokio::test]
async fn so_many_redirects_are_followed_and_none_of_a_post() {
    let (host, seen) = host([127, 0, 0, 2]).await;
    let (outbound, _) = outbound(&[ALLOWED]);
    let chain = |hops: usize| format!("http://{host}/{}", format!("?http://{host}/").repeat(hops));
    let get = |hops| {
        let target = outbound.read(&chain(hops)).unwrap();
        let outbound = outbound.clone();
        async move { outbound.get(&target, 3, LIMIT).await }
    };
    assert_eq!(get(3).await.unwrap().text().await.unwrap(), "here");
    assert_eq!(get(4).await.unwrap_err(), DialError::TooManyRedirects(3));
    let before = seen.0.lock().unwrap().len();
    let target = outbound.read(&chain(1)).unwrap();
    let answer = outbound.post(&target, HeaderMap::new(), "x", LIMIT).await.unwrap();
    assert_eq!(answer.status(), StatusCode::FOUND);
    assert_eq!(seen.0.lock().unwrap().len(), before + 1);
}

#[tokio::test]
async fn what_was_checked_is_what_is_connected_to() {
    let (host, _) = host([127, 0, 0, 2]).await;
    let (outbound, names) = outbound(&[ALLOWED]);
    let read = |name: &str| outbound.read(&format!("http://{name}:{}/", host.port())).unwrap();
    // Allowed when it is asked for, and this machine a moment later.
    let rebound = read("127-0-0-2.127-0-0-1.dns");
    assert_eq!(outbound.get(&rebound, 0, LIMIT).await.unwrap().text().await.unwrap(), "here");
    assert_eq!(names.0.load(Ordering::SeqCst), 1, "the name was resolved once");
    // Of several addresses those that are not allowed are not tried.
    let trap = Trap::of(TcpListener::bind(("127.0.0.1", host.port())).await.unwrap());
    let mixed = read("127-0-0-1-and-127-0-0-2.dns");
    assert_eq!(outbound.get(&mixed, 0, LIMIT).await.unwrap().text().await.unwrap(), "here");
    assert!(trap.is_untouched().await);
}

#[tokio::test]
async fn the_operators_headers_go_to_their_host_alone() {
    let (host, seen) = host([127, 0, 0, 2]).await;
    let named = format!("127-0-0-2.dns:{}", host.port());
    let headers = r#"{"127-0-0-2.dns": {"Authorization": "Bearer hunter2"}}"#;
    let (outbound, _) = outbound(&[ALLOWED, ("COMFYD_OUTBOUND__HEADERS", headers)]);
    let target = outbound.read(&format!("http://{named}/?http://{host}/")).unwrap();
    outbound.get(&target, 1, LIMIT).await.unwrap();
    let seen = seen.0.lock().unwrap().clone();
    assert_eq!(seen, [(named, Some("Bearer hunter2".to_owned())), (host.to_string(), None)]);
}

#[test]
fn the_operator_says_what_may_be_asked() {
    let read = |pairs: &[(&str, &str)], url: &str| outbound(pairs).0.read(url).map_err(|why| why.to_string());
    let refused = |pairs: &[(&str, &str)], url: &str, word: &str| {
        let why = read(pairs, url).unwrap_err();
        assert!(why.contains(word) && !why.contains("hunter2"), "{url}: {why}");
    };
    refused(&[("COMFYD_OUTBOUND__HTTP", "false")], "http://example.org/hunter2", "outbound.http");
    refused(&[("COMFYD_OUTBOUND__PORTS", "443,80")], "https://example.org:8443/hunter2", "outbound.ports");
    refused(&[], "https://u:hunter2@example.org/", "user or password");
    refused(&[], "https://127.0.0.1/?hunter2", "OUTBOUND_ALLOW_PRIVATE");
    refused(&[], "s3://bucket/hunter2", "the scheme `s3`");
    refused(&[], &format!("https://example.org/{}", "a".repeat(MAX_URL)), "at most");
    let hosts = ("COMFYD_OUTBOUND__HOSTS", "a.example, *.b.example, 192.0.2.1");
    for good in ["https://a.example/", "https://A.Example/x", "https://x.b.example/", "https://x.y.b.example/"] {
        assert!(read(&[hosts], good).is_ok(), "{good}");
    }
    for bad in [
        "https://x.a.example/",
        "https://b.example/",
        "https://xb.example/",
        "https://8.8.8.8/",
        "https://a.example.evil.example/",
    ] {
        refused(&[hosts], bad, "outbound.hosts");
    }
    assert!(read(&[("OUTBOUND_ALLOW_PRIVATE", "10.0.0.0/8, fd00::/8")], "http://10.1.2.3:9000/").is_ok());
    assert!(read(&[("OUTBOUND_ALLOW_PRIVATE", "10.0.0.0/8")], "http://minio:9000/").is_ok(), "its address decides");
    refused(&[("OUTBOUND_ALLOW_PRIVATE", "10.0.0.0/8")], "http://169.254.169.254/", "metadata");
    let target = read(&[], "https://example.org/hunter2?hunter2#hunter2").unwrap();
    assert_eq!(format!("{target} {target:?}"), "https://example.org https://example.org");
    assert_eq!(target.url().as_str(), "https://example.org/hunter2?hunter2");
}
