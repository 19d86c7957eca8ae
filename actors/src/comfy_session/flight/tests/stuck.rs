//! Runs that show no progress.

use super::*;
use crate::domain::{failure::Class, health::Sign};

const LIMIT: Duration = Duration::from_secs(900);

fn error() -> TaskError {
    TaskError::new(ErrorCode::Stuck, "silent")
}

impl Bench {
    /// Time passes while the server, whenever it is asked, says that the prompt runs.
    fn wait(&mut self, time: Duration) {
        let until = self.now.after(time);
        while self.now < until {
            self.now = self.now.after(Duration::from_millis(500)).min(until);
            let running = Sighting::Alive { prompt: self.flight.prompt(), running: true };
            match self.next() {
                Some(Act::Look(_)) => self.looked(running),
                Some(Act::ReadHistory(_)) => self.flight.on_history(Ok(None), self.now),
                None => {}
                act => panic!("{act:?}"),
            }
        }
    }

    fn stalled(&self) -> Option<Duration> {
        self.flight.stalled(self.now, &self.settings)
    }

    /// A bench whose run got stuck, and was told to stop.
    fn stuck() -> Self {
        let mut bench = Self::running();
        bench.flight.task.timeout = None;
        bench.flight.request_stop(Stop::Stuck(error()), bench.now);
        assert!(matches!(bench.next(), Some(Act::Stop(_))));
        bench.flight.on_stop_asked(true, bench.now);
        bench
    }
}

#[test]
fn being_seen_running_is_no_progress_and_a_frame_is() {
    let mut bench = Bench::running();
    bench.flight.task.timeout = None;
    bench.wait(LIMIT - Duration::from_secs(1));
    assert_eq!(bench.stalled(), None);
    bench.flight.on_word(bench.now, &bench.settings);
    bench.wait(LIMIT - Duration::from_secs(1));
    assert_eq!(bench.stalled(), None);
    bench.wait(Duration::from_secs(1));
    assert_eq!(bench.stalled(), Some(LIMIT));
}

#[test]
fn a_task_may_have_a_limit_of_its_own() {
    let mut bench = Bench::running();
    bench.flight.task.timeout = None;
    bench.flight.options = Arc::new(TaskOptions { no_progress_timeout: Some(LIMIT / 9), ..TaskOptions::default() });
    bench.wait(LIMIT / 9);
    assert_eq!(bench.stalled(), Some(LIMIT / 9));
}

#[test]
fn who_waits_for_his_turn_or_cannot_be_heard_is_not_stuck() {
    let mut waits = Bench::accepted();
    waits.now = waits.now.after(LIMIT * 2);
    assert_eq!(waits.stalled(), None);
    // From the moment it runs.
    waits.flight.on_running(waits.now);
    assert_eq!(waits.stalled(), None);
    let mut unheard = Bench::running();
    unheard.flight.task.timeout = None;
    unheard.flight.on_disconnected();
    unheard.flight.on_reconnected(unheard.now);
    unheard.wait(LIMIT * 2);
    assert_eq!(unheard.stalled(), None);
}

#[test]
fn a_stuck_run_that_stops_spends_an_attempt() {
    let mut bench = Bench::stuck();
    let interrupted = bench.finished(Outcome::Interrupted);
    bench.flight.on_looked(Ok(Sighting::Ended(interrupted)), bench.now, bench.now);
    let Change::Retry { error, .. } = change(bench.next()) else { panic!() };
    assert_eq!((error.code, error.class), (ErrorCode::Stuck, Class::Transient));
}

#[test]
fn a_stuck_run_that_does_not_stop_goes_elsewhere_and_leaves_an_orphan() {
    let mut bench = Bench::stuck();
    bench.now = bench.now.after(bench.settings.stop_grace);
    let act = bench.next();
    let prompt = bench.flight.prompt();
    assert_eq!(
        act,
        Some(Act::Settle { change: Change::Elsewhere { error: error(), blamed: true }, orphan: Some(prompt) })
    );
    assert!(bench.flight.heard_stop());
    let Some(Act::Settle { change: Change::Elsewhere { blamed, .. }, .. }) = act.map(Act::without_blame) else {
        panic!()
    };
    assert!(!blamed);
}

#[test]
fn a_stuck_run_that_comes_to_its_end_counts() {
    let mut bench = Bench::stuck();
    let success = bench.finished(Outcome::Success);
    bench.flight.on_looked(Ok(Sighting::Ended(success)), bench.now, bench.now);
    assert!(matches!(bench.next(), Some(Act::Plan(_))));
}

#[test]
fn its_end_says_once_how_the_server_is() {
    let broken = || TaskError::new(ErrorCode::BackendFault, "no device");
    for (outcome, sign) in [
        (Outcome::Success, Sign::Sound),
        (Outcome::Interrupted, Sign::Sound),
        (Outcome::Failed(TaskError::new(ErrorCode::NodeFailed, "boom")), Sign::Sound),
        (Outcome::Failed(TaskError::new(ErrorCode::BackendError, "boom")), Sign::Faulty),
        (Outcome::Failed(broken()), Sign::Fatal("no device".to_owned())),
    ] {
        let mut bench = Bench::running();
        assert_eq!(bench.flight.take_sign(), None);
        let finished = bench.finished(outcome);
        bench.flight.on_looked(Ok(Sighting::Ended(finished)), bench.now, bench.now);
        assert_eq!((bench.flight.take_sign(), bench.flight.take_sign()), (Some(sign), None));
    }
    let mut lost = Bench::running();
    lost.flight.on_reconnected(lost.now);
    lost.until_gone();
    assert_eq!(lost.flight.take_sign(), Some(Sign::Faulty));
}
