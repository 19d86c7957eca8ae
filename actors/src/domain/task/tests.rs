use proptest::prelude::*;

use super::*;
use crate::domain::{
    artifact::{Facts, Kind, Source},
    error::ErrorCode,
    order::{Ordering, sort_key},
};

pub(crate) fn new_task() -> Task {
    let created_at = Timestamp(1_000);
    Task {
        id: TaskId::new(),
        tenant: 0,
        lane: 0,
        workflow: None,
        priority: Priority::default(),
        sort_key: sort_key(created_at, Priority::default(), Ordering::Aged),
        state: TaskState::Pending,
        queued_at: created_at,
        generation: 1,
        uploads_only: false,
        fence: Fence(0),
        dispatch: 0,
        attempt: 1,
        max_attempts: 3,
        poison: 0,
        ooms: 0,
        timeout: None,
        lease: None,
        prompt: None,
        run_at: None,
        cancel_requested_at: None,
        created_at,
        started_at: None,
        executing_at: None,
        uploading_at: None,
        finished_at: None,
        error: None,
        hook: None,
    }
}

fn intent() -> Intent {
    Intent { backend: BackendId::new("http://b"), client: ClientId::new("c") }
}

pub(crate) fn claim() -> Change {
    Change::Claim { worker: WorkerId::new("n:1"), until: Timestamp(30_000), intent: intent() }
}

pub(crate) fn artifact(stored: bool) -> Artifact {
    let object = StoredObject {
        target: "local".into(),
        key: "k".into(),
        content_type: "image/png".into(),
        bytes: 1,
        sha256: "00".into(),
        facts: Facts::default(),
    };
    Artifact {
        index: 0,
        node_id: "9".into(),
        kind: Kind::Image,
        source: Source::Text { filename: "a.txt".into(), text: "a".into() },
        object: stored.then_some(object),
    }
}

fn error() -> TaskError {
    TaskError::new(ErrorCode::NodeFailed, "boom")
}

const NOW: Timestamp = Timestamp(2_000);

fn held() -> Task {
    let mut task = new_task();
    task.apply(None, claim(), NOW).unwrap();
    task
}

fn uploading() -> Task {
    let mut task = held();
    let prompt = PromptId::of(task.id, 1);
    task.apply(Some(Fence(1)), Change::Accept { prompt }, NOW).unwrap();
    task.apply(Some(Fence(1)), Change::Plan { artifacts: vec![artifact(false)] }, NOW).unwrap();
    task
}

#[test]
fn a_life_without_trouble() {
    let mut task = uploading();
    assert_eq!(task.state, TaskState::Uploading);
    let edit = task.apply(Some(Fence(1)), Change::Complete { artifacts: vec![artifact(true)] }, NOW).unwrap();
    assert_eq!(edit, ArtifactEdit::Replace(vec![artifact(true)]));
    assert_eq!((task.state, task.lease.clone(), task.finished_at), (TaskState::Completed, None, Some(NOW)));
    assert_eq!(task.apply(None, Change::Cancel, NOW), Err(Refusal::Over));
}

#[test]
fn completed_means_everything_is_stored() {
    let mut task = uploading();
    let half = Change::Complete { artifacts: vec![artifact(true), artifact(false)] };
    assert_eq!(task.apply(Some(Fence(1)), half, NOW), Err(Refusal::WrongState));
    assert_eq!(task.state, TaskState::Uploading);
}

#[test]
fn an_old_fence_writes_nothing() {
    let mut task = uploading();
    task.apply(None, Change::Adopt { worker: WorkerId::new("n:2"), until: Timestamp(60_000) }, NOW).unwrap();
    let before = task.clone();
    assert_eq!(task.apply(Some(Fence(1)), Change::Complete { artifacts: vec![] }, NOW), Err(Refusal::Stale));
    assert_eq!(task.apply(None, Change::Fail { error: error() }, NOW), Err(Refusal::Stale));
    assert_eq!(task, before);
}

