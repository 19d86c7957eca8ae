use super::*;
use crate::{
    domain::{
        artifact::{FileRef, Source},
        id::{BackendId, ClientId, TaskId, WorkerId},
        order::Priority,
        prompt::{NodeOutput, Receipt, Sighting},
        task::{Fence, Intent, TaskState},
    },
    ports::comfy::{ComfyError, SubmitError},
};

/// A flight with a clock one can push.
struct Bench {
    flight: Flight,
    now: Timestamp,
    settings: SessionSettings,
}

fn claimed() -> Task {
    let mut task = Task {
        id: TaskId::new(),
        tenant: 0,
        lane: 0,
        workflow: None,
        priority: Priority::default(),
        sort_key: 0,
        queued_at: Timestamp(0),
        state: TaskState::Pending,
        generation: 1,
        uploads_only: false,
        fence: Fence(0),
        dispatch: 0,
        attempt: 1,
        max_attempts: 3,
        poison: 0,
        ooms: 0,
        timeout: Some(Duration::from_secs(60)),
        lease: None,
        prompt: None,
        run_at: None,
        cancel_requested_at: None,
        created_at: Timestamp(0),
        started_at: None,
        executing_at: None,
        uploading_at: None,
        finished_at: None,
        error: None,
        hook: None,
    };
    let intent = Intent { backend: BackendId::new("http://b"), client: ClientId::new("c") };
    let claim = Change::Claim { worker: WorkerId::new("n:1"), until: Timestamp(30_000), intent };
    task.apply(None, claim, Timestamp(0)).unwrap();
    task
}

impl Bench {
    fn new(task: Task, origin: Origin) -> Self {
        let settings = SessionSettings::default();
        let now = Timestamp(100_000);
        Self { flight: Flight::new(task, Arc::default(), origin, now, &settings), now, settings }
    }

    fn accepted() -> Self {
        let mut bench = Self::new(claimed(), Origin::Claimed);
        assert_eq!(bench.next(), Some(Act::Submit));
        let prompt = bench.flight.prompt();
        bench.submitted(Ok(Receipt { prompt, node_errors: None }));
        bench
    }

    fn running() -> Self {
        let mut bench = Self::accepted();
        bench.flight.on_running(bench.now);
        bench
    }

    fn next(&mut self) -> Option<Act> {
        self.flight.next(self.now, true, &self.settings)
    }

    fn after(&mut self, seconds: u64) -> Option<Act> {
        self.now = self.now.after(Duration::from_secs(seconds));
        self.next()
    }

    fn submitted(&mut self, result: Result<Receipt, SubmitError>) {
        self.flight.on_submitted(result, self.now, &self.settings);
    }

    fn looked(&mut self, sighting: Sighting) {
        self.flight.on_looked(Ok(sighting), self.now, self.now);
    }

    fn finished(&self, outcome: Outcome) -> Finished {
        let file = FileRef { filename: "a.png".into(), subfolder: String::new(), folder_type: "output".into() };
        Finished {
            prompt: self.flight.prompt(),
            outcome,
            outputs: vec![NodeOutput { node_id: "9".into(), source: Source::File(file) }],
        }
    }

    /// Looks until the prompt is concluded to be gone; returns what the task gets.
    fn until_gone(&mut self) -> Option<Act> {
        for _ in 0..100 {
            match self.next() {
                Some(Act::Look(_)) => self.looked(Sighting::Absent),
                Some(Act::ReadHistory(_)) => self.flight.on_history(Ok(None), self.now),
                Some(Act::Stop(_) | Act::Withdraw(_)) => self.flight.on_stop_asked(true, self.now),
                None => self.now = self.now.after(Duration::from_millis(500)),
                act => return act,
            }
        }
        None
    }
}

fn change(act: Option<Act>) -> Change {
    match act {
        Some(Act::Settle { change, .. }) => change,
        other => panic!("{other:?} settles nothing"),
    }
}

