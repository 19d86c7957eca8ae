//! The suite, and what only a server can do: fail, be shared, lose a word.

use std::{collections::HashSet, sync::Arc, time::Duration};

use bytes::Bytes;
use comfyd::{
    clock::SystemClock,
    store::postgres::{PgConfig, PgStore, statements},
};
use comfyd_actors::{
    domain::{
        lane::Lanes,
        task::{Change, Fence, Release, Task, TaskState},
    },
    ports::{
        clock::Clock,
        store::{Assignment, Changed, Counts, Created, NewTask, Query, StoreError, TaskStore, WorkSource},
        wire::{Kind, Notice, Wire},
    },
    testing::store_conformance::{
        Subject,
        fixtures::{claim, claim_of, error, lane, new_task, worker},
    },
};
use futures_util::FutureExt;
use sqlx::AssertSqlSafe;
use tokio::{sync::broadcast::Receiver, task::JoinSet, time::timeout};

use self::ambush::{Ambush, Cut};
use crate::databases::{Server, database, server};

mod ambush;

/// How long notices are kept.
const KEEP: Duration = Duration::from_secs(60);

comfyd_actors::store_conformance!(open_postgres, cases: 24);

/// Runs the services as their supervisor does: again when they panicked.
pub fn run(store: &Arc<PgStore>) -> JoinSet<()> {
    let mut running = JoinSet::new();
    for (_, make) in store.services() {
        running.spawn(async move { while tokio::spawn(make()).await.is_err() {} });
    }
    running
}

async fn open_postgres(clock: Arc<dyn Clock>) -> Subject {
    let store = PgStore::open_at(PgConfig::parse(&database().await).unwrap(), clock).await.unwrap();
    let running = run(&store);
    Subject::new(store, running)
}

async fn open(url: &str) -> (Arc<PgStore>, JoinSet<()>) {
    let store = PgStore::open(PgConfig::parse(url).unwrap(), Arc::new(SystemClock::start())).await.unwrap();
    let running = run(&store);
    (store, running)
}

/// One that takes a line for broken when it says nothing for two seconds.
async fn open_impatient(url: &str) -> (Arc<PgStore>, JoinSet<()>) {
    let mut config = PgConfig::parse(url).unwrap();
    config.patience = Duration::from_secs(2);
    let store = PgStore::open(config, Arc::new(SystemClock::start())).await.unwrap();
    let running = run(&store);
    (store, running)
}

async fn listed(store: &PgStore) -> Vec<Task> {
    store.list(Query { limit: 10_000, ..Query::default() }).await.unwrap()
}

/// Operations that came while the writer was busy are one transaction, and its claims share what they find: each task goes to one of them, in
/// the order of the queue, also what came into being, left or came back in the same transaction.
#[tokio::test(flavor = "multi_thread")]
async fn claims_that_wait_together_are_served_together() {
    let url = database().await;
    let (store, _running) = open(&url).await;
    let name = url.rsplit_once('/').unwrap().1.split('?').next().unwrap();
    let mut conn = server().connect(name).await;
    let in_lane = |sort_key, id| NewTask { lane: lane(id), ..new_task(sort_key) };
    let tasks = [in_lane(1, 0), in_lane(2, 0), in_lane(3, 7), in_lane(4, 0), in_lane(5, 7), in_lane(6, 0)];
    for task in &tasks {
        store.create(task.clone(), None).await.unwrap();
    }
    let held = store.claim(claim(&worker("first", 1), 1)).await.unwrap().remove(0).task;
    assert_eq!(held.id, tasks[0].id);
    // Whoever writes events waits for this.
    let lock = sqlx::query("SELECT pg_advisory_lock($1)").bind(statements::EVENTS_LOCK);
    lock.execute(&mut conn).await.unwrap();
    let blocked = tokio::spawn({
        let store = Arc::clone(&store);
        async move { store.create(new_task(100), None).await }
    });
    let waits = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted";
    while sqlx::query_scalar::<_, i64>(waits).fetch_one(&mut conn).await.unwrap() == 0 {
        tokio::task::yield_now().await;
    }
    let before: i64 = sqlx::query_scalar("SELECT max(batch) FROM writers").fetch_one(&mut conn).await.unwrap();
    let new = in_lane(0, 0);
    let me = worker("node", 1);
    let take = |lanes: &[i64]| store.claim(claim_of(&me, vec![Lanes::only(lanes.iter().copied())]));
    // Polled in this order, so that they wait in this order.
    let together = async {
        tokio::join!(
            store.amend(tasks[1].id, Change::Cancel),
            take(&[0]),
            take(&[7]),
            store.create(new.clone(), Some(claim(&me, 1))),
            take(&[0, 7]),
            store.apply(held.id, held.fence, Change::Release(Release::Recalled)),
            take(&[0]),
            take(&[0, 9]),
            store.claim(claim(&me, 3)),
        )
    };
    let unlock = async {
        // They are polled first, and so wait by now.
        tokio::task::yield_now().await;
        sqlx::query("SELECT pg_advisory_unlock($1)").bind(statements::EVENTS_LOCK).execute(&mut conn).await.unwrap();
    };
    let (all, ()) = tokio::join!(together, unlock);
    blocked.await.unwrap().unwrap();
    let (cancelled, one, two, created, three, released, four, five, six) = all;
    assert_eq!(cancelled.unwrap().state, TaskState::Cancelled);
    assert_eq!(released.unwrap().state, TaskState::Pending);
    let ids = |held: Vec<Assignment>| held.iter().map(|held| (held.task.id, held.task.fence.0)).collect::<Vec<_>>();
    assert_eq!(ids(one.unwrap()), [(tasks[3].id, 1)], "the first that was not cancelled");
    assert_eq!(ids(two.unwrap()), [(tasks[2].id, 1)]);
    assert_eq!(ids(created.unwrap().claimed), [(new.id, 1)], "it goes before all others");
    assert_eq!(ids(three.unwrap()), [(tasks[4].id, 1)]);
    let mut rest: Vec<_> = [four, five, six].into_iter().flat_map(|claimed| ids(claimed.unwrap())).collect();
    rest.sort_unstable();
    let mut expected = vec![(tasks[0].id, 2), (tasks[5].id, 1)];
    let last = listed(&store).await.into_iter().find(|task| task.sort_key == 100).unwrap();
    expected.push((last.id, 1));
    expected.sort_unstable();
    assert_eq!(rest, expected, "nobody goes without while something waits");
    let after: i64 = sqlx::query_scalar("SELECT max(batch) FROM writers").fetch_one(&mut conn).await.unwrap();
    assert_eq!(after - before, 2, "one transaction after the one that was blocked");
}