#[test]
fn a_cancelled_task_never_completes() {
    for ending in [
        Change::Complete { artifacts: vec![artifact(true)] },
        Change::Fail { error: error() },
        Change::Retry { error: error(), delay: Duration::ZERO },
        Change::Cramped { error: error(), delay: Duration::ZERO, lane: None },
        Change::Elsewhere { error: error(), blamed: true },
        Change::Release(Release::Cancelled),
        Change::Release(Release::ServerDied),
    ] {
        let mut task = uploading();
        task.apply(None, Change::Cancel, NOW).unwrap();
        assert!(task.is_cancelling());
        task.apply(Some(Fence(1)), ending, NOW).unwrap();
        assert_eq!(task.state, TaskState::Cancelled);
    }
    let mut waiting = new_task();
    waiting.apply(None, Change::Cancel, NOW).unwrap();
    assert_eq!(waiting.state, TaskState::Cancelled);
}

#[test]
fn attempts_are_spent_by_retries_alone() {
    let mut task = held();
    for attempt in [2, 3] {
        let fence = Some(task.fence);
        task.apply(fence, Change::Retry { error: error(), delay: Duration::from_secs(5) }, NOW).unwrap();
        assert_eq!((task.state, task.attempt, task.run_at), (TaskState::Scheduled, attempt, Some(Timestamp(7_000))));
        assert_eq!(task.apply(None, Change::Promote, NOW), Err(Refusal::WrongState));
        task.apply(None, Change::Promote, Timestamp(7_000)).unwrap();
        task.apply(None, claim(), NOW).unwrap();
        let fence = Some(task.fence);
        task.apply(fence, Change::Release(Release::Recalled), NOW).unwrap();
        task.apply(None, claim(), NOW).unwrap();
        assert_eq!(task.attempt, attempt);
    }
    let fence = Some(task.fence);
    task.apply(fence, Change::Retry { error: error(), delay: Duration::ZERO }, NOW).unwrap();
    assert_eq!((task.state, task.error.clone()), (TaskState::Failed, Some(error())));
    assert_eq!(task.dispatch, 5);
}

#[test]
fn the_killer_of_servers_is_stopped() {
    let mut task = held();
    for _ in 1..POISON_LIMIT {
        let fence = Some(task.fence);
        task.apply(fence, Change::Release(Release::ServerDied), NOW).unwrap();
        assert_eq!(task.state, TaskState::Pending);
        task.apply(None, claim(), NOW).unwrap();
    }
    let fence = Some(task.fence);
    task.apply(fence, Change::Release(Release::ServerDied), NOW).unwrap();
    assert_eq!(task.state, TaskState::Failed);
    assert_eq!(task.error.unwrap().code, ErrorCode::Poison);
}

#[test]
fn every_claim_has_a_new_prompt_id() {
    let mut task = held();
    let first = task.prompt.clone().unwrap().id;
    task.apply(Some(Fence(1)), Change::Release(Release::Recalled), NOW).unwrap();
    assert_eq!(task.prompt, None);
    task.apply(None, claim(), NOW).unwrap();
    let prompt = task.prompt.clone().unwrap();
    assert_ne!(prompt.id, first);
    assert!(!prompt.accepted);
}

fn failed(mut task: Task) -> Task {
    let fence = Some(task.fence);
    task.apply(fence, Change::Fail { error: error() }, NOW).unwrap();
    task
}

const LATER: Timestamp = Timestamp(9_000);
const REOPEN: Change = Change::Reopen { ordering: Ordering::Aged };

fn reopen_uploads() -> Change {
    Change::ReopenUploads { worker: WorkerId::new("n:9") }
}

#[test]
fn a_task_that_is_asked_for_again_starts_afresh_and_remembers_its_prompts() {
    let mut cancelled = uploading();
    cancelled.apply(None, Change::Cancel, NOW).unwrap();
    assert_eq!(cancelled.apply(None, REOPEN, NOW), Err(Refusal::Cancelling));
    cancelled.apply(Some(Fence(1)), Change::Release(Release::Cancelled), NOW).unwrap();
    for mut task in [failed(uploading()), cancelled] {
        task.poison = 2;
        task.attempt = 3;
        let before = task.clone();
        assert_eq!(task.apply(None, REOPEN, LATER), Ok(ArtifactEdit::Replace(Vec::new())));
        assert_eq!((task.state, task.generation, task.attempt, task.poison), (TaskState::Pending, 2, 1, 0));
        assert_eq!((task.error.clone(), task.finished_at, task.cancel_requested_at), (None, None, None));
        assert_eq!((task.queued_at, task.sort_key), (LATER, LATER.0), "it waits since it was asked for again");
        assert!(!task.is_cancelling() && task.fulfils(&REOPEN));
        assert_eq!(task.apply(None, REOPEN, LATER), Err(Refusal::WrongState));
        task.apply(None, claim(), LATER).unwrap();
        assert_ne!(task.prompt.unwrap().id, before.prompt.unwrap().id, "a prompt id is never used twice");
    }
}

