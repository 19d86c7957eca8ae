//! The whole service with its tasks in Redis.

use std::cell::RefCell;

use crate::{
    redis_server::{Server, fresh},
    servers::{examined, keeps_its_tasks, shares_its_tasks, waits_for_its_server},
    support::{World, world},
};

async fn on_redis() -> World {
    let place = fresh();
    world().with("DATABASE_URL", &place.url).with("COMFYD_STORE__REDIS_PREFIX", &place.prefix).start().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_keeps_its_tasks_in_redis() {
    keeps_its_tasks(on_redis().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_goes_away_is_waited_for() {
    let server = RefCell::new(Server::durable());
    let url = server.borrow().url();
    waits_for_its_server(&url, async || server.borrow_mut().kill(), async || server.borrow_mut().run()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_services_share_a_redis() {
    shares_its_tasks(on_redis().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_doctor_looks_at_redis() {
    let server = Server::start(&[]);
    let text = examined(&server.url()).await;
    for told in ["Store  Redis", "answers in", "ALL tasks", "throws nothing away", "no bound of its own"] {
        assert!(text.contains(told), "{told} is not in:\n{text}");
    }
    let text = examined("redis://:hunter2@127.0.0.1:1/0").await;
    assert!(text.contains("is not reached") && !text.contains("hunter2"), "{text}");
}
