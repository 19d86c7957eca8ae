//! The real program as a process, with a fake server, a folder and an address for one process after the other.

use std::{
    fs::{self, File},
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::atomic::{AtomicU16, Ordering},
    time::Duration,
};

use fake_comfyui::{Control, EventKind, FakeComfy, FakeConfig};
use futures_util::{StreamExt, stream};
use reqwest::StatusCode;
use tempfile::TempDir;

use crate::support::{Api, PATIENCE, environment, task};

pub const PROGRAM: &str = env!("CARGO_BIN_EXE_comfyd");

/// A process that does not outlive its test.
pub struct Process {
    child: Child,
    /// What it and others of its folder wrote.
    output: PathBuf,
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Process {
    /// Starts the service on what is in a folder.
    pub fn launch(dir: &TempDir, comfyui: &str, settings: &[(String, String)]) -> Self {
        Self::launch_as(command(dir.path()), dir, comfyui, settings)
    }

    fn launch_as(mut command: Command, dir: &TempDir, comfyui: &str, settings: &[(String, String)]) -> Self {
        command.envs(environment(dir, comfyui, settings));
        Self::spawn(command, dir.path())
    }

    /// Starts a program whose output goes to a file of its folder.
    pub fn spawn(mut command: Command, dir: &Path) -> Self {
        let output = dir.join("output");
        let file = File::options().create(true).append(true).open(&output).unwrap();
        command.stdout(file.try_clone().unwrap()).stderr(file);
        Self { child: command.spawn().unwrap(), output }
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The most memory it ever had, in bytes.
    pub fn peak_memory(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
    }

    pub fn signal(&self, name: &str) {
        let sent = Command::new("kill").args(["-s", name, &self.id().to_string()]).status().unwrap();
        assert!(sent.success());
    }

    /// How it ended, if it has.
    pub fn status(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    /// Its exit status, soon.
    pub async fn ended(&mut self) -> ExitStatus {
        tokio::time::timeout(PATIENCE, self.end()).await.expect("the process does not end")
    }

    /// Its exit status, whenever that is. The system tells it to who asks, so we ask.
    pub async fn end(&mut self) -> ExitStatus {
        loop {
            if let Some(status) = self.status() {
                return status;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Waits until it is ready. It may end before: then this is how.
    pub async fn ready(&mut self, api: &Api) -> Result<(), ExitStatus> {
        let asking = async {
            loop {
                let answer = api.client.get(api.url("/readyz")).send().await;
                if answer.is_ok_and(|answer| answer.status() == StatusCode::OK) {
                    return Ok(());
                }
                if let Some(status) = self.status() {
                    return Err(status);
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, asking).await.expect("the process does not become ready")
    }

    /// What it wrote.
    pub fn output(&self) -> String {
        fs::read_to_string(&self.output).unwrap()
    }
}

/// A fake server in this process, and a folder and an address for one comfyd after the other.
pub struct Place {
    pub fake: FakeComfy,
    pub dir: TempDir,
    settings: Vec<(String, String)>,
    pub api: Api,
}

impl Place {
    pub async fn new() -> Self {
        Self::of(FakeConfig::default()).await
    }

    /// With such a fake.
    pub async fn of(config: FakeConfig) -> Self {
        let address = free_address();
        Self {
            fake: FakeComfy::start(config).await.unwrap(),
            dir: tempfile::tempdir().unwrap(),
            settings: vec![
                ("PORT".to_owned(), address.port().to_string()),
                ("HOST".to_owned(), "127.0.0.1".to_owned()),
            ],
            api: Api::new(address),
        }
    }

    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.settings.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Where the API listens.
    pub fn address(&self) -> SocketAddr {
        let port = self.settings.iter().find(|(name, _)| name == "PORT").and_then(|(_, port)| port.parse().ok());
        SocketAddr::from((Ipv4Addr::LOCALHOST, port.unwrap()))
    }

    /// The address of where the tasks are kept.
    pub fn database(&self) -> String {
        let environment = self.environment();
        environment.into_iter().find(|(name, _)| name == "DATABASE_URL").unwrap().1
    }

    pub fn control(&self) -> Control {
        self.fake.control()
    }

    /// What the service is told.
    pub fn environment(&self) -> Vec<(String, String)> {
        environment(&self.dir, &self.fake.url(), &self.settings)
    }

    /// Starts the service with a few settings more, and does not wait for it.
    pub fn launch(&self, more: &[(&str, &str)]) -> Process {
        let mut settings = self.settings.clone();
        settings.extend(more.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        Process::launch(&self.dir, &self.fake.url(), &settings)
    }

    /// Starts the service and waits until it is ready.
    pub async fn start(&self) -> Process {
        self.until_ready(self.launch(&[])).await
    }

    /// As [`Self::start`], by a command that ends up as the program.
    pub async fn start_as(&self, command: Command) -> Process {
        self.until_ready(Process::launch_as(command, &self.dir, &self.fake.url(), &self.settings)).await
    }

    async fn until_ready(&self, mut process: Process) -> Process {
        if let Err(status) = process.ready(&self.api).await {
            panic!("it ended before it was ready, {status}:\n{}", process.output());
        }
        process
    }

    /// Starts another one beside it, on the same data and at another address, and waits until it is ready.
    pub async fn start_at(&self, address: SocketAddr) -> Process {
        let mut settings = self.settings.clone();
        settings.push(("PORT".to_owned(), address.port().to_string()));
        let mut process = Process::launch(&self.dir, &self.fake.url(), &settings);
        if let Err(status) = process.ready(&Api::new(address)).await {
            panic!("it ended before it was ready, {status}:\n{}", process.output());
        }
        process
    }

    pub async fn wait_for(&self, wanted: impl Fn(&EventKind) -> bool) -> EventKind {
        tokio::time::timeout(PATIENCE, self.control().wait_for(wanted)).await.expect("the event does not come").kind
    }

    /// Waits until a prompt of the task runs; returns its id.
    pub async fn running(&self, id: &str) -> String {
        let is_it = |event: &EventKind| matches!(event, EventKind::Started { task: Some(task), .. } if task == id);
        let EventKind::Started { prompt_id, .. } = self.wait_for(is_it).await else { unreachable!() };
        prompt_id
    }

    /// The tasks are complete, and each ran so often.
    pub async fn end(&self, ids: &[String], executions: usize) {
        for id in ids {
            let done = self.api.completed(id).await;
            assert_eq!(done["attempt"], 1, "{done}");
            assert_eq!(self.control().executions_of_task(id), executions, "{id}");
        }
    }

    /// Creates the first so many tasks of the place, or finds them again.
    pub async fn create(&self, tasks: u32) -> Vec<String> {
        stream::iter(0..tasks)
            .map(async |n| self.api.create_stubbornly(&task(n), &format!("process-{n}")).await)
            .buffered(4)
            .collect()
            .await
    }
}

/// An address nobody has. Below the ports that systems hand out, so that no connection of another test takes it between two starts.
pub fn free_address() -> SocketAddr {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = u16::try_from(std::process::id() % 1000).unwrap() * 10;
    let free = |port: &u16| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok();
    let mut ports = std::iter::repeat_with(|| 18_000 + (start + NEXT.fetch_add(1, Ordering::Relaxed)) % 12_000);
    SocketAddr::from((Ipv4Addr::LOCALHOST, ports.find(free).unwrap()))
}

/// The program in a folder of its own, with nothing from our environment.
pub fn command(dir: &Path) -> Command {
    let mut command = Command::new(PROGRAM);
    command.current_dir(dir).env_clear().stdin(Stdio::null());
    command
}
