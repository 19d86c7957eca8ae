//! Forged histories: one in which everything is as promised, and each way of breaking that, which the checker must name.

use fake_comfyui::{Event, EventKind, Outcome};

use super::{Fact, History, Message, Object, Output, Row, Rule, Stored, Told, View, Word, check};

const TASK: &str = "01900000-0000-7000-8000-000000000001";
const OTHER: &str = "01900000-0000-7000-8000-000000000002";
const COLOR: u32 = 0x00_ff_00;
const OBJECT: &str = "0/2026-01-02/01900000-0000-7000-8000-000000000001_1_2-0.png";

fn event(wall_ms: u64, kind: EventKind) -> Event {
    Event { seq: wall_ms, at_us: wall_ms * 1000, wall_ms, kind }
}

fn posted(at: u64, prompt: &str) -> Event {
    let (prompt_id, task) = (prompt.to_owned(), Some(TASK.to_owned()));
    event(at, EventKind::Posted { prompt_id, client_id: None, task, accepted: true })
}

fn refused(at: u64, prompt: &str) -> Event {
    let (prompt_id, task) = (prompt.to_owned(), Some(TASK.to_owned()));
    event(at, EventKind::Posted { prompt_id, client_id: None, task, accepted: false })
}

fn started(at: u64, prompt: &str) -> Event {
    event(at, EventKind::Started { prompt_id: prompt.to_owned(), task: Some(TASK.to_owned()) })
}

fn finished(at: u64, prompt: &str, outcome: Outcome) -> Event {
    event(at, EventKind::Finished { prompt_id: prompt.to_owned(), outcome })
}

fn told(at: u64, word: Word) -> Told {
    Told { at, word }
}

fn accepted(at: u64, key: &str, task: &str) -> Told {
    told(at, Word::Accepted { key: key.to_owned(), color: Some(COLOR), task: task.to_owned() })
}

fn output() -> Output {
    Output { index: 0, bytes: 9, sha256: "abc".to_owned() }
}

fn view(status: &str) -> View {
    let ended = status == "completed" || status == "failed" || status == "cancelled";
    View {
        task: TASK.to_owned(),
        status: status.to_owned(),
        generation: 1,
        attempt: 1,
        finished_at: ended.then(|| "2026-01-02T00:00:00Z".to_owned()),
        outputs: if status == "completed" { vec![output()] } else { Vec::new() },
    }
}

fn facts(stages: &[&str]) -> Vec<Fact> {
    (1..).zip(stages).map(|(seq, stage)| Fact { seq, stage: Some((*stage).to_owned()) }).collect()
}

fn row(state: &str) -> Row {
    let key = Some(OBJECT.to_owned());
    let manifest = vec![Stored { index: 0, key, bytes: 9, sha256: "abc".to_owned() }];
    Row {
        id: TASK.to_owned(),
        state: state.to_owned(),
        generation: 1,
        attempt: 1,
        dispatch: 1,
        keys: vec!["key".to_owned()],
        outputs: if state == "completed" { manifest } else { Vec::new() },
        facts: facts(&["queued", "preparing", "executing", "uploading", state]),
        ..Row::default()
    }
}

/// One task, created at 10, run from 20 to 30, read at 40.
fn sound() -> History {
    let heard = (1..=5).map(|seq| told(35, Word::Heard { seq, task: TASK.to_owned() }));
    let read = Word::Read { task: TASK.to_owned(), index: 0, bytes: 9, sha256: "abc".to_owned() };
    let mut all = vec![told(5, Word::Unanswered { key: "key".to_owned() }), accepted(10, "key", TASK)];
    all.extend(heard);
    all.extend([told(36, Word::Seen(view("processing"))), told(40, Word::Seen(view("completed"))), told(41, read)]);
    let object = Object { bytes: 9, sha256: "abc".to_owned(), color: Some(COLOR) };
    History {
        told: all,
        servers: vec![vec![posted(15, "p1"), started(20, "p1"), finished(30, "p1", Outcome::Success)]],
        rows: vec![row("completed")],
        objects: [(OBJECT.to_owned(), object)].into(),
        integrity: "ok".to_owned(),
        messages: Vec::new(),
        pardons: [].into(),
        is_tidied: false,
    }
}

