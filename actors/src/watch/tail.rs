//! Reads the store's log for everybody who watches, and tells waiting tasks their places.
//!
//! Runs as a service under the root · is woken by the store's changes, and looks each second for what other processes committed, or more often
//! when nothing is heard of them · when it dies its successor goes on from the position that lies in the [`Watch`] · it must never read while
//! nobody watches.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::broadcast::{self, error::TryRecvError},
    time::{Instant, sleep, sleep_until},
};
use tracing::debug;

use crate::{
    board::Board,
    ports::store::{Changed, Query, StoreError, TaskStore},
    watch::{FAR, Waiting, Watch},
};

/// Facts read at once.
const PAGE: u32 = 500;
/// The backstop behind every wake-up.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// The same when other processes run tasks and nothing is heard of what they do: half of what a person takes for at once.
const LOOK_EVERY_DEAF: Duration = Duration::from_millis(50);
/// Places counted in one round: the others get theirs in the rounds after.
const PLACES: usize = 100;
/// How long somebody who comes to a waiting task waits for others, to be told their places together.
const TOGETHER: Duration = Duration::from_millis(50);
/// How often is looked how long tasks take that other processes run.
const LEARN_EVERY: Duration = Duration::from_secs(60);

/// The reader, for ever. Counting places takes its time, and facts do not wait for it.
pub async fn tail(store: Arc<dyn TaskStore>, board: Board) {
    tokio::select! {
        () = facts(&*store, &board) => {}
        () = places(&*store, &board) => {}
    }
}

async fn facts(store: &dyn TaskStore, board: &Board) {
    let mut changes = store.changes();
    loop {
        board.watch().watched().await;
        let read = read_on(store, board.watch()).await;
        if let Err(error) = &read {
            debug!(%error, "could not read the events; looking again");
        }
        if matches!(read, Ok(PAGE)) {
            continue;
        }
        let look_every = if board.is_deaf() { LOOK_EVERY_DEAF } else { LOOK_EVERY };
        tokio::select! {
            () = next_change(&mut changes), if read.is_ok() => {}
            () = sleep(look_every) => {}
        }
    }
}

async fn places(store: &dyn TaskStore, board: &Board) {
    let (mut next_lesson, mut next_round, mut turn) = (Instant::now(), Instant::now(), None);
    loop {
        let mut waiting = board.watch().waiting();
        if waiting.is_empty() {
            board.watch().0.waits.notified().await;
            continue;
        }
        if board.company() > 0 && next_lesson <= Instant::now() {
            next_lesson = Instant::now() + LEARN_EVERY;
            learn(store, board).await;
        }
        if Instant::now() < next_round {
            waiting.retain(|waiting| !waiting.knows);
        } else {
            next_round = Instant::now() + LOOK_EVERY;
        }
        // Who knows nothing yet comes first, then the others in turn.
        waiting.sort_unstable_by_key(|waiting| {
            (waiting.knows, turn.is_some_and(|turn| waiting.task <= turn), waiting.task)
        });
        waiting.truncate(PLACES);
        for Waiting { task, workflow, .. } in &waiting {
            // One that could not be counted, or does not wait any more, keeps what was said of it.
            if let Ok(Some(ahead)) = store.ahead(*task, FAR).await {
                board.watch().show_place(*task, board.place(workflow.as_deref(), ahead));
            }
        }
        turn = waiting.iter().rev().find(|waiting| waiting.knows).map(|waiting| waiting.task).or(turn);
        tokio::select! {
            () = sleep_until(next_round) => {}
            // Those who come together are counted together.
            () = async {
                board.watch().0.waits.notified().await;
                sleep(TOGETHER).await;
            } => {}
        }
    }
}

/// Reads a page of the log and lays it out; how many facts it had.
async fn read_on(store: &dyn TaskStore, watch: &Watch) -> Result<u32, StoreError> {
    let after = match watch.position() {
        Some(position) => position,
        None => store.newest_event().await?,
    };
    watch.begin(after);
    let events = store.events(None, after, PAGE).await?;
    let read = u32::try_from(events.len()).unwrap_or(PAGE);
    watch.publish(events);
    Ok(read)
}

/// Waits for a change, and takes all that are there: one look is enough for them.
async fn next_change(changes: &mut broadcast::Receiver<Changed>) {
    // A closed channel has no more changes; the look each second remains.
    if matches!(changes.recv().await, Err(broadcast::error::RecvError::Closed)) {
        std::future::pending::<()>().await;
    }
    while !matches!(changes.try_recv(), Err(TryRecvError::Empty | TryRecvError::Closed)) {}
}

/// Learns from the last tasks how long they take: those of other processes are not told here as they end.
async fn learn(store: &dyn TaskStore, board: &Board) {
    // Without them the next ones teach it.
    let tasks = store.list(Query::lessons()).await.unwrap_or_default();
    tasks.iter().rev().for_each(|task| board.learn(task));
}
