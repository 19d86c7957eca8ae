//! `[webhooks]`: who is told of what happens to tasks, and how.

use std::time::Duration;

use base64::{Engine, engine::general_purpose::STANDARD};
use comfyd_actors::{
    domain::{
        event::Stage,
        webhook::{Events, Policy, Webhook, event_type},
    },
    webhooks::HookSettings,
};

use super::{
    fault::nearest,
    reader::Reader,
    sections::{self, MS, secs},
    values::Secret,
};
use crate::outbound;

/// What the Standard Webhooks specification asks of a secret, in bytes.
const SECRET_BYTES: std::ops::RangeInclusive<usize> = 24..=64;
/// A receiver that needs longer should answer first and work later.
const LONGEST_TRY: Duration = secs(120);
/// Beyond the longest try: what it takes to read the task and to note what came of it.
const LEASE_SLACK: Duration = secs(5);
const MONTH: Duration = secs(30 * 86_400);

/// `[webhooks]`
#[derive(Debug, Clone)]
pub struct Webhooks {
    /// Told of tasks that name nobody.
    pub url: Option<Secret>,
    /// Of what.
    pub events: Events,
    /// What messages are signed with.
    pub secrets: Vec<SigningKey>,
    /// Longest wait for an answer.
    pub timeout: Duration,
    /// When messages are sent.
    pub settings: HookSettings,
}

impl Webhooks {
    /// Who is told of tasks that name nobody, if that is allowed; that it is was found when the configuration was read.
    #[must_use]
    pub fn webhook(&self, policy: &outbound::Policy) -> Option<Webhook> {
        let target = policy.read(self.url.as_ref()?.expose()).ok()?;
        Some(Webhook { url: target.url().as_str().to_owned(), events: self.events })
    }
}

/// A key of at least 24 bytes. Never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct SigningKey(Vec<u8>);

impl SigningKey {
    /// Reads `whsec_` and the key in base64.
    ///
    /// # Errors
    /// What is expected, without what was given.
    pub fn parse(text: &str) -> Result<Self, String> {
        let key = text.strip_prefix("whsec_").and_then(|key| STANDARD.decode(key).ok());
        key.filter(|key| SECRET_BYTES.contains(&key.len())).map(Self).ok_or_else(|| {
            "a secret is `whsec_` and 24 to 64 random bytes in base64: echo whsec_$(openssl rand -base64 32)".to_owned()
        })
    }

    /// The key, for who signs.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl std::fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}

pub(super) fn webhooks(r: &mut Reader) -> Webhooks {
    let url: Option<Secret> = r.text("webhooks.url", |text| Ok((!text.is_empty()).then(|| Secret::new(text))));
    let events = r.list("webhooks.events", |text| event(text).map(Some));
    let secrets = r.list("webhooks.secrets", |text| SigningKey::parse(text).map(Some));
    let timeout = r.duration("webhooks.timeout", MS..=LONGEST_TRY);
    let policy = Policy {
        schedule: r.list("webhooks.schedule", pause).into(),
        parallel: r.number("webhooks.parallel_per_endpoint", 1..=1_000),
        lease: timeout + LEASE_SLACK,
        failures: r.number("webhooks.failures", 1..=1_000_000),
        pause: sections::backoff(r, "webhooks.pause_base", "webhooks.pause_cap"),
    };
    Webhooks {
        url,
        events: events.into_iter().flatten().collect(),
        secrets: secrets.into_iter().flatten().collect(),
        timeout,
        settings: HookSettings { parallel: r.number("webhooks.parallel", 1..=10_000), policy },
    }
}

/// Reads the type of a message.
///
/// # Errors
/// There is none of that name.
pub fn event(text: &str) -> Result<Stage, String> {
    Stage::ALL.into_iter().find(|stage| event_type(*stage) == text).ok_or_else(|| {
        let hint = nearest(text, Stage::ALL.map(event_type)).map(|near| format!("; did you mean `{near}`?"));
        format!("expected one of {}{}", Stage::ALL.map(event_type).join(", "), hint.unwrap_or_default())
    })
}

fn pause(text: &str) -> Result<Duration, String> {
    let pause =
        humantime::parse_duration(text).map_err(|error| format!("{error}; a pause is written like 5s or 2h"))?;
    if pause <= MONTH { Ok(pause) } else { Err("a pause is at most 30 days".to_owned()) }
}