/// The same, ended in another way. Nobody listened.
fn ended(state: &str, outcome: Outcome) -> History {
    let mut history = sound();
    history.told = vec![accepted(10, "key", TASK), told(40, Word::Seen(view(state)))];
    history.servers = vec![vec![posted(15, "p1"), started(20, "p1"), finished(30, "p1", outcome)]];
    (history.rows, history.objects) = (vec![row(state)], [].into());
    history
}

/// The rules that what a change makes of a history breaks.
fn broken_of(mut history: History, forge: impl FnOnce(&mut History)) -> Vec<Rule> {
    forge(&mut history);
    check(&history).into_iter().map(|violation| violation.rule).collect()
}

fn broken(forge: impl FnOnce(&mut History)) -> Vec<Rule> {
    broken_of(sound(), forge)
}

#[test]
fn what_is_as_promised_is_sound() {
    assert_eq!(check(&sound()), []);
    for (state, outcome) in [("failed", Outcome::Error), ("cancelled", Outcome::Interrupted)] {
        assert_eq!(check(&ended(state, outcome)), [], "{state}");
    }
    assert_eq!(check(&History { integrity: "ok".to_owned(), ..History::default() }), []);
}

#[test]
fn an_acknowledged_task_that_is_gone() {
    assert_eq!(broken(|it| it.told.push(accepted(11, "another", OTHER))), [Rule::Lost]);
}

#[test]
fn a_task_nobody_asked_for() {
    let invented = |it: &mut History| it.rows[0].keys = vec!["whose".to_owned()];
    assert_eq!(broken(invented), [Rule::Invented]);
    let unanswered = |it: &mut History| it.told.retain(|told| !matches!(told.word, Word::Accepted { .. }));
    assert_eq!(broken(unanswered), [], "an answer may be lost, its task is there");
}

#[test]
fn a_task_without_an_end() {
    let waits = |it: &mut History| {
        it.told.truncate(2);
        it.rows[0] = Row { facts: facts(&["queued"]), ..row("pending") };
        it.objects.clear();
    };
    assert_eq!(broken(waits), [Rule::NeverEnds]);
}

#[test]
fn a_task_with_two_ends() {
    let twice = |it: &mut History| {
        it.rows[0].facts.push(Fact { seq: 6, stage: Some("completed".to_owned()) });
        it.told.insert(7, told(36, Word::Heard { seq: 6, task: TASK.to_owned() }));
    };
    assert_eq!(broken(twice), [Rule::EndsTwice]);
    let lives = |it: &mut History| {
        twice(it);
        it.rows[0].generation = 2;
    };
    assert_eq!(broken(lives), [], "one for each life");
}

#[test]
fn an_end_that_changes() {
    let afterwards = |it: &mut History| it.told.push(told(50, Word::Seen(view("processing"))));
    assert_eq!(broken(afterwards), [Rule::EndChanged]);
    let at_another_time = |it: &mut History| {
        let finished_at = Some("later".to_owned());
        it.told.push(told(50, Word::Seen(View { finished_at, ..view("completed") })));
    };
    assert_eq!(broken(at_another_time), [Rule::EndChanged]);
    let without_outputs = |it: &mut History| {
        it.told.push(told(50, Word::Cancelled(View { outputs: Vec::new(), ..view("completed") })));
    };
    assert_eq!(broken(without_outputs), [Rule::EndChanged]);
    let in_the_database = |it: &mut History| it.told[1] = told(39, Word::Seen(view("completed")));
    assert_eq!(broken_of(ended("failed", Outcome::Error), in_the_database), [Rule::EndChanged, Rule::ReadOtherwise]);
}

