use proptest::prelude::*;

use super::*;

fn at(seconds: u64) -> Timestamp {
    Timestamp(0).after(Duration::from_secs(seconds))
}

fn breaker() -> Breaker {
    Breaker::new(Limits::default())
}

fn unreachable() -> Event {
    Event::Unreachable("no answer".to_owned())
}

fn fatal() -> Event {
    Event::Ended(Sign::Fatal("CUDA error".to_owned()))
}

/// Opens it for this cause at 0, with the shortest pause.
fn opened(cause: Cause) -> Breaker {
    let mut breaker = breaker();
    assert_eq!(breaker.on(Event::Broken(cause, String::new()), at(0), 0.0), Some(Turn::Opened(cause)));
    breaker
}

#[test]
fn five_failures_in_a_row_open_it_until_it_is_reached_and_something_ran() {
    let mut breaker = breaker();
    for second in 1..5 {
        assert_eq!(breaker.on(unreachable(), at(second), 0.0), None);
        assert!(breaker.is_closed());
        breaker.on(Event::Connected, at(second), 0.0);
    }
    assert_eq!(breaker.on(unreachable(), at(5), 0.0), Some(Turn::Opened(Cause::Unreachable)));
    assert!(!breaker.wants_test(at(1_000_000)), "there is nobody to test");
    assert_eq!(breaker.health(at(6)).state, State::Open);
    breaker.on(Event::Connected, at(7), 0.0);
    assert!(breaker.wants_test(at(7)) && !breaker.is_closed(), "an answer proves nothing");
    assert_eq!(breaker.health(at(7)).state, State::HalfOpen);
    assert_eq!(breaker.on(Event::Passed, at(8), 0.0), Some(Turn::Closed));
    assert_eq!(breaker.health(at(8)), Health::good());
}

#[test]
fn what_runs_ends_a_row_of_failures_and_so_does_time() {
    let mut breaker = breaker();
    for round in 0..3 {
        (0..4).for_each(|_| assert_eq!(breaker.on(unreachable(), at(round), 0.0), None));
        breaker.on(Event::Ended(Sign::Sound), at(round), 0.0);
    }
    (0..9).for_each(|n| assert_eq!(breaker.on(unreachable(), at(1_000 * n), 0.0), None));
}

#[test]
fn a_failed_test_doubles_the_pause_up_to_the_cap() {
    let mut breaker = opened(Cause::Zombie);
    let (mut now, mut pauses) = (at(0), Vec::new());
    for _ in 0..7 {
        let until = breaker.health(now).test_at.unwrap();
        pauses.push(until.since(now).as_secs());
        assert!(!breaker.wants_test(Timestamp(until.0 - 1)) && breaker.wants_test(until));
        now = until;
        assert_eq!(breaker.on(Event::Failed("did not run".to_owned()), now, 0.0), None);
    }
    assert_eq!(pauses, [5, 10, 20, 40, 80, 150, 150], "half of each bound, with the least luck");
    assert_eq!(breaker.health(now).reason.as_deref(), Some("did not run"));
}

#[test]
fn only_a_task_makes_the_pauses_start_small_again() {
    let mut breaker = opened(Cause::Stuck);
    let reopened = |breaker: &mut Breaker| {
        breaker.on(Event::Passed, at(0), 0.0);
        breaker.on(Event::Broken(Cause::Stuck, String::new()), at(0), 0.0);
        breaker.health(at(0)).test_at.unwrap()
    };
    assert_eq!([reopened(&mut breaker), reopened(&mut breaker)], [at(10), at(20)]);
    breaker.on(Event::Passed, at(0), 0.0);
    breaker.on(Event::Ended(Sign::Sound), at(0), 0.0);
    assert_eq!(reopened(&mut breaker), at(5));
}

#[test]
fn a_fatal_error_opens_at_once_and_luck_elsewhere_does_not_close_it() {
    let mut breaker = breaker();
    assert_eq!(breaker.on(fatal(), at(0), 0.0), Some(Turn::Opened(Cause::Fatal)));
    assert_eq!(breaker.on(fatal(), at(1), 0.0), None, "one more changes nothing");
    assert_eq!(breaker.on(Event::Ended(Sign::Sound), at(1), 0.0), None, "a graph without the GPU proves nothing");
    assert!(!breaker.wants_test(at(4)));
    // Started anew: no need to wait.
    breaker.on(unreachable(), at(2), 0.0);
    assert!(!breaker.wants_test(at(9)));
    breaker.on(Event::Connected, at(3), 0.0);
    assert!(breaker.wants_test(at(3)));
}

