//! Programs that tests run: interpreters and clients of others. `tests/run` installs them and says where they are; a missing one is
//! a failure.

use std::{
    io::{BufRead, BufReader},
    path::PathBuf,
    process::{Child, Command, Output, Stdio},
    time::Duration,
};

use tokio::sync::mpsc;

/// The program a variable names, or the usual one.
fn program(variable: &str, usual: &str) -> Command {
    let mut command = Command::new(std::env::var(variable).unwrap_or_else(|_| usual.to_owned()));
    // A proxy of the machine's does not know the way to a test's own server.
    for proxy in ["http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"] {
        command.env_remove(proxy);
    }
    command.stdin(Stdio::null());
    command
}

/// Python with the packages of `tests/requirements.txt`.
pub fn python() -> Command {
    program("PYTHON", "python3")
}

pub fn node() -> Command {
    program("NODE", "node")
}

pub fn sh() -> Command {
    program("SH", "sh")
}

/// The root of the source.
pub fn root() -> PathBuf {
    // Tests run in their package's folder. Its path is not compiled in: one built in a clone may be run in another.
    std::env::current_dir().unwrap()
}

/// A program that runs until it is dropped.
pub struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts a program, and passes on what it writes, line by line.
pub fn running(mut command: Command) -> (Running, mpsc::Receiver<String>) {
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let (lines, written) = mpsc::channel(16);
    let output = BufReader::new(child.stdout.take().unwrap());
    // Ends with the program, which ends with the test.
    tokio::task::spawn_blocking(move || {
        output.lines().map_while(Result::ok).try_for_each(|line| lines.blocking_send(line))
    });
    (Running(child), written)
}

/// Runs a program to its end.
pub async fn run(mut command: Command, patience: Duration) -> Output {
    let name = format!("{:?}", command.get_program());
    let running = tokio::task::spawn_blocking(move || command.output());
    let output =
        tokio::time::timeout(patience, running).await.unwrap_or_else(|_| panic!("{name} does not end")).unwrap();
    output.unwrap_or_else(|error| panic!("{name} cannot be run ({error}): tests/run installs it"))
}

/// What a program wrote, which must have ended well.
pub async fn written_by(command: Command, patience: Duration) -> String {
    let output = run(command, patience).await;
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}\n{stdout}\n{stderr}", output.status);
    stdout.into_owned()
}
