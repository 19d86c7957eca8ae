use std::sync::Arc;

use tokio::{task::JoinSet, time::timeout};

use super::*;
use crate::{
    board::Board,
    ports::{
        clock::Clock,
        store::{Query, TaskStore, WorkSource},
    },
    testing::{
        MemoryStore, TestClock,
        store_conformance::fixtures::{claim, new_task, worker},
    },
};

/// Longer than any pause between glimpses, in a test whose time jumps.
const LONG: Duration = Duration::from_secs(60);

struct Hall {
    store: Arc<MemoryStore>,
    board: Board,
    /// Ends with the hall.
    tail: JoinSet<()>,
}

impl Hall {
    fn open() -> Self {
        let clock: Arc<dyn Clock> = Arc::new(TestClock::default());
        let (store, board) = (Arc::new(MemoryStore::new(clock)), Board::default());
        let mut reader = JoinSet::new();
        reader.spawn(tail(store.clone(), board.clone()));
        Self { store, board, tail: reader }
    }

    async fn create(&self) -> TaskId {
        let new = new_task(0);
        let id = new.id;
        self.store.create(new, None).await.unwrap();
        id
    }

    async fn watch(&self, view: View, after: Option<i64>) -> Watcher {
        let store = self.store.clone();
        match self.board.watch().begin_watching(store, view, after, LONG, 1000).await.unwrap() {
            Watching::On(watcher) => *watcher,
            Watching::Over | Watching::Full => panic!("nothing to watch"),
        }
    }

    async fn all(&self) -> Watcher {
        self.watch(View::default(), None).await
    }

    async fn one(&self, task: TaskId, previews: bool) -> Watcher {
        self.watch(View { task: Some(task), previews }, None).await
    }
}

async fn sight(watcher: &mut Watcher) -> Sight {
    watcher.next().await.unwrap().unwrap()
}

/// The numbers of the next `count` facts.
async fn facts(watcher: &mut Watcher, count: usize) -> Vec<i64> {
    let mut seen = Vec::new();
    while seen.len() < count {
        if let Sight::Fact(event) = sight(watcher).await {
            seen.push(event.seq);
        }
    }
    seen
}

fn run(task: TaskId, fence: i64) -> Run {
    Run { task, fence: Fence(fence), workflow: None }
}

fn progress(percent: u8) -> Progress {
    Progress { percent, ..Progress::default() }
}

#[tokio::test(start_paused = true)]
async fn a_watcher_that_fell_behind_reads_the_store() {
    let hall = Hall::open();
    let (mut slow, mut quick) = (hall.all().await, hall.all().await);
    let many = KEPT * 2 + 7;
    let mut seen = Vec::new();
    for _ in 0..many {
        hall.create().await;
        seen.extend(facts(&mut quick, 1).await);
    }
    let expected: Vec<i64> = (1..).take(many).collect();
    assert_eq!(seen, expected);
    assert_eq!(facts(&mut slow, many).await, expected);
}