#[test]
fn a_prompt_that_runs_is_as_good_as_a_canary() {
    for (cause, sign, closes) in [
        (Cause::Unreachable, Sign::Sound, true),
        (Cause::Zombie, Sign::Sound, true),
        (Cause::Stuck, Sign::Sound, true),
        (Cause::Stuck, Sign::Faulty, false),
        (Cause::Fatal, Sign::Sound, false),
    ] {
        let turn = opened(cause).on(Event::Ended(sign), at(1), 0.0);
        assert_eq!(turn, closes.then_some(Turn::Closed), "{cause:?}");
    }
}

#[test]
fn a_server_that_fails_half_of_ten_is_open() {
    let mut breaker = breaker();
    let mut end = |second, faulty| {
        let sign = if faulty { Sign::Faulty } else { Sign::Sound };
        breaker.on(Event::Ended(sign), at(second), 0.0)
    };
    // Nine of ten, but long ago.
    assert!((0..9).all(|n| end(n, true).is_none()));
    assert!((0..5).all(|n| end(400 + n, false).is_none()));
    assert!((0..4).all(|n| end(410 + n, true).is_none()));
    assert_eq!(end(420, true), Some(Turn::Opened(Cause::Failing)));
}

#[test]
fn a_queue_that_does_not_move_shows_a_dead_worker() {
    let limits = Limits::default();
    let load =
        |running: &[&str], pending| Load { running: running.iter().map(|id| PromptId::new(*id)).collect(), pending };
    let mut vigil = Vigil::default();
    assert!(!vigil.wait(true, at(0), &limits) && vigil.wait(true, at(3), &limits));
    assert_eq!(vigil.saw(load(&[], 1), at(3), &limits), None);
    assert_eq!(vigil.saw(load(&[], 2), at(12), &limits), None, "others go on sending");
    // It ran something in between.
    assert_eq!(vigil.saw(load(&["x"], 1), at(13), &limits), None);
    assert_eq!(vigil.saw(load(&[], 1), at(14), &limits), None);
    assert_eq!(vigil.saw(load(&[], 0), at(20), &limits), None, "nothing waits");
    assert_eq!(vigil.saw(load(&[], 1), at(24), &limits), None);
    assert!(matches!(vigil.saw(load(&[], 1), at(34), &limits), Some(Event::Broken(Cause::Zombie, _))));
    // A stranger's long prompt is waited for, and not for ever.
    assert_eq!(vigil.saw(load(&["x"], 1), at(40), &limits), None);
    assert_eq!(vigil.saw(load(&["x"], 3), at(3_600), &limits), None);
    assert!(matches!(vigil.saw(load(&["x"], 3), at(3_640), &limits), Some(Event::Broken(Cause::Stuck, _))));
    assert!(!vigil.wait(false, at(3_640), &limits) && !vigil.wait(true, at(3_641), &limits));
}

fn event() -> impl Strategy<Value = Event> {
    let why = String::new;
    prop_oneof![
        Just(unreachable()),
        Just(Event::Connected),
        Just(Event::Ended(Sign::Sound)),
        Just(Event::Ended(Sign::Faulty)),
        Just(fatal()),
        proptest::sample::select(Cause::ALL.to_vec()).prop_map(move |cause| Event::Broken(cause, why())),
        Just(Event::Passed),
        Just(Event::Failed(String::new())),
    ]
}

proptest! {
    /// Whatever happens: work is given only when closed, a turn is told exactly when it happens, only an execution closes (of a test, where the device
    /// is broken), and a backend
    /// that can be reached is tested within the longest pause.
    #[test]
    fn holds_whatever_happens(events in proptest::collection::vec((event(), 0_u64..100, 0.0..1.0), 0..200)) {
        let mut breaker = breaker();
        let mut now = at(0);
        for (event, pause, draw) in events {
            now = now.after(Duration::from_secs(pause));
            let (was_closed, cause) = (breaker.is_closed(), breaker.health(now).cause);
            let turn = breaker.on(event.clone(), now, draw);
            match turn {
                Some(Turn::Closed) => {
                    prop_assert!(!was_closed && breaker.is_closed());
                    prop_assert!(matches!(event, Event::Passed | Event::Ended(Sign::Sound)));
                    // After a broken device, nothing but a test of it.
                    prop_assert!(cause != Some(Cause::Fatal) || event == Event::Passed);
                }
                Some(Turn::Opened(_)) => prop_assert!(!breaker.is_closed()),
                None => prop_assert_eq!(was_closed, breaker.is_closed()),
            }
            let health = breaker.health(now);
            prop_assert!(cause != Some(Cause::Fatal) || matches!(health.cause, None | Some(Cause::Fatal)));
            prop_assert_eq!(health.state == State::Closed, breaker.is_closed());
            if let Some(test_at) = health.test_at {
                prop_assert!(test_at <= now.after(breaker.limits.pause.cap));
            }
            if event == Event::Connected {
                prop_assert!(breaker.is_closed() || breaker.wants_test(now));
            }
            prop_assert!(breaker.ends.len() <= MOST_ENDS);
        }
    }
}
