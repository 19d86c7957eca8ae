//! The promises about messages to webhooks.

use std::{sync::Arc, time::Duration};

use proptest::{prelude::*, sample::select};

use super::{
    Subject,
    checks::fresh,
    fixtures::new_task,
    steps::{Answer, answer},
};
use crate::{
    domain::{
        event::Stage,
        id::TaskId,
        options::TaskOptions,
        time::Timestamp,
        webhook::{Answer as Said, Delivery, DeliveryState, Policy, Report, Webhook},
    },
    ports::{
        clock::Clock,
        hook_store::{DeliveryQuery, HookLevels, HookStore},
        store::{NewTask, Payload, Retention, StoreError},
    },
};

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3_600);

/// Two at a time, two tries, and left alone after two failures.
fn policy() -> Policy {
    Policy { schedule: [SECOND * 10].into(), parallel: 2, lease: SECOND * 30, failures: 2, ..Policy::default() }
}

fn report(status: u16) -> Report {
    let answer = match status {
        0 => Err("nobody is there, it's \"closed\"".to_owned()),
        429 => Ok(Said { status, retry_after: Some(SECOND * 20) }),
        _ => Ok(Said { status, retry_after: None }),
    };
    Report { at: Timestamp(7), took: SECOND, answer, draw: 0.0 }
}

fn told(path: &str, stages: &[Stage]) -> Option<Webhook> {
    Some(Webhook { url: format!("https://a.example/{path}?é=1"), events: stages.iter().copied().collect() })
}

fn hooked(webhook: Option<Webhook>) -> NewTask {
    let new = new_task(0);
    let options = TaskOptions { webhook, ..TaskOptions::default() };
    NewTask { payload: Payload { options: options.into(), ..new.payload }, ..new }
}

fn stages(deliveries: &[Delivery]) -> Vec<Stage> {
    deliveries.iter().map(|delivery| delivery.stage).collect()
}

impl Subject {
    /// A task that ended before it began: two messages.
    async fn short_lived(&self, path: &str) -> TaskId {
        let id = self.add(hooked(told(path, &[Stage::Queued, Stage::Cancelled]))).await;
        self.tasks.cancel(id).await.unwrap();
        id
    }

    async fn take_messages(&self, limit: u32) -> Vec<Delivery> {
        self.hooks.take(limit, &policy()).await.unwrap()
    }

    async fn heard(&self, delivery: &Delivery, status: u16) -> Delivery {
        self.hooks.settle(delivery.id, delivery.turn, report(status), &policy()).await.unwrap().unwrap()
    }

    async fn log(&self) -> Vec<(Delivery, crate::domain::webhook::Endpoint)> {
        self.hooks.deliveries(DeliveryQuery { limit: 99, ..DeliveryQuery::default() }).await.unwrap()
    }
}

/// What was asked for is told, in order: the next message is due when the one before is over, however that went.
pub async fn what_is_told_is_told_in_order<F: Future<Output = Subject>>(open: &impl Fn(Arc<dyn Clock>) -> F) {
    let (store, clock) = fresh(open).await;
    store.add(hooked(None)).await;
    assert_eq!(store.hooks.next_due().await.unwrap(), None);
    let task = store.short_lived("x").await;
    assert_eq!(
        store.tasks.get(task).await.unwrap().task.hook,
        told("x", &[Stage::Queued, Stage::Cancelled]).map(|hook| hook.hook())
    );
    assert_eq!(store.hooks.next_due().await.unwrap(), Some(clock.now()));
    let first = store.take_messages(9).await;
    assert_eq!((stages(&first), first[0].task, first[0].turn), (vec![Stage::Queued], task, 1));
    assert!(store.take_messages(9).await.is_empty());
    assert_eq!(store.hooks.next_due().await.unwrap(), Some(clock.now().after(SECOND * 30)), "when it counts as lost");
    let again = store.heard(&first[0], 404).await;
    assert_eq!((again.state, again.due_at), (DeliveryState::Pending, Some(clock.now().after(SECOND * 10))));
    assert_eq!(store.hooks.next_due().await.unwrap(), again.due_at);
    clock.advance(SECOND * 10);
    let again = store.take_messages(9).await.remove(0);
    let over = store.heard(&again, 400).await;
    assert_eq!((over.state, over.due_at, over.tries.len()), (DeliveryState::Failed, None, 2));
    let next = store.take_messages(9).await.remove(0);
    assert_eq!((next.stage, store.heard(&next, 204).await.state), (Stage::Cancelled, DeliveryState::Delivered));
    assert_eq!(store.hooks.next_due().await.unwrap(), None);
    assert_eq!(
        stages(&store.log().await.into_iter().map(|(delivery, _)| delivery).collect::<Vec<_>>()),
        [Stage::Cancelled, Stage::Queued]
    );
}