#[test]
fn a_run_without_trouble_reads_the_history_once() {
    let mut bench = Bench::running();
    assert_eq!(bench.next(), None);
    bench.flight.on_end_heard(false, bench.now);
    assert!(!bench.flight.occupies_backend());
    assert_eq!(bench.next(), None, "the history may not be written yet");
    bench.flight.on_end_heard(true, bench.now);
    assert_eq!(bench.next(), Some(Act::ReadHistory(bench.flight.prompt())));
    bench.flight.on_history(Ok(Some(bench.finished(Outcome::Success))), bench.now);
    assert!(matches!(bench.next(), Some(Act::Plan(artifacts)) if artifacts.len() == 1));
    assert_eq!(bench.next(), None, "one act at a time");
}

#[test]
fn without_a_single_frame_it_ends_all_the_same() {
    let mut bench = Bench::accepted();
    assert_eq!(bench.next(), None);
    for _ in 0..4 {
        assert!(matches!(bench.after(1), Some(Act::ReadHistory(_))));
        bench.flight.on_history(Ok(None), bench.now);
    }
    assert!(matches!(bench.after(1), Some(Act::Look(_))), "now and then a conclusive question");
    bench.looked(Sighting::Ended(bench.finished(Outcome::Success)));
    assert!(matches!(bench.next(), Some(Act::Plan(_))));
}

#[test]
fn a_word_keeps_the_questions_away() {
    let mut bench = Bench::running();
    for _ in 0..10 {
        bench.now = bench.now.after(Duration::from_millis(900));
        bench.flight.on_word(bench.now, &bench.settings);
        assert_eq!(bench.next(), None);
    }
}

#[test]
fn a_lost_answer_is_looked_for_and_never_sent_again() {
    let mut bench = Bench::new(claimed(), Origin::Claimed);
    assert_eq!(bench.next(), Some(Act::Submit));
    bench.submitted(Err(SubmitError::Unknown("reset".into())));
    assert!(matches!(bench.next(), Some(Act::Look(_))));
    bench.looked(Sighting::Absent);
    assert_eq!(bench.after(9), None, "its POST may still arrive");
    assert!(matches!(bench.after(1), Some(Act::Look(_))));
    bench.looked(Sighting::Absent);
    assert_eq!(bench.after(1), None, "one absence is not enough");
    assert!(matches!(bench.after(1), Some(Act::Look(_))));
    bench.looked(Sighting::Absent);
    assert_eq!(change(bench.next()), Change::Release(Release::Recalled));
}

#[test]
fn a_lost_answer_that_was_accepted_is_adopted() {
    let mut bench = Bench::new(claimed(), Origin::Claimed);
    bench.next();
    bench.submitted(Err(SubmitError::Unknown("500".into())));
    bench.next();
    let other = PromptId::new("the-servers-own-id");
    bench.looked(Sighting::Alive { prompt: other.clone(), running: true });
    assert_eq!(bench.flight.prompt(), other);
    assert!(matches!(bench.after(1), Some(Act::ReadHistory(id)) if id == other));
}

#[test]
fn adoption_never_submits() {
    for (origin, accepted) in [(Origin::Resumed, true), (Origin::Resumed, false), (Origin::Expired, false)] {
        let mut task = claimed();
        if accepted {
            let prompt = PromptId::of(task.id, 1);
            task.apply(Some(Fence(1)), Change::Accept { prompt }, Timestamp(1)).unwrap();
        }
        let mut bench = Bench::new(task, origin);
        assert!(matches!(bench.next(), Some(Act::Look(_))), "{origin:?}");
        let before = bench.now;
        bench.looked(Sighting::Absent);
        assert!(matches!(bench.until_gone(), Some(Act::Settle { .. })), "{origin:?}");
        let waited = bench.now.since(before).as_secs();
        let grace = match (origin, accepted) {
            (_, true) => 2,
            (Origin::Resumed, _) => 12,
            _ => 42,
        };
        assert_eq!(waited, grace, "{origin:?} {accepted}");
    }
}

#[test]
fn an_unsure_claim_looks_before_it_sends() {
    let mut bench = Bench::new(claimed(), Origin::ClaimedUnsure);
    assert!(matches!(bench.next(), Some(Act::Look(_))));
    bench.looked(Sighting::Absent);
    assert_eq!(bench.next(), Some(Act::Submit));

    let mut bench = Bench::new(claimed(), Origin::ClaimedUnsure);
    bench.next();
    bench.looked(Sighting::Alive { prompt: bench.flight.prompt(), running: true });
    assert!(matches!(bench.next(), Some(Act::Look(_))), "it is there already: adopted");
}

