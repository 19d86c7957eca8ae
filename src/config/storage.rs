//! `[storage]`: the targets, each built from plain texts, whether they come from settings of their own (`R2_BUCKET_NAME`) or from a table
//! (`[storage.targets.archive]`).

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use comfyd_actors::domain::storage::{LOCAL, is_name, prefix};
use toml::{Table, Value};
use url::Url;

use super::{
    fault::nearest,
    reader::Reader,
    sections::{MONTH, MS, secs},
    values::Secret,
};

/// A presigned link of S3 and Google lives at most this long.
const WEEK: Duration = secs(7 * 86_400);

/// `[storage]`
#[derive(Debug, Clone)]
pub struct Storage {
    /// The folder of target `local`, in which inputs are kept too.
    pub local_dir: PathBuf,
    /// By name; `local` is always there.
    pub targets: BTreeMap<String, TargetConfig>,
    /// What a task gets that does not say.
    pub usual: String,
    /// What takes over from one that has been away for so long.
    pub fallback: Option<(String, Duration)>,
    /// How long a presigned link works.
    pub link_ttl: Duration,
    /// Longest wait for a connection.
    pub connect_timeout: Duration,
    /// Longest wait for an answer to one request.
    pub request_timeout: Duration,
}

/// One target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TargetConfig {
    /// What it is.
    pub kind: Kind,
    /// What all keys there begin with.
    pub prefix: String,
    /// The target that gets what this one does not hold.
    pub others: Option<String>,
}

impl TargetConfig {
    /// Where it is, if it is told.
    #[must_use]
    pub fn address(&self) -> Option<String> {
        match &self.kind {
            Kind::Local { .. } => None,
            Kind::S3(S3 { endpoint, .. }) | Kind::Gcs(Gcs { endpoint, .. }) => endpoint.clone(),
            Kind::CfImages(CfImages { api, .. }) => Some(api.clone()),
        }
    }
}

/// What a target is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A folder.
    Local {
        /// Which.
        dir: PathBuf,
    },
    /// A bucket of S3, R2 or what speaks like them.
    S3(S3),
    /// A bucket of Google Cloud Storage.
    Gcs(Gcs),
    /// Cloudflare Images.
    CfImages(CfImages),
}

/// A bucket of S3, R2 or what speaks like them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct S3 {
    /// Its name.
    pub bucket: String,
    /// Its region.
    pub region: String,
    /// Where the service is; `None` = Amazon, in that region.
    pub endpoint: Option<String>,
    /// Who we are.
    pub access_key: String,
    /// The proof.
    pub secret_key: Secret,
    /// Where anybody can read it; `None` = links are signed.
    pub public_url: Option<String>,
    /// Whether the service knows `If-None-Match` on a put.
    pub if_none_match: bool,
}

/// A bucket of Google Cloud Storage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gcs {
    /// Its name.
    pub bucket: String,
    /// The file with the key of a service account.
    pub credentials: PathBuf,
    /// Where the service is; `None` = Google.
    pub endpoint: Option<String>,
    /// Where anybody can read it; `None` = links are signed.
    pub public_url: Option<String>,
}

/// Cloudflare Images.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CfImages {
    /// The account.
    pub account: String,
    /// What lets us in.
    pub token: Secret,
    /// A domain of the account that delivers the images; `None` = imagedelivery.net.
    pub delivery: Option<String>,
    /// Where the API is.
    pub api: String,
    /// The variants that are linked to; the first is what `url` leads to.
    pub variants: Vec<String>,
}

/// The settings of a provider: the field in a table, and the setting that stands for it outside of one. The first says that the provider
/// is meant at all: credentials alone may be there for another program.
type Provider = (&'static str, &'static [(&'static str, &'static str)]);

