//! What the suite of all stores cannot see from outside: batches, faults of the file, plans of queries.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use comfyd_actors::{
    domain::{
        failure::Class,
        id::TaskId,
        task::TaskState,
        time::Timestamp,
        webhook::{DeliveryState, EndpointId, Policy},
    },
    ports::{
        hook_store::{DeliveryQuery, HookStore},
        store::{FailedQuery, Query, StoreError, TaskStore},
    },
    testing::{
        TestClock,
        store_conformance::fixtures::{claim, new_task, worker},
    },
};
use sqlx::{AssertSqlSafe, ConnectOptions, Executor, Row, SqliteConnection};
use tempfile::TempDir;
use tokio::task::JoinHandle;

use super::{
    SqliteConfig, SqliteStore,
    fault::Fault,
    open::OpenError,
    ops::{ClaimHeads, Create, SEEKING},
    outbox, reads,
    rows::corrupt,
    statement::query,
    tx::Tx,
    writer::Operation,
};

async fn open(folder: &TempDir) -> Arc<SqliteStore> {
    let config = SqliteConfig::new(folder.path().join("deep/down/tasks.db"));
    SqliteStore::open(config, Arc::new(TestClock::default())).await.unwrap()
}

async fn fresh() -> (Arc<SqliteStore>, TempDir) {
    let folder = tempfile::tempdir().unwrap();
    (open(&folder).await, folder)
}

/// Runs the writer as its supervisor does: again after each panic.
fn supervise(store: &Arc<SqliteStore>) -> JoinHandle<()> {
    let store = Arc::clone(store);
    tokio::spawn(async move { while tokio::spawn(store.writer()).await.is_err() {} })
}

/// Queues an operation and gives it time to get there: the writer is not running yet.
async fn queue<O: Operation>(store: &Arc<SqliteStore>, operation: O) -> JoinHandle<Result<O::Answer, StoreError>> {
    let waiting = store.queue.free();
    let writing = Arc::clone(store);
    let handle = tokio::spawn(async move { writing.write(operation).await });
    while store.queue.free() == waiting {
        tokio::task::yield_now().await;
    }
    handle
}

fn create(id: TaskId) -> Create {
    let mut new = new_task(0);
    new.id = id;
    Create { new, claim: None }
}

async fn listed(store: &SqliteStore) -> Vec<TaskId> {
    let tasks = store.list(Query { limit: 99, ..Query::default() }).await.unwrap();
    tasks.iter().map(|task| task.id).collect()
}

/// Creates and claims a task, then thinks better of it.
struct HalfDone(TaskId);

impl Operation for HalfDone {
    type Answer = ();

    async fn run(self, tx: &mut Tx<'_>) -> Result<(), Fault> {
        create(self.0).run(tx).await?;
        ClaimHeads(claim(&worker("node", 1), 9)).run(tx).await?;
        Err(corrupt("refused at the last moment").into())
    }
}

/// Creates a task and dies.
struct Fatal(TaskId);

impl Operation for Fatal {
    type Answer = ();

    async fn run(self, tx: &mut Tx<'_>) -> Result<(), Fault> {
        create(self.0).run(tx).await?;
        panic!("an operation with a bug");
    }
}

/// Lets the file grow by so many pages and no more, as a full disk does.
struct RoomLeft(u32);

impl Operation for RoomLeft {
    type Answer = ();

    async fn run(self, tx: &mut Tx<'_>) -> Result<(), Fault> {
        let row = tx.fetch(query("PRAGMA page_count")).await?;
        let pages = row.first().map_or(0, |row| row.get::<u32, _>(0)) + self.0;
        tx.fetch(query(format!("PRAGMA max_page_count = {pages}"))).await.map(drop)
    }
}