#[test]
fn a_dead_server_costs_poison_only_when_it_ran() {
    let mut bench = Bench::running();
    bench.flight.on_reconnected(bench.now);
    assert_eq!(change(bench.until_gone()), Change::Release(Release::ServerDied));

    let mut bench = Bench::accepted();
    bench.flight.on_reconnected(bench.now);
    assert_eq!(change(bench.until_gone()), Change::Release(Release::Recalled));
}

#[test]
fn every_ending_has_its_meaning() {
    let stops = |stop: Option<Stop>, outcome: Outcome| {
        let mut bench = Bench::running();
        if let Some(stop) = stop {
            bench.flight.request_stop(stop, bench.now);
            assert!(matches!(bench.next(), Some(Act::Stop(_))));
            bench.flight.on_stop_asked(true, bench.now);
        }
        let finished = bench.finished(outcome);
        bench.flight.on_history(Ok(Some(finished)), bench.now);
        bench.next()
    };
    let retryable = TaskError::from_exception("RuntimeError", "x", None, None);
    let hopeless = TaskError::from_exception("ValueError", "x", None, None);
    assert!(matches!(change(stops(None, Outcome::Failed(retryable))), Change::Retry { .. }));
    assert!(matches!(change(stops(None, Outcome::Failed(hopeless))), Change::Fail { .. }));
    assert_eq!(change(stops(None, Outcome::Interrupted)), Change::Release(Release::Interrupted));
    assert_eq!(change(stops(Some(Stop::Client), Outcome::Interrupted)), Change::Release(Release::Cancelled));
    assert_eq!(change(stops(Some(Stop::Client), Outcome::Success)), Change::Release(Release::Cancelled));
    assert!(matches!(stops(Some(Stop::Timeout), Outcome::Success), Some(Act::Plan(_))), "it made it after all");
    let timed_out = change(stops(Some(Stop::Timeout), Outcome::Interrupted));
    assert!(matches!(timed_out, Change::Fail { error } if error.code == ErrorCode::Timeout));
}

#[test]
fn partial_acceptance_is_taken_back() {
    let mut bench = Bench::new(claimed(), Origin::Claimed);
    bench.next();
    let prompt = bench.flight.prompt();
    let node_errors = Some(serde_json::json!({"7": {"errors": []}}));
    bench.submitted(Ok(Receipt { prompt, node_errors: node_errors.clone() }));
    assert!(matches!(bench.next(), Some(Act::Stop(_))));
    bench.flight.on_stop_asked(true, bench.now);
    let finished = bench.finished(Outcome::Success);
    bench.looked_now(finished);
    let Change::Fail { error } = change(bench.next()) else { panic!("not failed") };
    assert_eq!((error.code, error.node_errors), (ErrorCode::PartiallyAccepted, node_errors));
}

impl Bench {
    fn looked_now(&mut self, finished: Finished) {
        assert!(matches!(self.next(), Some(Act::Look(_))), "after a stop the questions are conclusive");
        self.looked(Sighting::Ended(finished));
    }
}

#[test]
fn a_timeout_counts_from_the_start_of_the_run() {
    let mut bench = Bench::accepted();
    assert!(matches!(bench.after(300), Some(Act::ReadHistory(_))), "waiting in the server's queue is no execution");
    bench.flight.on_history(Ok(None), bench.now);
    bench.flight.on_running(bench.now);
    assert!(!matches!(bench.after(59), Some(Act::Stop(_))));
    bench.flight.on_history(Ok(None), bench.now);
    assert!(matches!(bench.after(1), Some(Act::Stop(_))));
    bench.flight.on_stop_asked(true, bench.now);
    assert!(matches!(bench.next(), Some(Act::Look(_))));
    bench.looked(Sighting::Alive { prompt: bench.flight.prompt(), running: true });
    let act = bench.after(30);
    assert!(matches!(&act, Some(Act::Settle { orphan: Some(_), .. })), "a hung node cannot be interrupted: {act:?}");
    assert!(matches!(change(act), Change::Fail { error } if error.code == ErrorCode::Timeout));
}

#[test]
fn a_cancelled_task_is_never_sent() {
    let mut bench = Bench::new(claimed(), Origin::Claimed);
    bench.flight.request_stop(Stop::Client, bench.now);
    assert_eq!(change(bench.next()), Change::Release(Release::Cancelled));
}

