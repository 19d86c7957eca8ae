//! One suite for every store: what it promises, checked by name ([`checks`]), and random sequences of calls ([`agrees_with_the_reference`])
//! whose every answer must be the one [`MemoryStore`] gives.
//!
//! An adapter writes one function that opens an empty store with a given clock, and one line:
//! ```text
//! comfyd_actors::store_conformance!(open_sqlite, cases: 64);
//! ```
//! What the ports leave open is fixed here, so that stores cannot differ in it: `held` and `take_over` answer in the order of the queue,
//! leases count as expired from the millisecond they end, `prune` takes tasks (the first to finish first) before keys and deletes a
//! task's key with it, a repeated `create` claims nothing.

use std::{any::Any, fmt::Debug, sync::Arc};

use proptest::test_runner::{Config, TestCaseError, TestRunner};
use tokio::{runtime::Runtime, sync::broadcast};

use super::{MemoryStore, TestClock};
use crate::ports::{
    clock::Clock,
    hook_store::HookStore,
    input_store::InputStore,
    store::{Changed, TaskStore, WorkSource},
    wire::Wire,
    workflow_store::WorkflowStore,
};

pub mod checks;
pub mod clock_checks;
pub mod failure_checks;
pub mod fixtures;
pub mod hook_checks;
pub mod input_checks;
mod steps;
pub mod tenant_checks;
pub mod wire_checks;
pub mod workflow_checks;

use steps::{Step, World};

/// A store under test.
pub struct Subject {
    /// Its API side.
    pub tasks: Arc<dyn TaskStore>,
    /// Its consumer's side.
    pub work: Arc<dyn WorkSource>,
    /// Its versions of workflows.
    pub workflows: Arc<dyn WorkflowStore>,
    /// The files clients gave.
    pub inputs: Arc<dyn InputStore>,
    /// Its messages to webhooks.
    pub hooks: Arc<dyn HookStore>,
    /// Its notices.
    pub wire: Arc<dyn Wire>,
    /// Whatever must live as long as the store: its folder, its writer.
    pub guard: Box<dyn Any + Send>,
}

impl Subject {
    /// All sides of one store.
    pub fn new<S: TaskStore + WorkSource + WorkflowStore + InputStore + HookStore + Wire>(
        store: Arc<S>,
        guard: impl Any + Send,
    ) -> Self {
        Self {
            tasks: Arc::<S>::clone(&store),
            work: Arc::<S>::clone(&store),
            workflows: Arc::<S>::clone(&store),
            inputs: Arc::<S>::clone(&store),
            hooks: Arc::<S>::clone(&store),
            wire: store,
            guard: Box::new(guard),
        }
    }
}

/// Runs random sequences of calls against a store and the reference, comparing every answer and everything that is told to listeners.
///
/// # Panics
/// When they differ, with the shortest sequence found that shows it.
pub fn agrees_with_the_reference<F>(cases: u32, open: impl Fn(Arc<dyn Clock>) -> F)
where
    F: Future<Output = Subject>,
{
    let runtime = Runtime::new().expect("failed to start a runtime");
    let mut runner = TestRunner::new(Config { cases, failure_persistence: None, ..Config::default() });
    let outcome = runner.run(&steps::sequence(), |steps| {
        runtime.block_on(async {
            let clock = Arc::new(TestClock::default());
            let subject = open(Arc::<TestClock>::clone(&clock)).await;
            compare(&subject, &clock, steps).await
        })
    });
    if let Err(difference) = outcome {
        panic!("{difference}");
    }
}

