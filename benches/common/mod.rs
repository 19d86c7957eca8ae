//! What the benchmarks share: the processes they measure, the client they measure against, and the table at the end.
//!
//! Everything runs as it does at its users': comfyd is the release binary in a process of its own, spoken to over HTTP, with its
//! default settings. The fake ComfyUI is a process of its own as well, the same one for both clients, so that neither is blamed for its
//! work. The direct client lives in the benchmark's process and needs one process less, which on a small machine is to its advantage.
//! All files lie in the target folder, on one disk, because comfyd and the direct client are both told to sync what they write.

#![expect(dead_code, unused_imports, reason = "each benchmark uses its own part")]
#![expect(clippy::expect_used, reason = "a benchmark that cannot measure says so and ends")]

mod commits;
mod direct;
mod http;
mod postgres;
mod prefill;
mod process;
mod report;

pub use self::{
    commits::Commits,
    direct::Direct,
    http::{client, graph, large_graph},
    postgres::Postgres,
    prefill::{prefill, store},
    process::{Fake, Service, database},
    report::{Report, median, megabytes, millis, quantile},
};

use std::time::{Duration, Instant};

use tempfile::TempDir;

/// How often a figure is taken in one run. The best is judged: the others were held up by what else the machine had to do.
pub const ROUNDS: usize = 5;

/// Nothing that is measured takes this long unless it hangs.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// Runs a benchmark, or, in a process started by one, the fake ComfyUI.
pub fn run(benchmark: impl Future<Output = Report>) {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    if process::is_fake() {
        return runtime.block_on(process::fake());
    }
    // Test runners start every target to list its tests; a benchmark has none, and takes minutes.
    if !std::env::args().any(|argument| argument == "--bench") {
        return println!("a benchmark: run it with `cargo bench`");
    }
    comfyd::tls::install_crypto_provider();
    print!("{}", runtime.block_on(benchmark));
}

/// A fresh folder on the disk everything is measured on.
pub fn folder() -> TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder in the target folder")
}

/// How long a future takes.
pub async fn timed<T>(work: impl Future<Output = T>) -> (Duration, T) {
    let began = Instant::now();
    let result = work.await;
    (began.elapsed(), result)
}