#[test]
fn a_run_nothing_asked_for() {
    let again = |it: &mut History| it.servers[0].extend([started(31, "p2"), finished(32, "p2", Outcome::Success)]);
    assert_eq!(broken(again), [Rule::RanAgain]);
    let pardoned = |it: &mut History| {
        again(it);
        it.pardons = [(TASK.to_owned(), 1)].into();
    };
    assert_eq!(broken(pardoned), []);
    let twice = |it: &mut History| {
        pardoned(it);
        it.servers[0].extend([started(33, "p3"), finished(34, "p3", Outcome::Success)]);
    };
    assert_eq!(broken(twice), [Rule::RanAgain], "a pardon is for one");
    let wanted = |it: &mut History| {
        again(it);
        it.told.insert(2, told(31, Word::Reopened(view("pending"))));
    };
    assert_eq!(broken(wanted), []);
}

#[test]
fn a_run_after_one_that_could_not_deliver() {
    for outcome in [Outcome::Error, Outcome::Interrupted] {
        let spoilt = |it: &mut History| {
            it.servers[0][2] = finished(25, "p1", outcome);
            it.servers[0].extend([started(26, "p2"), finished(30, "p2", Outcome::Success)]);
        };
        assert_eq!(broken(spoilt), [], "{outcome:?}");
    }
    for ended in [true, false] {
        let forgotten = |it: &mut History| {
            it.servers[0].truncate(if ended { 3 } else { 2 });
            it.servers[0].extend([event(31, EventKind::WentDown), event(32, EventKind::Restarted)]);
            it.servers[0].extend([started(33, "p2"), finished(34, "p2", Outcome::Success)]);
        };
        assert_eq!(broken(forgotten), [], "ended: {ended}");
    }
    let too_late = |it: &mut History| {
        it.servers[0].extend([started(33, "p2"), finished(34, "p2", Outcome::Success), event(35, EventKind::WentDown)]);
    };
    assert_eq!(broken(too_late), [Rule::RanAgain], "what comes after is no reason");
}

#[test]
fn two_runs_at_once() {
    let elsewhere = |it: &mut History| {
        it.servers.push(vec![started(25, "p2"), finished(26, "p2", Outcome::Success)]);
    };
    assert_eq!(broken(elsewhere), [Rule::RanTwiceAtOnce]);
}

#[test]
fn a_prompt_sent_twice() {
    assert_eq!(broken(|it| it.servers[0].push(posted(31, "p1"))), [Rule::SentTwice]);
}

#[test]
fn a_task_that_is_complete_without_a_run() {
    assert_eq!(broken(|it| it.servers[0].truncate(1)), [Rule::NeverRan]);
    assert_eq!(broken(|it| it.servers[0].truncate(2)), [Rule::NeverRan], "a run without an end is none");
}

#[test]
fn a_failure_nothing_explains() {
    let fine = |it: &mut History| it.servers[0][2] = finished(30, "p1", Outcome::Success);
    assert_eq!(broken_of(ended("failed", Outcome::Error), fine), [Rule::FailedForNothing]);
    let was_refused = |it: &mut History| it.servers[0] = vec![refused(15, "p1")];
    assert_eq!(broken_of(ended("failed", Outcome::Error), was_refused), []);
    for deaths in [2, 3] {
        let deadly = |it: &mut History| {
            it.servers[0].clear();
            for death in 0..deaths {
                let prompt = format!("p{death}");
                it.servers[0].extend([started(20 + 2 * death, &prompt), event(21 + 2 * death, EventKind::WentDown)]);
            }
        };
        let expected = if deaths < 3 { vec![Rule::FailedForNothing] } else { vec![] };
        assert_eq!(broken_of(ended("failed", Outcome::Error), deadly), expected, "{deaths}");
    }
}

#[test]
fn an_attempt_nothing_explains() {
    assert_eq!(broken(|it| it.rows[0].attempt = 2), [Rule::AttemptSpent]);
}

