//! The suite, and what only a file can do: outlive its process.

use std::{fs, path::Path, sync::Arc};

use comfyd::store::sqlite::{SqliteConfig, SqliteStore};
use comfyd_actors::{
    domain::task::TaskState,
    ports::store::{Query, TaskStore, WorkSource},
    testing::{
        TestClock,
        store_conformance::fixtures::{claim, new_task, worker},
    },
};

use super::run_writer;

comfyd_actors::store_conformance!(super::open_sqlite, cases: 96);

async fn open(path: &Path) -> Arc<SqliteStore> {
    SqliteStore::open(SqliteConfig::new(path), Arc::new(TestClock::default())).await.unwrap()
}

/// What the disk holds at the moment of an answer is what a process finds that comes after a crash.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_answered_survives_a_crash() {
    let (before, after) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let store = open(&before.path().join("tasks.db")).await;
    let _writer = run_writer(&store);
    let me = worker("node", 1);
    for sort_key in 0..20 {
        store.create(new_task(sort_key), Some(claim(&me, usize::from(sort_key % 2 == 0)))).await.unwrap();
    }
    for entry in fs::read_dir(before.path()).unwrap() {
        let file = entry.unwrap().path();
        // The index of the log is rebuilt from the log.
        if !file.to_string_lossy().ends_with("-shm") {
            fs::copy(&file, after.path().join(file.file_name().unwrap())).unwrap();
        }
    }
    let found = open(&after.path().join("tasks.db")).await;
    let _writer = run_writer(&found);
    assert!(!found.was_clean());
    assert_eq!(found.list(Query { limit: 99, ..Query::default() }).await.unwrap().len(), 20);
    let held = found.held(&me).await.unwrap();
    assert_eq!(held.len(), 10);
    assert!(held.iter().all(|held| held.task.state == TaskState::Dispatching));
}

/// The writer's death and the store's, without a word of goodbye, in the middle of work.
#[tokio::test(flavor = "multi_thread")]
async fn a_store_dropped_at_work_loses_nothing_it_answered() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tasks.db");
    let mut answered = 0;
    for _ in 0..5 {
        let store = open(&path).await;
        let writer = run_writer(&store);
        let creators: Vec<_> = (0..16)
            .map(|sort_key| {
                let store = Arc::clone(&store);
                tokio::spawn(async move { store.create(new_task(sort_key), None).await.is_ok() })
            })
            .collect();
        tokio::task::yield_now().await;
        drop(writer);
        // Some never got a writer to answer them.
        drop(store);
        for creator in creators {
            let patience = std::time::Duration::from_millis(200);
            answered +=
                usize::from(tokio::time::timeout(patience, creator).await.is_ok_and(|created| created.unwrap()));
        }
        let found = open(&path).await.list(Query { limit: 999, ..Query::default() }).await.unwrap().len();
        assert!(found >= answered, "{found} of {answered} answered ones are there");
    }
}

/// Two processes may share a file; one of them waits while the other writes.
#[tokio::test(flavor = "multi_thread")]
async fn two_stores_on_one_file_take_turns() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tasks.db");
    let (one, two) = (open(&path).await, open(&path).await);
    let _writers = (run_writer(&one), run_writer(&two));
    for sort_key in 0..20 {
        let (a, b) = tokio::join!(one.create(new_task(sort_key), None), two.create(new_task(sort_key), None));
        a.unwrap();
        b.unwrap();
    }
    let asked = |boot| claim(&worker("node", boot), 40);
    let (a, b) = tokio::join!(one.claim(asked(1)), two.claim(asked(2)));
    assert_eq!(a.unwrap().len() + b.unwrap().len(), 40);
}
