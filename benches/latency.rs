//! How much later an output is stored because a durable service stands between the client and ComfyUI.
//!
//! From sending `POST /api/tasks/create` with `Prefer: wait` to the answer, which comes when the task is completed: its output is on
//! the disk, and so is the record of that. Against a [direct client](common::Direct) that waits for the same output to be on its disk. The
//! task takes ComfyUI no time. Blocks of both take turns, with commits in between that measure what the disk asks for one.

mod common;

use std::time::Duration;

use common::{Commits, Direct, Fake, ROUNDS, Report, Service, folder, graph, median, millis, timed};

/// Samples of each kind in a round, in this many blocks.
const BLOCKS: usize = 10;
const SAMPLES: usize = 20;

/// Beyond two durable commits: one that takes the task in, one that says that it is done.
const OVERHEAD: Duration = Duration::from_micros(1500);

fn main() {
    common::run(latency());
}

async fn latency() -> Report {
    let (fake, folder) = (Fake::start(), folder());
    let direct = Direct::connect(&fake.url, folder.path()).await;
    let service = Service::start(folder.path(), &fake.url).await;
    service.online().await;
    let mut commits = Commits::open(folder.path()).await;
    let mut numbers = 0..;
    let mut next = || graph(numbers.next().unwrap_or_default());
    let mut report = Report::default();
    let mut excess = Vec::new();
    // The first round warms up connections, caches and allocators.
    for round in 0..=ROUNDS {
        let [mut theirs, mut ours, mut commit] = [(); 3].map(|()| Vec::new());
        for _ in 0..BLOCKS {
            for _ in 0..SAMPLES {
                theirs.push(timed(direct.run(&next())).await.0);
            }
            for _ in 0..SAMPLES {
                ours.push(timed(service.run(&next())).await.0);
            }
            for _ in 0..SAMPLES {
                commit.push(commits.once().await);
            }
        }
        if round == 0 {
            continue;
        }
        let [theirs, ours, commit] = [theirs, ours, commit].map(|samples| millis(median(&samples)));
        let added = ours - theirs;
        report.note(format!(
            "direct {theirs:.2} ms, service {ours:.2} ms, added {added:.2} ms; one commit {commit:.2} ms, allowed {:.2} ms",
            millis(OVERHEAD) + 2.0 * commit
        ));
        excess.push(added - 2.0 * commit);
    }
    report.at_most("added to the stored output, less two commits, p50", "ms", &excess, millis(OVERHEAD));
    report
}
