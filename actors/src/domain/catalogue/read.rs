//! `/object_info` to a [`Catalogue`]: one class after the other, so that the whole answer is never in memory as a tree.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use serde_json::{Map, Value, value::RawValue};
use uuid::Uuid;

use super::{Catalogue, Choice, Class, InputSpec, List, OutputKind, OutputSpec, Range, Takes};
use crate::domain::workflow::Kind;

/// The kind of file an option such as `image_upload` is about, by what comes before its last word.
fn uploaded(what: &str) -> Kind {
    match what {
        "audio_" => Kind::Audio,
        "video_" => Kind::Video,
        "image_" | "animated_image_" => Kind::Image,
        _ => Kind::File,
    }
}

/// Lists and type names that occur again and again, kept once.
#[derive(Default)]
struct Pool {
    lists: HashMap<String, Arc<List>>,
    names: HashMap<String, Arc<str>>,
}

pub(super) fn catalogue(text: &str) -> Result<Catalogue, String> {
    let classes: BTreeMap<String, &RawValue> = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let mut pool = Pool::default();
    let classes = classes.into_iter().map(|(name, raw)| {
        // An output, for all we know: a graph must not be refused for having none.
        let opaque = || Class { is_opaque: true, is_output: true, ..Class::default() };
        let class = serde_json::from_str(raw.get()).ok().and_then(|info| pool.class(&info)).unwrap_or_else(opaque);
        (Arc::from(name), class)
    });
    Ok(Catalogue { classes: classes.collect(), print: Uuid::new_v5(&Uuid::nil(), text.as_bytes()) })
}

impl Pool {
    fn class(&mut self, info: &Value) -> Option<Class> {
        let text = |name: &str| info.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
        let inputs = info.get("input").and_then(Value::as_object)?;
        let order = info.get("input_order");
        let mut all = self.section(inputs, order, "required");
        all.extend(self.section(inputs, order, "optional"));
        Some(Class {
            title: text("display_name"),
            category: text("category"),
            description: text("description"),
            inputs: all,
            outputs: self.outputs(info),
            is_output: info.get("output_node").and_then(Value::as_bool).unwrap_or(false),
            is_opaque: false,
        })
    }

    fn section(&mut self, inputs: &Map<String, Value>, order: Option<&Value>, section: &str) -> Vec<InputSpec> {
        let Some(specs) = inputs.get(section).and_then(Value::as_object) else { return Vec::new() };
        let order = order.and_then(|order| order.get(section)?.as_array());
        let place = |name: &str| order.and_then(|names| names.iter().position(|other| other.as_str() == Some(name)));
        let mut found: Vec<_> = specs.iter().map(|(name, spec)| (place(name), name, spec)).collect();
        // What the order does not name comes last, by name.
        found.sort_by_key(|(place, ..)| place.unwrap_or(usize::MAX));
        found.into_iter().map(|(_, name, spec)| self.input(name, spec, section == "required")).collect()
    }

    /// `[type]` or `[type, options]`, where a type is a name or a list of values.
    fn input(&mut self, name: &str, spec: &Value, required: bool) -> InputSpec {
        let options = spec.get(1).and_then(Value::as_object);
        let option = |name: &str| options.and_then(|options| options.get(name));
        let flag = |name: &str| option(name).and_then(Value::as_bool).unwrap_or(false);
        let range = || {
            let bound = |name| option(name).and_then(Value::as_number).cloned();
            Range { least: bound("min"), most: bound("max") }
        };
        let takes = match spec.get(0) {
            Some(Value::Array(values)) => self.choice(Some(values), flag("multiselect"), true),
            Some(Value::String(kind)) => match kind.as_str() {
                "INT" => Takes::Whole(range()),
                "FLOAT" => Takes::Number(range()),
                "STRING" => Takes::Text,
                "BOOLEAN" => Takes::Truth,
                // The options of a remote list are fetched by the editor; the server does not check them.
                "COMBO" => {
                    let remote = option("remote").is_some_and(|remote| !remote.is_null()) || flag("remote_combo");
                    let listed = option("options").and_then(Value::as_array).filter(|_| !remote);
                    self.choice(listed, flag("multiselect"), false)
                }
                dynamic if dynamic.starts_with("COMFY_") && dynamic != "COMFY_MATCHTYPE_V3" => {
                    Takes::Anything(self.name(dynamic))
                }
                linked => Takes::Linked(self.name(linked)),
            },
            _ => Takes::Anything(self.name("?")),
        };
        let uploads = options.and_then(|options| {
            let on = options.iter().filter(|(_, value)| **value == Value::Bool(true));
            on.filter_map(|(name, _)| name.strip_suffix("upload").map(uploaded)).next()
        });
        InputSpec { name: self.name(name), required, takes, default: option("default").cloned(), uploads }
    }

    fn choice(&mut self, values: Option<&Vec<Value>>, many: bool, inline: bool) -> Takes {
        Takes::Choice(Choice { list: values.map(|values| self.list(values)), many, inline })
    }

    fn outputs(&mut self, info: &Value) -> Vec<OutputSpec> {
        let at = |field: &str, place: usize| info.get(field).and_then(|list| list.get(place));
        let kinds = info.get("output").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        let output = |(place, kind): (usize, &Value)| {
            let kind = match kind {
                Value::String(name) => OutputKind::Named(self.name(name)),
                Value::Array(values) => OutputKind::OneOf(self.list(values)),
                _ => OutputKind::Named(self.name("*")),
            };
            let name = at("output_name", place).and_then(Value::as_str).unwrap_or(kind.type_name()).to_owned();
            OutputSpec { name, kind, is_list: at("output_is_list", place).and_then(Value::as_bool).unwrap_or(false) }
        };
        kinds.iter().enumerate().map(output).collect()
    }

    fn list(&mut self, values: &[Value]) -> Arc<List> {
        let key = serde_json::to_string(values).unwrap_or_default();
        self.lists.entry(key).or_insert_with(|| Arc::new(List::new(values.to_vec()))).clone()
    }

    fn name(&mut self, name: &str) -> Arc<str> {
        if let Some(known) = self.names.get(name) {
            return known.clone();
        }
        let shared: Arc<str> = Arc::from(name);
        self.names.insert(name.to_owned(), shared.clone());
        shared
    }
}
