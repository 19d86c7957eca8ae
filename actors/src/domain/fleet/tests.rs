use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::*;
use crate::domain::{catalogue::tests::OBJECT_INFO, lane::ListValue};

const STRICT: Terms<'static> = Terms { allow_partial: false, is_placeholder: &|_, _, _| false };

fn backend(name: &str) -> BackendId {
    BackendId::new(name)
}

/// A catalogue like that of the fixture, altered.
fn altered(alter: impl FnOnce(&mut Value)) -> Catalogue {
    let mut info: Value = serde_json::from_str(OBJECT_INFO).unwrap();
    alter(&mut info);
    Catalogue::parse(&info.to_string()).unwrap()
}

fn fleet(backends: Vec<(&str, Option<Catalogue>)>) -> Fleet {
    let mut fleet = Fleet::of(backends.iter().map(|(name, _)| backend(name)));
    for (name, catalogue) in backends {
        if let Some(catalogue) = catalogue {
            fleet.learn(&backend(name), catalogue);
        }
    }
    fleet
}

fn whole() -> Option<Catalogue> {
    Some(altered(|_| ()))
}

fn without_video() -> Option<Catalogue> {
    Some(altered(|info| drop(info.as_object_mut().unwrap().remove("SaveVideo"))))
}

fn without_checkpoints() -> Option<Catalogue> {
    Some(altered(|info| info["CheckpointLoaderSimple"]["input"]["required"]["ckpt_name"][0] = json!(["other.ckpt"])))
}

fn video(format: &str) -> Value {
    json!({
        "1": {"class_type": "LoadVideo", "inputs": {"file": "clip.mp4"}},
        "2": {"class_type": "SaveVideo", "inputs": {"video": ["1", 0], "filename_prefix": "x", "format": format, "codec": "auto"}},
    })
}

fn checkpoint() -> Value {
    json!({
        "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "sd_xl_base_1.0.safetensors"}},
        "2": {"class_type": "PreviewAny", "inputs": {"source": ["1", 0]}},
    })
}

fn judge(fleet: &Fleet, graph: &Value) -> Verdict {
    fleet.judge(graph.as_object().unwrap(), STRICT)
}

fn lane(fleet: &Fleet, graph: &Value) -> Arc<Needs> {
    match judge(fleet, graph) {
        Verdict::Taken(lane) => lane.needs,
        Verdict::Refused(objections) => panic!("{objections:?}"),
    }
}

#[test]
fn what_all_can_run_anybody_runs() {
    let same = fleet(vec![("a", whole()), ("b", whole())]);
    assert!(lane(&same, &video("mp4")).is_empty());
    assert!(Arc::ptr_eq(same.catalogue(&backend("a")).unwrap(), same.catalogue(&backend("b")).unwrap()));
    let different = fleet(vec![("a", whole()), ("b", without_video())]);
    assert!(lane(&different, &checkpoint()).is_empty(), "the difference does not concern it");
}

#[test]
fn what_some_can_run_needs_what_the_others_lack() {
    let fleet = fleet(vec![("a", whole()), ("b", without_video()), ("c", without_checkpoints())]);
    let needs = lane(&fleet, &video("mp4"));
    assert_eq!(needs.classes, BTreeSet::from(["SaveVideo".to_owned()]));
    assert!(needs.values.is_empty() && needs.backends.is_empty());
    let able = |needs: &Needs| ["a", "b", "c"].map(|name| fleet.meets(&backend(name), needs));
    assert_eq!(able(&needs), [true, false, true]);
    let needs = lane(&fleet, &checkpoint());
    let value = ListValue {
        class: "CheckpointLoaderSimple".into(),
        input: "ckpt_name".into(),
        value: "sd_xl_base_1.0.safetensors".into(),
    };
    assert_eq!(needs.values, BTreeSet::from([value]));
    assert_eq!(able(&needs), [true, true, false]);
}