#[test]
fn only_the_missing_files_are_stored_again() {
    let mut task = failed(uploading());
    let before = task.clone();
    assert_eq!(task.apply(None, reopen_uploads(), LATER), Ok(ArtifactEdit::Keep));
    assert_eq!((task.state, task.generation, task.prompt.clone()), (TaskState::Uploading, 2, before.prompt.clone()));
    assert!(task.lease.as_ref().unwrap().until <= LATER, "whoever looks for abandoned tasks takes it at once");
    assert_eq!(task.apply(Some(before.fence), Change::Fail { error: error() }, LATER), Err(Refusal::Stale));
    for ending in [
        Change::Retry { error: error(), delay: Duration::ZERO },
        Change::Cramped { error: error(), delay: Duration::ZERO, lane: None },
        Change::Elsewhere { error: error(), blamed: true },
        Change::Release(Release::Recalled),
        Change::Release(Release::ServerDied),
    ] {
        let (mut task, fence) = (task.clone(), Some(task.fence));
        task.apply(fence, ending, LATER).unwrap();
        assert_eq!((task.state, task.attempt), (TaskState::Failed, 1), "nobody asked for another run");
        task.apply(None, REOPEN, LATER).unwrap();
        assert!(!task.uploads_only);
    }
    let fence = Some(task.fence);
    task.apply(fence, Change::Complete { artifacts: vec![artifact(true)] }, LATER).unwrap();
    assert_eq!(task.apply(None, reopen_uploads(), LATER), Err(Refusal::Over));
    assert_eq!(task.apply(None, REOPEN, LATER), Err(Refusal::Over), "what is completed is never reopened");
}

#[test]
fn what_could_not_be_stored_is_known_even_if_its_plan_was_not_recorded() {
    let left = vec![artifact(true), artifact(false)];
    let unstored = |retryable| {
        let error = if retryable { error() } else { error().permanent() };
        Change::Unstored { error, delay: Duration::ZERO, artifacts: left.clone() }
    };
    let mut again = held();
    assert_eq!(again.apply(Some(Fence(1)), unstored(true), NOW), Ok(ArtifactEdit::Replace(Vec::new())));
    assert_eq!((again.state, again.attempt), (TaskState::Scheduled, 2));
    let mut last = held();
    last.attempt = last.max_attempts;
    for (mut task, retryable) in [(held(), false), (last, true)] {
        assert_eq!(task.apply(Some(Fence(1)), unstored(retryable), NOW), Ok(ArtifactEdit::Replace(left.clone())));
        assert_eq!((task.state, task.error.is_some()), (TaskState::Failed, true));
        task.apply(None, reopen_uploads(), LATER).unwrap();
        assert_eq!(task.state, TaskState::Uploading);
    }
}

#[test]
fn files_nobody_knows_of_cannot_be_stored() {
    let mut never_ran = new_task();
    never_ran.apply(None, Change::Cancel, NOW).unwrap();
    // Its first attempt left files; its second one, which counts, none.
    let mut second = uploading();
    second.apply(Some(Fence(1)), Change::Retry { error: error(), delay: Duration::ZERO }, NOW).unwrap();
    second.apply(None, Change::Promote, NOW).unwrap();
    let mut waiting = second.clone();
    waiting.apply(None, Change::Cancel, NOW).unwrap();
    second.apply(None, claim(), NOW).unwrap();
    for mut task in [never_ran, waiting, failed(second)] {
        assert_eq!(task.apply(None, reopen_uploads(), LATER), Err(Refusal::NoFiles));
        assert!(task.state.is_final());
    }
}

#[test]
fn a_new_priority_is_a_new_place() {
    let urgent = || Change::Reprioritize { priority: Priority::new(2).unwrap(), ordering: Ordering::Aged };
    let mut task = new_task();
    task.apply(None, urgent(), LATER).unwrap();
    assert_eq!((task.priority.level(), task.sort_key), (2, 1_000 - 2 * 60_000));
    let mut running = held();
    running.apply(None, urgent(), LATER).unwrap();
    assert_eq!((running.state, running.fence), (TaskState::Dispatching, Fence(1)), "who holds it goes on");
    let over = failed(held());
    assert_eq!(over.clone().apply(None, urgent(), LATER), Err(Refusal::Over));
}