async fn compare(subject: &Subject, clock: &Arc<TestClock>, steps: Vec<Step>) -> Result<(), TestCaseError> {
    let reference = Subject::new(Arc::new(MemoryStore::new(Arc::<TestClock>::clone(clock))), ());
    let (mut told, mut expected) = (subject.tasks.changes(), reference.tasks.changes());
    // All have looked at the clock before a step can set it: whether a store does when it is opened is its own affair.
    for store in [&reference, subject] {
        store.tasks.check().await.map_err(|error| TestCaseError::fail(error.to_string()))?;
    }
    let mut world = World::default();
    for step in steps {
        let Some(call) = world.resolve(&step, &reference, clock).await else { continue };
        let wanted = call.make(&reference).await;
        same(&call, &call.make(subject).await, &wanted)?;
        same(&call, &drain(&mut told), &drain(&mut expected))?;
    }
    for call in world.everything() {
        same(&call, &call.make(subject).await, &call.make(&reference).await)?;
    }
    Ok(())
}

fn same<T: PartialEq + Debug>(call: &impl Debug, answer: &T, wanted: &T) -> Result<(), TestCaseError> {
    if answer == wanted {
        return Ok(());
    }
    Err(TestCaseError::fail(format!("{call:?}\nanswered {answer:#?}\ninstead of {wanted:#?}")))
}

fn drain(changes: &mut broadcast::Receiver<Changed>) -> Vec<Changed> {
    std::iter::from_fn(|| changes.try_recv().ok()).collect()
}

/// The suite as tests of the calling module: `open` takes an `Arc<dyn Clock>` and returns a future of a [`Subject`] without tasks.
#[macro_export]
macro_rules! store_conformance {
    ($open:path, cases: $cases:expr) => {
        #[test]
        fn agrees_with_the_reference() {
            $crate::testing::store_conformance::agrees_with_the_reference($cases, $open);
        }

        $crate::store_conformance!(@checks $open, workflow_checks:
            versions_are_never_reused
            old_versions_are_forgotten
        );
        $crate::store_conformance!(@checks $open, checks:
            claims_follow_the_order
            lanes_are_one_order
            a_slot_takes_what_it_serves
            a_lane_goes_with_its_last_task
            a_retry_keeps_its_place
            create_can_claim_at_once
            an_expired_lease_is_not_renewed
            a_task_is_adopted_by_who_reaches_its_server
            a_stale_fence_is_refused
            a_refused_change_leaves_no_trace
            a_repeated_request_finds_its_task
            pruning_forgets_keys
            ends_are_swept_in_order
            changes_are_told
            what_happens_is_written_down
            an_output_is_told_once_per_run
            event_numbers_are_never_given_twice
            a_place_in_the_queue_is_counted_so_far
            only_the_same_node_takes_over
            two_claimers_never_share_a_task
            pages_miss_nothing
        );
        $crate::store_conformance!(@checks $open, clock_checks:
            a_set_clock_takes_no_lease
            a_clock_set_back_keeps_nobody_waiting
            a_wrong_date_deletes_nothing
        );
        $crate::store_conformance!(@checks $open, failure_checks:
            failures_are_listed_as_they_came
            a_lane_found_on_the_way_is_known
        );
        $crate::store_conformance!(@checks $open, input_checks:
            the_same_file_is_kept_once
            files_are_given_up_in_two_steps
            a_file_outlives_its_time_while_a_task_needs_it
            what_was_fetched_for_a_task_is_found_again
        );
        $crate::store_conformance!(@checks $open, tenant_checks:
            a_tenant_at_its_cap_stands_in_nobodys_way
            a_new_task_waits_for_room
            caps_hold_under_many_claimers
            a_crowd_is_counted_so_far
        );
        $crate::store_conformance!(@checks $open, wire_checks:
            the_last_notice_counts
            a_notice_is_gone_after_its_time
        );
        $crate::store_conformance!(@checks $open, hook_checks:
            what_is_told_is_told_in_order
            a_lost_message_is_sent_again
            no_endpoint_keeps_another_waiting
            messages_are_taken_by_age
            what_is_held_back_is_not_lost
            a_message_can_be_asked_for_again
            a_task_stays_until_it_has_told_its_end
        );
    };
    (@checks $open:path, $suite:ident: $($check:ident)*) => {
        $(#[tokio::test(flavor = "multi_thread")]
        async fn $check() {
            $crate::testing::store_conformance::$suite::$check(&$open).await;
        })*
    };
}