const PROVIDERS: [Provider; 4] = [
    (
        "s3",
        &[
            ("bucket_name", "storage.s3_bucket_name"),
            ("region", "storage.s3_region"),
            ("endpoint_url", "storage.s3_endpoint_url"),
            ("access_key_id", "storage.s3_access_key_id"),
            ("secret_access_key", "storage.s3_secret_access_key"),
            ("public_domain", "storage.s3_public_domain"),
            ("if_none_match", "storage.s3_if_none_match"),
        ],
    ),
    (
        "r2",
        &[
            ("bucket_name", "storage.r2_bucket_name"),
            ("account_id", "storage.r2_account_id"),
            ("access_key", "storage.r2_access_key"),
            ("secret_key", "storage.r2_secret_key"),
            ("public_domain", "storage.r2_public_domain"),
            ("endpoint_url", "storage.r2_endpoint_url"),
        ],
    ),
    (
        "gcs",
        &[
            ("bucket_name", "storage.gcs_bucket_name"),
            ("bucket_region", "storage.gcs_bucket_region"),
            ("credentials", "storage.gcs_credentials"),
            ("public_domain", "storage.gcs_public_domain"),
            ("endpoint_url", "storage.gcs_endpoint_url"),
        ],
    ),
    (
        "cf_images",
        &[
            ("account_id", "storage.cf_images_account_id"),
            ("api_token", "storage.cf_images_api_token"),
            ("delivery_domain", "storage.cf_images_delivery_domain"),
            ("variants", "storage.cf_images_variants"),
            ("api_url", "storage.cf_images_api_url"),
        ],
    ),
];

/// Reads the section.
pub(super) fn storage(r: &mut Reader) -> Storage {
    let local_dir: PathBuf = r.plain("storage.local_dir").into();
    let usual = r.plain("storage.provider");
    let (own_prefix, own_others) = (r.text("storage.prefix", prefix), r.text("storage.others", optional));
    let mut targets = BTreeMap::new();
    let mut add = |name: &str, kind| {
        let (prefix, others) =
            if name == usual { (own_prefix.clone(), own_others.clone()) } else { Default::default() };
        targets.insert(name.to_owned(), TargetConfig { kind, prefix, others });
    };
    add(LOCAL, Kind::Local { dir: local_dir.clone() });
    for (provider, settings) in PROVIDERS {
        let fields = settings.iter().map(|(field, key)| (*field, r.text(key, |text| Ok(text.to_owned()))));
        let fields = Fields(fields.filter(|(_, text)| !text.is_empty()).collect());
        let meant = settings.first().is_some_and(|(first, _)| fields.0.contains_key(first));
        if usual != provider && !meant {
            continue;
        }
        match kind(provider, &fields) {
            Ok(kind) => add(provider, kind),
            Err(faults) if usual == provider => {
                for (field, detail) in faults {
                    let key =
                        settings.iter().find(|(name, _)| *name == field).map_or("storage.provider", |(_, key)| key);
                    r.demand(false, &[key], detail);
                }
            }
            // Nobody asked for it, so it is no reason not to start.
            Err(_) => {}
        }
    }
    targets.extend(r.tables("storage.targets", table));
    let after = r.duration("storage.fallback_after", MS..=MONTH);
    let storage = Storage {
        local_dir,
        targets,
        usual,
        fallback: r.text("storage.fallback", optional).map(|name| (name, after)),
        link_ttl: r.duration("storage.link_ttl", secs(1)..=WEEK),
        connect_timeout: r.duration("storage.connect_timeout", MS..=secs(600)),
        request_timeout: r.duration("storage.request_timeout", MS..=secs(3_600)),
    };
    demand_names(r, &storage);
    storage
}

