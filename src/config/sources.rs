//! Where settings come from, layer over layer: the embedded defaults, a TOML file, `.env`, the environment.
//!
//! Layers only say which text a setting has and who said so; what the text means is [`reader`](super::reader)'s business. All
//! of it works on texts handed in ([`Sources`]), so tests need neither files nor the process's environment.

use std::{collections::BTreeMap, fs, io::ErrorKind};

use toml::Value;

use super::fault::{Fault, nearest};

/// The manual, and the only list of settings there is.
pub const DEFAULTS: &str = include_str!("../../config/default.toml");

/// Who gave what nobody gave.
pub const DEFAULT: &str = "default";

/// Read when `COMFYD_CONFIG` names no other file.
const FILE: &str = "config/comfyd.toml";

/// Settings with a name of their own in the environment. `COMFYD_<SECTION>__<KEY>` wins over it within the same layer.
pub const NAMES: &[(&str, &str)] = &[
    ("APP_ENV", "app.env"),
    ("LOG_LEVEL", "log.level"),
    ("COMFYUI_URL", "comfyui.urls"),
    ("COMFYUI_CLIENT_ID", "comfyui.client_id"),
    ("COMFYUI_HEADERS", "comfyui.headers"),
    ("STORAGE_PROVIDER", "storage.provider"),
    ("STORAGE_LOCAL_DIR", "storage.local_dir"),
    ("S3_BUCKET_NAME", "storage.s3_bucket_name"),
    ("S3_REGION", "storage.s3_region"),
    ("S3_ENDPOINT_URL", "storage.s3_endpoint_url"),
    ("S3_ACCESS_KEY_ID", "storage.s3_access_key_id"),
    ("S3_SECRET_ACCESS_KEY", "storage.s3_secret_access_key"),
    ("S3_PUBLIC_DOMAIN", "storage.s3_public_domain"),
    ("R2_BUCKET_NAME", "storage.r2_bucket_name"),
    ("R2_ACCOUNT_ID", "storage.r2_account_id"),
    ("R2_ACCESS_KEY", "storage.r2_access_key"),
    ("R2_SECRET_KEY", "storage.r2_secret_key"),
    ("R2_PUBLIC_DOMAIN", "storage.r2_public_domain"),
    ("R2_ENDPOINT_URL", "storage.r2_endpoint_url"),
    ("GCS_BUCKET_NAME", "storage.gcs_bucket_name"),
    ("GCS_BUCKET_REGION", "storage.gcs_bucket_region"),
    ("GOOGLE_APPLICATION_CREDENTIALS", "storage.gcs_credentials"),
    ("GCS_PUBLIC_DOMAIN", "storage.gcs_public_domain"),
    ("GCS_ENDPOINT_URL", "storage.gcs_endpoint_url"),
    ("CF_IMAGES_ACCOUNT_ID", "storage.cf_images_account_id"),
    ("CF_IMAGES_API_TOKEN", "storage.cf_images_api_token"),
    ("CF_IMAGES_DELIVERY_DOMAIN", "storage.cf_images_delivery_domain"),
    ("CF_IMAGES_VARIANTS", "storage.cf_images_variants"),
    ("CF_IMAGES_API_URL", "storage.cf_images_api_url"),
    ("HOST", "server.host"),
    ("PORT", "server.port"),
    ("DATABASE_URL", "store.database_url"),
    ("DATABASE_LISTEN_URL", "store.postgres_listen_url"),
    ("CORS_ORIGINS", "server.cors_origins"),
    ("WEBHOOK_URL", "webhooks.url"),
    ("WEBHOOK_SECRETS", "webhooks.secrets"),
    ("TASK_API_URL", "consumer.api_url"),
    ("CONSUMER_TOKEN", "consumer.token"),
    ("ALLOWED_WORKFLOWS", "consumer.workflows"),
    ("OUTBOUND_ALLOW_PRIVATE", "outbound.allow_private"),
];

/// Names a `.env` shared with other versions and parts may hold. Known, and without effect here.
const ELSEWHERE: &[&str] = &["API_KEYS_REQUIRED", "COMFYD_CONFIG", "RUST_LOG", "RUST_BACKTRACE"];

/// The raw texts of all layers but the defaults.
#[derive(Debug, Default)]
pub struct Sources {
    /// The TOML file: its name and its text.
    pub file: Option<(String, String)>,
    /// The text of `.env`.
    pub dotenv: Option<String>,
    /// The process's environment.
    pub env: Vec<(String, String)>,
    /// What went wrong while gathering.
    pub faults: Vec<Fault>,
}