#[test]
fn a_manifest_that_is_untrue() {
    assert_eq!(broken(|it| it.objects.clear()), [Rule::ManifestUntrue]);
    let changed = |it: &mut History| it.objects.get_mut(OBJECT).unwrap().sha256 = "def".to_owned();
    assert_eq!(broken(changed), [Rule::ManifestUntrue]);
    let short = |it: &mut History| it.objects.get_mut(OBJECT).unwrap().bytes = 8;
    assert_eq!(broken(short), [Rule::ManifestUntrue]);
    let unnamed = |it: &mut History| it.rows[0].outputs[0].key = None;
    assert_eq!(broken(unnamed), [Rule::ManifestUntrue, Rule::Unnamed]);
    let empty = |it: &mut History| it.rows[0].outputs.clear();
    assert_eq!(broken(empty), [Rule::ManifestUntrue, Rule::ReadOtherwise, Rule::ReadOtherwise, Rule::Unnamed]);
}

#[test]
fn anothers_picture() {
    for color in [None, Some(COLOR + 1)] {
        let other = |it: &mut History| it.objects.get_mut(OBJECT).unwrap().color = color;
        assert_eq!(broken(other), [Rule::OthersResult]);
    }
}

#[test]
fn what_a_client_read_is_not_what_is_written() {
    let read = Word::Read { task: TASK.to_owned(), index: 0, bytes: 9, sha256: "def".to_owned() };
    assert_eq!(broken(|it| it.told.push(told(42, read))), [Rule::ReadOtherwise]);
    let read = Word::Read { task: TASK.to_owned(), index: 1, bytes: 9, sha256: "abc".to_owned() };
    assert_eq!(broken(|it| it.told.push(told(42, read))), [Rule::ReadOtherwise]);
}

#[test]
fn an_object_of_the_winner_that_no_manifest_names() {
    let object = Object { bytes: 1, sha256: "x".to_owned(), color: None };
    let more = |key: String| broken(|it| drop(it.objects.insert(key, object.clone())));
    assert_eq!(more(OBJECT.replace("2-0", "2-1")), [Rule::Unnamed]);
    assert_eq!(more(OBJECT.replace("_1_", "_0_")), [], "a loser's: nobody sees it");
}

#[test]
fn an_object_of_a_run_that_was_given_up() {
    let object = Object { bytes: 1, sha256: "x".to_owned(), color: None };
    let tidied = |key: &str, state: &str| {
        let mut history = sound();
        history.is_tidied = true;
        history.objects.insert(key.to_owned(), object.clone());
        state.clone_into(&mut history.rows[0].state);
        history.left_behind().len()
    };
    let (loser, newest) = (OBJECT.replace("_1_", "_0_"), OBJECT.replace("2-0", "2-1"));
    for (key, state, left) in [
        (&loser, "completed", 1),
        (&loser, "failed", 1),
        (&loser, "executing", 0),
        (&newest, "completed", 1),
        (&newest, "cancelled", 0),
    ] {
        assert_eq!(tidied(key, state), left, "{key} of a task that is {state}");
    }
    let left = broken(|it| {
        it.is_tidied = true;
        it.objects.insert(loser, object);
    });
    assert_eq!(left, [Rule::LeftBehind]);
}

#[test]
fn an_event_that_does_not_arrive_once() {
    assert_eq!(broken(|it| drop(it.told.remove(4))), [Rule::NeverHeard]);
    let again = |it: &mut History| it.told.insert(5, it.told[4].clone());
    assert_eq!(broken(again), [Rule::HeardTwice]);
    assert_eq!(broken(|it| it.told.swap(3, 4)), [Rule::HeardTwice], "out of order");
    assert_eq!(broken(|it| it.told.retain(|told| !matches!(told.word, Word::Heard { .. }))), [], "nobody listened");
}

#[test]
fn a_story_with_another_end() {
    let untold = |it: &mut History| it.rows[0].facts[4].stage = Some("failed".to_owned());
    assert_eq!(broken(untold), [Rule::StoryUntrue]);
}

