//! The whole service with its tasks in PostgreSQL.

use tokio::task::spawn_blocking;

use crate::{
    databases::{Server, database, pooler},
    servers::{examined, keeps_its_tasks, shares_its_tasks, waits_for_its_server},
    support::world,
};

#[tokio::test(flavor = "multi_thread")]
async fn a_service_keeps_its_tasks_in_postgres() {
    keeps_its_tasks(world().with("DATABASE_URL", &database().await).start().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_keeps_its_tasks_behind_a_pooler() {
    let url = pooler().await.url(&database().await);
    keeps_its_tasks(world().with("DATABASE_URL", &url).with("COMFYD_STORE__POSTGRES_POOLED", "true").start().await)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_postgres_that_goes_away_is_waited_for() {
    let server = std::sync::Arc::new(spawn_blocking(Server::start).await.unwrap());
    let url = server.url(&server.database().await, server.port());
    let (stopping, starting) = (server.clone(), server.clone());
    let kill = async || spawn_blocking(move || stopping.kill()).await.unwrap();
    let start = async || spawn_blocking(move || starting.start_again()).await.unwrap();
    waits_for_its_server(&url, kill, start).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_services_share_a_postgres() {
    shares_its_tasks(world().with("DATABASE_URL", &database().await).start().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_doctor_looks_at_postgres() {
    let text = examined(&database().await).await;
    for told in ["Store  PostgreSQL at 127.0.0.1", "answers in", "no tables yet", "fsync is off"] {
        assert!(text.contains(told), "{told} is not in:\n{text}");
    }
    let text = examined("postgres://comfyd:hunter2@127.0.0.1:1/x").await;
    assert!(text.contains("cannot be reached") && !text.contains("hunter2"), "{text}");
}