/// A setting's value and who gave it.
#[derive(Debug, Clone)]
pub struct Given {
    /// As written.
    pub value: Value,
    /// `default`, a file's name, or a variable's name and where it was set.
    pub source: String,
}

/// All layers merged.
#[derive(Debug, Default)]
pub struct Layers {
    /// Every setting by its `section.key`.
    pub settings: BTreeMap<String, Given>,
    /// The defaults alone.
    pub defaults: BTreeMap<String, Value>,
    /// What is wrong.
    pub faults: Vec<Fault>,
    /// What looks wrong and may be meant so.
    pub warnings: Vec<String>,
}

impl Sources {
    /// Reads the files in the working directory and the environment.
    #[must_use]
    pub fn gather() -> Self {
        let mut sources = Self::default();
        for (name, value) in std::env::vars_os() {
            // A name that is not text cannot be one of ours; a value that is not text is read lossily and found faulty later.
            let Ok(name) = name.into_string() else { continue };
            sources.env.push((name, value.to_string_lossy().into_owned()));
        }
        sources.dotenv = sources.read(".env", false);
        let named = sources.variable("COMFYD_CONFIG");
        let (path, required) = named.map_or((FILE.to_owned(), false), |path| (path, true));
        sources.file = sources.read(&path, required).map(|text| (path, text));
        sources
    }

    fn read(&mut self, path: &str, required: bool) -> Option<String> {
        match fs::read_to_string(path) {
            Ok(text) => Some(text),
            Err(error) if error.kind() == ErrorKind::NotFound && !required => None,
            // Some keep a Python environment in a folder called `.env`.
            Err(error) if error.kind() == ErrorKind::IsADirectory && !required => None,
            Err(error) => {
                self.faults.push(Fault::new(path, format!("the file cannot be read: {error}")));
                None
            }
        }
    }

    fn variable(&self, name: &str) -> Option<String> {
        let from_env =
            self.env.iter().find(|(n, value)| n == name && !value.is_empty()).map(|(_, value)| value.clone());
        from_env.or_else(|| {
            let (pairs, _) = parse_dotenv(self.dotenv.as_deref()?);
            pairs.into_iter().find(|(n, value)| n == name && !value.is_empty()).map(|(_, value)| value)
        })
    }
}

/// Lays all sources over the defaults.
#[must_use]
pub fn merge(sources: Sources) -> Layers {
    let mut layers = Layers { faults: sources.faults, ..Layers::default() };
    layers.add_toml(DEFAULT, DEFAULTS);
    layers.defaults = layers.settings.iter().map(|(key, given)| (key.clone(), given.value.clone())).collect();
    if let Some((name, text)) = &sources.file {
        layers.add_toml(name, text);
    }
    if let Some(text) = &sources.dotenv {
        let (pairs, faults) = parse_dotenv(text);
        layers.faults.extend(faults);
        layers.warn_of_near_misses(&pairs);
        layers.add_environment(".env", pairs);
    }
    layers.add_environment("environment", sources.env);
    layers
}

impl Layers {
    fn add_toml(&mut self, source: &str, text: &str) {
        let table: toml::Table = match text.parse() {
            Ok(table) => table,
            Err(error) => return self.faults.push(Fault::new(source, syntax(text, &error))),
        };
        for (section, content) in table {
            let Value::Table(keys) = content else {
                self.unknown(source, &section);
                continue;
            };
            let known = |key: &String| key.starts_with(&format!("{section}."));
            if !self.defaults.is_empty() && !self.defaults.keys().any(known) {
                self.unknown(source, &section);
                continue;
            }
            for (key, value) in keys {
                let key = format!("{section}.{key}");
                if self.defaults.is_empty() || self.defaults.contains_key(&key) {
                    self.settings.insert(key, Given { value, source: source.to_owned() });
                } else {
                    self.unknown(source, &key);
                }
            }
        }
    }

    fn unknown(&mut self, source: &str, key: &str) {
        let sections = self.defaults.keys().filter_map(|key| key.split('.').next());
        let suggestion = nearest(key, self.defaults.keys().map(String::as_str).chain(sections));
        self.faults.push(Fault::new(source, "there is no such setting").about(key).suggesting(suggestion));
    }

    fn add_environment(&mut self, layer: &str, pairs: Vec<(String, String)>) {
        let given: BTreeMap<String, String> = pairs.into_iter().filter(|(_, value)| !value.is_empty()).collect();
        for &(name, key) in NAMES {
            if let Some(value) = given.get(name) {
                self.set(key, value, layer, name);
            }
        }
        for (name, value) in given.iter().filter(|(name, value)| is_ours(name, value)) {
            match self.defaults.keys().find(|key| variable_of(key) == **name).cloned() {
                Some(key) => self.set(&key, value, layer, name),
                None => self.unknown_variable(layer, name),
            }
        }
    }

