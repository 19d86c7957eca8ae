//! Tenants and their caps.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use tokio::sync::watch;

use super::{
    Subject,
    checks::fresh,
    fixtures::{capped, claim, error, lane, new_task, of_tenant, tenant, worker},
};
use crate::{
    domain::{
        id::TaskId,
        lane::Lanes,
        task::{Change, Task, TaskState},
        time::Timestamp,
    },
    ports::{
        clock::Clock,
        store::{Assignment, Claim, Creation, NewTask, WorkSource},
    },
};

fn ids(assignments: &[Assignment]) -> Vec<TaskId> {
    assignments.iter().map(|assignment| assignment.task.id).collect()
}

async fn fail(work: &dyn WorkSource, task: &Task) {
    work.apply(task.id, task.fence, Change::Fail { error: error().permanent() }).await.unwrap();
}

/// A tenant that has as much as it may is left out, and the order of all others stays what it is. What ends makes room.
pub async fn a_tenant_at_its_cap_stands_in_nobodys_way<F: Future<Output = Subject>>(
    open: &impl Fn(Arc<dyn Clock>) -> F,
) {
    let (store, _) = fresh(open).await;
    let (acme, other) = (tenant("acme"), tenant("other"));
    let mut made = Vec::new();
    for (sort_key, owner) in [(0, &acme), (1, &acme), (2, &acme), (3, &other), (4, &acme)] {
        made.push(store.add(of_tenant(owner, sort_key)).await);
    }
    let nobodys = store.add(new_task(5)).await;
    let caps = capped([("acme", 2)]);
    let wanted = |slots| Claim { caps: caps.clone(), ..claim(&worker("node", 1), slots) };
    let taken = store.work.claim(wanted(1)).await.unwrap();
    assert_eq!(ids(&taken), [made[0]]);
    let more = store.work.claim(wanted(9)).await.unwrap();
    assert_eq!(ids(&more), [made[1], made[3], nobodys], "one more of acme's, and whatever is not acme's");
    assert!(store.work.claim(wanted(9)).await.unwrap().is_empty());
    // A lease that is over is still somebody's run.
    let mut changes = store.tasks.changes();
    fail(&*store.work, &taken[0].task).await;
    // What came before may be told late.
    let told = loop {
        let told = changes.recv().await.unwrap();
        if told.state == TaskState::Failed {
            break told;
        }
        assert!(!told.frees_room(), "{told:?}");
    };
    assert!(told.frees_room() && told.id == taken[0].task.id, "{told:?}");
    assert_eq!(ids(&store.work.claim(wanted(9)).await.unwrap()), [made[2]]);
    // Without a cap there is none.
    assert_eq!(ids(&store.take(9).await), [made[4]]);
    assert!(store.work.claim(wanted(1)).await.unwrap().is_empty());
}

/// What is claimed with a new task keeps to the caps as well, and slots that differ do.
pub async fn a_new_task_waits_for_room<F: Future<Output = Subject>>(open: &impl Fn(Arc<dyn Clock>) -> F) {
    let (store, _) = fresh(open).await;
    let acme = tenant("acme");
    let caps = capped([("acme", 1)]);
    let create = async |new: NewTask, slots: Vec<Lanes>| {
        let asked = Claim { caps: caps.clone(), ..super::fixtures::claim_of(&worker("node", 1), slots) };
        let Creation { claimed, .. } = store.tasks.create(new, Some(asked)).await.unwrap();
        claimed
    };
    let first = create(of_tenant(&acme, 0), vec![Lanes::All]).await;
    assert_eq!(first.len(), 1);
    let of_acme = of_tenant(&acme, 1);
    let its_lane = of_acme.lane.id;
    assert!(create(of_acme, vec![Lanes::All]).await.is_empty());
    let slots = vec![Lanes::only([its_lane, 0]), Lanes::only([its_lane]), Lanes::only([1])];
    let new = NewTask { lane: lane(1), ..new_task(2) };
    let id = new.id;
    assert_eq!(ids(&create(new, slots.clone()).await), [id], "the others' slots find nothing");
    fail(&*store.work, &first[0].task).await;
    let one = create(of_tenant(&acme, 3), slots).await;
    assert_eq!(one.iter().map(|held| held.task.sort_key).collect::<Vec<_>>(), [1], "one, and the first of them");
}

