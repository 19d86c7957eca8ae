use serde_json::json;

use super::*;

/// Entries of a real server's answer, in all spellings, and one of a careless custom node.
pub(crate) const OBJECT_INFO: &str = include_str!("../../../../tests/fixtures/object_info.json");

pub(crate) fn catalogue() -> Catalogue {
    Catalogue::parse(OBJECT_INFO).unwrap()
}

fn takes(class: &str, input: &str) -> Takes {
    catalogue().class(class).unwrap().input(input).unwrap().takes.clone()
}

#[test]
fn both_spellings_of_a_list_are_one() {
    let Takes::Choice(old) = takes("CheckpointLoaderSimple", "ckpt_name") else { panic!("no list") };
    let Takes::Choice(new) = takes("SaveVideo", "format") else { panic!("no list") };
    assert!(old.inline && !new.inline);
    assert!(old.list.unwrap().has_text("sd_xl_base_1.0.safetensors"));
    assert!(new.list.unwrap().has_text("mp4"));
    // A list the server leaves to the editor is not known.
    let Takes::Choice(remote) = takes("LoadImageOutput", "image") else { panic!("no list") };
    assert_eq!(remote.list, None);
}

#[test]
fn inputs_keep_their_order_and_flags() {
    let catalogue = catalogue();
    let sampler = catalogue.class("KSampler").unwrap();
    let names: Vec<&str> = sampler.inputs.iter().map(|input| &*input.name).collect();
    assert_eq!(names[..4], ["model", "seed", "steps", "cfg"]);
    assert_eq!(takes("KSampler", "seed"), Takes::Whole(Range { least: Some(0.into()), most: Some(u64::MAX.into()) }));
    let upload = |class: &str, input: &str| catalogue.class(class).unwrap().input(input).unwrap().uploads;
    let uploads = [("LoadImage", "image"), ("LoadVideo", "file"), ("KSampler", "seed")];
    assert_eq!(uploads.map(|(class, input)| upload(class, input)), [Some(Kind::Image), Some(Kind::Video), None]);
    assert_eq!(catalogue.class("SaveImage").unwrap().inputs.len(), 2, "hidden inputs are the server's own");
    assert!(catalogue.class("SaveImage").unwrap().is_output);
    assert!(!catalogue.class("StringOrNumber").unwrap().input("level").unwrap().required);
}

#[test]
fn what_is_not_understood_is_known_by_name() {
    let catalogue = catalogue();
    assert!(catalogue.class("OddNode").unwrap().is_opaque);
    assert!(catalogue.class("BatchImagesNode").unwrap().grows("images.image0"));
    for broken in ["", "[]", "5", "{\"A\": ", "<html>"] {
        assert!(Catalogue::parse(broken).is_err(), "{broken}");
    }
    assert!(Catalogue::parse("{\"A\\u0021\": {}}").unwrap().class("A!").unwrap().is_opaque);
}

#[test]
fn equal_lists_are_kept_once() {
    let names: Vec<String> = (0..1000).map(|n| format!("lora_{n}.safetensors")).collect();
    let loader = json!({"input": {"required": {"name": [names]}}});
    let many: serde_json::Map<String, Value> = (0..50).map(|n| (format!("Loader{n}"), loader.clone())).collect();
    let catalogue = Catalogue::parse(&Value::Object(many).to_string()).unwrap();
    let lists: Vec<_> = catalogue.classes().map(|(_, class)| class.list("name").unwrap()).collect();
    assert!(lists.windows(2).all(|pair| Arc::ptr_eq(pair[0], pair[1])));
}

#[test]
fn links_are_taken_as_comfyui_takes_them() {
    let named = |name: &str| OutputKind::Named(name.into());
    let linked = |name: &str| Takes::Linked(name.into());
    let samplers = OutputKind::OneOf(catalogue().class("KSampler").unwrap().list("sampler_name").unwrap().clone());
    for (takes, from, good) in [
        (linked("IMAGE"), named("IMAGE"), true),
        (linked("IMAGE"), named("MASK"), false),
        (linked("*"), named("MASK"), true),
        (linked("IMAGE"), named("*"), true),
        (linked("INT,FLOAT"), named("FLOAT"), true),
        (linked("INT, FLOAT"), named("STRING,FLOAT"), true),
        (linked("INT"), named("IMAGE,MASK"), false),
        (linked("COMFY_MATCHTYPE_V3"), named("MASK"), true),
        (linked("IMAGE"), named("COMFY_MATCHTYPE_V3"), true),
        (Takes::Whole(Range::default()), named("INT"), true),
        (Takes::Whole(Range::default()), named("FLOAT"), false),
        (Takes::Text, named("STRING"), true),
        (takes("SaveVideo", "format"), named("COMBO"), true),
        (takes("SaveVideo", "format"), named("STRING"), false),
        // A list in the old spelling is a type of its own.
        (takes("KSampler", "sampler_name"), named("COMBO"), false),
        (takes("KSampler", "sampler_name"), samplers.clone(), true),
        (takes("KSampler", "scheduler"), samplers.clone(), false),
        (takes("KSampler", "scheduler"), named("*"), true),
        (linked("IMAGE"), samplers, false),
        (takes("BatchImagesNode", "images"), named("LATENT"), true),
    ] {
        assert_eq!(takes.takes_link(&from), good, "{} from {from:?}", takes.type_name());
    }
}

#[test]
fn lists_compare_as_python_does() {
    let list = List::new(vec![json!(1), json!("a"), json!(2.5)]);
    for (value, there) in [
        (json!("a"), true),
        (json!("1"), false),
        (json!(1), true),
        (json!(1.0), true),
        (json!(true), true),
        (json!(2.5), true),
        (json!(2), false),
        (json!(null), false),
    ] {
        assert_eq!(list.has(&value), there, "{value}");
    }
}
