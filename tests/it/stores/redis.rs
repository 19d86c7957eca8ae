//! The suite, and what only a server can do: go away, forget, lose an answer, be shared.

use std::{collections::HashSet, sync::Arc, time::Duration};

use bytes::Bytes;
use comfyd::{
    clock::SystemClock,
    store::redis::{OpenError, RedisConfig, RedisStore, Time, look},
};
use comfyd_actors::{
    domain::{
        id::TaskId,
        task::{Change, TaskState},
    },
    ports::{
        clock::Clock,
        store::{Changed, Created, Query, StoreError, TaskStore, WorkSource},
        wire::{Kind, Notice, Wire as _},
    },
    testing::store_conformance::{
        Subject,
        fixtures::{claim, keyed_task, new_task, worker},
    },
};
use tokio::{task::JoinHandle, time::timeout};

use crate::redis_server::{Server, Wire, fresh};

const PATIENCE: Duration = Duration::from_secs(20);

async fn open_redis(clock: Arc<dyn Clock>) -> Subject {
    let store = RedisStore::open(fresh(), Time::Given(clock)).await.unwrap();
    Subject::new(store, ())
}

comfyd_actors::store_conformance!(open_redis, cases: 64);

async fn open(config: RedisConfig) -> Arc<RedisStore> {
    RedisStore::open(config, Time::Server(Arc::new(SystemClock::start()))).await.unwrap()
}

/// With the service that hears of others.
async fn listening(config: &RedisConfig) -> (Arc<RedisStore>, JoinHandle<()>) {
    let store = open(config.clone()).await;
    let listener = tokio::spawn(store.listener());
    (store, listener)
}

/// Whether a listener is there yet nobody tells, and until it is, its process hears nothing: so one speaks until the other answers to it.
async fn until_heard(speaker: &RedisStore, listener: &RedisStore) {
    let mut ears = listener.heard();
    let hello = Notice { kind: Kind::Watched, name: "hello".to_owned(), body: Bytes::new() };
    let heard = async {
        loop {
            speaker.post(hello.clone(), PATIENCE).await.unwrap();
            if timeout(Duration::from_millis(50), ears.recv()).await.is_ok_and(|heard| *heard.unwrap() == hello) {
                return;
            }
        }
    };
    timeout(PATIENCE, heard).await.expect("the listener hears");
}

async fn listed(store: &RedisStore) -> HashSet<TaskId> {
    let tasks = store.list(Query { limit: 999, ..Query::default() }).await.unwrap();
    tasks.into_iter().map(|task| task.id).collect()
}

/// A commit is answered when it is on the disk, so a server that is killed and comes back has all of it, and who waits meanwhile goes on.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_comes_back_has_all_it_answered() {
    let mut server = Server::durable();
    let store = open(server.config()).await;
    let creators: Vec<_> = (0..8)
        .map(|creator| {
            let store = Arc::clone(&store);
            tokio::spawn(async move {
                let mut answered = Vec::new();
                for place in 0..40 {
                    let new = new_task(creator * 100 + place);
                    let id = new.id;
                    if store.create(new, None).await.is_ok() {
                        answered.push(id);
                    }
                }
                answered
            })
        })
        .collect();
    let mut changes = store.changes();
    for _ in 0..40 {
        changes.recv().await.unwrap();
    }
    server.kill();
    server.run();
    let mut answered = Vec::new();
    for creator in creators {
        answered.extend(timeout(PATIENCE, creator).await.unwrap().unwrap());
    }
    let found = listed(&store).await;
    assert!(answered.iter().all(|id| found.contains(id)), "what was answered is there");
    assert_eq!(answered.len(), 320, "who waited while it was away got through");
    assert_eq!(found.len(), 320);
    let held = store.claim(claim(&worker("node", 1), 3)).await.unwrap();
    assert_eq!(held.len(), 3);
}