#[tokio::test]
async fn a_refused_operation_does_not_harm_its_neighbours() {
    let (store, _folder) = fresh().await;
    let mut changes = store.changes();
    let [first, refused, twice, last] = [0; 4].map(|_| TaskId::new());
    let good = [queue(&store, create(first)).await, queue(&store, create(twice)).await];
    let half = queue(&store, HalfDone(refused)).await;
    let again = queue(&store, create(twice)).await;
    let good_too = queue(&store, create(last)).await;
    let writer = supervise(&store);
    for created in good.into_iter().chain([good_too]) {
        created.await.unwrap().unwrap().durable.wait().await.unwrap();
    }
    assert!(matches!(half.await.unwrap(), Err(StoreError::Corrupt(_))));
    assert!(matches!(again.await.unwrap(), Err(StoreError::Corrupt(_))), "an id is used once");
    let mut expected = [first, twice, last];
    let told: Vec<_> = std::iter::from_fn(|| changes.try_recv().ok()).map(|told| (told.id, told.state)).collect();
    assert_eq!(told, expected.map(|id| (id, TaskState::Pending)));
    expected.reverse();
    assert_eq!(listed(&store).await, expected);
    writer.abort();
}

#[tokio::test]
async fn a_writer_that_panics_is_followed_by_another() {
    let (store, _folder) = fresh().await;
    let [before, fatal, waiting, after] = [0; 4].map(|_| TaskId::new());
    let same_batch = queue(&store, create(before)).await;
    let bug = queue(&store, Fatal(fatal)).await;
    let queued = queue(&store, create(waiting)).await;
    let writer = supervise(&store);
    for lost in [same_batch.await.unwrap().map(drop), bug.await.unwrap(), queued.await.unwrap().map(drop)] {
        assert!(matches!(lost, Err(StoreError::Unavailable(_))), "{lost:?}");
    }
    assert_eq!(listed(&store).await, [], "nothing of the batch is there");
    store.write(create(after)).await.unwrap();
    assert_eq!(listed(&store).await, [after]);
    writer.abort();
}

#[tokio::test]
async fn a_full_disk_is_an_outage_not_an_end() {
    let (store, _folder) = fresh().await;
    let mut store = Arc::into_inner(store).unwrap();
    // On every connection the writer opens: the disk stays full.
    store.options = store.options.pragma("max_page_count", "60");
    let store = Arc::new(store);
    let writer = supervise(&store);
    let first = TaskId::new();
    store.write(create(first)).await.unwrap();
    let mut large = create(TaskId::new()).new;
    large.payload.graph = "x".repeat(400_000).into();
    for _ in 0..2 {
        let refused = store.create(large.clone(), None).await;
        assert!(matches!(refused, Err(StoreError::Unavailable(_))), "{refused:?}");
        assert_eq!(listed(&store).await, [first]);
    }
    store.write(RoomLeft(1000)).await.unwrap();
    store.check().await.unwrap();
    store.create(large, None).await.unwrap();
    writer.abort();
}

/// Whatever is written to a file without a name is lost with the process, so nothing is promised, until the file is back.
#[tokio::test]
async fn a_database_that_is_gone_takes_nothing_until_it_is_back() {
    let (store, folder) = fresh().await;
    let writer = supervise(&store);
    let home = folder.path().join("deep/down");
    let (place, elsewhere) = (home.join("tasks.db"), home.join("moved.db"));
    let add = async || store.create(new_task(0), None).await?.durable.wait().await;
    add().await.unwrap();
    std::fs::rename(&place, &elsewhere).unwrap();
    for _ in 0..2 {
        let refused = add().await;
        assert!(matches!(&refused, Err(StoreError::Unavailable(why)) if why.contains("is gone")), "{refused:?}");
        assert!(!place.exists(), "no empty database takes its place");
    }
    std::fs::copy(&elsewhere, &place).unwrap();
    for _ in 0..2 {
        let refused = add().await;
        assert!(matches!(&refused, Err(StoreError::Unavailable(why)) if why.contains("not the file")), "{refused:?}");
        assert!(store.check().await.is_err());
    }
    std::fs::rename(&elsewhere, &place).unwrap();
    store.check().await.unwrap();
    add().await.unwrap();
    drop((store, writer.abort()));
    assert!(listed(&*open(&folder).await).await.len() >= 2);
}