#[test]
fn a_prompt_that_runs_is_not_recalled() {
    let mut bench = Bench::accepted();
    bench.flight.request_stop(Stop::Recall, bench.now);
    assert!(matches!(bench.next(), Some(Act::Withdraw(_))), "never an interrupt: it may begin to run at any moment");
    bench.flight.on_stop_asked(true, bench.now);
    bench.flight.on_running(bench.now);
    for _ in 0..10 {
        let act = bench.after(1);
        assert!(matches!(act, Some(Act::ReadHistory(_) | Act::Look(_))), "{act:?}");
        bench.looked(Sighting::Alive { prompt: bench.flight.prompt(), running: true });
    }
}

#[test]
fn what_the_server_gave_back_is_gone_at_once() {
    for heard in [true, false] {
        let mut bench = Bench::accepted();
        bench.flight.request_stop(Stop::Recall, bench.now);
        assert!(matches!(bench.next(), Some(Act::Withdraw(_))));
        bench.flight.on_stop_asked(heard, bench.now);
        assert!(matches!(bench.next(), Some(Act::Look(_))));
        bench.looked(Sighting::Absent);
        let next = bench.next();
        if heard {
            assert_eq!(change(next), Change::Release(Release::Recalled));
        } else {
            assert_eq!(next, None, "one absence proves nothing when nobody took it out");
        }
    }
}

#[test]
fn a_late_history_is_no_absence() {
    for lost_connection in [false, true] {
        let mut bench = Bench::running();
        bench.flight.on_end_heard(true, bench.now);
        if lost_connection {
            bench.flight.on_reconnected(bench.now);
        }
        let heard = bench.now;
        while bench.now.since(heard) < HISTORY_LATE {
            match bench.next() {
                Some(Act::ReadHistory(_)) => bench.flight.on_history(Ok(None), bench.now),
                None => bench.now = bench.now.after(Duration::from_millis(50)),
                act => panic!("{act:?}"),
            }
        }
        assert_eq!(change(bench.until_gone()), Change::Release(Release::ServerDied));
    }
}

#[test]
fn a_look_that_was_overtaken_by_the_end_concludes_nothing() {
    let mut bench = Bench::new(claimed(), Origin::Claimed);
    bench.next();
    bench.submitted(Err(SubmitError::Unknown("reset".into())));
    assert!(matches!(bench.next(), Some(Act::Look(_))));
    bench.flight.on_end_heard(true, bench.now);
    bench.looked(Sighting::Absent);
    assert!(matches!(bench.after(1), Some(Act::ReadHistory(_))), "only what was accepted can end");
}

#[test]
fn a_server_that_fails_to_take_the_prompt_costs_an_attempt() {
    let mut bench = Bench::new(claimed(), Origin::Claimed);
    bench.next();
    bench.submitted(Err(SubmitError::Failed("500".into())));
    let Change::Retry { error, .. } = change(bench.until_gone()) else { panic!("not tried again") };
    assert_eq!(error.code, ErrorCode::BackendError);
}

#[test]
fn acceptance_is_told_once_however_it_was_learned() {
    let answered = Bench::accepted();
    let mut found = Bench::new(claimed(), Origin::Claimed);
    found.next();
    found.submitted(Err(SubmitError::Unknown("reset".into())));
    let mut heard = found;
    let found = {
        let mut bench = Bench { flight: heard.flight.clone(), now: heard.now, settings: SessionSettings::default() };
        bench.next();
        bench.looked(Sighting::Alive { prompt: bench.flight.prompt(), running: false });
        bench
    };
    heard.flight.on_running(heard.now);
    for mut bench in [answered, found, heard] {
        assert_eq!(bench.flight.take_evidence(), Some(bench.flight.prompt()));
        assert_eq!(bench.flight.take_evidence(), None);
    }
}

#[test]
fn a_stop_is_asked_for_again_when_its_prompt_turns_up() {
    let mut bench = Bench::new(claimed(), Origin::Claimed);
    bench.next();
    bench.submitted(Err(SubmitError::Unknown("reset".into())));
    bench.flight.request_stop(Stop::Client, bench.now);
    assert!(matches!(bench.next(), Some(Act::Stop(_))));
    bench.flight.on_stop_asked(true, bench.now);
    bench.next();
    let other = PromptId::new("the-servers-own-id");
    bench.looked(Sighting::Alive { prompt: other.clone(), running: true });
    assert_eq!(bench.next(), Some(Act::Stop(other)));
}

