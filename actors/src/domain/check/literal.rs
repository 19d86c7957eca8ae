//! Values that are written into a graph, against what an input takes. Python's rules: `"64"` is a number, `true` is 1.

use std::cmp::Ordering;

use serde_json::{Number, Value};

use crate::domain::{
    catalogue::{Choice, InputSpec, List, Range, Takes},
    workflow::type_of,
};

/// Lists up to this long are shown in full.
const SHOWN: usize = 20;
/// A value from a client is shown up to here.
const LONGEST: usize = 80;

/// Why a value is not taken.
pub(super) struct Refused {
    pub detail: String,
    /// The text that is in no list here.
    pub missing: Option<String>,
}

impl From<String> for Refused {
    fn from(detail: String) -> Self {
        Self { detail, missing: None }
    }
}

pub(super) fn check(spec: &InputSpec, value: &Value) -> Result<(), Refused> {
    let value = unwrapped(value);
    match &spec.takes {
        Takes::Whole(range) => in_range(range, whole(value).ok_or_else(|| expected("a whole number", value))?),
        Takes::Number(range) => in_range(range, number(value).ok_or_else(|| expected("a number", value))?),
        Takes::Choice(choice) => chosen_well(spec, choice, value),
        Takes::Text | Takes::Truth | Takes::Linked(_) | Takes::Anything(_) => Ok(()),
    }
}

/// The texts a value chooses from a list that says what there is.
pub(super) fn chosen<'a>(spec: &InputSpec, value: &'a Value) -> Vec<&'a str> {
    let Takes::Choice(Choice { list: Some(_), many, .. }) = &spec.takes else { return Vec::new() };
    let texts = picked(unwrapped(value), *many).into_iter().filter_map(Value::as_str);
    texts.filter(|text| spec.uploads.is_none() || is_plain(text)).collect()
}

/// `{"__value__": [...]}` is how a list is written, since a bare one is a link.
fn unwrapped(value: &Value) -> &Value {
    value.get("__value__").unwrap_or(value)
}

fn picked(value: &Value, many: bool) -> Vec<&Value> {
    match value {
        Value::Array(items) if many => items.iter().collect(),
        one => vec![one],
    }
}

/// The server's own list shows the top of its input folder; what lies elsewhere it looks for when it gets the graph.
fn is_plain(file: &str) -> bool {
    !file.contains(['/', '\\']) && !file.ends_with(']')
}

fn chosen_well(spec: &InputSpec, choice: &Choice, value: &Value) -> Result<(), Refused> {
    let Some(list) = &choice.list else { return Ok(()) };
    let missing = picked(value, choice.many).into_iter().find(|value| !list.has(value));
    match missing {
        None => Ok(()),
        Some(Value::String(file)) if spec.uploads.is_some() && !is_plain(file) => Ok(()),
        Some(Value::String(text)) => Err(Refused {
            detail: format!("`{}` is not in the list of {}{}", shorten(text), spec.name, listed(list)),
            missing: Some(text.clone()),
        }),
        Some(other) => Err(expected(&format!("one of the list of {}{}", spec.name, listed(list)), other)),
    }
}

fn listed(list: &List) -> String {
    let values = &list.values;
    match values.len() {
        0 => ", which is empty".to_owned(),
        1..=SHOWN => {
            let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            format!(": {}", values.iter().map(text).collect::<Vec<_>>().join(", "))
        }
        count => format!(" ({count} values)"),
    }
}

fn shorten(text: &str) -> String {
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}

fn expected(what: &str, found: &Value) -> Refused {
    let found = match found {
        Value::String(text) => format!("`{}`", shorten(text)),
        other => type_of(other).to_owned(),
    };
    format!("expected {what}, found {found}").into()
}

/// A number as Python holds it: whole ones exactly.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Num {
    Whole(i128),
    Float(f64),
}

impl Num {
    fn of(number: &Number) -> Self {
        let whole = number.as_i64().map(i128::from).or_else(|| number.as_u64().map(i128::from));
        whole.map_or_else(|| Self::Float(number.as_f64().unwrap_or(f64::NAN)), Self::Whole)
    }

    #[expect(clippy::cast_precision_loss, reason = "only compared with a number that is no more exact")]
    fn float(self) -> f64 {
        match self {
            Self::Whole(whole) => whole as f64,
            Self::Float(float) => float,
        }
    }

    fn compare(self, other: Self) -> Option<Ordering> {
        match (self, other) {
            (Self::Whole(one), Self::Whole(other)) => Some(one.cmp(&other)),
            _ => self.float().partial_cmp(&other.float()),
        }
    }
}

fn in_range(range: &Range, number: Num) -> Result<(), Refused> {
    let beyond =
        |bound: &Option<Number>, side| bound.as_ref().is_some_and(|bound| number.compare(Num::of(bound)) == Some(side));
    let text = |bound: &Option<Number>| bound.as_ref().map(ToString::to_string).unwrap_or_default();
    if !beyond(&range.least, Ordering::Less) && !beyond(&range.most, Ordering::Greater) {
        return Ok(());
    }
    let detail = match (&range.least, &range.most) {
        (Some(_), Some(_)) => format!("must be from {} to {}", text(&range.least), text(&range.most)),
        (Some(_), None) => format!("must be at least {}", text(&range.least)),
        _ => format!("must be at most {}", text(&range.most)),
    };
    Err(detail.into())
}

/// `int(value)`: fractions are cut off, texts are read.
fn whole(value: &Value) -> Option<Num> {
    match value {
        Value::Number(number) => match Num::of(number) {
            #[expect(clippy::cast_possible_truncation, reason = "what is beyond any bound stays beyond it")]
            Num::Float(float) => Some(Num::Whole(float as i128)),
            whole @ Num::Whole(_) => Some(whole),
        },
        Value::Bool(truth) => Some(Num::Whole(i128::from(*truth))),
        Value::String(text) => text.trim().replace('_', "").parse().ok().map(Num::Whole),
        _ => None,
    }
}

/// `float(value)`.
fn number(value: &Value) -> Option<Num> {
    match value {
        Value::String(text) => text.trim().replace('_', "").parse().ok().map(Num::Float),
        Value::Number(number) => Some(Num::of(number)),
        Value::Bool(truth) => Some(Num::Whole(i128::from(*truth))),
        _ => None,
    }
}