/// Every name leads to a target.
fn demand_names(r: &mut Reader, storage: &Storage) {
    let known: Vec<&str> = storage.targets.keys().map(String::as_str).chain(PROVIDERS.map(|(name, _)| name)).collect();
    let hint = |name: &str| {
        nearest(name, known.iter().copied()).map(|near| format!("; did you mean `{near}`?")).unwrap_or_default()
    };
    let usual = &storage.usual;
    let provider = PROVIDERS.iter().any(|(name, _)| name == usual);
    r.demand(
        provider || storage.targets.contains_key(usual),
        &["storage.provider", "storage.targets"],
        format!("expected local, s3, r2, gcs, cf_images or the name of a target in storage.targets{}", hint(usual)),
    );
    for (key, name) in [
        ("storage.fallback", storage.fallback.as_ref().map(|(name, _)| name)),
        ("storage.others", storage.targets.get(usual).and_then(|target| target.others.as_ref())),
    ] {
        let Some(name) = name else { continue };
        let there = storage.targets.contains_key(name);
        let detail = format!(
            "there is no storage target `{name}`; name it in storage.targets, or a provider whose settings are given{}",
            hint(name)
        );
        r.demand(
            there && name != usual,
            &[key, "storage.targets", "storage.provider"],
            if there { "must be another target than storage.provider".to_owned() } else { detail },
        );
    }
    for (name, target) in storage.targets.iter().filter(|(name, _)| *name != usual) {
        let Some(others) = &target.others else { continue };
        r.demand(
            others != name && storage.targets.contains_key(others),
            &["storage.targets"],
            format!("{name}.others: there is no other storage target `{others}`{}", hint(others)),
        );
    }
}

impl Storage {
    /// What works and may not be meant so.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        let pictures_only = |target: &TargetConfig| matches!(target.kind, Kind::CfImages(_)) && target.others.is_none();
        let named = self.targets.iter().filter(|(_, target)| pictures_only(target));
        named
            .map(|(name, _)| {
                format!(
                    "the storage target {name} takes pictures only: a task that makes a video, sound or text for it fails. Name a \
                     second target for those (storage.others, or `others` of the target)"
                )
            })
            .collect()
    }
}

/// A field at fault, and what is wrong with it.
type FieldFault = (&'static str, String);

/// The fields of a target that are given.
struct Fields<'a>(BTreeMap<&'a str, String>);

impl Fields<'_> {
    fn get(&self, field: &str) -> Option<&str> {
        self.0.get(field).map(String::as_str)
    }

    fn required(&self, field: &'static str, faults: &mut Vec<FieldFault>) -> String {
        self.get(field).map_or_else(
            || {
                faults.push((field, "required for this storage".to_owned()));
                String::new()
            },
            str::to_owned,
        )
    }

    fn read<T>(
        &self,
        field: &'static str,
        parse: impl Fn(&str) -> Result<T, String>,
        faults: &mut Vec<FieldFault>,
    ) -> Option<T> {
        self.get(field).and_then(|text| parse(text).map_err(|detail| faults.push((field, detail))).ok())
    }
}

fn kind(provider: &str, fields: &Fields<'_>) -> Result<Kind, Vec<FieldFault>> {
    let mut faults = Vec::new();
    let f = &mut faults;
    let kind = match provider {
        "s3" => Kind::S3(S3 {
            bucket: fields.required("bucket_name", f),
            region: fields.get("region").unwrap_or("us-east-1").to_owned(),
            endpoint: fields.read("endpoint_url", endpoint, f),
            access_key: fields.required("access_key_id", f),
            secret_key: Secret::new(fields.required("secret_access_key", f)),
            public_url: fields.read("public_domain", domain, f),
            if_none_match: fields.read("if_none_match", truth, f).unwrap_or(true),
        }),
        "r2" => {
            let endpoint = fields.read("endpoint_url", endpoint, f);
            let account = |f: &mut _| format!("https://{}.r2.cloudflarestorage.com", fields.required("account_id", f));
            Kind::S3(S3 {
                bucket: fields.required("bucket_name", f),
                region: "auto".to_owned(),
                endpoint: Some(endpoint.unwrap_or_else(|| account(f))),
                access_key: fields.required("access_key", f),
                secret_key: Secret::new(fields.required("secret_key", f)),
                public_url: fields.read("public_domain", domain, f),
                if_none_match: true,
            })
        }
        "gcs" => Kind::Gcs(Gcs {
            bucket: fields.required("bucket_name", f),
            credentials: fields.required("credentials", f).into(),
            endpoint: fields.read("endpoint_url", endpoint, f),
            public_url: fields.read("public_domain", domain, f),
        }),
        "cf_images" => Kind::CfImages(CfImages {
            account: fields.required("account_id", f),
            token: Secret::new(fields.required("api_token", f)),
            delivery: fields.read("delivery_domain", domain, f),
            api: fields.read("api_url", endpoint, f).unwrap_or_else(|| CF_API.to_owned()),
            variants: fields.read("variants", variants, f).unwrap_or_else(|| vec!["public".to_owned()]),
        }),
        "local" => Kind::Local { dir: fields.required("dir", f).into() },
        _ => {
            f.push(("provider", "expected local, s3, r2, gcs or cf_images".to_owned()));
            Kind::Local { dir: PathBuf::new() }
        }
    };
    if faults.is_empty() { Ok(kind) } else { Err(faults) }
}