/// A message whose sender is lost is sent again, and the word of the lost one does not count.
pub async fn a_lost_message_is_sent_again<F: Future<Output = Subject>>(open: &impl Fn(Arc<dyn Clock>) -> F) {
    let (store, clock) = fresh(open).await;
    store.short_lived("x").await;
    let lost = store.take_messages(1).await.remove(0);
    clock.advance(SECOND * 30);
    let again = store.take_messages(1).await.remove(0);
    assert_eq!((again.id, again.turn, again.message_id()), (lost.id, 2, lost.message_id()));
    assert_eq!(store.hooks.settle(lost.id, lost.turn, report(200), &policy()).await.unwrap(), None);
    store.heard(&again, 200).await;
    assert_eq!(store.hooks.settle(again.id, 9, report(200), &policy()).await.unwrap(), None);
    assert_eq!(store.hooks.settle(999, 1, report(200), &policy()).await.unwrap(), None);
}

/// An endpoint gets no more at once than it may, and one that is busy or down keeps no other waiting.
pub async fn no_endpoint_keeps_another_waiting<F: Future<Output = Subject>>(open: &impl Fn(Arc<dyn Clock>) -> F) {
    let (store, clock) = fresh(open).await;
    for _ in 0..5 {
        store.add(hooked(told("slow", &[Stage::Queued]))).await;
    }
    clock.advance(SECOND);
    store.add(hooked(told("other", &[Stage::Queued]))).await;
    let taken = store.take_messages(9).await;
    let urls: Vec<i64> = taken.iter().map(|delivery| delivery.id).collect();
    assert_eq!(urls, [1, 2, 6]);
    assert!(store.take_messages(9).await.is_empty());
    store.add(hooked(told("slow", &[Stage::Queued]))).await;
    assert!(store.take_messages(9).await.is_empty(), "what comes meanwhile waits too");
    for down in &taken[..2] {
        store.heard(down, 503).await;
    }
    assert!(store.take_messages(9).await.is_empty(), "two failures in a row: it is left alone");
    store.heard(&taken[2], 200).await;
    clock.advance(policy().pause.cap);
    let probe = store.take_messages(9).await;
    assert_eq!(probe.len(), 1, "then tried with one");
    store.heard(&probe[0], 200).await;
    assert_eq!(store.take_messages(9).await.len(), 2);
}

/// As many as asked for, those that are due the longest first.
pub async fn messages_are_taken_by_age<F: Future<Output = Subject>>(open: &impl Fn(Arc<dyn Clock>) -> F) {
    let (store, clock) = fresh(open).await;
    for path in ["c", "a", "b"] {
        store.add(hooked(told(path, &[Stage::Queued]))).await;
        clock.advance(SECOND);
    }
    let mut ids = Vec::new();
    for limit in [2, 1, 1] {
        ids.push(store.take_messages(limit).await.iter().map(|delivery| delivery.id).collect::<Vec<_>>());
    }
    assert_eq!(ids, [vec![1, 2], vec![3], vec![]]);
}

