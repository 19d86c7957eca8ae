//! PostgreSQL through a pooler in transaction mode: the suite, and what only a pooler does.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use comfyd::{
    clock::SystemClock,
    store::postgres::{PgConfig, PgStore, look},
};
use comfyd_actors::{
    ports::{
        clock::Clock,
        store::TaskStore,
        wire::{Kind, Notice, Wire},
    },
    testing::store_conformance::{Subject, fixtures::new_task},
};

use super::postgres::run;
use crate::databases::{database, pooler};

comfyd_actors::store_conformance!(open_pooled, cases: 12);

async fn open_pooled(clock: Arc<dyn Clock>) -> Subject {
    let url = pooler().await.url(&database().await);
    let store = PgStore::open_at(PgConfig::parse(&url).unwrap().through_pooler(), clock).await.unwrap();
    let running = run(&store);
    Subject::new(store, running)
}

/// Whoever has an address past the pooler hears of others; whoever has none finds what they did by looking, and still tells.
#[tokio::test(flavor = "multi_thread")]
async fn a_word_goes_past_the_pooler() {
    let direct = database().await;
    let pooled = || async { PgConfig::parse(&pooler().await.url(&direct)).unwrap().through_pooler() };
    let open = |config| PgStore::open(config, Arc::new(SystemClock::start()));
    let (deaf, hearing) =
        (open(pooled().await).await.unwrap(), open(pooled().await.listen_at(&direct).unwrap()).await.unwrap());
    let _running = (run(&deaf), run(&hearing));
    let mut changes = hearing.changes();
    let task = new_task(1);
    let id = task.id;
    deaf.create(task, None).await.unwrap();
    // The listener may still be on its way: then another one is told of.
    let heard = async { while changes.recv().await.unwrap().here {} };
    let telling = async {
        loop {
            tokio::time::sleep(Duration::from_millis(100)).await;
            deaf.create(new_task(2), None).await.unwrap();
        }
    };
    tokio::select! {
        () = heard => {}
        () = telling => unreachable!("there is no last one"),
    }
    assert_eq!(hearing.get(id).await.unwrap().task.id, id);
    let notice = Notice { kind: Kind::Pause, name: "queue".into(), body: Bytes::from_static(b"x") };
    hearing.post(notice.clone(), Duration::from_secs(60)).await.unwrap();
    assert_eq!(deaf.notices(Kind::Pause).await.unwrap(), [notice]);
    assert!(look(&pooled().await).await.unwrap().schema.0.is_some());
    deaf.leave().await.unwrap();
}

/// Several processes may start at once on an empty database; and who does not say that there is a pooler is told to.
#[tokio::test(flavor = "multi_thread")]
async fn a_start_through_a_pooler_is_as_good() {
    let url = pooler().await.url(&database().await);
    let open = |config| PgStore::open(config, Arc::new(SystemClock::start()));
    let unaware = open(PgConfig::parse(&url).unwrap()).await;
    let told = unaware.err().unwrap().to_string();
    assert!(told.contains("store.postgres_pooled = true") && !told.contains("hunter2"), "{told}");
    let together = (0..4).map(|_| open(PgConfig::parse(&url).unwrap().through_pooler()));
    for opened in futures_util::future::join_all(together).await {
        opened.unwrap();
    }
}