#[tokio::test]
async fn a_deleted_table_is_reported_and_nothing_panics() {
    let (store, _folder) = fresh().await;
    let writer = supervise(&store);
    let mut conn = store.options.connect().await.unwrap();
    conn.execute("DROP TABLE task_outputs").await.unwrap();
    let missing = store.create(new_task(0), Some(claim(&worker("node", 1), 1))).await;
    assert!(matches!(missing, Err(StoreError::Unavailable(_))), "{missing:?}");
    assert_eq!(listed(&store).await, []);
    store.check().await.expect("the failed transaction was ended, the next one can begin");
    writer.abort();
}

#[tokio::test]
async fn an_unknown_state_is_corrupt() {
    let (store, _folder) = fresh().await;
    let writer = supervise(&store);
    let id = TaskId::new();
    store.write(create(id)).await.unwrap();
    let mut conn = store.options.connect().await.unwrap();
    conn.execute("UPDATE tasks SET state = 'dreaming'").await.unwrap();
    assert!(matches!(store.get(id).await, Err(StoreError::Corrupt(_))));
    assert!(matches!(store.cancel(id).await, Err(StoreError::Corrupt(_))));
    store.check().await.unwrap();
    writer.abort();
}

#[tokio::test]
async fn the_file_remembers_how_it_was_left() {
    let (store, folder) = fresh().await;
    assert!(store.was_clean(), "nobody left a new file in a bad state");
    drop(store);
    let store = open(&folder).await;
    assert!(!store.was_clean());
    store.mark_clean().await.unwrap();
    drop(store);
    assert!(open(&folder).await.was_clean());
    assert!(!open(&folder).await.was_clean(), "the mark is for one time");
}

#[tokio::test]
async fn a_newer_schema_is_refused() {
    let (store, folder) = fresh().await;
    let mut conn = store.options.connect().await.unwrap();
    let newer = "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) VALUES (99, 'x', 1, x'00', 0)";
    conn.execute(newer).await.unwrap();
    let config = SqliteConfig::new(folder.path().join("deep/down/tasks.db"));
    let refused = SqliteStore::open(config, Arc::new(TestClock::default())).await.map(drop);
    assert!(matches!(refused, Err(OpenError::NewerSchema { found: 99, .. })), "{refused:?}");
}

#[tokio::test]
async fn connections_are_set_up_as_meant() {
    let (store, _folder) = fresh().await;
    let mut conn = store.options.connect().await.unwrap();
    for (pragma, value) in [
        ("PRAGMA journal_mode", "wal"),
        ("PRAGMA synchronous", "1"),
        ("PRAGMA auto_vacuum", "2"),
        ("PRAGMA foreign_keys", "1"),
        ("PRAGMA busy_timeout", "10000"),
        ("PRAGMA mmap_size", "0"),
    ] {
        let row = sqlx::query(pragma).fetch_one(&mut conn).await.unwrap();
        let shown = row.try_get::<String, _>(0).unwrap_or_else(|_| row.get::<i64, _>(0).to_string());
        assert_eq!(shown, value, "{pragma}");
    }
    assert!(store.readers.0.execute("DELETE FROM tasks").await.is_err(), "readers only read");
}

/// Writes something, as a promise or not.
struct Write {
    is_promise: bool,
}

impl Operation for Write {
    type Answer = ();

    fn is_promise(&self) -> bool {
        self.is_promise
    }

    async fn run(self, tx: &mut Tx<'_>) -> Result<(), Fault> {
        tx.write(query("INSERT OR REPLACE INTO meta (name, value) VALUES ('test', hex(randomblob(8)))"));
        Ok(())
    }
}

