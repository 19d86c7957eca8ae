//! The promises about the files clients give.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use super::{
    Subject,
    checks::fresh,
    fixtures::{claim, new_task, worker},
};
use crate::{
    domain::{
        input::{About, Input, InputId},
        options::TaskOptions,
        task::{Change, Release},
    },
    ports::{
        clock::Clock,
        store::{NewTask, Payload, StoreError},
    },
};

const DAY: Duration = Duration::from_secs(86_400);

fn id(digit: char) -> InputId {
    InputId::parse(&digit.to_string().repeat(64)).unwrap()
}

fn about(name: &str) -> About {
    About {
        name: name.to_owned(),
        content_type: "image/png".to_owned(),
        extension: Some("png".to_owned()),
        bytes: 3_000_000_000,
    }
}

fn is_gone(result: Result<Input, StoreError>) -> bool {
    matches!(result, Err(StoreError::NotFound))
}

impl Subject {
    async fn give(&self, key: &str, digit: char, name: &str) -> Input {
        self.inputs.reserve(key, DAY).await.unwrap();
        self.inputs.keep(key, &id(digit), &about(name), DAY).await.unwrap()
    }
}

/// The same bytes again are the file that is there, kept for longer; the second object is to be deleted.
pub async fn the_same_file_is_kept_once<F: Future<Output = Subject>>(open: &impl Fn(Arc<dyn Clock>) -> F) {
    let (store, clock) = fresh(open).await;
    assert!(is_gone(store.inputs.find(&id('a')).await));
    let first = store.give("k1", 'a', "first.png").await;
    assert_eq!((first.key.as_str(), first.expires_at), ("k1", clock.now().after(DAY)));
    clock.advance(DAY / 2);
    let again = store.give("k2", 'a', "again.png").await;
    let expected = Input { about: about("again.png"), expires_at: clock.now().after(DAY), ..first };
    assert_eq!(again, expected);
    assert_eq!(store.inputs.find(&id('a')).await.unwrap(), expected);
    assert_eq!(store.inputs.give_up(9).await.unwrap(), ["k2"]);
    // Said again, as after a lost answer, it changes nothing.
    assert_eq!(store.inputs.keep("k1", &id('a'), &about("again.png"), DAY).await.unwrap(), expected);
    assert_eq!(store.inputs.give_up(9).await.unwrap(), ["k2"]);
}

/// What is given up is found by nobody, and told again until it is forgotten; so is what was never finished.
pub async fn files_are_given_up_in_two_steps<F: Future<Output = Subject>>(open: &impl Fn(Arc<dyn Clock>) -> F) {
    let (store, clock) = fresh(open).await;
    store.inputs.reserve("lost", DAY / 2).await.unwrap();
    store.give("k1", 'a', "a").await;
    store.give("k2", 'b', "b").await;
    assert_eq!(store.inputs.give_up(9).await.unwrap(), Vec::<String>::new());
    clock.advance(DAY / 2);
    let kept = store.inputs.refresh(&[id('c'), id('b'), id('b')], DAY).await.unwrap();
    assert_eq!(kept.iter().map(|input| &input.id).collect::<Vec<_>>(), [&id('b')]);
    assert_eq!(kept[0].expires_at, clock.now().after(DAY));
    assert_eq!(store.inputs.refresh(&[id('b')], Duration::ZERO).await.unwrap(), kept, "never shortened");
    clock.advance(DAY / 2);
    assert_eq!(store.inputs.give_up(1).await.unwrap(), ["lost"]);
    assert!(is_gone(store.inputs.keep("lost", &id('d'), &about("d"), DAY).await), "its object may be deleted");
    assert_eq!(store.inputs.give_up(9).await.unwrap(), ["lost", "k1"]);
    assert!(is_gone(store.inputs.find(&id('a')).await));
    // Given again meanwhile it has another key, which is not deleted.
    let again = store.give("k3", 'a', "a").await;
    assert_eq!(store.inputs.give_up(9).await.unwrap(), ["lost", "k1"]);
    store.inputs.forget(&["k1", "lost", "k3", "never there"].map(str::to_owned)).await.unwrap();
    assert_eq!(store.inputs.give_up(9).await.unwrap(), Vec::<String>::new());
    assert_eq!(store.inputs.find(&id('a')).await.unwrap(), again);
    assert!(is_gone(store.inputs.keep("k1", &id('e'), &about("e"), DAY).await));
}

/// Only the end of every task that needs it lets it go.
pub async fn a_file_outlives_its_time_while_a_task_needs_it<F: Future<Output = Subject>>(
    open: &impl Fn(Arc<dyn Clock>) -> F,
) {
    let (store, clock) = fresh(open).await;
    store.give("k1", 'a', "a").await;
    let mut ids = Vec::new();
    for _ in 0..2 {
        let options = TaskOptions { files: BTreeSet::from([id('a'), id('b')]), ..TaskOptions::default() };
        let new = new_task(0);
        ids.push(new.id);
        let payload = Payload { options: options.into(), ..new.payload };
        store.tasks.create(NewTask { payload, ..new }, None).await.unwrap();
    }
    clock.advance(DAY);
    store.tasks.cancel(ids[0]).await.unwrap();
    assert_eq!(store.inputs.give_up(9).await.unwrap(), Vec::<String>::new());
    let held = store.work.claim(claim(&worker("node", 1), 1)).await.unwrap().remove(0);
    assert_eq!(held.options.files.len(), 2);
    store.tasks.cancel(ids[1]).await.unwrap();
    assert_eq!(store.inputs.give_up(9).await.unwrap(), Vec::<String>::new());
    let (task, fence) = (held.task.id, held.task.fence);
    store.work.apply(task, fence, Change::Release(Release::Cancelled)).await.unwrap();
    assert_eq!(store.inputs.give_up(9).await.unwrap(), ["k1"]);
}

/// A file from a URL is as good as one that was given: its task finds it again and keeps it. Afterwards it may be gone.
pub async fn what_was_fetched_for_a_task_is_found_again<F: Future<Output = Subject>>(
    open: &impl Fn(Arc<dyn Clock>) -> F,
) {
    let (store, clock) = fresh(open).await;
    let tasks = [new_task(0), new_task(0)];
    let ids = [tasks[0].id, tasks[1].id];
    for new in tasks {
        store.tasks.create(new, None).await.unwrap();
    }
    let fetched = async |task| store.inputs.fetched(task).await.unwrap();
    assert_eq!(fetched(ids[0]).await, BTreeMap::new());
    let (one, other) = (store.give("k1", 'a', "a").await, store.give("k2", 'b', "b").await);
    for (url, input) in [("https://x/a", &one), ("https://x/a2", &one), ("https://x/b", &one), ("https://x/b", &other)]
    {
        store.inputs.note_fetched(ids[0], url, &input.id).await.unwrap();
    }
    let found = [("https://x/a", &one), ("https://x/a2", &one), ("https://x/b", &other)];
    assert_eq!(fetched(ids[0]).await, found.map(|(url, input)| (url.to_owned(), input.clone())).into());
    assert_eq!(fetched(ids[1]).await, BTreeMap::new(), "another task's are its own");
    clock.advance(DAY);
    assert_eq!(store.inputs.give_up(9).await.unwrap(), Vec::<String>::new());
    store.tasks.cancel(ids[0]).await.unwrap();
    assert_eq!(store.inputs.give_up(9).await.unwrap(), ["k1", "k2"]);
    assert_eq!(fetched(ids[0]).await, BTreeMap::new(), "what is given up is not found");
}