/// Whichever way a COMMIT is lost, it is answered as what it was, and done once.
#[tokio::test(flavor = "multi_thread")]
async fn a_commit_whose_answer_is_lost_is_done_once() {
    database().await;
    for cut in [Cut::Before, Cut::After, Cut::Late, Cut::Silent] {
        let name = server().database().await;
        let ambush = Ambush::lay(server().port()).await;
        let (store, _running) = open_impatient(&server().url(&name, ambush.address.port())).await;
        let mut changes = store.changes();
        store.create(new_task(1), None).await.unwrap();
        ambush.arm(cut).await;
        let creating = {
            let store = Arc::clone(&store);
            tokio::spawn(async move { store.create(new_task(2), Some(claim(&worker("node", 1), 9))).await })
        };
        ambush.sprung().await;
        ambush.let_go();
        let creation = creating.await.unwrap().unwrap();
        assert!(matches!(creation.created, Created::New(_)) && creation.claimed.len() == 2, "{cut:?}: {creation:?}");
        let tasks = listed(&store).await;
        assert!(tasks.len() == 2 && tasks.iter().all(|task| task.fence == Fence(1)), "{cut:?}: {tasks:?}");
        let told: Vec<_> = std::iter::from_fn(|| changes.try_recv().ok()).collect();
        assert_eq!(told.len(), 4, "{cut:?}: {told:?}");
        let held = store.held(&worker("node", 1)).await.unwrap();
        for held in held {
            ambush.arm(cut).await;
            let failing = {
                let (store, Task { id, fence, .. }) = (Arc::clone(&store), held.task);
                tokio::spawn(async move { store.apply(id, fence, Change::Fail { error: error().permanent() }).await })
            };
            ambush.sprung().await;
            ambush.let_go();
            assert_eq!(failing.await.unwrap().unwrap().state, TaskState::Failed, "{cut:?}");
        }
    }
}

/// The server may still be at work on a COMMIT whose client is gone: what became of it is known when it is done with it, not before.
#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_is_still_being_done_is_waited_for() {
    const GATE: i64 = 42;
    database().await;
    let name = server().database().await;
    let ambush = Ambush::lay(server().port()).await;
    let (store, _running) = open(&server().url(&name, ambush.address.port())).await;
    let mut conn = server().connect(&name).await;
    let busy = format!(
        "CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_advisory_xact_lock({GATE}); RETURN NULL; END $$;
         CREATE CONSTRAINT TRIGGER wait AFTER INSERT ON tasks DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION wait();
         SELECT pg_advisory_lock({GATE})"
    );
    sqlx::raw_sql(AssertSqlSafe(busy)).execute(&mut conn).await.unwrap();
    ambush.arm(Cut::Busy).await;
    let creating = {
        let store = Arc::clone(&store);
        tokio::spawn(async move { store.create(new_task(1), None).await })
    };
    ambush.sprung().await;
    // Somebody waits for that transaction now, one way or the other.
    let waits = "SELECT count(*) FROM pg_locks WHERE locktype = 'transactionid' AND NOT granted";
    while sqlx::query_scalar::<_, i64>(waits).fetch_one(&mut conn).await.unwrap() == 0 {
        assert!(!creating.is_finished(), "{:?}", creating.await);
        tokio::task::yield_now().await;
    }
    sqlx::query("SELECT pg_advisory_unlock($1)").bind(GATE).execute(&mut conn).await.unwrap();
    assert!(matches!(creating.await.unwrap().unwrap().created, Created::New(_)));
    assert_eq!(listed(&store).await.len(), 1);
}