/// A log that cannot be opened cannot be flushed, so whoever waits for that is told so, and nobody else.
#[tokio::test]
async fn promises_wait_for_the_disk_and_nothing_else_does() {
    let (store, _folder) = fresh().await;
    let mut store = Arc::into_inner(store).unwrap();
    store.files.log.set_extension("nowhere");
    let store = Arc::new(store);
    let writer = supervise(&store);
    for is_promise in [true, false, false, true, false, true, true, false] {
        let written = store.write(Write { is_promise }).await;
        assert_eq!(matches!(written, Err(StoreError::Unavailable(_))), is_promise, "{written:?}");
    }
    let created = store.write(create(TaskId::new())).await.unwrap();
    assert!(matches!(created.durable.wait().await, Err(StoreError::Unavailable(_))));
    // Nor is anybody outside told of what may be undone.
    let taken = store.take(1, &Policy::default()).await;
    assert!(matches!(taken, Err(StoreError::Unavailable(_))), "{taken:?}");
    writer.abort();
}

/// After a flush that failed, what the log holds may not be on the disk, whatever later flushes say.
#[tokio::test]
async fn a_log_that_could_not_be_flushed_is_emptied_first() {
    let (store, _folder) = fresh().await;
    let log = store.files.log.clone();
    let mut store = Arc::into_inner(store).unwrap();
    store.files.log.set_extension("nowhere");
    let store = Arc::new(store);
    let writer = supervise(&store);
    let size = || std::fs::metadata(&log).unwrap().len();
    store.write(Write { is_promise: false }).await.unwrap();
    let after_one = size();
    assert!(store.write(Write { is_promise: true }).await.is_err());
    assert!(size() > after_one, "the second went to the end of the log");
    store.write(Write { is_promise: false }).await.unwrap();
    assert_eq!(size(), after_one, "the third is alone in the log");
    writer.abort();
}

/// Every statement whose cost must not grow reads an index from the right place.
#[tokio::test]
async fn queries_seek_and_never_scan() {
    let (store, _folder) = fresh().await;
    let mut conn = store.options.connect().await.unwrap();
    let list = Query { states: vec![TaskState::Failed, TaskState::Pending], limit: 9, ..Query::default() };
    let page = reads::page(&list).into_sql();
    let last = Some((Timestamp(1), TaskId::new()));
    let unswept = reads::unswept(TaskState::Completed, last, Timestamp(2), 9).into_sql();
    let others = [("get", reads::GET), ("next_scheduled", reads::NEXT_SCHEDULED), ("list", page.as_str())];
    let others = others.into_iter().chain([("unswept", unswept.as_str())]);
    let all = reads::failed_page(&FailedQuery { limit: 9, ..FailedQuery::default() }).into_sql();
    let alike = FailedQuery { classes: vec![Class::Poison, Class::Transient], limit: 9, ..FailedQuery::default() };
    let alike = reads::failed_page(&alike).into_sql();
    let others = others.chain([("failed", all.as_str()), ("failed alike", alike.as_str())]);
    let others = others.chain([
        ("events", reads::EVENTS),
        ("events of", reads::EVENTS_OF),
        ("ahead", reads::AHEAD),
        ("crowd", reads::CROWD),
    ]);
    let others = others.chain([("open messages", outbox::OPEN), ("call endpoints", outbox::CALL)]);
    let (task, endpoint, state) = (Some(TaskId::new()), Some(EndpointId(1)), Some(DeliveryState::Failed));
    let pages = [
        DeliveryQuery { task, state, limit: 9, ..DeliveryQuery::default() },
        DeliveryQuery { endpoint, limit: 9, ..DeliveryQuery::default() },
        DeliveryQuery { state, before: Some(9), limit: 9, ..DeliveryQuery::default() },
    ]
    .map(|query| reads::deliveries_page(&query).into_sql());
    let others = others.chain(pages.iter().map(|page| ("deliveries", page.as_str())));
    for (name, sql) in SEEKING.into_iter().chain(others) {
        assert!(!sql.contains("LIMIT ?"), "{name} would be planned anew for each call");
        for detail in plan(&mut conn, sql).await {
            let walks_a_table = detail.starts_with("SCAN ") && !detail.contains("INDEX") && !is_small(&detail);
            assert!(!walks_a_table, "{name}: {detail}");
            assert!(name != "deliveries" || !detail.contains("TEMP B-TREE"), "{name}: {detail}");
        }
    }
    let ends = plan(&mut conn, unswept.as_str()).await;
    assert!(
        ends.iter().all(|detail| detail.contains("SEARCH") && detail.contains("(finished_at,id)>(?,?)")),
        "{ends:#?}"
    );
    let classes = plan(&mut conn, alike.as_str()).await;
    let seeks = classes.iter().filter(|detail| detail.contains("tasks_failed (<expr>=?")).count();
    assert_eq!(seeks, 2, "one for each class: {classes:#?}");
    let depths = plan(&mut conn, reads::DEPTHS).await;
    assert!(depths.iter().any(|detail| detail.contains("COVERING INDEX tasks_claim")), "{depths:#?}");
    let claim = plan(&mut conn, SEEKING[0].1).await;
    assert!(claim.iter().any(|detail| detail.ends_with("COVERING INDEX tasks_claim (lane=?)")), "{claim:#?}");
}