/// Who says that it is gone gets nothing more, until somebody says otherwise; then it gets all that was held back.
pub async fn what_is_held_back_is_not_lost<F: Future<Output = Subject>>(open: &impl Fn(Arc<dyn Clock>) -> F) {
    let (store, _) = fresh(open).await;
    store.short_lived("x").await;
    store.short_lived("x").await;
    for taken in store.take_messages(9).await {
        store.heard(&taken, 410).await;
    }
    store.short_lived("x").await;
    assert_eq!(store.hooks.next_due().await.unwrap(), None);
    assert!(store.take_messages(9).await.is_empty());
    let [endpoint] = store.hooks.endpoints(None, 9).await.unwrap().try_into().unwrap();
    assert_eq!(endpoint.url, "https://a.example/x");
    assert!(endpoint.disabled_at.is_some());
    assert_eq!(store.hooks.endpoints(Some(endpoint.id), 9).await.unwrap(), []);
    let levels = store.hooks.levels().await.unwrap();
    assert_eq!((levels.pending, levels.disabled), (6, 1));
    let enabled = store.hooks.enable(endpoint.id).await.unwrap();
    assert_eq!(enabled.disabled_at, None);
    let mut sent = 0;
    loop {
        let taken = store.take_messages(9).await;
        if taken.is_empty() {
            break;
        }
        for delivery in taken {
            sent += 1;
            store.heard(&delivery, 200).await;
        }
    }
    assert_eq!((sent, store.hooks.levels().await.unwrap()), (6, HookLevels::default()));
}

/// Any message can be asked for again.
pub async fn a_message_can_be_asked_for_again<F: Future<Output = Subject>>(open: &impl Fn(Arc<dyn Clock>) -> F) {
    let (store, clock) = fresh(open).await;
    store.short_lived("x").await;
    let sent = store.take_messages(1).await.remove(0);
    store.heard(&sent, 200).await;
    let (again, endpoint) = store.hooks.redeliver(sent.id).await.unwrap();
    assert_eq!((again.state, again.due_at, again.tries.len()), (DeliveryState::Pending, Some(clock.now()), 1));
    assert_eq!(again.endpoint, endpoint.id);
    let taken = store.take_messages(9).await;
    assert_eq!(taken.iter().map(|delivery| delivery.id).collect::<Vec<_>>(), [1, 2], "order is not for these");
    assert!(matches!(store.hooks.redeliver(99).await, Err(StoreError::NotFound)));
    let of = |state| DeliveryQuery { state: Some(state), limit: 9, ..DeliveryQuery::default() };
    assert_eq!(store.hooks.deliveries(of(DeliveryState::Delivered)).await.unwrap(), []);
    let pending = store.hooks.deliveries(of(DeliveryState::Pending)).await.unwrap();
    assert_eq!(pending.len(), 2);
    let next = DeliveryQuery {
        before: Some(2),
        task: Some(sent.task),
        endpoint: Some(endpoint.id),
        ..of(DeliveryState::Pending)
    };
    assert_eq!(store.hooks.deliveries(next).await.unwrap(), pending[1..]);
}

