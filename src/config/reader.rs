//! Turns texts into typed settings and collects what is wrong instead of stopping at the first fault.

use std::{collections::BTreeMap, fmt::Display, ops::RangeInclusive, time::Duration};

use toml::{Table, Value};

use super::{
    fault::{Fault, nearest},
    sources::{Given, Layers},
    values::{self, Secret, redact},
};

/// Settings whose values are never shown, and those whose passwords are not.
const SECRET: &[&str] = &[
    "comfyui.headers",
    "outbound.headers",
    "storage.s3_secret_access_key",
    "storage.r2_secret_key",
    "storage.cf_images_api_token",
    "storage.targets",
    "webhooks.url",
    "webhooks.secrets",
    "consumer.token",
];
const WITH_PASSWORDS: &[&str] = &[
    "comfyui.urls",
    "consumer.api_url",
    "store.database_url",
    "store.postgres_listen_url",
    "server.public_url",
    "server.cors_origins",
];

/// Reads settings one by one. A faulty one is noted and read as its default, so that reading goes on.
pub struct Reader {
    settings: BTreeMap<String, Given>,
    defaults: BTreeMap<String, Value>,
    faults: Vec<Fault>,
    read: Vec<&'static str>,
}

impl Reader {
    /// Over all layers.
    #[must_use]
    pub fn new(layers: &Layers) -> Self {
        Self {
            settings: layers.settings.clone(),
            defaults: layers.defaults.clone(),
            faults: layers.faults.clone(),
            read: Vec::new(),
        }
    }

    /// Everything found wrong.
    #[must_use]
    pub fn into_faults(self) -> Vec<Fault> {
        self.faults
    }

    /// The settings asked for so far.
    #[must_use]
    pub fn asked(&self) -> &[&'static str] {
        &self.read
    }

    /// Notes a fault that lies between settings; said about `key`, and only when none of `keys` is at fault itself.
    pub fn demand(&mut self, holds: bool, keys: &[&str], detail: impl Into<String>) {
        let sound = |key: &&str| !self.faults.iter().any(|fault| fault.key.as_deref() == Some(*key));
        if let (false, true, Some(key)) = (holds, keys.iter().all(sound), keys.first()) {
            let fault = self.fault(key, detail);
            self.faults.push(fault);
        }
    }

    /// Reads a setting with a parser of its text.
    pub fn text<T: Default>(&mut self, key: &'static str, parse: impl Fn(&str) -> Result<T, String>) -> T {
        self.value(key, |value| match value {
            Value::String(text) => parse(text.trim()),
            Value::Integer(_) | Value::Float(_) | Value::Boolean(_) => parse(&value.to_string()),
            _ => Err(format!("expected text, found {}", value.type_str())),
        })
    }

    /// A text as it is, not empty.
    pub fn plain(&mut self, key: &'static str) -> String {
        self.text(key, |text| if text.is_empty() { Err("must not be empty".into()) } else { Ok(text.to_owned()) })
    }

