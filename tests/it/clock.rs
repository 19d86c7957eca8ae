//! Somebody sets the machine's clock while tasks run, wait and end.

use std::sync::{
    Arc,
    atomic::{AtomicI64, Ordering},
};

use comfyd::clock::SystemClock;
use comfyd_actors::{
    domain::{
        id::TaskId,
        task::{Fence, TaskState},
        time::Timestamp,
    },
    ports::clock::Clock,
};

use crate::support::{PATIENCE, World, id, task, world};

const HOURS: i64 = 3 * 3_600_000;

/// The machine's clocks, of which the one on the wall can be set.
struct Wall {
    machine: SystemClock,
    set_by: AtomicI64,
}

impl Wall {
    fn new() -> Arc<Self> {
        Arc::new(Self { machine: SystemClock::start(), set_by: AtomicI64::new(0) })
    }

    fn set_by(&self, millis: i64) {
        self.set_by.fetch_add(millis, Ordering::SeqCst);
    }
}

impl Clock for Wall {
    fn now(&self) -> Timestamp {
        Timestamp(self.machine.now().0 + self.set_by.load(Ordering::SeqCst))
    }

    fn steady(&self) -> Timestamp {
        self.machine.steady()
    }
}

/// Waits until the lease of a task was renewed so often; what fence it is held with then.
async fn renewed(world: &World, task: TaskId, times: usize) -> Fence {
    let mut changes = world.desk().store.changes();
    let renewals = async {
        let mut seen = 0;
        while seen < times {
            let changed = changes.recv().await.unwrap();
            seen += usize::from(changed.id == task && changed.state == TaskState::Executing);
        }
        world.desk().store.get(task).await.unwrap().task.fence
    };
    tokio::time::timeout(PATIENCE, renewals).await.expect("the lease is not renewed")
}

/// The task that runs neither times out nor changes hands, whatever its lease and its start say; those that come are served at once.
#[tokio::test(flavor = "multi_thread")]
async fn a_clock_set_hours_ahead_and_back_changes_nothing() {
    let clock = Wall::new();
    let leases = [("COMFYD_QUEUE__LEASE", "5s"), ("COMFYD_QUEUE__RENEW_EVERY", "400ms")];
    let builder = leases.iter().fold(world().clock(clock.clone()), |world, (name, value)| world.with(name, value));
    let world = builder.start().await;
    world.fake().pause_execution();
    let running = world.create(&task(0)).await;
    world.running(&running).await;
    let fence = renewed(&world, id(&running), 2).await;
    clock.set_by(HOURS);
    // Several sweeps for expired leases come in this time.
    assert_eq!(renewed(&world, id(&running), 5).await, fence);
    clock.set_by(-2 * HOURS);
    assert_eq!(renewed(&world, id(&running), 5).await, fence);
    world.fake().resume();
    world.ran(&running, 1).await;
    for color in 1..4 {
        clock.set_by(HOURS);
        let id = world.create(&task(color)).await;
        clock.set_by(-HOURS);
        world.ran(&id, 1).await;
    }
    world.assert_nothing_was_repeated();
}
