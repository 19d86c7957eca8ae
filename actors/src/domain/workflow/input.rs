//! One input of a named workflow: where it goes, what it takes, and what is taken for it.

use serde::{Deserialize, Serialize};
use serde_json::{Number, Value};

use super::type_of;

/// One named input.
#[derive(Debug, Clone, PartialEq)]
pub struct Input {
    /// What clients call it.
    pub name: String,
    /// The node it is written to.
    pub node: String,
    /// The field of that node.
    pub field: String,
    /// What it takes.
    pub kind: Kind,
    /// Whether it must be given.
    pub required: bool,
    /// Used when it is not given; without one the graph's own value stays.
    pub default: Option<Value>,
    /// Least number.
    pub minimum: Option<f64>,
    /// Greatest number.
    pub maximum: Option<f64>,
    /// The only values taken, if any are listed.
    pub choices: Vec<Value>,
    /// For people.
    pub description: Option<String>,
}

/// What an input takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Text.
    String,
    /// A whole number.
    Integer,
    /// A number.
    Number,
    /// true or false.
    Boolean,
    /// One of the listed values.
    Choice,
    /// A whole number from 0 to 2^64 - 1, drawn at random when it is not given.
    Seed,
    /// A picture: a reference to a file, which becomes a name the server knows before the graph is submitted.
    Image,
    /// A picture whose white parts are meant.
    Mask,
    /// Sound.
    Audio,
    /// Moving pictures.
    Video,
    /// Any other file.
    File,
}

/// The fields of `ComfyUI`'s own loaders, and of the most widespread others, that name a file of the input folder.
const LOADERS: [(&str, &str, Kind); 10] = [
    ("LoadImage", "image", Kind::Image),
    ("LoadImageOutput", "image", Kind::Image),
    ("LoadImageMask", "image", Kind::Mask),
    ("LoadAudio", "audio", Kind::Audio),
    ("LoadVideo", "file", Kind::Video),
    ("LoadLatent", "latent", Kind::File),
    ("Load3D", "model_file", Kind::File),
    ("VHS_LoadVideo", "video", Kind::Video),
    ("VHS_LoadAudioUpload", "audio", Kind::Audio),
    ("VHS_LoadImages", "directory", Kind::File),
];

impl Kind {
    /// The kind of a node's field: a file where the class loads one, else what the graph's own value suggests.
    #[must_use]
    pub fn of_field(node: &Value, field: &str) -> Option<Self> {
        let class = node.get("class_type").and_then(Value::as_str);
        let loader = LOADERS.iter().find(|(loads, from, _)| class == Some(loads) && field == *from);
        loader.map_or_else(|| Self::of(node.get("inputs")?.get(field)?), |(_, _, kind)| Some(*kind))
    }

    /// The kind a graph's own value suggests.
    #[must_use]
    pub fn of(value: &Value) -> Option<Self> {
        match value {
            Value::String(_) => Some(Self::String),
            Value::Bool(_) => Some(Self::Boolean),
            Value::Number(number) if number.is_f64() => Some(Self::Number),
            Value::Number(_) => Some(Self::Integer),
            _ => None,
        }
    }

    /// Whether it takes a reference to a file.
    #[must_use]
    pub fn is_file(self) -> bool {
        matches!(self, Self::Image | Self::Mask | Self::Audio | Self::Video | Self::File)
    }

    /// Whether it takes a number.
    #[must_use]
    pub fn is_number(self) -> bool {
        matches!(self, Self::Integer | Self::Number | Self::Seed)
    }

    /// As workflow files write it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::String => "string",
            Self::Integer => "integer",
            Self::Number => "number",
            Self::Boolean => "boolean",
            Self::Choice => "choice",
            Self::Seed => "seed",
            Self::Image => "image",
            Self::Mask => "mask",
            Self::Audio => "audio",
            Self::Video => "video",
            Self::File => "file",
        }
    }

    fn words(self) -> &'static str {
        match self {
            Self::String => "text",
            Self::Integer | Self::Seed => "a whole number",
            Self::Number => "a number",
            Self::Boolean => "true or false",
            Self::Choice => "one of its choices",
            Self::Image => "an image",
            Self::Mask => "a mask",
            Self::Audio => "a sound file",
            Self::Video => "a video",
            Self::File => "a file",
        }
    }
}

/// What becomes of an input's field.
pub(super) enum Wanted {
    Value(Value),
    Drawn,
    Untouched,
}

impl Input {
    pub(super) fn value(&self, given: Option<&Value>) -> Result<Wanted, String> {
        match given {
            Some(value) => self.accept(value).map(Wanted::Value),
            None if self.required => Err("this input is required".to_owned()),
            None => Ok(match &self.default {
                Some(default) => Wanted::Value(default.clone()),
                None if self.kind == Kind::Seed => Wanted::Drawn,
                None => Wanted::Untouched,
            }),
        }
    }

    /// The value as the graph gets it.
    pub(super) fn accept(&self, value: &Value) -> Result<Value, String> {
        let value = match (self.kind, value) {
            (Kind::String, Value::String(_))
            | (Kind::Boolean, Value::Bool(_))
            | (Kind::Number, Value::Number(_))
            | (Kind::Choice, Value::String(_) | Value::Bool(_)) => value.clone(),
            (Kind::Integer | Kind::Seed, Value::Number(number)) => {
                Value::Number(whole(number).ok_or("expected a whole number")?)
            }
            // 20.0 and 20 are one choice.
            (Kind::Choice, Value::Number(number)) => Value::Number(whole(number).unwrap_or_else(|| number.clone())),
            (kind, Value::String(text)) if kind.is_file() && !text.is_empty() => value.clone(),
            (kind, Value::Object(_)) if kind.is_file() => value.clone(),
            (kind, _) if kind.is_file() => {
                return Err(format!("expected {}, as text or an object, found {}", kind.words(), type_of(value)));
            }
            _ => return Err(format!("expected {}, found {}", self.kind.words(), type_of(value))),
        };
        if self.kind == Kind::Seed && value.as_u64().is_none() {
            return Err("expected a whole number from 0 to 18446744073709551615".to_owned());
        }
        if let Some(number) = value.as_f64() {
            self.check_range(number)?;
        }
        if self.choices.is_empty() || self.choices.contains(&value) {
            return Ok(value);
        }
        let choices: Vec<String> = self.choices.iter().map(Value::to_string).collect();
        Err(format!("expected one of {}", choices.join(", ")))
    }

    fn check_range(&self, number: f64) -> Result<(), String> {
        match (self.minimum, self.maximum) {
            (Some(least), Some(most)) if !(least..=most).contains(&number) => {
                Err(format!("must be from {least} to {most}"))
            }
            (Some(least), _) if number < least => Err(format!("must be at least {least}")),
            (_, Some(most)) if number > most => Err(format!("must be at most {most}")),
            _ => Ok(()),
        }
    }
}

/// 20.0 is 20 to everybody but a strict parser; clients in some languages have no other numbers.
pub(super) fn whole(number: &Number) -> Option<Number> {
    /// Up to here a double is exact.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    if !number.is_f64() {
        return Some(number.clone());
    }
    let float = number.as_f64().filter(|float| float.fract() == 0.0 && float.abs() <= EXACT)?;
    #[expect(clippy::cast_possible_truncation, reason = "whole and within 2^53, checked just before")]
    Some(Number::from(float as i64))
}