    fn set(&mut self, key: &str, value: &str, layer: &str, name: &str) {
        let given = Given { value: Value::String(value.to_owned()), source: format!("{layer}: {name}") };
        self.settings.insert(key.to_owned(), given);
    }

    fn unknown_variable(&mut self, layer: &str, name: &str) {
        let known: Vec<String> = self.defaults.keys().map(|key| variable_of(key)).collect();
        let suggestion = nearest(name, known.iter().map(String::as_str).chain(["COMFYD_CONFIG"]));
        self.faults.push(Fault::new(layer, "there is no such setting").about(name).suggesting(suggestion));
    }

    /// `.env` may hold names of other programs, so a name that only looks like one of ours is no fault.
    fn warn_of_near_misses(&mut self, pairs: &[(String, String)]) {
        let known: Vec<&str> = NAMES.iter().map(|(name, _)| *name).chain(ELSEWHERE.iter().copied()).collect();
        for (name, _) in pairs {
            if known.contains(&name.as_str()) || name.starts_with("COMFYD_") {
                continue;
            }
            if let Some(near) = nearest(name, known.iter().copied()) {
                self.warnings.push(format!(".env: {name} is not known; did you mean {near}?"));
            }
        }
    }
}

/// The environment's name of a setting.
#[must_use]
pub fn variable_of(key: &str) -> String {
    format!("COMFYD_{}", key.replace('.', "__").to_ascii_uppercase())
}

/// The shorter name of a setting, if it has one.
#[must_use]
pub fn short_name_of(key: &str) -> Option<&'static str> {
    NAMES.iter().find(|(_, k)| *k == key).map(|(name, _)| *name)
}

/// Whether a variable claims to be a setting of ours. Kubernetes sets `COMFYD_PORT`, `COMFYD_SERVICE_HOST`, `COMFYD_API_PORT_8000_TCP` and the
/// like in every pod beside services named "comfyd" and "comfyd-api"; those are not meant for us. `COMFYD_SERVER_PORT=9000` is: somebody
/// wrote one `_` too few, and is told.
fn is_ours(name: &str, value: &str) -> bool {
    let Some(rest) = name.strip_prefix("COMFYD_") else { return false };
    if rest.contains("__") {
        return true;
    }
    let is_address = ["tcp://", "udp://", "sctp://"].iter().any(|scheme| value.starts_with(scheme));
    // After the name of a service, if that is not all of ours.
    let of_service = |word: &str| rest.starts_with(word) || rest.contains(&format!("_{word}"));
    let is_part = ["PORT_", "SERVICE_HOST", "SERVICE_PORT"].into_iter().any(of_service);
    !(rest == "CONFIG" || is_part || rest.starts_with("PORT") || rest.starts_with("SERVICE_") || is_address)
}

/// Reads `.env` to its end: a faulty line is reported and the lines after it still count.
fn parse_dotenv(text: &str) -> (Vec<(String, String)>, Vec<Fault>) {
    let (mut pairs, mut faults) = (Vec::new(), Vec::new());
    for item in dotenvy::from_read_iter(text.as_bytes()) {
        match item {
            Ok(pair) => pairs.push(pair),
            Err(dotenvy::Error::LineParse(line, _)) => faults.push(bad_line(text, &line)),
            Err(error) => {
                faults.push(Fault::new(".env", format!("the file cannot be read: {error}")));
                break;
            }
        }
    }
    (pairs, faults)
}

/// Names the line and the variable, if it has a name, and prints nothing else of it: it may be a secret.
fn bad_line(text: &str, at_fault: &str) -> Fault {
    let detail = "the line cannot be read: write NAME=value, with the value in single quotes when it has spaces, `#`, `$` or quotes";
    let Some((index, line)) = text.lines().enumerate().find(|(_, line)| line.contains(at_fault.trim())) else {
        return Fault::new(".env", detail);
    };
    let fault = Fault::new(format!(".env:{}", index + 1), detail);
    let is_name = |name: &str| name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    match line.split_once('=') {
        Some((name, _)) if is_name(name.trim()) => fault.about(name.trim()),
        _ => fault,
    }
}

/// A syntax error with its line, but without the line itself: it may hold a secret.
fn syntax(text: &str, error: &toml::de::Error) -> String {
    let line = error.span().and_then(|span| text.get(..span.start)).map_or(1, |before| before.lines().count().max(1));
    format!("line {line}: {}", error.message())
}