/// Nobody knows whether a commit whose answer is lost was made, but the server: it is sent again, and made once.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_answer_is_found_out() {
    let server = Server::start(&[]);
    let wire = Wire::to(&server).await;
    let store = open(wire.config()).await;
    store.check().await.unwrap();
    let mut changes = store.changes();
    wire.lose_the_next_answer();
    let created = store.create(keyed_task("key", 1), Some(claim(&worker("node", 1), 1))).await.unwrap();
    assert!(wire.has_lost_it(), "an answer was lost");
    let Created::New(task) = created.created else { panic!("it is its own repetition: {:?}", created.created) };
    assert_eq!(created.claimed.len(), 1);
    let words = |told: Changed| (told.id, told.state);
    assert_eq!(words(changes.recv().await.unwrap()), (task.id, TaskState::Pending));
    wire.lose_the_next_answer();
    let held = &created.claimed[0].task;
    let failed = Change::Fail { error: comfyd_actors::testing::store_conformance::fixtures::error() };
    let over = store.apply(held.id, held.fence, failed).await.unwrap();
    assert!(wire.has_lost_it() && over.state == TaskState::Failed, "it is not told that it is over already");
    let events = store.events(Some(task.id), 0, 99).await.unwrap();
    assert_eq!(events.len(), 3, "queued, preparing, failed: {events:?}");
}

/// A server that is gone for good makes a write fail after a while, not wait for ever.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_stays_away_is_given_up() {
    let mut server = Server::start(&[]);
    let store = open(server.config()).await;
    server.kill();
    let refused = timeout(PATIENCE, store.create(new_task(0), None)).await.unwrap();
    assert!(matches!(refused, Err(StoreError::Unavailable(_))), "{refused:?}");
    let unread = timeout(PATIENCE, store.counts()).await.unwrap();
    assert!(matches!(unread, Err(StoreError::Unavailable(_))));
}

/// A server whose memory is full takes nothing, and says so; what it has it keeps.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_server_takes_nothing_and_loses_nothing() {
    let server = Server::start(&["--maxmemory", "4mb"]);
    let store = open(server.config()).await;
    let mut answered = HashSet::new();
    let refused = loop {
        let mut new = new_task(0);
        new.payload.metadata = format!("{:?}", "x".repeat(100_000)).into();
        let id = new.id;
        match store.create(new, None).await {
            Ok(_) => assert!(answered.insert(id)),
            Err(error) => break error,
        }
    };
    assert!(matches!(&refused, StoreError::Unavailable(why) if why.contains("maxmemory")), "{refused}");
    assert_eq!(listed(&store).await, answered);
}

/// Processes hear of each other's changes and notices, of each thing once, and of their own as their own.
#[tokio::test(flavor = "multi_thread")]
async fn processes_hear_of_each_other() {
    let config = fresh();
    let ((here, _one), (there, _other)) = (listening(&config).await, listening(&config).await);
    until_heard(&here, &there).await;
    until_heard(&there, &here).await;
    let (mut mine, mut theirs) = (here.changes(), there.changes());
    let (mut notices, mut own) = (there.heard(), here.heard());
    let small = Notice { kind: Kind::Watched, name: "a\n\"b".to_owned(), body: Bytes::from_static(b"\n{}\xff") };
    let large = Notice { kind: Kind::Catalogue, name: "c".to_owned(), body: vec![7; 1 << 20].into() };
    for notice in [small, large] {
        here.post(notice.clone(), PATIENCE).await.unwrap();
        for ears in [&mut own, &mut notices] {
            let heard = async {
                loop {
                    let heard = ears.recv().await.unwrap();
                    if heard.name != "hello" {
                        return heard;
                    }
                }
            };
            assert_eq!(*timeout(PATIENCE, heard).await.unwrap(), notice);
        }
    }
    let new = new_task(0);
    let id = new.id;
    here.create(new, None).await.unwrap();
    let told = timeout(PATIENCE, theirs.recv()).await.unwrap().unwrap();
    assert_eq!((told.id, told.was, told.state, told.here), (id, None, TaskState::Pending, false));
    there.cancel(id).await.unwrap();
    assert!(mine.recv().await.unwrap().here);
    let told = timeout(PATIENCE, mine.recv()).await.unwrap().unwrap();
    assert_eq!((told.id, told.state, told.here), (id, TaskState::Cancelled, false));
}