fn any_change() -> impl Strategy<Value = Change> {
    let worker = || WorkerId::new("n:1");
    prop_oneof![
        Just(claim()),
        Just(Change::Adopt { worker: worker(), until: Timestamp(9) }),
        Just(Change::Renew { until: Timestamp(9) }),
        Just(Change::HandOff),
        Just(Change::Accept { prompt: PromptId::new("p") }),
        Just(Change::Plan { artifacts: vec![artifact(false)] }),
        Just(Change::Complete { artifacts: vec![artifact(true)] }),
        Just(Change::Fail { error: error() }),
        Just(Change::Retry { error: error(), delay: Duration::ZERO }),
        Just(Change::Cramped { error: error(), delay: Duration::ZERO, lane: None }),
        any::<bool>().prop_map(|blamed| Change::Elsewhere { error: error(), blamed }),
        Just(Change::Unstored { error: error(), delay: Duration::ZERO, artifacts: vec![artifact(false)] }),
        Just(Change::Release(Release::Recalled)),
        Just(Change::Release(Release::ServerDied)),
        Just(Change::Promote),
        Just(Change::Cancel),
        Just(Change::Reprioritize { priority: Priority::MAX, ordering: Ordering::Aged }),
        Just(Change::Reopen { ordering: Ordering::Aged }),
        Just(Change::ReopenUploads { worker: worker() }),
    ]
}

proptest! {
    #[test]
    fn whatever_happens_the_rules_hold(changes in prop::collection::vec((any_change(), 0..3_i64), 0..60)) {
        let mut task = new_task();
        for (change, stale_by) in changes {
            let before = task.clone();
            let fence = Fence(task.fence.0 - stale_by);
            let result = task.apply(Some(fence), change.clone(), NOW);
            let reopened = result.is_ok() && change.reopens();
            if result.is_err() || before.state.is_final() && !reopened {
                prop_assert_eq!(&task, &before, "a refused change altered the task");
            }
            if reopened {
                prop_assert!(matches!(before.state, TaskState::Failed | TaskState::Cancelled));
                prop_assert!(task.cancel_requested_at.is_none() && task.error.is_none());
            }
            prop_assert_eq!(task.generation, before.generation + i32::from(reopened));
            if task.uploads_only && !task.state.is_final() {
                prop_assert_eq!(task.state, TaskState::Uploading);
                prop_assert_eq!(task.dispatch, before.dispatch);
            }
            if stale_by > 0 && change.is_holders() {
                prop_assert_eq!(result, Err(Refusal::Stale));
            }
            prop_assert_eq!(task.lease.is_some(), task.state.is_held());
            prop_assert_eq!(task.finished_at.is_some(), task.state.is_final());
            prop_assert_eq!(task.run_at.is_some(), task.state == TaskState::Scheduled);
            prop_assert!(task.fence >= before.fence && task.dispatch >= before.dispatch);
            prop_assert!(task.attempt >= before.attempt || reopened);
            prop_assert!(task.attempt <= task.max_attempts);
            if before.cancel_requested_at.is_some() && !reopened {
                prop_assert!(task.state != TaskState::Completed && task.dispatch == before.dispatch || before.state.is_final());
            }
        }
    }
}

#[test]
fn only_who_chose_a_prompt_and_held_it_since_knows_that_nobody_else_sent_it() {
    let (us, successor) = (WorkerId::starting("node"), WorkerId::starting("node"));
    let intent = Intent { backend: BackendId::new("http://b"), client: ClientId::fresh("gpu", &us) };
    let mut task = new_task();
    assert!(!task.is_intended_by(&us), "nothing was chosen");
    task.apply(None, Change::Claim { worker: us.clone(), until: Timestamp(9), intent }, Timestamp(0)).unwrap();
    assert!(task.is_intended_by(&us) && !task.is_intended_by(&successor));
    let mut accepted = task.clone();
    let prompt = PromptId::of(task.id, 1);
    accepted.apply(Some(task.fence), Change::Accept { prompt }, Timestamp(1)).unwrap();
    assert!(!accepted.is_intended_by(&us), "it was sent");
    for worker in [successor, us.clone()] {
        task.apply(None, Change::Adopt { worker, until: Timestamp(9) }, Timestamp(2)).unwrap();
        assert!(!task.is_intended_by(&us), "somebody had it meanwhile");
    }
}