/// However many claim at the same time, and whoever's tasks are waited for.
pub async fn caps_hold_under_many_claimers<F: Future<Output = Subject>>(open: &impl Fn(Arc<dyn Clock>) -> F) {
    const EACH: i64 = 30;
    let (store, _) = fresh(open).await;
    let caps = capped([("acme", 3), ("other", 5)]);
    for sort_key in 0..EACH {
        for owner in ["acme", "other"] {
            store.add(of_tenant(&tenant(owner), sort_key)).await;
        }
        store.add(new_task(sort_key)).await;
    }
    // What runs and the most that ever ran, by tenant: from the answer of a claim until an end is asked for.
    let running: Arc<Mutex<BTreeMap<i64, (u32, u32)>>> = Arc::default();
    let (ended, _) = watch::channel(0_i64);
    let claimers = (0..16).map(|boot| {
        let (work, caps, running) = (Arc::clone(&store.work), caps.clone(), Arc::clone(&running));
        let (ended, mut ends) = (ended.clone(), ended.subscribe());
        tokio::spawn(async move {
            while *ends.borrow_and_update() < 3 * EACH {
                let asked = Claim { caps: caps.clone(), ..claim(&worker("node", boot), 3) };
                let claimed = work.claim(asked).await.unwrap();
                for Assignment { task, .. } in &claimed {
                    let mut running = running.lock().unwrap();
                    let (now, most) = running.entry(task.tenant).or_default();
                    *now += 1;
                    *most = (*most).max(*now);
                }
                for Assignment { task, .. } in &claimed {
                    running.lock().unwrap().entry(task.tenant).or_default().0 -= 1;
                    fail(&*work, task).await;
                    ended.send_modify(|ended| *ended += 1);
                }
                // Somebody runs what there is no more room for, or the last of it.
                if claimed.is_empty() && *ends.borrow() < 3 * EACH {
                    ends.changed().await.unwrap();
                }
            }
        })
    });
    for claimer in claimers.collect::<Vec<_>>() {
        claimer.await.unwrap();
    }
    assert_eq!(*ended.borrow(), 3 * EACH, "each task once");
    let most = |name| running.lock().unwrap()[&tenant(name).id()].1;
    let (acme, other) = (most("acme"), most("other"));
    assert!(acme <= 3 && other <= 5, "{acme} and {other} ran");
}

/// What waits for its turn and for its time, and no further than asked.
pub async fn a_crowd_is_counted_so_far<F: Future<Output = Subject>>(open: &impl Fn(Arc<dyn Clock>) -> F) {
    let (store, clock) = fresh(open).await;
    let acme = tenant("acme");
    let mine = of_tenant(&acme, 0).lane.id;
    let crowd = async |limit| store.tasks.crowd([0, mine].into(), limit).await.unwrap();
    assert_eq!(crowd(9).await, 0);
    store.add(of_tenant(&tenant("other"), 0)).await;
    store.add(new_task(0)).await;
    store.add(of_tenant(&acme, -1)).await;
    let cancelled = store.add(of_tenant(&acme, 1)).await;
    let later = Some(Timestamp(clock.now().0 + 60_000));
    store.add(NewTask { run_at: later, ..of_tenant(&acme, 2) }).await;
    assert_eq!([crowd(9).await, crowd(2).await, crowd(0).await], [3, 2, 0]);
    store.tasks.cancel(cancelled).await.unwrap();
    assert_eq!(crowd(9).await, 2);
    store.take(1).await;
    assert_eq!(crowd(9).await, 1, "what runs does not wait");
    assert_eq!(store.tasks.crowd([].into(), 9).await.unwrap(), 0);
}
