//! What a store does when somebody sets the machine's clock: nothing changes hands, nothing waits for ever, nothing is deleted.

use std::{sync::Arc, time::Duration};

use super::{
    Subject,
    checks::fresh,
    fixtures::{LEASE, artifacts, claim, error, new_task, sweep, worker},
};
use crate::{
    domain::{
        id::PromptId,
        moment::DATE_TRUSTED_AFTER,
        task::{Change, TaskState},
        time::Timestamp,
    },
    ports::{
        clock::Clock,
        store::{NewTask, Retention},
    },
};

const HOUR: i64 = 3_600_000;
const MILLISECOND: Duration = Duration::from_millis(1);

/// Whoever holds a task keeps it, whichever way the clock goes, and whoever is gone is missed after one lease as always.
pub async fn a_set_clock_takes_no_lease<F: Future<Output = Subject>>(open: &impl Fn(Arc<dyn Clock>) -> F) {
    for step in [HOUR, -HOUR] {
        let (store, clock) = fresh(open).await;
        let (alive, gone, sweeper) = (worker("node", 1), worker("node", 2), worker("other", 1));
        for held_by in [&alive, &gone] {
            store.tasks.create(new_task(0), Some(claim(held_by, 1))).await.unwrap();
        }
        let search = async || store.work.adopt_expired(&sweep(&sweeper, 9)).await.unwrap();
        let held = store.work.held(&alive).await.unwrap().remove(0).task;
        let held = [(held.id, held.fence)];
        clock.set_by(step);
        assert_eq!(search().await.len(), 0, "{step}: nothing is taken away");
        assert_eq!(store.work.renew(&alive, LEASE, &held).await.unwrap().len(), 1, "{step}: the lease is renewed");
        clock.advance(LEASE - MILLISECOND);
        assert_eq!(store.work.renew(&alive, LEASE, &held).await.unwrap().len(), 1, "{step}");
        assert_eq!(search().await.len(), 0, "{step}");
        clock.advance(MILLISECOND);
        let adopted = search().await;
        assert_eq!(adopted.len(), 1, "{step}: who does not renew is gone");
        assert_ne!(adopted[0].task.id, held[0].0, "{step}");
    }
}

/// A pause before another attempt is as long as it was meant to be; a task for a time of day waits for that time.
pub async fn a_clock_set_back_keeps_nobody_waiting<F: Future<Output = Subject>>(open: &impl Fn(Arc<dyn Clock>) -> F) {
    let (store, clock) = fresh(open).await;
    let appointment = NewTask { run_at: Some(Timestamp(clock.now().0 + 60_000)), ..new_task(1) };
    store.tasks.create(new_task(0), Some(claim(&worker("node", 1), 1))).await.unwrap();
    store.tasks.create(appointment.clone(), None).await.unwrap();
    let held = store.work.held(&worker("node", 1)).await.unwrap().remove(0).task;
    let retry = Change::Retry { error: error(), delay: Duration::from_secs(10) };
    store.work.apply(held.id, held.fence, retry).await.unwrap();
    clock.set_by(-HOUR);
    clock.advance(Duration::from_secs(10) - MILLISECOND);
    assert_eq!(store.tasks.promote(9).await.unwrap(), 0);
    assert_eq!(store.tasks.next_scheduled().await.unwrap(), Some(clock.now().after(MILLISECOND)));
    clock.advance(MILLISECOND);
    assert_eq!(store.tasks.promote(9).await.unwrap(), 1);
    assert_eq!(store.tasks.get(held.id).await.unwrap().task.state, TaskState::Pending);
    clock.set_by(HOUR);
    clock.advance(Duration::from_secs(50));
    assert_eq!(store.tasks.promote(9).await.unwrap(), 1, "the appointment is at its own time");
}

/// A date set wrong is set right again, and what was deleted meanwhile would not come back.
pub async fn a_wrong_date_deletes_nothing<F: Future<Output = Subject>>(open: &impl Fn(Arc<dyn Clock>) -> F) {
    let (store, clock) = fresh(open).await;
    let day = Duration::from_secs(24 * 3600);
    let retention = Retention { completed: day, failed: day, idempotency: day, webhooks: day };
    store.tasks.create(new_task(0), Some(claim(&worker("node", 1), 1))).await.unwrap();
    let held = store.work.held(&worker("node", 1)).await.unwrap().remove(0).task;
    for change in [
        Change::Accept { prompt: PromptId::of(held.id, held.dispatch) },
        Change::Plan { artifacts: artifacts(1, false) },
        Change::Complete { artifacts: artifacts(1, true) },
    ] {
        store.work.apply(held.id, held.fence, change).await.unwrap();
    }
    clock.set_by(400 * 24 * HOUR);
    assert_eq!(store.tasks.prune(retention, 9).await.unwrap(), 0);
    clock.advance(DATE_TRUSTED_AFTER - MILLISECOND);
    assert_eq!(store.tasks.prune(retention, 9).await.unwrap(), 0);
    clock.advance(MILLISECOND);
    assert_eq!(store.tasks.prune(retention, 9).await.unwrap(), 1, "in the end the date is believed");
}