/// What is not told yet keeps its task; what is told goes with it, and so does an endpoint without tasks.
pub async fn a_task_stays_until_it_has_told_its_end<F: Future<Output = Subject>>(open: &impl Fn(Arc<dyn Clock>) -> F) {
    let (store, clock) = fresh(open).await;
    for path in ["told", "untold"] {
        store.add(hooked(told(path, &[Stage::Cancelled]))).await;
    }
    for task in store.tasks.list(crate::ports::store::Query { limit: 9, ..Default::default() }).await.unwrap() {
        store.tasks.cancel(task.id).await.unwrap();
    }
    let endpoints = store.hooks.endpoints(None, 9).await.unwrap();
    let heard = store.take_messages(9).await.into_iter().find(|delivery| {
        endpoints.iter().any(|endpoint| endpoint.id == delivery.endpoint && endpoint.url.ends_with("/told"))
    });
    store.heard(&heard.unwrap(), 200).await;
    clock.advance(HOUR);
    let retention = Retention { completed: HOUR, failed: HOUR, idempotency: HOUR, webhooks: HOUR * 2 };
    assert_eq!(store.tasks.prune(retention, 9).await.unwrap(), 1);
    let left = store.hooks.endpoints(None, 9).await.unwrap();
    assert!(left.len() == 1 && left[0].url.ends_with("/untold"), "{left:?}");
    assert_eq!(store.log().await.len(), 1);
    clock.advance(HOUR);
    assert_eq!(store.tasks.prune(retention, 9).await.unwrap(), 1);
    assert_eq!((store.log().await.len(), store.hooks.endpoints(None, 9).await.unwrap().len()), (0, 0));
    assert_eq!(store.hooks.levels().await.unwrap(), HookLevels::default());
}

/// A call about messages.
#[derive(Debug, Clone)]
pub(super) enum HookCall {
    Take,
    /// Of the message at this place of those that were taken.
    Settle(usize, u16, i64),
    Redeliver(i64),
    Enable(usize),
    List(Option<DeliveryState>, u32),
    Show,
}

pub(super) fn hook_call() -> impl Strategy<Value = HookCall> {
    prop_oneof![
        4 => Just(HookCall::Take),
        5 => (any::<usize>(), select(vec![200, 200, 404, 410, 429, 503, 0]), select(vec![0, 0, 0, 1]))
            .prop_map(|(place, status, stale_by)| HookCall::Settle(place, status, stale_by)),
        1 => (0_i64..9).prop_map(HookCall::Redeliver),
        1 => any::<usize>().prop_map(HookCall::Enable),
        1 => (prop::option::of(select(DeliveryState::ALL.to_vec())), 0_u32..4)
            .prop_map(|(state, limit)| HookCall::List(state, limit)),
    ]
}

/// Who is told: few endpoints, so that they meet.
pub(super) fn some_webhook() -> impl Strategy<Value = Option<Webhook>> {
    let events = prop::collection::vec(select(Stage::ALL.to_vec()), 0..9);
    let webhook = (select(vec!["a", "b", "a?x"]), events).prop_map(|(path, stages)| told(path, &stages));
    prop_oneof![1 => Just(None), 1 => webhook]
}

impl HookCall {
    pub(super) async fn make(&self, hooks: &dyn HookStore) -> Answer {
        match *self {
            Self::Take => answer(hooks.take(99, &policy()).await),
            Self::Settle(place, status, stale_by) => {
                let all = hooks.deliveries(DeliveryQuery { limit: 999, ..DeliveryQuery::default() }).await;
                let taken: Vec<_> =
                    all.unwrap_or_default().into_iter().filter(|(delivery, _)| delivery.sending).collect();
                let Some((delivery, _)) = place.checked_rem(taken.len()).and_then(|place| taken.get(place)) else {
                    return answer(Ok(()));
                };
                let (id, turn) = (delivery.id, delivery.turn - stale_by);
                answer(hooks.settle(id, turn, report(status), &policy()).await)
            }
            Self::Redeliver(id) => answer(hooks.redeliver(id).await),
            Self::Enable(place) => {
                let all = hooks.endpoints(None, 99).await.unwrap_or_default();
                let Some(endpoint) = place.checked_rem(all.len()).and_then(|place| all.get(place)) else {
                    return answer(Ok(()));
                };
                answer(hooks.enable(endpoint.id).await)
            }
            Self::List(state, limit) => {
                answer(hooks.deliveries(DeliveryQuery { state, limit, ..DeliveryQuery::default() }).await)
            }
            Self::Show => {
                let all = hooks.deliveries(DeliveryQuery { limit: 999, ..DeliveryQuery::default() }).await;
                answer(Ok((all, hooks.endpoints(None, 999).await, hooks.levels().await)))
            }
        }
    }
}