async fn heard_of_another(changes: &mut Receiver<Changed>) {
    while changes.recv().await.unwrap().here {}
}

/// Lines that go silent, without a reset, hold up nobody for ever: not who writes, who reads, who tells or who listens.
#[tokio::test(flavor = "multi_thread")]
async fn a_line_that_goes_silent_is_given_up() {
    database().await;
    let name = server().database().await;
    let ambush = Ambush::lay(server().port()).await;
    let (store, _running) = open_impatient(&server().url(&name, ambush.address.port())).await;
    let (other, _other) = open(&server().url(&name, server().port())).await;
    for silent in [false, true] {
        if silent {
            ambush.hush();
        }
        store.create(new_task(1), None).await.unwrap();
        assert!(!listed(&store).await.is_empty());
        for (from, to) in [(&store, &other), (&other, &store)] {
            let mut changes = to.changes();
            // Whoever listens may be on its way still.
            while timeout(Duration::from_millis(200), heard_of_another(&mut changes)).await.is_err() {
                from.create(new_task(2), None).await.unwrap();
            }
        }
    }
}

/// Everything that was answered is there after a crash of the server, and work goes on by itself when it is back.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_crashes_loses_nothing_it_answered() {
    let server = Arc::new(tokio::task::spawn_blocking(Server::start).await.unwrap());
    let (store, _running) = open(&server.url(&server.database().await, server.port())).await;
    let mut answered = 0;
    for _ in 0..3 {
        let creators: Vec<_> = (0..64)
            .map(|sort_key| {
                let store = Arc::clone(&store);
                tokio::spawn(async move { store.create(new_task(sort_key), None).await.is_ok() })
            })
            .collect();
        let crashing = Arc::clone(&server);
        tokio::task::spawn_blocking(move || crashing.kill()).await.unwrap();
        for creator in creators {
            answered += usize::from(creator.await.unwrap());
        }
        assert!(matches!(store.check().await, Err(StoreError::Unavailable(_))), "it is away");
        let starting = Arc::clone(&server);
        tokio::task::spawn_blocking(move || starting.start_again()).await.unwrap();
        store.check().await.unwrap();
        store.create(new_task(0), None).await.unwrap();
        answered += 1;
    }
    let found = listed(&store).await.len();
    assert!(found >= answered, "{found} of {answered} answered ones are there");
    assert_eq!(store.claim(claim(&worker("node", 1), found)).await.unwrap().len(), found);
}

/// Processes that write at the same time: each task is claimed once, and whoever has read up to an event never finds an earlier one later.
#[tokio::test(flavor = "multi_thread")]
async fn events_become_visible_in_their_order() {
    const WRITERS: u32 = 4;
    const EACH: i64 = 40;
    let url = database().await;
    let (reader, _running) = open(&url).await;
    let mut writers = JoinSet::new();
    for boot in 0..WRITERS {
        let (store, running) = open(&url).await;
        writers.spawn(async move {
            let _running = running;
            let me = worker("node", boot);
            let mut claimed = HashSet::new();
            for sort_key in 0..EACH {
                let creation = store.create(new_task(sort_key), Some(claim(&me, 1))).await.unwrap();
                claimed.extend(creation.claimed.iter().map(|held| held.task.id));
            }
            claimed
        });
    }
    let (mut seen, mut done) = (Vec::<i64>::new(), false);
    let mut claimed = Vec::new();
    while !done {
        done = match writers.join_next().now_or_never() {
            Some(None) => true,
            Some(Some(ids)) => {
                claimed.extend(ids.unwrap());
                false
            }
            None => false,
        };
        let after = seen.last().copied().unwrap_or(0);
        seen.extend(reader.events(None, after, 10_000).await.unwrap().iter().map(|event| event.seq));
    }
    let all: Vec<i64> = reader.events(None, 0, 10_000).await.unwrap().iter().map(|event| event.seq).collect();
    assert_eq!(seen, all, "none came late");
    let unique: HashSet<_> = claimed.iter().collect();
    assert_eq!(unique.len(), claimed.len(), "each is claimed once");
    let left = reader.claim(claim(&worker("late", 1), 1_000)).await.unwrap().len();
    assert_eq!(claimed.len() + left, WRITERS as usize * usize::try_from(EACH).unwrap(), "and all of them");
}