/// However many processes want the same tasks, each goes to one of them, and nobody gives up.
#[tokio::test(flavor = "multi_thread")]
async fn processes_share_the_queue() {
    let config = fresh();
    let first = open(config.clone()).await;
    for sort_key in 0..60 {
        first.create(new_task(sort_key), None).await.unwrap();
    }
    let mut claimers = Vec::new();
    for boot in 0..6 {
        let store = open(config.clone()).await;
        claimers.push(tokio::spawn(async move {
            let mut mine = Vec::new();
            loop {
                let claimed = store.claim(claim(&worker("node", boot), 2)).await.unwrap();
                if claimed.is_empty() {
                    return mine;
                }
                mine.extend(claimed.into_iter().map(|held| held.task.id));
            }
        }));
    }
    let mut all = Vec::new();
    for claimer in claimers {
        all.extend(claimer.await.unwrap());
    }
    assert_eq!((all.len(), all.iter().collect::<HashSet<_>>().len()), (60, 60));
}

/// The numbers of events become visible in order, whoever writes.
#[tokio::test(flavor = "multi_thread")]
async fn who_reads_along_misses_no_event() {
    let config = fresh();
    let writers: Vec<_> = (0..4)
        .map(|_| {
            let config = config.clone();
            tokio::spawn(async move {
                let store = open(config).await;
                for sort_key in 0..30 {
                    store.create(new_task(sort_key), None).await.unwrap();
                }
            })
        })
        .collect();
    let reader = open(config).await;
    let (mut seen, mut after) = (HashSet::new(), 0);
    let reading = async {
        while seen.len() < 120 {
            for event in reader.events(None, after, 7).await.unwrap() {
                assert!(event.seq > after);
                after = event.seq;
                assert!(seen.insert(event.task));
            }
        }
    };
    timeout(PATIENCE, reading).await.expect("an event became visible behind the reader");
    for writer in writers {
        writer.await.unwrap();
    }
    assert_eq!(reader.newest_event().await.unwrap(), after);
}

/// Faults of the set-up are refused with what to do, and never with the password.
#[tokio::test(flavor = "multi_thread")]
async fn an_unfit_server_is_refused() {
    let refusal = async |url: String| {
        let config = RedisConfig { url, prefix: "comfyd".to_owned() };
        let refused = RedisStore::open(config, Time::Server(Arc::new(SystemClock::start()))).await;
        let refused = refused.err().expect("it is refused");
        assert!(!refused.to_string().contains("hunter2"), "{refused}");
        refused
    };
    let evicting = Server::start(&["--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru"]);
    let refused = refusal(evicting.url()).await;
    assert!(matches!(&refused, OpenError::Evicts(policy) if policy == "allkeys-lru"), "{refused}");
    assert!(refused.to_string().contains("noeviction"));
    let closed = Server::start(&["--requirepass", "swordfish"]);
    let with = |who: &str| format!("redis://{who}127.0.0.1:{}/0", closed.port());
    assert!(matches!(refusal(with("")).await, OpenError::Password(_)));
    assert!(matches!(refusal(with(":hunter2@")).await, OpenError::Password(_)));
    let mut gone = Server::start(&[]);
    gone.kill();
    assert!(matches!(refusal(gone.url()).await, OpenError::Unreachable(_)));
    assert!(matches!(refusal("redis://:hunter2@:x/".to_owned()).await, OpenError::Url));
    let guest = Server::start(&["--user", "guest", "on", ">hunter2", "~*", "&*", "+@read", "+@connection", "+info"]);
    let refused = refusal(format!("redis://guest:hunter2@127.0.0.1:{}/0", guest.port())).await;
    assert!(matches!(refused, OpenError::Forbidden(_)), "{refused}");
}

/// What a server can lose is said, and remembered when it may have happened.
#[tokio::test(flavor = "multi_thread")]
async fn what_can_be_lost_is_said() {
    for (settings, warned, word) in [
        (&["--appendonly", "yes", "--appendfsync", "always"][..], false, ""),
        (&["--appendonly", "yes"], true, "everysec"),
        (&[], true, "ALL tasks"),
    ] {
        let mut server = Server::start(settings);
        let warning = look(&server.config()).await.unwrap().warning();
        assert_eq!(warning.is_some(), warned, "{warning:?}");
        assert!(warning.unwrap_or_default().contains(word));
        assert!(open(server.config()).await.was_clean(), "nobody used it before");
        let store = open(server.config()).await;
        assert!(store.was_clean(), "it is the same run of the server");
        store.create(new_task(0), None).await.unwrap();
        drop(store);
        server.kill();
        server.run();
        let again = open(server.config()).await;
        // One that forgot everything knows nothing of those who used it, and there is nothing to be careful about.
        assert_eq!(again.was_clean(), !warned || settings.is_empty(), "{settings:?}");
    }
}
