use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::{
    sync::broadcast,
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

use super::*;
use crate::{
    board::Board,
    domain::{
        id::{TaskId, WorkerId},
        progress::Progress,
        task::{Change, Fence, Release, Task},
    },
    ports::{
        store::{StoreError, TaskStore, WorkSource},
        wire::{Kind, Notice, Wire},
    },
    testing::{
        MemoryStore, TestClock,
        store_conformance::fixtures::{claim, new_task, worker},
    },
    watch::{Preview, Run, Sight, View, Watcher, Watching, tail},
};

/// Longer than anything takes, in a test whose time jumps.
const LONG: Duration = Duration::from_secs(60);

/// A wire on which nothing is heard of others, or no long word.
struct Faulty {
    store: Arc<MemoryStore>,
    heard: broadcast::Sender<Arc<Notice>>,
    hears: bool,
}

#[async_trait]
impl Wire for Faulty {
    async fn post(&self, notice: Notice, keep: Duration) -> Result<(), StoreError> {
        if self.hears && notice.kind == Kind::Glimpse {
            let _ = self.heard.send(Arc::new(Notice { body: Bytes::new(), ..notice.clone() }));
        } else if self.hears {
            let _ = self.heard.send(Arc::new(notice.clone()));
        }
        self.store.post(notice, keep).await
    }

    async fn withdraw(&self, kind: Kind, name: &str) -> Result<(), StoreError> {
        self.store.withdraw(kind, name).await
    }

    async fn notices(&self, kind: Kind) -> Result<Vec<Notice>, StoreError> {
        self.store.notices(kind).await
    }

    async fn notice(&self, kind: Kind, name: &str) -> Result<Option<Notice>, StoreError> {
        self.store.notice(kind, name).await
    }

    fn heard(&self) -> broadcast::Receiver<Arc<Notice>> {
        self.heard.subscribe()
    }

    fn hears_others(&self) -> bool {
        self.hears
    }
}

/// An API and a consumer on one store.
struct Apart {
    store: Arc<MemoryStore>,
    wire: Arc<dyn Wire>,
    api: Board,
    consumer: Board,
    /// Everything that is posted.
    posted: broadcast::Receiver<Arc<Notice>>,
    lookout: JoinSet<()>,
    beacon: JoinSet<()>,
    _tail: JoinSet<()>,
}

impl Apart {
    fn new() -> Self {
        let store = Self::store();
        Self::on(store.clone(), store)
    }

    fn faulty(hears: bool) -> Self {
        let store = Self::store();
        Self::on(store.clone(), Arc::new(Faulty { store, heard: broadcast::Sender::new(64), hears }))
    }

    fn store() -> Arc<MemoryStore> {
        Arc::new(MemoryStore::new(Arc::new(TestClock::default())))
    }

    fn on(store: Arc<MemoryStore>, wire: Arc<dyn Wire>) -> Self {
        let (api, consumer) = (Board::default(), Board::default());
        api.set_company(1);
        let mut reader = JoinSet::new();
        reader.spawn(tail(store.clone(), api.clone()));
        let posted = store.heard();
        let (lookout, beacon) = (JoinSet::new(), JoinSet::new());
        let mut apart = Self { store, wire, api, consumer, posted, lookout, beacon, _tail: reader };
        apart.start_lookout();
        apart.start_beacon();
        apart
    }

    fn start_lookout(&mut self) {
        let name = WorkerId::starting("api");
        self.lookout.spawn(Lookout::new(name, self.wire.clone(), self.api.clone()).keep());
    }

    fn start_beacon(&mut self) {
        let name = WorkerId::starting("gpu");
        self.beacon.spawn(Beacon::new(name, self.wire.clone(), self.consumer.clone()).shine());
    }

    /// A task that somebody has taken.
    async fn running(&self) -> Run {
        self.store.create(new_task(0), None).await.unwrap();
        let held = self.store.claim(claim(&worker("gpu", 1), 1)).await.unwrap().remove(0);
        Run::of(&held.task)
    }

    async fn watch(&self, task: Option<TaskId>, previews: bool) -> Watcher {
        let (store, view) = (self.store.clone(), View { task, previews });
        match self.api.watch().begin_watching(store, view, None, LONG, 1000).await.unwrap() {
            Watching::On(watcher) => *watcher,
            Watching::Over | Watching::Full => panic!("nothing to watch"),
        }
    }

    /// What was posted of a kind since somebody asked last.
    fn posts(&mut self, kind: Kind) -> usize {
        std::iter::from_fn(|| self.posted.try_recv().ok()).filter(|notice| notice.kind == kind).count()
    }
}

fn percent(percent: u8) -> Progress {
    Progress { percent, eta: Some(Duration::from_millis(1234)), ..Progress::default() }
}

fn picture(bytes: usize) -> Preview {
    Preview { node: Some("3".to_owned()), content_type: "image/jpeg", image: vec![7; bytes].into() }
}

/// The next glimpse.
async fn glimpse(watcher: &mut Watcher) -> Sight {
    let next = async {
        loop {
            match watcher.next().await.unwrap().unwrap() {
                Sight::Fact(_) | Sight::Place(..) | Sight::Quiet => {}
                sight => return sight,
            }
        }
    };
    timeout(LONG, next).await.expect("there is nothing to see")
}

async fn sees_nothing(watcher: &mut Watcher) -> bool {
    timeout(LONG / 2, glimpse(watcher)).await.is_err()
}

#[tokio::test(start_paused = true)]
async fn what_runs_elsewhere_is_seen_here() {
    for mut apart in [Apart::new(), Apart::faulty(true), Apart::faulty(false)] {
        let run = apart.running().await;
        // It is in a long node when somebody comes.
        apart.consumer.set_progress(&run, percent(10));
        let came = Instant::now();
        let mut watcher = apart.watch(Some(run.task), true).await;
        assert_eq!(glimpse(&mut watcher).await, Sight::Progress(run.task, percent(10)));
        assert!(came.elapsed() < LOOK_FOR_INTEREST_DEAF + LOOK_DEAF, "{:?}", came.elapsed());
        assert!(apart.consumer.watch().wants_previews(run.task));
        apart.consumer.watch().show_preview(&run, picture(40_000));
        assert_eq!(glimpse(&mut watcher).await, Sight::Preview(run.task, Arc::new(picture(40_000))));
        apart.consumer.set_progress(&run, percent(20));
        assert_eq!(glimpse(&mut watcher).await, Sight::Progress(run.task, percent(20)));
        // Who comes later and watches all sees it too, without pictures.
        let mut all = apart.watch(None, false).await;
        assert_eq!(glimpse(&mut all).await, Sight::Progress(run.task, percent(20)));
        assert!(sees_nothing(&mut all).await);
        apart.beacon.abort_all();
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_is_told_while_nobody_watches() {
    let mut apart = Apart::new();
    let run = apart.running().await;
    let show = async |apart: &mut Apart, percents: std::ops::Range<u8>| {
        for now in percents {
            apart.consumer.set_progress(&run, percent(now));
            sleep(Duration::from_secs(1)).await;
        }
        (apart.posts(Kind::Watched), apart.consumer.watch().wants_previews(run.task))
    };
    assert_eq!(show(&mut apart, 0..20).await, (0, false));
    // Nobody else runs tasks.
    apart.api.set_company(0);
    let watcher = apart.watch(Some(run.task), true).await;
    assert_eq!(show(&mut apart, 20..40).await, (0, false));
    apart.api.set_company(1);
    let (words, previews) = show(&mut apart, 40..60).await;
    assert!((6..=9).contains(&words) && previews, "{words}");
    // Who goes is not waited for.
    drop(watcher);
    sleep(INTEREST_EVERY * 2).await;
    apart.posts(Kind::Glimpse);
    for now in 60..80 {
        apart.consumer.set_progress(&run, percent(now));
        sleep(Duration::from_secs(1)).await;
    }
    let posted = std::iter::from_fn(|| apart.posted.try_recv().ok()).count();
    assert_eq!(posted, 0);
    assert!(!apart.consumer.watch().wants_previews(run.task));
}

#[tokio::test(start_paused = true)]
async fn an_api_that_is_gone_is_told_nothing_more() {
    let clock = Arc::new(TestClock::default());
    let store = Arc::new(MemoryStore::new(clock.clone()));
    let mut apart = Apart::on(store.clone(), store);
    let run = apart.running().await;
    let _watcher = apart.watch(Some(run.task), true).await;
    sleep(RENEW_EVERY).await;
    assert!(apart.consumer.watch().wants_previews(run.task));
    apart.lookout.abort_all();
    clock.advance(GOOD_FOR);
    sleep(GOOD_FOR + LOOK_FOR_INTEREST).await;
    apart.posts(Kind::Glimpse);
    apart.consumer.set_progress(&run, percent(1));
    sleep(LONG).await;
    assert_eq!(apart.posts(Kind::Glimpse), 0);
    assert!(!apart.consumer.watch().wants_previews(run.task));
}

#[tokio::test(start_paused = true)]
async fn only_the_newest_is_told_a_few_times_a_second() {
    let mut apart = Apart::new();
    let run = apart.running().await;
    let mut watcher = apart.watch(Some(run.task), true).await;
    sleep(RENEW_EVERY).await;
    apart.posts(Kind::Glimpse);
    for step in 0..100 {
        apart.consumer.set_progress(&run, percent(step));
        apart.consumer.watch().show_preview(&run, picture(usize::from(step)));
        sleep(Duration::from_millis(10)).await;
    }
    let posted = apart.posts(Kind::Glimpse);
    assert!((8..=10).contains(&posted), "{posted} in a second, of progress and previews");
    let mut last = Vec::new();
    while last != [Sight::Progress(run.task, percent(99)), Sight::Preview(run.task, Arc::new(picture(99)))] {
        last.extend([glimpse(&mut watcher).await]);
        last.drain(..last.len().saturating_sub(2));
    }
    // What is too large for this is left out.
    apart.consumer.watch().show_preview(&run, picture(LARGEST_PREVIEW + 1));
    assert!(sees_nothing(&mut watcher).await);
}

#[tokio::test(start_paused = true)]
async fn many_tasks_take_turns() {
    let mut apart = Apart::new();
    let mut runs = Vec::new();
    for _ in 0..PER_ROUND * 3 {
        runs.push(apart.running().await);
    }
    let _watcher = apart.watch(None, false).await;
    sleep(RENEW_EVERY / 2).await;
    apart.posts(Kind::Glimpse);
    for step in 0..100 {
        runs.iter().for_each(|run| apart.consumer.set_progress(run, percent(step)));
        sleep(Duration::from_millis(10)).await;
    }
    let posted: Vec<_> = std::iter::from_fn(|| apart.posted.try_recv().ok())
        .filter(|notice| notice.kind == Kind::Glimpse)
        .map(|notice| notice.name.clone())
        .collect();
    assert!(posted.len() <= PER_ROUND * 5, "{}", posted.len());
    assert!(runs.iter().all(|run| posted.contains(&run.task.to_string())), "everybody had a turn");
}

#[tokio::test(start_paused = true)]
async fn what_is_over_is_not_seen_any_more() {
    let mut apart = Apart::new();
    let run = apart.running().await;
    let (mut one, mut all) = (apart.watch(Some(run.task), false).await, apart.watch(None, false).await);
    apart.consumer.set_progress(&run, percent(50));
    for watcher in [&mut one, &mut all] {
        assert_eq!(glimpse(watcher).await, Sight::Progress(run.task, percent(50)));
    }
    let late = apart.store.notices(Kind::Glimpse).await.unwrap().remove(0);
    apart.store.apply(run.task, run.fence, Change::Release(Release::Recalled)).await.unwrap();
    apart.consumer.clear_progress(run.task);
    sleep(ROUND_EVERY * 2).await;
    assert_eq!(apart.store.notices(Kind::Glimpse).await.unwrap(), [], "it is taken back");
    // On its way all the time.
    apart.store.post(late, GOOD_FOR).await.unwrap();
    assert!(sees_nothing(&mut one).await && sees_nothing(&mut all).await);
    // Somebody has it again.
    let held = apart.store.claim(claim(&worker("gpu", 1), 1)).await.unwrap().remove(0);
    let again = Run::of(&held.task);
    assert!(again.fence > run.fence && again.fence > Fence::default());
    sleep(ROUND_EVERY).await;
    apart.consumer.set_progress(&run, percent(60));
    apart.consumer.set_progress(&again, percent(1));
    assert_eq!(glimpse(&mut one).await, Sight::Progress(run.task, percent(1)));
    apart.posts(Kind::Glimpse);
}

#[tokio::test(start_paused = true)]
async fn whoever_dies_is_followed_by_another_and_it_goes_on() {
    let mut apart = Apart::new();
    let run = apart.running().await;
    let mut watcher = apart.watch(Some(run.task), true).await;
    apart.consumer.set_progress(&run, percent(1));
    assert_eq!(glimpse(&mut watcher).await, Sight::Progress(run.task, percent(1)));
    apart.beacon.abort_all();
    apart.consumer.set_progress(&run, percent(2));
    apart.start_beacon();
    assert_eq!(glimpse(&mut watcher).await, Sight::Progress(run.task, percent(2)));
    apart.lookout.abort_all();
    apart.consumer.set_progress(&run, percent(3));
    sleep(LONG).await;
    apart.start_lookout();
    assert_eq!(glimpse(&mut watcher).await, Sight::Progress(run.task, percent(3)));
    // The store is away for a while.
    apart.store.set_down(true);
    apart.consumer.set_progress(&run, percent(4));
    sleep(LONG).await;
    apart.store.set_down(false);
    assert_eq!(glimpse(&mut watcher).await, Sight::Progress(run.task, percent(4)));
}

#[tokio::test(start_paused = true)]
async fn who_looks_now_and_then_sees_how_far_it_is() {
    let mut apart = Apart::new();
    let run = apart.running().await;
    apart.consumer.set_progress(&run, percent(30));
    let task = apart.store.get(run.task).await.unwrap().task;
    assert_eq!(apart.api.progress(&task), None, "it is asked for");
    sleep(Duration::from_secs(1)).await;
    assert_eq!(apart.api.progress(&task), Some(percent(30)));
    apart.consumer.set_progress(&run, percent(40));
    sleep(Duration::from_secs(1)).await;
    assert_eq!(apart.api.progress(&task), Some(percent(40)));
    assert_eq!(apart.api.progress(&Task { fence: Fence(run.fence.0 + 1), ..task }), None, "of another run");
    // Nobody looks any more.
    sleep(LONG).await;
    apart.posts(Kind::Glimpse);
    apart.consumer.set_progress(&run, percent(50));
    sleep(LONG).await;
    assert_eq!((apart.posts(Kind::Glimpse), apart.posts(Kind::Watched)), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_process_that_does_both_does_not_hear_itself() {
    let mut apart = Apart::new();
    let name = WorkerId::starting("both");
    let mut services = JoinSet::new();
    services.spawn(Lookout::new(name.clone(), apart.wire.clone(), apart.api.clone()).keep());
    services.spawn(Beacon::new(name, apart.wire.clone(), apart.api.clone()).shine());
    apart.lookout.abort_all();
    let run = apart.running().await;
    let mut watcher = apart.watch(Some(run.task), true).await;
    sleep(RENEW_EVERY).await;
    assert!(apart.posts(Kind::Watched) > 0, "others might run it");
    apart.api.set_progress(&run, percent(5));
    assert_eq!(glimpse(&mut watcher).await, Sight::Progress(run.task, percent(5)));
    sleep(LONG).await;
    assert_eq!(apart.posts(Kind::Glimpse), 0);
}