/// Cloudflare's API.
const CF_API: &str = "https://api.cloudflare.com/client/v4";

/// A table of `storage.targets`.
fn table(name: &str, table: &Table) -> Result<TargetConfig, String> {
    if !is_name(name) {
        return Err("a target's name is made of lowercase letters, digits, `-` and `_`".to_owned());
    }
    let mut texts = BTreeMap::new();
    for (field, value) in table {
        let text = match value {
            Value::String(text) => text.trim().to_owned(),
            Value::Boolean(_) => value.to_string(),
            _ => return Err(format!("{field}: expected text, found {}", value.type_str())),
        };
        if !text.is_empty() {
            texts.insert(field.as_str(), text);
        }
    }
    let own_prefix = texts
        .remove("prefix")
        .map_or(Ok(String::new()), |text| prefix(&text).map_err(|why| format!("prefix: {why}")))?;
    let others = texts.remove("others");
    let provider = texts.remove("provider").ok_or("provider: required; one of local, s3, r2, gcs, cf_images")?;
    let settings = PROVIDERS.iter().find(|(known, _)| *known == provider).map_or(&[][..], |(_, settings)| settings);
    let known: Vec<&str> =
        settings.iter().map(|(field, _)| *field).chain((provider == LOCAL).then_some("dir")).collect();
    if let Some(unknown) = texts.keys().find(|field| !known.contains(*field) && !known.is_empty()) {
        let hint =
            nearest(unknown, known.iter().copied()).map(|near| format!("; did you mean `{near}`?")).unwrap_or_default();
        return Err(format!("{unknown}: there is no such field for provider {provider}{hint}"));
    }
    let kind = kind(&provider, &Fields(texts)).map_err(|faults| {
        faults.iter().map(|(field, detail)| format!("{field}: {detail}")).collect::<Vec<_>>().join("; ")
    })?;
    Ok(TargetConfig { kind, prefix: own_prefix, others })
}

#[expect(clippy::unnecessary_wraps, reason = "it reads a setting, and those may fail")]
fn optional(text: &str) -> Result<Option<String>, String> {
    Ok((!text.is_empty()).then(|| text.to_owned()))
}

fn truth(text: &str) -> Result<bool, String> {
    text.parse().map_err(|_| "expected true or false".to_owned())
}

fn endpoint(text: &str) -> Result<String, String> {
    let url =
        Url::parse(text).map_err(|error| format!("{error}; write an address like https://storage.example.org"))?;
    let plain =
        url.query().is_none() && url.fragment().is_none() && url.username().is_empty() && url.password().is_none();
    if matches!(url.scheme(), "http" | "https") && plain {
        Ok(url.as_str().trim_end_matches('/').to_owned())
    } else {
        Err("expected an http or https address without user, `?` or `#`".to_owned())
    }
}

/// A domain, with or without a scheme: https unless it says otherwise.
fn domain(text: &str) -> Result<String, String> {
    endpoint(&if text.contains("://") { text.to_owned() } else { format!("https://{text}") })
}

fn variants(text: &str) -> Result<Vec<String>, String> {
    let names: Vec<String> =
        text.split(',').map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned).collect();
    // Flexible variants are written like "w=400,sharpen=3", which is a list already: they have to be named at Cloudflare.
    let plain = |name: &String| {
        name.len() <= 99 && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
    };
    if !names.is_empty() && names.iter().all(plain) {
        Ok(names)
    } else {
        Err("expected names of variants, comma-separated: letters, digits, `-` and `_`".to_owned())
    }
}