    /// A whole number within a range.
    pub fn number<T>(&mut self, key: &'static str, range: RangeInclusive<T>) -> T
    where
        T: Default + PartialOrd + Display + TryFrom<i64>,
    {
        self.text(key, |text| {
            let number = text.parse::<i64>().ok().and_then(|n| T::try_from(n).ok()).filter(|n| range.contains(n));
            number.ok_or_else(|| format!("expected a whole number from {} to {}", range.start(), range.end()))
        })
    }

    /// A duration within a range.
    pub fn duration(&mut self, key: &'static str, range: RangeInclusive<Duration>) -> Duration {
        self.text(key, |text| {
            let duration = humantime::parse_duration(text)
                .map_err(|error| format!("{error}; a duration is written like 30s, 5m or 1h 30m"))?;
            if range.contains(&duration) {
                return Ok(duration);
            }
            let (least, most) = (humantime::format_duration(*range.start()), humantime::format_duration(*range.end()));
            Err(format!("expected a duration from {least} to {most}"))
        })
    }

    /// A number of bytes within a range.
    pub fn size(&mut self, key: &'static str, range: RangeInclusive<u64>) -> u64 {
        self.text(key, |text| {
            let bytes = values::size(text)?;
            let ends = || format!("expected a size from {} to {} bytes", range.start(), range.end());
            if range.contains(&bytes) { Ok(bytes) } else { Err(ends()) }
        })
    }

    /// One of a few words, in any case.
    pub fn choice<T: Copy + Default>(&mut self, key: &'static str, choices: &[(&str, T)]) -> T {
        self.text(key, |text| {
            let word = text.to_ascii_lowercase();
            if let Some((_, choice)) = choices.iter().find(|(name, _)| *name == word) {
                return Ok(*choice);
            }
            let names: Vec<&str> = choices.iter().map(|(name, _)| *name).collect();
            let hint = nearest(&word, names.iter().copied());
            let hint = hint.map(|near| format!("; did you mean `{near}`?")).unwrap_or_default();
            Err(format!("expected one of {}{hint}", names.join(", ")))
        })
    }

    /// A list: an array in TOML, separated by commas in the environment.
    pub fn list<T: Default>(&mut self, key: &'static str, parse: impl Fn(&str) -> Result<T, String>) -> Vec<T> {
        self.value(key, |value| match value {
            Value::String(text) => text.split(',').map(str::trim).filter(|t| !t.is_empty()).map(&parse).collect(),
            Value::Array(items) => items
                .iter()
                .map(|item| match item {
                    Value::String(text) => parse(text),
                    Value::Integer(_) => parse(&item.to_string()),
                    _ => Err("expected a list of texts or whole numbers".to_owned()),
                })
                .collect(),
            _ => Err(format!("expected a list of texts, found {}", value.type_str())),
        })
    }

    /// Headers: a table in TOML, see [`values::headers`] for the environment.
    pub fn headers(&mut self, key: &'static str) -> Vec<(String, Secret)> {
        self.value(key, header_list)
    }

    /// Headers by host: a table of tables in TOML, the same as JSON in the environment. `host` reads the name of one.
    pub fn headers_by_host(
        &mut self,
        key: &'static str,
        host: impl Fn(&str) -> Result<String, String>,
    ) -> BTreeMap<String, Vec<(String, Secret)>> {
        let by_host = |table: &Table| {
            table.iter().map(|(name, headers)| Ok((host(name)?, header_list(headers)?))).collect::<Result<_, String>>()
        };
        self.value(key, |value| match value {
            Value::String(text) => by_host(&serde_json::from_str(text).map_err(|error| {
                format!("expected JSON such as {{\"host\": {{\"Name\": \"value\"}}}} (column {})", error.column())
            })?),
            Value::Table(table) => by_host(table),
            _ => Err(format!("expected a table of hosts, found {}", value.type_str())),
        })
    }

    /// Tables by name: in the environment a JSON object of objects.
    pub fn tables<T>(
        &mut self,
        key: &'static str,
        parse: impl Fn(&str, &Table) -> Result<T, String>,
    ) -> BTreeMap<String, T> {
        let read = |all: &Table| {
            let one = |(name, value): (&String, &Value)| {
                let table = value.as_table().ok_or_else(|| format!("{name}: expected a table"))?;
                parse(name, table).map(|it| (name.clone(), it)).map_err(|why| format!("{name}.{why}"))
            };
            all.iter().map(one).collect()
        };
        self.value(key, |value| match value {
            // Nothing of the text is repeated: it may be full of secrets.
            Value::String(text) => serde_json::from_str(text)
                .map_err(|error| format!("not a JSON object of objects (column {})", error.column()))
                .and_then(|all| read(&all)),
            Value::Table(all) => read(all),
            _ => Err(format!("expected tables, found {}", value.type_str())),
        })
    }

    fn value<T: Default>(&mut self, key: &'static str, parse: impl Fn(&Value) -> Result<T, String>) -> T {
        self.read.push(key);
        let Some(given) = self.settings.get(key) else { return T::default() };
        match parse(&given.value) {
            Ok(value) => value,
            Err(detail) => {
                let fault = self.fault(key, detail);
                self.faults.push(fault);
                self.defaults.get(key).and_then(|value| parse(value).ok()).unwrap_or_default()
            }
        }
    }

    fn fault(&self, key: &str, detail: impl Into<String>) -> Fault {
        let Some(given) = self.settings.get(key) else { return Fault::new("default", detail).about(key) };
        Fault::new(&given.source, detail).about(key).with_value(shown(key, &given.value))
    }
}

fn header_list(value: &Value) -> Result<Vec<(String, Secret)>, String> {
    match value {
        Value::String(text) => values::headers(text),
        Value::Table(table) => table
            .iter()
            .map(|(name, value)| values::header(name, value.as_str().ok_or("a header's value must be text")?))
            .collect(),
        _ => Err(format!("expected a table of headers, found {}", value.type_str())),
    }
}

/// A value as it may be printed.
#[must_use]
pub fn shown(key: &str, value: &Value) -> String {
    let empty = match value {
        Value::Table(table) => table.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::String(text) => text.is_empty(),
        _ => false,
    };
    if SECRET.contains(&key) && !empty {
        return "***".to_owned();
    }
    let text = value.to_string();
    if WITH_PASSWORDS.contains(&key) { redact(&text) } else { text }
}
