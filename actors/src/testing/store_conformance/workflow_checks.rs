//! The promises about the versions of workflows.

use std::sync::Arc;

use proptest::{prelude::*, sample::select};

use super::{
    Subject,
    checks::fresh,
    steps::{Answer, answer},
};
use crate::ports::{
    clock::Clock,
    workflow_store::{Kept, Publication, Published, VERSIONS_KEPT, WorkflowStore},
};

/// A content keeps its number, a number keeps its content, and what a name means is what was published last.
pub async fn versions_are_never_reused<F: Future<Output = Subject>>(open: &impl Fn(Arc<dyn Clock>) -> F) {
    let (Subject { workflows: store, guard: _guard, .. }, clock) = fresh(open).await;
    assert_eq!(store.published().await.unwrap(), Published::default());
    assert_eq!(store.record("a", "one").await.unwrap(), 1);
    assert_eq!(store.publish("a", "two").await.unwrap(), Publication::New(2));
    assert_eq!(store.publish("a", "two").await.unwrap(), Publication::Same(2));
    assert_eq!(store.record("a", "one").await.unwrap(), 1);
    assert_eq!(store.publish("b", "two").await.unwrap(), Publication::New(1), "names count for themselves");
    let first = store.published().await.unwrap();
    assert_eq!(first.workflows, [("a".to_owned(), 2), ("b".to_owned(), 1)]);

    assert!(store.withdraw("a").await.unwrap());
    assert!(!store.withdraw("a").await.unwrap() && !store.withdraw("none").await.unwrap());
    let second = store.published().await.unwrap();
    assert!(second.revision > first.revision && second.workflows == [("b".to_owned(), 1)], "{second:?}");
    assert_eq!(store.version("a", 2).await.unwrap().as_deref(), Some("two"), "a task may have been made from it");
    assert_eq!(store.publish("a", "one").await.unwrap(), Publication::New(3), "the newest has the greatest number");
    assert_eq!(store.record("a", "one").await.unwrap(), 3);
    let created_at = clock.now();
    let kept = [3, 2, 1].map(|version| Kept { version, created_at });
    assert_eq!(store.versions("a").await.unwrap(), kept);
    assert_eq!(store.version("a", 4).await.unwrap(), None);
    assert_eq!(store.versions("none").await.unwrap(), []);
}

/// However often a name is written, no more than so many versions stay; the published one always does.
pub async fn old_versions_are_forgotten<F: Future<Output = Subject>>(open: &impl Fn(Arc<dyn Clock>) -> F) {
    let (Subject { workflows: store, guard: _guard, .. }, _) = fresh(open).await;
    store.publish("a", "published").await.unwrap();
    for content in 0..=VERSIONS_KEPT {
        store.record("a", &content.to_string()).await.unwrap();
    }
    let kept: Vec<u32> = store.versions("a").await.unwrap().iter().map(|kept| kept.version).collect();
    let expected: Vec<u32> = (3..=VERSIONS_KEPT + 2).rev().chain([1]).collect();
    assert_eq!(kept, expected);
    assert_eq!(store.version("a", 2).await.unwrap(), None);
    assert_eq!(store.record("a", "0").await.unwrap(), VERSIONS_KEPT + 3, "a forgotten content is a new one");
}

/// A call about workflows; few names and contents, so that they meet often.
#[derive(Debug, Clone)]
pub(super) enum WorkflowCall {
    Record(&'static str, &'static str),
    Publish(&'static str, &'static str),
    Withdraw(&'static str),
    Published,
    Version(&'static str, u32),
    Versions(&'static str),
}

pub(super) fn workflow_call() -> impl Strategy<Value = WorkflowCall> {
    let name = || select(vec!["a", "b", "it's"]);
    let text = || select(vec!["{}", "{\"é\":1}", "x"]);
    prop_oneof![
        2 => (name(), text()).prop_map(|(name, text)| WorkflowCall::Record(name, text)),
        3 => (name(), text()).prop_map(|(name, text)| WorkflowCall::Publish(name, text)),
        1 => name().prop_map(WorkflowCall::Withdraw),
        2 => Just(WorkflowCall::Published),
        1 => (name(), 0..5_u32).prop_map(|(name, version)| WorkflowCall::Version(name, version)),
        1 => name().prop_map(WorkflowCall::Versions),
    ]
}

impl WorkflowCall {
    pub(super) async fn make(self, store: &dyn WorkflowStore) -> Answer {
        match self {
            Self::Record(name, text) => answer(store.record(name, text).await),
            Self::Publish(name, text) => answer(store.publish(name, text).await),
            Self::Withdraw(name) => answer(store.withdraw(name).await),
            Self::Published => answer(store.published().await),
            Self::Version(name, version) => answer(store.version(name, version).await),
            Self::Versions(name) => answer(store.versions(name).await),
        }
    }
}
