//! `storage` of a task to be created: which target its outputs go to, and below which prefix. And the links that lead to them.

use std::borrow::Cow;

use comfyd_actors::{
    bridge::Standing,
    domain::{
        artifact::{Artifact, StoredObject},
        graph::escape,
        options::{StorageChoice, TaskOptions},
        storage::{makes_no_pictures, prefix},
        workflow::type_of,
    },
    ports::store::{Payload, TaskRecord},
    targets::{Target, Targets},
};
use serde::Deserialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::{
    Service,
    problem::{FieldFault, MAX_FAULTS, Problem},
    view::{OutputView, TaskView},
};
use crate::config::nearest;

// Documents the body only: it is read field by field, see `read`.
/// Where the outputs of a task are kept.
#[derive(ToSchema)]
#[schema(as = StorageOptions)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "the OpenAPI document is made from it")]
pub struct StorageBody {
    /// One of the targets in the service's configuration; without it the usual one.
    #[schema(example = "archive")]
    target: Option<String>,
    /// What their keys begin with, after the target's own prefix.
    #[schema(example = "renders/2026", max_length = 256)]
    prefix: Option<String>,
}

/// Reads the object. Whether there is such a target is [`unknown`]'s business.
///
/// # Errors
/// What is wrong with it.
pub fn read(value: &Value) -> Result<StorageChoice, String> {
    let fields = value
        .as_object()
        .ok_or_else(|| format!("expected an object with `target` and `prefix`, found {}", type_of(value)))?;
    if let Some(unknown) = fields.keys().find(|name| !matches!(name.as_str(), "target" | "prefix")) {
        return Err(format!("there is no field `{unknown}`: only `target` and `prefix`"));
    }
    let text = |name: &str| match fields.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.as_str())),
        Some(other) => Err(format!("`{name}` must be text, found {}", type_of(other))),
    };
    let target = text("target")?.map(str::to_owned);
    let prefix = text("prefix")?.map(prefix).transpose()?.filter(|prefix| !prefix.is_empty());
    Ok(StorageChoice { target, prefix })
}

/// What is wrong with a choice among these targets.
#[must_use]
pub fn unknown(targets: &Targets, choice: &StorageChoice) -> Option<FieldFault> {
    let wanted = targets.wanted(choice);
    if targets.get(wanted).is_some() {
        return None;
    }
    let names: Vec<&str> = targets.iter().map(|(name, _)| name).collect();
    let fault = FieldFault::at("/storage/target", format!("there is no such target; there are: {}", names.join(", ")));
    Some(fault.suggesting(nearest(wanted, names)))
}

/// Refuses a task whose outputs cannot be kept where it wants them, before any GPU time is spent on it.
///
/// # Errors
/// 422 with every reason.
pub fn admit(targets: &Targets, payload: &Payload) -> Result<(), Problem> {
    let wanted = targets.wanted(&payload.options.storage);
    let only_pictures = |target: &Target| target.store.only_pictures() && target.others.is_none();
    if !targets.get(wanted).is_some_and(only_pictures) {
        return Ok(());
    }
    let faults = never_kept(wanted, &payload.graph, &payload.options);
    if faults.is_empty() { Ok(()) } else { Err(Problem::invalid(faults)) }
}

/// The nodes whose outputs are no pictures for certain, and are wanted.
fn never_kept(target: &str, graph: &str, options: &TaskOptions) -> Vec<FieldFault> {
    #[derive(Deserialize)]
    struct Node<'a> {
        #[serde(borrow, default)]
        class_type: Option<Cow<'a, str>>,
    }
    // In the order of the graph's ids, so that the answer is the same each time.
    let nodes: std::collections::BTreeMap<Cow<'_, str>, Node<'_>> = serde_json::from_str(graph).unwrap_or_default();
    let faulty = nodes.iter().filter_map(|(id, node)| {
        let class = node.class_type.as_deref().filter(|class| makes_no_pictures(class))?;
        options.output.takes(id).then(|| {
            let detail = format!(
                "{class} makes no picture, and the storage target {target} takes nothing else: choose another target with `storage`, or leave \
                 this node out with `output_options.nodes`"
            );
            FieldFault::at(format!("/workflow/{}", escape(id)), detail)
        })
    });
    faulty.take(MAX_FAULTS).collect()
}

/// A task with links to what it stored. `base` is what our own addresses begin with, which lead there too.
pub async fn view(service: &Service, record: TaskRecord, progress: Option<Standing>, base: &str) -> TaskView {
    let artifacts = record.artifacts.clone();
    let mut view = TaskView::of(record, progress, base);
    link_all(service.bridge.targets(), &mut view.outputs, &artifacts).await;
    view
}

/// Has the outputs of some artifacts lead to where they lie. Both are in the same order.
pub async fn link_all(targets: &Targets, outputs: &mut [OutputView], artifacts: &[Artifact]) {
    let stored = artifacts.iter().filter_map(|artifact| artifact.object.as_ref());
    for (output, object) in outputs.iter_mut().zip(stored) {
        link(targets, output, object).await;
    }
}

async fn link(targets: &Targets, output: &mut OutputView, object: &StoredObject) {
    let Some(Target { store, .. }) = targets.holder(object) else { return };
    match store.link(&object.key).await {
        Ok(Some(link)) => {
            output.url = link.url;
            output.variants = link.variants;
        }
        Ok(None) => {}
        Err(error) => tracing::warn!(%error, target = object.target, "no link could be made for a stored output"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_no_choice_says_why() {
        let choice = |target: Option<&str>, prefix: Option<&str>| StorageChoice {
            target: target.map(str::to_owned),
            prefix: prefix.map(str::to_owned),
        };
        for (given, read_as) in [
            (json!({}), choice(None, None)),
            (json!({"target": "a", "prefix": null}), choice(Some("a"), None)),
            (json!({"prefix": "/x/y/"}), choice(None, Some("x/y"))),
            (json!({"prefix": "/"}), choice(None, None)),
        ] {
            assert_eq!(read(&given), Ok(read_as), "{given}");
        }
        for (given, word) in [
            (json!("a"), "object"),
            (json!({"bucket": "a"}), "bucket"),
            (json!({"target": 1}), "text"),
            (json!({"prefix": "../x"}), "prefix"),
        ] {
            assert!(read(&given).unwrap_err().contains(word), "{given}");
        }
    }
}
