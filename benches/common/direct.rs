//! The client everybody could write who needs no queue: one connection for requests, one WebSocket, no detours.
//!
//! It does for a prompt what comfyd does for a task, without keeping any record: submit, wait for the end on the socket, read the
//! history, fetch each output, write it to the disk and sync it.

use std::{
    collections::HashMap,
    fs::File,
    io::Write,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use futures_util::{StreamExt, future::join_all};
use md5::Md5;
use reqwest::Client;
use serde::Deserialize;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::{
    sync::{Semaphore, oneshot},
    task::JoinSet,
};
use tokio_tungstenite::{connect_async_with_config, tungstenite::Message};
use uuid::Uuid;

use super::client;

type Waiting = Arc<Mutex<HashMap<String, oneshot::Sender<()>>>>;

/// One connected client.
#[derive(Clone)]
pub struct Direct {
    http: Client,
    url: String,
    id: String,
    folder: PathBuf,
    waiting: Waiting,
    _reader: Arc<JoinSet<()>>,
}

#[derive(Deserialize)]
struct Frame<'a> {
    r#type: &'a str,
    #[serde(borrow)]
    data: Data<'a>,
}

#[derive(Deserialize)]
struct Data<'a> {
    #[serde(default)]
    prompt_id: Option<&'a str>,
    #[serde(default)]
    node: Option<&'a str>,
}

impl Direct {
    pub async fn connect(url: &str, folder: &Path) -> Self {
        let id = Uuid::new_v4().simple().to_string();
        let socket = format!("{}/ws?clientId={id}", url.replacen("http", "ws", 1));
        let (mut socket, _) = connect_async_with_config(socket, None, true).await.expect("a WebSocket");
        let waiting = Waiting::default();
        let (mut reader, ended) = (JoinSet::new(), Arc::clone(&waiting));
        reader.spawn(async move {
            while let Some(Ok(message)) = socket.next().await {
                let Message::Text(text) = message else { continue };
                if let Ok(Frame { r#type: "executing", data: Data { prompt_id: Some(prompt), node: None } }) =
                    serde_json::from_str(&text)
                    && let Some(waiting) = ended.lock().expect("no panic").remove(prompt)
                {
                    let _ = waiting.send(());
                }
            }
        });
        let (url, folder) = (url.to_owned(), folder.to_owned());
        Self { http: client(), url, id, folder, waiting, _reader: Arc::new(reader) }
    }

    /// Runs one graph to the last synced byte.
    pub async fn run(&self, graph: &Value) {
        let (prompt, ended) = self.submit(graph).await;
        ended.await.expect("the prompt ends");
        self.store(&prompt).await;
    }

    /// Runs graphs with one running and one queued, so that the server never waits; outputs are stored meanwhile.
    pub async fn run_all(&self, graphs: impl Iterator<Item = Value>) {
        let places = Arc::new(Semaphore::new(2));
        let mut storing = JoinSet::new();
        for graph in graphs {
            let place = Arc::clone(&places).acquire_owned().await.expect("open for ever");
            let (prompt, ended) = self.submit(&graph).await;
            let this = self.clone();
            storing.spawn(async move {
                ended.await.expect("the prompt ends");
                drop(place);
                this.store(&prompt).await;
            });
        }
        storing.join_all().await;
    }

    /// Puts a graph into the server's queue.
    pub async fn submit(&self, graph: &Value) -> (String, oneshot::Receiver<()>) {
        let prompt = Uuid::new_v4().to_string();
        let (end, ended) = oneshot::channel();
        self.waiting.lock().expect("no panic").insert(prompt.clone(), end);
        let body = json!({"prompt": graph, "prompt_id": prompt, "client_id": self.id});
        let request = self.http.post(format!("{}/prompt", self.url)).json(&body);
        let answer = request.send().await.expect("an answer").error_for_status().expect("the prompt is accepted");
        answer.bytes().await.expect("the receipt");
        (prompt, ended)
    }

    /// Runs one graph and puts its files into a bucket, side by side: with what S3 asks of whoever sends a body (its hash), with what
    /// makes a file that is stored once for all, and with a look at what the bucket says it has.
    pub async fn run_into(&self, graph: &Value, bucket: &str, authorization: &str) {
        let (prompt, ended) = self.submit(graph).await;
        ended.await.expect("the prompt ends");
        let puts = self.files(&prompt).await.into_iter().enumerate().map(|(index, file)| {
            let put = self.http.put(format!("{bucket}/{prompt}-{index}")).header("authorization", authorization);
            let put =
                put.header("content-type", "image/png").header("cache-control", "private, max-age=31536000, immutable");
            let put = put.header("if-none-match", "*");
            async move {
                let file = self.view(&file).await;
                let hex = |digest: &[u8]| digest.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
                let hash = hex(&Sha256::digest(&file));
                let put = put.header("x-amz-content-sha256", hash).body(file.clone());
                let md5 = tokio::task::spawn_blocking(move || Md5::digest(&file));
                let (stored, md5) = tokio::join!(put.send(), md5);
                let stored = stored.expect("an answer").error_for_status().expect("it is stored");
                let etag = stored.headers()["etag"].to_str().expect("text");
                assert_eq!(etag.trim_matches('"'), hex(&md5.expect("no panic")));
            }
        });
        join_all(puts).await;
    }

    /// What a prompt made.
    async fn files(&self, prompt: &str) -> Vec<Value> {
        let history: Value = self.get(&format!("history/{prompt}"), &[]).await.json().await.expect("the history");
        let nodes = history[prompt]["outputs"].as_object().expect("outputs");
        nodes.values().flat_map(|output| output["images"].as_array().expect("images").clone()).collect()
    }

    async fn view(&self, file: &Value) -> Bytes {
        let query = ["filename", "subfolder", "type"].map(|name| (name, file[name].as_str().expect("a file")));
        self.get("view", &query).await.bytes().await.expect("the file")
    }

    async fn store(&self, prompt: &str) {
        for (index, file) in self.files(prompt).await.iter().enumerate() {
            let bytes = self.view(file).await;
            let path = self.folder.join(format!("{prompt}-{index}"));
            let write = move || {
                let mut file = File::create_new(path)?;
                file.write_all(&bytes)?;
                file.sync_all()
            };
            tokio::task::spawn_blocking(write).await.expect("no panic").expect("the file is stored");
        }
    }

    async fn get(&self, path: &str, query: &[(&str, &str)]) -> reqwest::Response {
        let request = self.http.get(format!("{}/{path}", self.url)).query(query);
        request.send().await.expect("an answer").error_for_status().expect("a good one")
    }
}
