//! Buckets for tests: a server that speaks like S3 and Google, one of ours that speaks like Cloudflare Images, and between them and us a
//! proxy that breaks on command.

mod images;
mod proxy;

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Write},
    process::{Child, Stdio},
    sync::{Arc, OnceLock},
};

use comfyd::{
    config::{self, Sources},
    storage,
};
use comfyd_actors::{ports::object_store::ObjectStore, targets::Targets};
use reqwest::Client;
use tempfile::{NamedTempFile, TempDir};
use uuid::Uuid;

pub use self::{
    images::Images,
    proxy::{Dialect, Proxy, Seen, Trouble},
};
use crate::tools::{python, root};

/// Whoever signs anything is somebody to the server.
const SOMEBODY: &str =
    "AWS4-HMAC-SHA256 Credential=x/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=x";

/// One server for all tests of the process: it starts in a second and a half.
struct Server {
    url: String,
    account: String,
    /// It ends when its input does, at the end of this process.
    _process: Child,
}

fn server() -> &'static Server {
    static SERVER: OnceLock<Server> = OnceLock::new();
    SERVER.get_or_init(|| {
        let mut command = python();
        command.arg(root().join("tests/bucket_server.py"));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().expect("tests/run installs Python and its packages");
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut line = || lines.next().expect("the bucket server does not start: tests/run installs moto").unwrap();
        Server { url: line(), account: line(), _process: child }
    })
}

/// A bucket of its own, behind a proxy of its own.
pub struct Bucket {
    pub name: String,
    pub proxy: Proxy,
    account: NamedTempFile,
}

impl Bucket {
    pub async fn new() -> Self {
        let bucket = Self::missing().await;
        let made = Client::new_without_proxy().put(format!("{}/{}", server().url, bucket.name)).send().await.unwrap();
        assert!(made.status().is_success(), "{made:?}");
        bucket
    }

    /// One that nobody made.
    pub async fn missing() -> Self {
        let server = tokio::task::spawn_blocking(server).await.unwrap();
        let mut account = NamedTempFile::new().unwrap();
        account.write_all(server.account.as_bytes()).unwrap();
        Self {
            // Letters and digits only: the server does not decode names.
            name: format!("b{}", Uuid::new_v4().simple()),
            proxy: Proxy::start(&server.url, Dialect::Xml).await,
            account,
        }
    }

    /// The settings that make it target `s3`.
    pub fn s3(&self) -> Vec<(String, String)> {
        settings(&[
            ("STORAGE_PROVIDER", "s3"),
            ("S3_BUCKET_NAME", &self.name),
            ("S3_ENDPOINT_URL", &self.proxy.url()),
            ("S3_ACCESS_KEY_ID", "somebody"),
            ("S3_SECRET_ACCESS_KEY", "hunter2"),
        ])
    }

    /// The settings that make it target `r2`.
    pub fn r2(&self) -> Vec<(String, String)> {
        settings(&[
            ("STORAGE_PROVIDER", "r2"),
            ("R2_BUCKET_NAME", &self.name),
            ("R2_ENDPOINT_URL", &self.proxy.url()),
            ("R2_ACCESS_KEY", "somebody"),
            ("R2_SECRET_KEY", "hunter2"),
        ])
    }

    /// The settings that make it target `gcs`.
    pub fn gcs(&self) -> Vec<(String, String)> {
        settings(&[
            ("STORAGE_PROVIDER", "gcs"),
            ("GCS_BUCKET_NAME", &self.name),
            ("GCS_ENDPOINT_URL", &self.proxy.url()),
            ("GOOGLE_APPLICATION_CREDENTIALS", self.account.path().to_str().unwrap()),
        ])
    }

    /// The keys in it and the sizes of what lies under them, asked past the proxy.
    pub async fn objects(&self) -> BTreeMap<String, u64> {
        let (mut found, mut after) = (BTreeMap::new(), String::new());
        loop {
            let url = format!("{}/{}?list-type=2&start-after={after}", server().url, self.name);
            let page = Client::new_without_proxy().get(url).send().await.unwrap().text().await.unwrap();
            let before = found.len();
            for entry in page.split("<Contents>").skip(1) {
                let field = |name: &str| {
                    let from = entry.split(&format!("<{name}>")).nth(1).unwrap();
                    from.split('<').next().unwrap().to_owned()
                };
                found.insert(field("Key"), field("Size").parse().unwrap());
            }
            let Some(last) = found.keys().next_back().filter(|_| found.len() > before) else { return found };
            after.clone_from(last);
        }
    }

    /// An object's headers and bytes, past the proxy.
    pub async fn object(&self, key: &str) -> reqwest::Response {
        let url = format!("{}/{}/{key}", server().url, self.name);
        Client::new_without_proxy().get(url).header("authorization", SOMEBODY).send().await.unwrap()
    }

    /// Somebody else's object, past the proxy.
    pub async fn place(&self, key: &str, bytes: &'static str) {
        let url = format!("{}/{}/{key}", server().url, self.name);
        let put = Client::new_without_proxy().put(url).header("authorization", SOMEBODY).body(bytes);
        assert!(put.send().await.unwrap().status().is_success());
    }

    /// Uploads without an end.
    pub async fn unfinished(&self) -> usize {
        let url = format!("{}/{}?uploads", server().url, self.name);
        let page = Client::new_without_proxy().get(url).send().await.unwrap().text().await.unwrap();
        page.matches("<UploadId>").count()
    }
}

/// Names and values, owned.
pub fn settings(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

/// The targets that settings make, with a folder of their own.
pub fn targets(env: &[(String, String)]) -> (TempDir, Targets) {
    let dir = tempfile::tempdir().unwrap();
    let mut env = env.to_vec();
    env.push(("STORAGE_LOCAL_DIR".to_owned(), dir.path().join("outputs").to_str().unwrap().to_owned()));
    env.push(("COMFYD_TASKS__UPLOAD_RETRY_BASE".to_owned(), "5ms".to_owned()));
    env.push(("COMFYD_TASKS__UPLOAD_RETRY_CAP".to_owned(), "20ms".to_owned()));
    let loaded = config::read(Sources { env, ..Sources::default() });
    assert_eq!(loaded.faults, [], "the settings are sound");
    let targets = storage::open(&loaded.config.storage, loaded.config.tasks.upload_retry).unwrap();
    (dir, targets)
}

/// The one that tasks get which do not say.
pub fn usual(targets: &Targets) -> Arc<dyn ObjectStore> {
    targets.get(targets.usual()).unwrap().store.clone()
}

/// A client that goes straight to a test's own server.
pub trait WithoutProxy {
    fn new_without_proxy() -> Client;
}

impl WithoutProxy for Client {
    fn new_without_proxy() -> Client {
        Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none()).build().unwrap()
    }
}