#[tokio::test(start_paused = true)]
async fn a_watcher_is_not_behind_because_others_moved_on() {
    let hall = Hall::open();
    let mut all = hall.all().await;
    let new = new_task(0);
    let task = new.id;
    hall.store.create(new.clone(), None).await.unwrap();
    // What happens from now on does not come to this store: whoever asks it again sees nothing.
    let old = Arc::new(MemoryStore::new(Arc::new(TestClock::default())));
    old.create(new, None).await.unwrap();
    let view = View { task: Some(task), previews: false };
    let watching = hall.board.watch().begin_watching(old, view, None, LONG, 1000).await.unwrap();
    let Watching::On(mut idle) = watching else { panic!("nothing to watch") };
    assert_eq!(facts(&mut idle, 1).await, [1]);
    facts(&mut all, 1).await;
    for _ in 0..5 {
        hall.create().await;
        facts(&mut all, 1).await;
    }
    hall.store.cancel(task).await.unwrap();
    assert_eq!(timeout(LONG / 2, facts(&mut idle, 1)).await, Ok(vec![7]), "it lies in the hall");
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_died_is_followed_by_another_and_nothing_is_missed() {
    let mut hall = Hall::open();
    let mut watcher = hall.all().await;
    hall.create().await;
    assert_eq!(facts(&mut watcher, 1).await, [1]);
    hall.tail.abort_all();
    hall.create().await;
    hall.create().await;
    hall.tail.spawn(tail(hall.store.clone(), hall.board.clone()));
    hall.create().await;
    assert_eq!(facts(&mut watcher, 3).await, [2, 3, 4]);
}

#[tokio::test(start_paused = true)]
async fn only_the_newest_glimpse_is_seen() {
    let hall = Hall::open();
    let task = hall.create().await;
    let mut watcher = hall.one(task, false).await;
    facts(&mut watcher, 1).await;
    for percent in 0..90 {
        hall.board.set_progress(&run(task, 1), progress(percent));
    }
    let glimpse = async {
        loop {
            if let Sight::Progress(of, seen) = sight(&mut watcher).await {
                return (of, seen);
            }
        }
    };
    assert_eq!(glimpse.await, (task, progress(89)));
    // The same again is nothing new.
    hall.board.set_progress(&run(task, 1), progress(89));
    let more = async { while !matches!(sight(&mut watcher).await, Sight::Progress(..)) {} };
    assert!(timeout(Duration::from_secs(30), more).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn previews_are_for_who_wants_them_and_only_while_somebody_does() {
    let hall = Hall::open();
    let task = hall.create().await;
    let watch = hall.board.watch();
    let mut plain = hall.one(task, false).await;
    assert!(!watch.wants_previews(task));
    let mut curious = hall.one(task, true).await;
    assert!(watch.wants_previews(task) && !watch.wants_previews(TaskId::new()));
    watch.show_preview(
        &run(task, 1),
        Preview { node: None, content_type: "image/png", image: Bytes::from_static(b"x") },
    );
    while !matches!(sight(&mut curious).await, Sight::Preview(..)) {}
    let seen = async { while !matches!(sight(&mut plain).await, Sight::Preview(..)) {} };
    assert!(timeout(Duration::from_secs(30), seen).await.is_err());
    drop(curious);
    assert!(!watch.wants_previews(task));
    drop(plain);
    assert_eq!(watch.watchers(), 0);
    assert!(watch.lock().open.is_empty(), "a task nobody watches costs nothing");
}

#[tokio::test(start_paused = true)]
async fn the_more_watch_the_fewer_glimpses_each_of_them_sees() {
    let hall = Hall::open();
    let task = hall.create().await;
    let mut crowd = Vec::new();
    for _ in 0..500 {
        crowd.push(hall.one(task, false).await);
    }
    let mut watcher = crowd.pop().unwrap();
    let began = Instant::now();
    let mut seen = 0;
    for percent in 0..99 {
        hall.board.set_progress(&run(task, 1), progress(percent));
        let step = began + Duration::from_millis(10) * u32::from(percent + 1);
        while let Ok(sight) = tokio::time::timeout_at(step, sight(&mut watcher)).await {
            seen += usize::from(matches!(sight, Sight::Progress(..)));
        }
    }
    assert!((4..=6).contains(&seen), "{seen} in a second");
    assert_eq!(hall.store.list(Query { limit: 9, ..Query::default() }).await.unwrap().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_place_is_told_as_it_changes_and_not_after_its_turn() {
    let hall = Hall::open();
    let (first, second) = (hall.create().await, hall.create().await);
    let mut watcher = hall.one(second, false).await;
    let place = |sight| match sight {
        Sight::Place(of, place) => Some((of, place.ahead)),
        _ => None,
    };
    let mut places = Vec::new();
    while places.is_empty() {
        places.extend(place(sight(&mut watcher).await));
    }
    hall.store.cancel(first).await.unwrap();
    while places.len() < 2 {
        places.extend(place(sight(&mut watcher).await));
    }
    assert_eq!(places, [(second, 1), (second, 0)]);
    hall.store.claim(claim(&worker("n", 1), 1)).await.unwrap();
    assert!(matches!(sight(&mut watcher).await, Sight::Fact(_)));
    assert!(hall.board.watch().waiting().is_empty());
}

#[tokio::test(start_paused = true)]
async fn no_more_than_may_watch_do() {
    let hall = Hall::open();
    let task = hall.create().await;
    let view = View { task: Some(task), previews: false };
    let begin = |limit| hall.board.watch().begin_watching(hall.store.clone(), view.clone(), None, LONG, limit);
    let first = begin(1).await.unwrap();
    assert!(matches!(first, Watching::On(_)));
    assert!(matches!(begin(1).await.unwrap(), Watching::Full));
    drop(first);
    assert!(matches!(begin(1).await.unwrap(), Watching::On(_)));
}
