//! What failed, and where it may be tried again.

use std::{sync::Arc, time::Duration};

use super::{
    Subject,
    checks::fresh,
    fixtures::{claim_of, error, lane, new_task, worker},
};
use crate::{
    domain::{
        failure::Class,
        lane::Lanes,
        task::{Change, Release, Task},
        time::Timestamp,
    },
    ports::{
        clock::Clock,
        store::{FailedQuery, NewTask},
    },
};

/// Failures come newest first, whatever order their tasks were made in, and a page takes up where the last one ended.
pub async fn failures_are_listed_as_they_came<F: Future<Output = Subject>>(open: &impl Fn(Arc<dyn Clock>) -> F) {
    let (store, clock) = fresh(open).await;
    for sort_key in 0..6 {
        let workflow = (sort_key % 2 == 0).then(|| "even".to_owned());
        store.add(NewTask { workflow, ..new_task(sort_key) }).await;
    }
    let mut taken: Vec<Task> = store.take(6).await.into_iter().map(|held| held.task).collect();
    taken.rotate_left(2);
    let mut expected = Vec::new();
    for (place, task) in taken.iter().enumerate() {
        let error = if place < 4 { error().permanent() } else { error() };
        let change = if place == 1 { Change::Release(Release::Recalled) } else { Change::Fail { error } };
        store.change(task, change).await;
        clock.advance(Duration::from_millis(u64::from(place > 2)));
        expected.extend((place != 1).then_some(task.id));
    }
    let listed = |query: FailedQuery| {
        let tasks = store.tasks.clone();
        async move {
            tasks.failed(query).await.unwrap().into_iter().map(|task| (task.finished_at, task.id)).collect::<Vec<_>>()
        }
    };
    let all = listed(FailedQuery { limit: 9, ..FailedQuery::default() }).await;
    let mut sorted = all.clone();
    sorted.sort();
    sorted.reverse();
    assert_eq!(all, sorted, "newest first");
    assert!(all.len() == 5 && expected.iter().all(|id| all.iter().any(|(_, listed)| listed == id)));
    let mut seen = Vec::new();
    let mut page = FailedQuery { limit: 2, ..FailedQuery::default() };
    loop {
        let found = listed(page.clone()).await;
        let Some((at, id)) = found.last().copied() else { break };
        page.before = at.map(|at| (at, id));
        seen.extend(found);
    }
    assert_eq!(seen, all);
    let of = |classes: &[Class]| FailedQuery { classes: classes.to_vec(), limit: 9, ..FailedQuery::default() };
    assert_eq!(listed(of(&[Class::Permanent])).await.len(), 3);
    assert_eq!(listed(of(&[Class::Transient, Class::Poison])).await.len(), 2);
    assert_eq!(listed(of(&[Class::Permanent, Class::Transient, Class::Transient])).await, all);
    assert_eq!(listed(of(&[Class::OutOfMemory])).await, []);
    let even = FailedQuery { workflow: Some("even".into()), ..of(&[]) };
    assert!((1..5).contains(&listed(even).await.len()));
    let newest: Option<Timestamp> = all[0].0;
    assert_eq!(listed(FailedQuery { failed_from: newest, ..of(&[]) }).await, all[..1]);
    assert_eq!(listed(FailedQuery { failed_until: newest, ..of(&[]) }).await, all[1..]);
}

/// A task that ran out of memory waits in a lane that may be new; whoever reads the lanes knows what it stands for.
pub async fn a_lane_found_on_the_way_is_known<F: Future<Output = Subject>>(open: &impl Fn(Arc<dyn Clock>) -> F) {
    let (store, clock) = fresh(open).await;
    let id = store.add(new_task(1)).await;
    let task = store.take(1).await.remove(0).task;
    store.change(&task, Change::Cramped { error: error(), delay: Duration::ZERO, lane: Some(lane(7)) }).await;
    assert_eq!(store.work.lanes().await.unwrap(), [lane(7)]);
    let record = store.tasks.get(id).await.unwrap();
    assert_eq!((record.needs, record.task.lane, record.task.ooms), (lane(7).needs, 7, 1));
    clock.advance(Duration::from_millis(1));
    assert_eq!(store.tasks.promote(9).await.unwrap(), 1);
    let take = |lanes| store.work.claim(claim_of(&worker("node", 1), vec![lanes]));
    assert!(take(Lanes::only([0])).await.unwrap().is_empty(), "who serves the old lane only does not get it");
    assert_eq!(take(Lanes::only([7])).await.unwrap().len(), 1);
}