#[test]
fn what_may_still_arrive_is_not_abandoned() {
    let mut bench = Bench::new(claimed(), Origin::Expired);
    bench.flight.request_stop(Stop::Client, bench.now);
    let begun = bench.now;
    assert_eq!(change(bench.until_gone()), Change::Release(Release::Cancelled));
    assert!(bench.now.since(begun) >= Duration::from_secs(40), "30 s for the POST, 10 s for its validation");
}

#[test]
fn a_known_end_is_not_given_up() {
    let mut bench = Bench::running();
    assert!(bench.flight.give_up().is_some());
    let finished = bench.finished(Outcome::Success);
    bench.flight.on_history(Ok(Some(finished)), bench.now);
    assert_eq!(bench.flight.give_up(), None, "it only needs to be recorded");
}

#[test]
fn a_server_whose_answers_cannot_be_read_is_as_good_as_away() {
    let mut bench = Bench::running();
    bench.flight.on_end_heard(true, bench.now);
    let (begun, lost_after) = (bench.now, bench.settings.backend_lost_after);
    loop {
        match bench.next() {
            Some(Act::ReadHistory(_)) => {
                bench.flight.on_history(Err(ComfyError::Unavailable("too large".into())), bench.now);
            }
            Some(Act::Look(_)) => {
                bench.flight.on_looked(Err(ComfyError::Unavailable("too large".into())), bench.now, bench.now);
            }
            Some(act) => break assert_eq!(change(Some(act)), Change::Release(Release::ServerDied)),
            None => bench.now = bench.now.after(Duration::from_millis(100)),
        }
        assert!(bench.now.since(begun) <= lost_after + ASK_EVERY, "it is never given up");
    }
    assert!(bench.now.since(begun) >= lost_after);
}

/// Whether a server that is away is given up is not for a flight to say: it may be the only one.
#[test]
fn a_server_that_is_away_is_waited_for_and_asked_at_once_when_it_is_back() {
    let mut bench = Bench::running();
    bench.flight.task.timeout = None;
    bench.flight.on_disconnected();
    let back = bench.now.after(bench.settings.backend_lost_after * 2);
    while bench.now < back {
        match bench.flight.next(bench.now, false, &bench.settings) {
            Some(Act::ReadHistory(_)) => {
                bench.flight.on_history(Err(ComfyError::Unavailable("away".into())), bench.now);
            }
            Some(Act::Look(_)) => {
                bench.flight.on_looked(Err(ComfyError::Unavailable("away".into())), bench.now, bench.now);
            }
            act => assert_eq!(act, None),
        }
        bench.now = bench.now.after(Duration::from_millis(500));
    }
    bench.flight.on_word(bench.now, &bench.settings);
    bench.flight.on_reconnected(bench.now);
    assert!(matches!(bench.next(), Some(Act::Look(_))), "frames may have been missed");
}

#[test]
fn a_clients_wish_outranks_a_recall() {
    let mut bench = Bench::accepted();
    bench.flight.request_stop(Stop::Recall, bench.now);
    bench.flight.request_stop(Stop::Client, bench.now);
    bench.flight.request_stop(Stop::Timeout, bench.now);
    assert_eq!(change(bench.until_gone()), Change::Release(Release::Cancelled));
}

#[test]
fn nothing_is_sent_while_offline() {
    let mut bench = Bench::new(claimed(), Origin::Claimed);
    assert_eq!(bench.flight.next(bench.now, false, &bench.settings), None);
    assert_eq!(bench.next(), Some(Act::Submit));
}

/// A POST is under way and a client cancels; the answer is overdue.
fn unanswered() -> Bench {
    let mut bench = Bench::new(claimed(), Origin::Claimed);
    assert_eq!(bench.next(), Some(Act::Submit));
    assert_eq!(bench.next(), None, "its answer is awaited");
    bench.flight.request_stop(Stop::Client, bench.now);
    assert_eq!(bench.next(), None, "its answer is due at any moment, and says more than a look");
    assert_eq!(bench.after(1), Some(Act::Stop(bench.flight.prompt())));
    bench.flight.on_stop_asked(true, bench.now);
    assert!(matches!(bench.next(), Some(Act::Look(_))));
    bench
}

