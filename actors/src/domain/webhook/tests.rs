use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn hook(url: &str) -> Webhook {
    Webhook { url: url.to_owned(), events: Events::default() }
}

fn report(status: u16) -> Report {
    Report { at: Timestamp(0), took: SECOND, answer: Ok(Answer { status, retry_after: None }), draw: 0.0 }
}

fn pair() -> (Delivery, Endpoint) {
    let endpoint = Endpoint::new(&hook("https://a.example/hook"));
    (Delivery::new(7, TaskId::new(), endpoint.id, Timestamp(0), Stage::Completed), endpoint)
}

#[test]
fn ends_are_told_unless_said_otherwise() {
    let all: Vec<Stage> = Events::default().into();
    assert_eq!(all, [Stage::Completed, Stage::Failed, Stage::Cancelled]);
    let some: Events = [Stage::Executing, Stage::Failed].into_iter().collect();
    assert_eq!((some.bits(), Events::of_bits(some.bits())), (0b1000_1000, some), "stored: never another number");
    assert_eq!(serde_json::to_string(&some).unwrap(), r#"["executing","failed"]"#);
    assert_eq!(serde_json::from_str::<Events>(r#"["failed","executing"]"#).unwrap(), some);
    for stage in Stage::ALL {
        assert_eq!(event_type(stage), format!("task.{stage}"));
    }
}

#[test]
fn an_endpoint_is_what_stands_before_the_question_mark() {
    let plain = hook("https://a.example/hook").hook();
    assert_eq!(hook("https://a.example/hook?task=1&token=x").hook(), plain);
    assert_ne!(hook("https://a.example/other").hook().endpoint, plain.endpoint);
    assert!(plain.endpoint.0 > 0);
}

#[test]
fn a_message_is_tried_by_the_schedule_and_given_up() {
    let (mut delivery, mut endpoint) = pair();
    let policy = Policy::default();
    let mut now = Timestamp(0);
    for pause in policy.schedule.iter() {
        delivery.settle(&mut endpoint, &report(404), &policy, now);
        assert_eq!((delivery.state, delivery.due_at), (DeliveryState::Pending, Some(now.after(*pause))));
        now = now.after(*pause);
    }
    delivery.settle(&mut endpoint, &report(404), &policy, now);
    assert_eq!((delivery.state, delivery.due_at, delivery.tries.len()), (DeliveryState::Failed, None, 10));
    assert_eq!(endpoint.parallel(&policy), policy.parallel, "who answers is there");
    delivery.ask_again(now);
    assert_eq!((delivery.state, delivery.due_at, delivery.failures), (DeliveryState::Pending, Some(now), 0));
    let late = Report { draw: 1.0, ..report(404) };
    delivery.settle(&mut endpoint, &late, &policy, now);
    assert_eq!(delivery.due_at, Some(now.after(Duration::from_millis(5_500))), "a little late, never early");
}

#[test]
fn a_receiver_may_ask_for_time() {
    let policy = Policy::default();
    for (wait, given) in [(SECOND, 5), (SECOND * 60, 60), (Duration::MAX, 86_400)] {
        let (mut delivery, mut endpoint) = pair();
        let busy = Report { answer: Ok(Answer { status: 429, retry_after: Some(wait) }), ..report(429) };
        delivery.settle(&mut endpoint, &busy, &policy, Timestamp(0));
        assert_eq!(delivery.due_at, Some(Timestamp(given * 1_000)));
        assert_eq!(endpoint.not_before, Some(Timestamp(0).after(wait.min(LONGEST_WAIT))), "and all others wait too");
        assert_eq!(endpoint.failures, 1, "it has more than it can take");
    }
}

#[test]
fn a_receiver_that_is_down_is_left_alone_for_longer_and_longer() {
    let policy = Policy::default();
    let (_, mut endpoint) = pair();
    let mut fail = |report: &Report| {
        let (mut delivery, _) = pair();
        delivery.settle(&mut endpoint, report, &policy, Timestamp(0));
        (endpoint.parallel(&policy), endpoint.not_before.map(|at| at.0 / 1_000))
    };
    let gone = Report { answer: Err("connection refused".to_owned()), ..report(0) };
    for _ in 1..policy.failures {
        assert_eq!(fail(&gone), (4, None));
    }
    assert_eq!([&gone, &report(503), &gone].map(&mut fail), [(1, Some(5)), (1, Some(10)), (1, Some(20))]);
    for _ in 0..100 {
        fail(&gone);
    }
    assert_eq!(fail(&gone), (1, Some(150)), "half of five minutes, with the luckiest draw");
    assert_eq!(fail(&report(204)), (4, None));
}

#[test]
fn who_is_gone_gets_nothing_until_somebody_says_so() {
    let policy = Policy::default();
    let (mut delivery, mut endpoint) = pair();
    delivery.settle(&mut endpoint, &report(410), &policy, Timestamp(9));
    assert_eq!((endpoint.disabled_at, endpoint.parallel(&policy)), (Some(Timestamp(9)), 0));
    assert_eq!((delivery.state, delivery.failures), (DeliveryState::Pending, 0));
    endpoint.enable();
    assert_eq!(endpoint.parallel(&policy), 4);
}

#[test]
fn only_the_newest_tries_are_kept() {
    let policy = Policy::default();
    let (mut delivery, mut endpoint) = pair();
    for at in 0..50 {
        delivery.ask_again(Timestamp(at));
        delivery.settle(&mut endpoint, &Report { at: Timestamp(at), ..report(500) }, &policy, Timestamp(at));
    }
    assert_eq!(delivery.tries.len(), TRIES_KEPT);
    assert_eq!(delivery.tries.last().unwrap().at, Timestamp(49));
}

#[test]
fn one_that_waits_for_its_turn_goes_on_waiting() {
    let (mut delivery, _) = pair();
    delivery.ask_again(Timestamp(5));
    assert_eq!((delivery.state, delivery.due_at), (DeliveryState::Pending, None));
    delivery.due_at = Some(Timestamp(1));
    delivery.take(&Policy::default(), Timestamp(5));
    assert!(delivery.is_sending(Timestamp(30_004)) && !delivery.is_sending(Timestamp(30_005)));
}
