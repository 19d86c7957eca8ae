//! Reads the store's log for everybody who watches, and tells waiting tasks their places.
//!
//! Runs as a service under the root · is woken by the store's changes, and looks each second for what other processes committed, or more often
//! when nothing is heard of them · when it dies its successor goes on from the position that lies in the [`Watch`] · it must never read while
//! nobody watches.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::broadcast::{self, error::TryRecvError},
    time::Instant,
};
use tracing::debug;

use crate::{
    board::Board,
    domain::task::TaskState,
    ports::store::{Changed, Query, StoreError, TaskStore},
    watch::{FAR, Watch},
};

/// Facts read at once.
const PAGE: u32 = 500;
/// The backstop behind every wake-up.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// The same when other processes run tasks and nothing is heard of what they do: half of what a person takes for at once.
const LOOK_EVERY_DEAF: Duration = Duration::from_millis(50);
/// Places counted in one round: the others get theirs in the rounds after.
const PLACES: usize = 100;
/// How often is looked how long tasks take that other processes run, and at how many of the last.
const LEARN_EVERY: Duration = Duration::from_secs(60);
const LESSONS: u32 = 100;

/// The reader, for ever.
pub async fn tail(store: Arc<dyn TaskStore>, board: Board) {
    let mut changes = store.changes();
    let mut next_places = Instant::now();
    let mut next_lesson = next_places;
    let mut place = 0;
    loop {
        board.watch().watched().await;
        let read = read_on(&*store, board.watch()).await;
        if let Err(error) = &read {
            debug!(%error, "could not read the events; looking again");
        }
        if matches!(read, Ok(PAGE)) {
            continue;
        }
        let mut hurry = Instant::now() >= next_places;
        if !hurry {
            let is_deaf = board.is_deaf();
            tokio::select! {
                () = next_change(&mut changes), if read.is_ok() => {}
                () = board.watch().0.came.notified() => hurry = true,
                () = tokio::time::sleep_until(next_places) => hurry = true,
                () = tokio::time::sleep(LOOK_EVERY_DEAF), if is_deaf => {}
            }
        }
        if hurry {
            next_places = Instant::now() + LOOK_EVERY;
            if board.company() > 0 && next_lesson < next_places {
                next_lesson = Instant::now() + LEARN_EVERY;
                learn(&*store, &board).await;
            }
            place = tell_places(&*store, &board, place).await;
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
    let last = Query { states: vec![TaskState::Completed], limit: LESSONS, ..Query::default() };
    // Without them the next ones teach it.
    let tasks = store.list(last).await.unwrap_or_default();
    tasks.iter().rev().for_each(|task| board.learn(task));
}

/// Counts the places of some of the waiting tasks that are watched, in turn. Returns whose turn is next.
async fn tell_places(store: &dyn TaskStore, board: &Board, first: usize) -> usize {
    let mut waiting = board.watch().waiting();
    waiting.sort_unstable();
    let first = if first < waiting.len() { first } else { 0 };
    for (task, workflow) in waiting.iter().skip(first).take(PLACES) {
        // One that could not be counted, or does not wait any more, keeps what was said of it.
        if let Ok(Some(ahead)) = store.ahead(*task, FAR).await {
            board.watch().show_place(*task, board.place(workflow.as_deref(), ahead));
        }
    }
    first + PLACES
}