/// A task that was cancelled at 25.
fn cancelled(state: &str, outcome: Outcome) -> History {
    let mut history = ended(state, outcome);
    history.told.insert(1, told(25, Word::Cancelled(view("processing"))));
    history
}

#[test]
fn a_cancelled_task_that_ends_otherwise() {
    assert_eq!(check(&cancelled("cancelled", Outcome::Interrupted)), []);
    assert_eq!(check(&cancelled("cancelled", Outcome::Success)), [], "it may run to its end for nothing");
    assert_eq!(broken_of(cancelled("failed", Outcome::Error), |_| {}), [Rule::EndedOtherwise]);
    let too_late = |it: &mut History| it.told.push(told(50, Word::Cancelled(view("completed"))));
    assert_eq!(broken(too_late), [], "it was complete, and it was told so");
}

#[test]
fn a_cancelled_task_that_runs_again() {
    let again = |it: &mut History| it.servers[0].push(posted(31, "p2"));
    assert_eq!(broken_of(cancelled("cancelled", Outcome::Interrupted), again), [Rule::RanAfterCancel]);
    let on_its_way = |it: &mut History| it.servers[0] = vec![posted(26, "p1")];
    assert_eq!(broken_of(cancelled("cancelled", Outcome::Interrupted), on_its_way), []);
    let wanted = |it: &mut History| {
        it.servers[0].push(posted(31, "p2"));
        it.told.push(told(30, Word::Reopened(View { generation: 2, ..view("pending") })));
        it.rows[0].generation = 2;
        it.rows[0].facts.push(Fact { seq: 6, stage: Some("cancelled".to_owned()) });
    };
    assert_eq!(broken_of(cancelled("cancelled", Outcome::Interrupted), wanted), []);
}

#[test]
fn one_key_for_two_tasks() {
    let two = |it: &mut History| {
        it.told.insert(2, accepted(11, "key", OTHER));
        let facts = vec![Fact { seq: 6, stage: Some("cancelled".to_owned()) }];
        it.rows.push(Row { id: OTHER.to_owned(), facts, ..row("cancelled") });
        it.told.push(told(60, Word::Heard { seq: 6, task: OTHER.to_owned() }));
    };
    assert_eq!(broken(two), [Rule::KeyMadeTwo]);
}

/// One of which a webhook is told; of its end twice.
fn hooked() -> History {
    let mut history = sound();
    history.rows[0].told_of = ["queued", "completed"].map(str::to_owned).into();
    history.rows[0].posted = vec![(7, "queued".to_owned()), (9, "completed".to_owned())];
    history.messages = vec![message(7, "queued"), message(9, "completed"), message(9, "completed")];
    history
}

fn message(number: i64, stage: &str) -> Message {
    Message { task: TASK.to_owned(), number, stage: stage.to_owned() }
}

#[test]
fn an_end_that_no_webhook_hears_of() {
    assert_eq!(check(&hooked()), [], "twice is as good as once");
    assert_eq!(broken_of(hooked(), |it| it.messages.truncate(1)), [Rule::NeverTold]);
    let not_posted = |it: &mut History| {
        it.rows[0].posted.pop();
        it.messages.truncate(1);
    };
    assert_eq!(broken_of(hooked(), not_posted), [Rule::NotPosted]);
}

#[test]
fn a_webhook_that_hears_something_else() {
    assert_eq!(broken_of(hooked(), |it| it.messages.swap(0, 1)), [Rule::ToldUntrue]);
    assert_eq!(broken_of(hooked(), |it| it.messages.push(message(10, "failed"))), [Rule::ToldUntrue]);
    assert_eq!(broken_of(hooked(), |it| it.messages[0] = message(7, "failed")), [Rule::NeverTold]);
}

#[test]
fn a_damaged_file() {
    assert_eq!(broken(|it| it.integrity = "row 7 missing from index".to_owned()), [Rule::Damaged]);
}