#[test]
fn a_cancellation_does_not_wait_for_an_answer() {
    let mut bench = unanswered();
    let other = PromptId::new("the-servers-own-id");
    bench.looked(Sighting::Alive { prompt: other.clone(), running: true });
    assert_eq!(bench.next(), Some(Act::Stop(other.clone())), "the first stop named an id that is not known there");
    bench.flight.on_stop_asked(true, bench.now);
    // Now it comes.
    bench.submitted(Ok(Receipt { prompt: other, node_errors: None }));
    assert!(matches!(bench.next(), Some(Act::Look(_))), "it changes nothing");
    let finished = bench.finished(Outcome::Success);
    bench.looked(Sighting::Ended(finished));
    assert_eq!(
        change(bench.next()),
        Change::Release(Release::Cancelled),
        "the last node won, and nobody wants the result"
    );
}

#[test]
fn an_absence_proves_nothing_while_the_post_is_under_way() {
    let mut bench = unanswered();
    bench.looked(Sighting::Absent);
    let posted = bench.now;
    while bench.now.since(posted) < Duration::from_secs(30) {
        match bench.next() {
            Some(Act::Look(_)) => bench.looked(Sighting::Absent),
            Some(Act::Stop(_)) => bench.flight.on_stop_asked(true, bench.now),
            None => bench.now = bench.now.after(Duration::from_millis(500)),
            act => panic!("{act:?}"),
        }
    }
    // Nothing was learned from that: not even now that its sender gave up.
    bench.submitted(Err(SubmitError::Unknown("timeout".into())));
    let gave_up = bench.now;
    assert_eq!(change(bench.until_gone()), Change::Release(Release::Cancelled));
    assert!(bench.now.since(gave_up) >= Duration::from_secs(10), "it may still be validated");
}

#[test]
fn an_absence_older_than_the_acceptance_is_void() {
    let mut bench = unanswered();
    let began = bench.now;
    bench.now = bench.now.after(Duration::from_secs(1));
    let prompt = bench.flight.prompt();
    bench.submitted(Ok(Receipt { prompt: prompt.clone(), node_errors: None }));
    bench.flight.on_looked(Ok(Sighting::Absent), began, bench.now);
    assert_eq!(bench.next(), Some(Act::Stop(prompt)), "the stop before it came hit nothing");
    bench.flight.on_stop_asked(true, bench.now);
    assert!(matches!(bench.next(), Some(Act::Look(_))));
    bench.looked(Sighting::Absent);
    assert_eq!(change(bench.next()), Change::Release(Release::Cancelled));
}

#[test]
fn a_refusal_ends_a_cancelled_task_at_once() {
    let mut bench = unanswered();
    bench.looked(Sighting::Absent);
    let message = "no".into();
    bench.submitted(Err(SubmitError::Refused { message, node_id: None, class_type: None, node_errors: None }));
    // Whoever records it sees that it was cancelled.
    assert!(matches!(change(bench.next()), Change::Fail { .. }));
}

#[test]
fn a_post_that_panicked_is_in_doubt() {
    let mut bench = Bench::new(claimed(), Origin::Claimed);
    bench.next();
    assert!(bench.flight.is_sending());
    bench.flight.on_interrupted(bench.now, &bench.settings);
    let begun = bench.now;
    assert_eq!(change(bench.until_gone()), Change::Release(Release::Recalled));
    assert!(bench.now.since(begun) >= Duration::from_secs(40), "it may have left before it broke off");
}

#[test]
fn what_a_lost_record_may_have_sent_is_looked_for_when_its_task_is_cancelled() {
    for (origin, perhaps_sent) in [(Origin::Claimed, false), (Origin::ClaimedUnsure, true)] {
        let mut bench = Bench::new(claimed(), origin);
        let orphan = perhaps_sent.then(|| bench.flight.prompt());
        bench.flight.request_stop(Stop::Client, bench.now);
        let cancelled = Act::Settle { change: Change::Release(Release::Cancelled), orphan };
        assert_eq!(bench.next(), Some(cancelled));
    }
}

mod stuck;