/// What one process changes or posts, another hears of; with its ears shut it finds it by looking.
#[tokio::test(flavor = "multi_thread")]
async fn processes_hear_of_each_other() {
    let url = database().await;
    let ((one, _one), (two, _two)) = (open(&url).await, open(&url).await);
    let deaf = PgStore::open(PgConfig::parse(&url).unwrap(), Arc::new(SystemClock::start())).await.unwrap();
    let _writer = {
        let mut running = JoinSet::new();
        let make = deaf.services().remove(0).1;
        running.spawn(make());
        running
    };
    let (mut changes, mut heard, mut own) = (two.changes(), two.heard(), one.changes());
    let small = Notice { kind: Kind::Pause, name: "queue".into(), body: Bytes::from_static(b"\0\xff") };
    let large = Notice { kind: Kind::Catalogue, name: "x".into(), body: Bytes::from(vec![7; 1 << 20]) };
    // The listener may still be on its way: a first word tells when it is there.
    let hello = Notice { kind: Kind::Watched, name: "hello".into(), body: Bytes::new() };
    let mut is_there = heard.recv().boxed();
    loop {
        one.post(hello.clone(), KEEP).await.unwrap();
        if (&mut is_there).now_or_never().is_some() {
            break;
        }
        tokio::task::yield_now().await;
    }
    drop(is_there);
    let id = new_task(1);
    let name = id.id;
    one.create(id, None).await.unwrap();
    let told = changes.recv().await.unwrap();
    assert_eq!((told.id, told.was, told.state, told.here), (name, None, TaskState::Pending, false));
    assert!(own.recv().await.unwrap().here, "one's own is told once, as one's own");
    for posted in [&small, &large] {
        one.post(posted.clone(), KEEP).await.unwrap();
        loop {
            let notice = heard.recv().await.unwrap();
            if *notice != hello {
                assert_eq!(*notice, *posted);
                break;
            }
        }
    }
    assert_eq!(deaf.notices(Kind::Pause).await.unwrap(), [small]);
    let taken = deaf.claim(claim(&worker("deaf", 1), 1)).await.unwrap();
    assert_eq!(taken[0].task.id, name);
    assert!(own.try_recv().is_err(), "its own word does not come back");
}

/// Several processes may start at once on an empty database; a newer schema is refused, and so is whatever else is wrong, in plain words
/// and without the password.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_is_said_at_the_start() {
    let url = database().await;
    let try_open = |url: String| async move {
        PgStore::open(PgConfig::parse(&url).unwrap(), Arc::new(SystemClock::start())).await
    };
    let together = futures_util::future::join_all((0..4).map(|_| try_open(url.clone()))).await;
    assert!(together.iter().all(Result::is_ok));
    let name = url.rsplit_once('/').unwrap().1.split('?').next().unwrap();
    let mut conn = server().connect(name).await;
    let newer = "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) VALUES (99, '', true, '', 0)";
    sqlx::query(newer).execute(&mut conn).await.unwrap();
    sqlx::raw_sql("CREATE ROLE guest LOGIN PASSWORD 'hunter2'").execute(&mut conn).await.unwrap();
    let empty = database().await;
    for (url, told) in [
        (url.clone(), "newer comfyd"),
        (url.replace("hunter2", "hunter22"), "user or the password"),
        (url.replace(name, "nobody_made_it"), "no such database"),
        (url.replace(&format!(":{}/", server().port()), ":1/"), "cannot be reached"),
        (url.replace("sslmode=disable", "sslmode=require"), "sslmode"),
        (empty.replace("comfyd:", "guest:"), "may not make or use tables"),
    ] {
        let Err(error) = try_open(url).await else { panic!("not refused: {told}") };
        let error = error.to_string();
        assert!(error.contains(told) && !error.contains("hunter2"), "{told}: {error}");
    }
}

/// While somebody holds an old snapshot nothing is cleared away: work gets slower, and goes on.
#[tokio::test(flavor = "multi_thread")]
async fn work_goes_on_under_a_long_snapshot() {
    let url = database().await;
    let name = url.rsplit_once('/').unwrap().1.split('?').next().unwrap();
    let (store, _running) = open(&url).await;
    let mut old = server().connect(name).await;
    sqlx::raw_sql("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM tasks").execute(&mut old).await.unwrap();
    for _ in 0..200 {
        let creation = store.create(new_task(1), Some(claim(&worker("node", 1), 1))).await.unwrap();
        let task = creation.claimed[0].task.clone();
        store.apply(task.id, task.fence, Change::Fail { error: error().permanent() }).await.unwrap();
    }
    assert_eq!(store.counts().await.unwrap(), Counts::default());
    sqlx::raw_sql("COMMIT").execute(&mut old).await.unwrap();
}