/// What a query makes itself: the lanes, a list of ids, the rows of a page.
fn is_small(detail: &str) -> bool {
    ["lanes", "present", "(subquery", "o ", "json_each", "CONSTANT ROW"]
        .iter()
        .any(|small| detail["SCAN ".len()..].starts_with(small))
}

async fn plan(conn: &mut SqliteConnection, sql: &str) -> Vec<String> {
    let explained = sqlx::query(AssertSqlSafe(format!("EXPLAIN QUERY PLAN {sql}"))).fetch_all(conn).await.unwrap();
    explained.iter().map(|row| row.get("detail")).collect()
}

/// Counts `SQLite`'s own instructions, which no busy machine can falsify.
#[tokio::test]
async fn a_claim_costs_the_same_however_many_wait() {
    let (store, _folder) = fresh().await;
    let mut conn = store.options.connect().await.unwrap();
    let mut costs = Vec::new();
    for tasks in [100, 10_000] {
        fill(&mut conn, tasks).await;
        let id: Vec<u8> =
            sqlx::query_scalar("SELECT id FROM tasks LIMIT 1 OFFSET 50").fetch_one(&mut conn).await.unwrap();
        // Once beforehand: what a statement costs to prepare is not what it costs.
        for sql in [SEEKING[0].1, reads::GET] {
            sqlx::query(sql).bind("[0]").bind("[0]").bind(0).bind(0).fetch_all(&mut conn).await.unwrap();
        }
        let steps = count_steps(&mut conn).await;
        let heads =
            sqlx::query(SEEKING[0].1).bind("[0]").bind("[0]").bind(1).bind(1).fetch_all(&mut conn).await.unwrap();
        let claim = steps.swap(0, Ordering::SeqCst);
        let found = sqlx::query(reads::GET).bind(id).fetch_all(&mut conn).await.unwrap();
        let get = steps.swap(0, Ordering::SeqCst);
        assert_eq!((heads.len(), found.len()), (1, 1));
        conn.lock_handle().await.unwrap().remove_progress_handler();
        costs.push((claim, get));
    }
    assert_eq!(costs[0], costs[1]);
    assert!(costs[0].0 > 0);
}

async fn fill(conn: &mut SqliteConnection, tasks: i64) {
    let fill = "INSERT INTO tasks (id, tenant, lane, priority, sort_key, state, generation, fence, dispatch, attempt, max_attempts,
            poison, created_at)
        WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?)
        SELECT randomblob(16), 0, 0, 0, i, 'pending', 1, 0, 0, 1, 3, 0, i FROM n;
        INSERT OR IGNORE INTO task_payloads (task_id, graph, inputs, metadata) SELECT id, '{}', '{}', '{}' FROM tasks";
    sqlx::query(fill).bind(tasks).execute(conn).await.unwrap();
}

async fn count_steps(conn: &mut SqliteConnection) -> Arc<AtomicU64> {
    let steps = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&steps);
    conn.lock_handle().await.unwrap().set_progress_handler(1, move || {
        counter.fetch_add(1, Ordering::SeqCst);
        true
    });
    steps
}
