//! Private Redis servers for tests: one for the whole process, and ones that a test may stop and start. And a wire that breaks on command.

use std::{
    io::{BufRead, BufReader},
    net::TcpListener,
    process::{Child, Command, Stdio},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
};

use comfyd::store::redis::RedisConfig;
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener as Listener, TcpStream},
    task::JoinHandle,
};
use uuid::Uuid;

/// Runs what it is given until its own input ends, with this process at the latest.
const KEEPER: &str = r#""$@" & cat >/dev/null; kill -9 $!; wait $! 2>/dev/null"#;

/// A server and the folder it keeps its data in.
pub struct Server {
    folder: TempDir,
    port: u16,
    settings: Vec<String>,
    keeper: Option<Child>,
}

impl Server {
    /// Starts one with these settings.
    pub fn start(settings: &[&str]) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let settings = settings.iter().map(|&word| word.to_owned()).collect();
        let mut server = Self { folder: tempfile::tempdir().unwrap(), port, settings, keeper: None };
        server.run();
        server
    }

    /// One that keeps every write on its disk before it answers.
    pub fn durable() -> Self {
        Self::start(&["--appendonly", "yes", "--appendfsync", "always"])
    }

    /// Starts it, or starts it again, and waits until it takes connections.
    pub fn run(&mut self) {
        let program = std::env::var("REDIS_SERVER").unwrap_or_else(|_| "redis-server".to_owned());
        let mut command = Command::new("sh");
        command.args(["-c", KEEPER, "keeper", &program, "--port", &self.port.to_string(), "--bind", "127.0.0.1"]);
        command.args(["--save", ""]).arg("--dir").arg(self.folder.path()).args(&self.settings);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut keeper = command.spawn().unwrap();
        let mut lines = BufReader::new(keeper.stdout.take().unwrap()).lines();
        let ready = lines.any(|line| line.unwrap().contains("Ready to accept connections"));
        assert!(ready, "the Redis server does not start: tests/run installs redis-server");
        // What it has to say from now on nobody reads, and it must not wait for that.
        std::thread::spawn(move || lines.for_each(drop));
        self.keeper = Some(keeper);
    }

    /// Ends it without warning.
    pub fn kill(&mut self) {
        if let Some(mut keeper) = self.keeper.take() {
            drop(keeper.stdin.take());
            keeper.wait().unwrap();
        }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/0", self.port)
    }

    pub fn config(&self) -> RedisConfig {
        RedisConfig { url: self.url(), prefix: "comfyd".to_owned() }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A place without tasks on a server that many tests share.
pub fn fresh() -> RedisConfig {
    static SHARED: OnceLock<Server> = OnceLock::new();
    let shared = SHARED.get_or_init(|| Server::start(&[]));
    RedisConfig { prefix: format!("t{}", Uuid::new_v4().simple()), ..shared.config() }
}

/// A wire to a server that can lose the answer to a commit.
pub struct Wire {
    port: u16,
    lose_answer: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

impl Wire {
    pub async fn to(server: &Server) -> Self {
        let listener = Listener::bind("127.0.0.1:0").await.unwrap();
        let (port, target) = (listener.local_addr().unwrap().port(), server.port());
        let lose_answer = Arc::new(AtomicBool::new(false));
        let lose = Arc::clone(&lose_answer);
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(carry(client, target, Arc::clone(&lose)));
            }
        });
        Self { port, lose_answer, task }
    }

    pub fn config(&self) -> RedisConfig {
        RedisConfig { url: format!("redis://127.0.0.1:{}/0", self.port), prefix: "comfyd".to_owned() }
    }

    /// The connection ends when the server has done the next commit and answers.
    pub fn lose_the_next_answer(&self) {
        self.lose_answer.store(true, Ordering::SeqCst);
    }

    pub fn has_lost_it(&self) -> bool {
        !self.lose_answer.load(Ordering::SeqCst)
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn carry(mut client: TcpStream, target: u16, lose_answer: Arc<AtomicBool>) -> Option<()> {
    let mut server = TcpStream::connect(("127.0.0.1", target)).await.ok()?;
    let (mut asked, mut answered) = (vec![0; 1 << 16], vec![0; 1 << 16]);
    let mut commits = false;
    loop {
        tokio::select! {
            read = client.read(&mut asked) => {
                let bytes = &asked[..read.ok().filter(|read| *read > 0)?];
                commits |= bytes.windows(7).any(|word| word == b"EVALSHA");
                server.write_all(bytes).await.ok()?;
            }
            read = server.read(&mut answered) => {
                let bytes = &answered[..read.ok().filter(|read| *read > 0)?];
                // That the script is not known there yet is no answer.
                let is_answer = std::mem::take(&mut commits) && !bytes.starts_with(b"-NOSCRIPT");
                if is_answer && lose_answer.swap(false, Ordering::SeqCst) {
                    return None;
                }
                client.write_all(bytes).await.ok()?;
            }
        }
    }
}
