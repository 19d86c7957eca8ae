//! Follows the guide "To add an actor" of README.md: what it prints is this very code, which is compiled, run and killed here, and every
//! file it sends its reader to is there.
#![cfg(feature = "testing")]
#![expect(clippy::expect_used, clippy::unwrap_used, reason = "a test reads the guide, and ends when it cannot")]

use std::{fs, path::Path, sync::Arc, time::Duration};

use comfyd_actors::{
    domain::{event::Stage, options::TaskOptions, webhook::Webhook},
    ports::store::{NewTask, Payload, TaskStore},
    testing::{MemoryStore, TestClock, store_conformance::fixtures::new_task},
};
use ractor::Actor;
use tokio::{sync::watch, time::timeout};

use self::outbox_watch::{OutboxWatchActor, OutboxWatchArgs};

#[path = "guide/outbox_watch.rs"]
mod outbox_watch;

const README: &str = include_str!("../README.md");
const PATIENCE: Duration = Duration::from_secs(300);

/// The part of the guide.
fn guide() -> &'static str {
    let (_, guide) = README.split_once("\n## To add an actor\n").expect("the guide is there");
    guide.split("\n## ").next().unwrap()
}

#[test]
fn the_guide_prints_what_is_tested_here() {
    let code = include_str!("guide/outbox_watch.rs");
    assert!(
        guide().contains(&format!("```rust\n{code}```")),
        "actors/README.md and tests/guide/outbox_watch.rs differ"
    );
}

/// Paths are written from the root of the repository.
#[test]
fn every_file_the_guide_names_is_there() {
    let prose: String = guide().split("```").step_by(2).collect();
    let names: Vec<&str> =
        prose.split('`').skip(1).step_by(2).filter(|name| name.contains('/') && !name.starts_with('/')).collect();
    assert!(names.len() > 10, "{names:?}");
    for name in names {
        let path = Path::new("..").join(name.trim_end_matches('*'));
        assert!(fs::exists(&path).unwrap(), "the guide names {name}, which is not there");
    }
}

/// Step 6: messages with fakes and paused time, and a death.
#[tokio::test(start_paused = true)]
async fn it_says_when_nobody_hears() {
    let clock = Arc::new(TestClock::default());
    let store = Arc::new(MemoryStore::new(clock.clone()));
    let events = [Stage::Queued].into_iter().collect();
    let webhook = Some(Webhook { url: "https://a.example/x".to_owned(), events });
    let options = TaskOptions { webhook, ..TaskOptions::default() };
    let new = new_task(0);
    let payload = Payload { options: options.into(), ..new.payload };
    let new = NewTask { payload, created_at: comfyd_actors::ports::clock::Clock::now(&*clock), ..new };
    store.create(new, None).await.unwrap();

    let (overdue, mut seen) = watch::channel(false);
    let args = OutboxWatchArgs { hooks: store.clone(), clock: clock.clone(), overdue };
    let (actor, running) = Actor::spawn(None, OutboxWatchActor, args.clone()).await.unwrap();
    assert!(timeout(PATIENCE, seen.wait_for(|overdue| *overdue)).await.is_err(), "it is not overdue yet");
    store.set_down(true);
    clock.advance(Duration::from_secs(3601));
    assert!(timeout(PATIENCE, seen.wait_for(|overdue| *overdue)).await.is_err(), "nobody knows");
    assert!(!running.is_finished(), "an outage is no crash");
    store.set_down(false);
    timeout(PATIENCE, seen.wait_for(|overdue| *overdue)).await.expect("overdue").unwrap();

    actor.kill();
    running.await.unwrap();
    args.overdue.send_replace(false);
    // As its supervisor does.
    let (_actor, _running) = Actor::spawn(None, OutboxWatchActor, args).await.unwrap();
    timeout(PATIENCE, seen.wait_for(|overdue| *overdue)).await.expect("the next one counts anew").unwrap();
}