#[test]
fn a_difference_that_has_no_name_leads_to_the_backends_themselves() {
    let newer = altered(|info| info["SaveVideo"]["input"]["required"]["quality"] = json!(["INT", {}]));
    let fleet = fleet(vec![("a", whole()), ("b", Some(newer))]);
    let needs = lane(&fleet, &video("mp4"));
    assert_eq!(needs.backends, BTreeSet::from([backend("a")]));
    assert!(fleet.meets(&backend("a"), &needs) && !fleet.meets(&backend("b"), &needs));
}

#[test]
fn what_nobody_can_run_is_refused_with_who_has_what() {
    let fleet = fleet(vec![("a", without_video()), ("b", without_checkpoints())]);
    let mut both = video("mp4");
    both["3"] = checkpoint()["1"].clone();
    both["4"] = json!({"class_type": "PreviewAny", "inputs": {"source": ["3", 0]}});
    let Verdict::Refused(objections) = judge(&fleet, &both) else { panic!("taken") };
    let seen: Vec<_> = objections
        .iter()
        .map(|objection| (objection.fault.node.as_deref().unwrap(), objection.on.clone(), objection.without.clone()))
        .collect();
    assert_eq!(seen, [("2", vec![backend("a")], vec![backend("b")]), ("3", vec![backend("b")], vec![backend("a")]),]);
    // The same lack on both is told once, whatever else their lists hold.
    let mut unknown = checkpoint();
    unknown["1"]["inputs"]["ckpt_name"] = json!("nowhere");
    let Verdict::Refused(objections) = judge(&fleet, &unknown) else { panic!("taken") };
    assert_eq!((objections.len(), objections[0].without.len()), (1, 0));
}

#[test]
fn a_backend_that_was_never_seen_refuses_nothing() {
    let unknown = fleet(vec![("a", None), ("b", None)]);
    assert!(lane(&unknown, &json!({"1": {"class_type": "Whatever", "inputs": {}}})).is_empty());
    // What is missing on the others may be there; what is wrong with the graph itself stays wrong.
    let partly = fleet(vec![("a", without_video()), ("b", None)]);
    let needs = lane(&partly, &video("mp4"));
    assert!(needs.classes.contains("SaveVideo") && !partly.meets(&backend("a"), &needs));
    assert!(!partly.meets(&backend("b"), &needs), "until it shows that it has it");
    let broken = json!({"1": {"class_type": "EmptyImage", "inputs": {"width": 0}}, "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}}});
    assert!(matches!(judge(&partly, &broken), Verdict::Refused(_)));
    // And what the known one can run must not go to one that perhaps cannot.
    let needs = lane(&partly, &checkpoint());
    assert!(partly.meets(&backend("a"), &needs) && !partly.meets(&backend("b"), &needs));
}

#[test]
fn a_part_does_not_need_what_nobody_has() {
    let fleet = fleet(vec![("a", whole()), ("b", without_video())]);
    let mut graph = video("no such format");
    graph["3"] = json!({"class_type": "SaveVideo", "inputs": {"video": ["1", 0], "filename_prefix": "x", "format": "mp4", "codec": "auto"}});
    assert!(matches!(judge(&fleet, &graph), Verdict::Refused(_)));
    let partial = Terms { allow_partial: true, ..STRICT };
    let Verdict::Taken(lane) = fleet.judge(graph.as_object().unwrap(), partial) else { panic!("refused") };
    assert!(fleet.meets(&backend("a"), &lane.needs), "{:?}", lane.needs);
    assert!(!fleet.meets(&backend("b"), &lane.needs));
}

#[test]
fn only_news_is_news() {
    let mut fleet = Fleet::of([backend("a")]);
    assert!(fleet.learn(&backend("a"), whole().unwrap()));
    assert!(!fleet.learn(&backend("a"), whole().unwrap()));
    assert!(fleet.learn(&backend("a"), without_video().unwrap()));
}
