//! `webhook_url` of a task to be created: who is told of it, and of what.

use std::sync::Arc;

use comfyd_actors::{
    bridge::TaskRequest,
    domain::{
        webhook::{Events, Webhook},
        workflow::type_of,
    },
};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::HttpConfig;
use crate::{config, outbound::Policy};

/// There are no more stages.
const MAX_EVENTS: usize = 9;

// Documents the body only: it is read by hand, see `read`.
/// A URL, or a URL and what it is told of.
#[derive(ToSchema)]
#[schema(as = WebhookUrl)]
#[serde(untagged)]
#[expect(dead_code, reason = "the OpenAPI document is made from it")]
pub enum WebhookUrl {
    /// Told when the task is over, however it ended.
    Url(String),
    /// Told of more, or of less.
    Webhook(WebhookBody),
}

/// Who is told of a task, and of what.
#[derive(ToSchema)]
#[schema(as = Webhook)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "the OpenAPI document is made from it")]
pub struct WebhookBody {
    /// Where messages are sent: public and https, unless the operator allows more (`outbound`).
    #[schema(example = "https://app.example.org/hooks/comfyd")]
    url: String,
    /// What they tell; without it the ends (`task.completed`, `task.failed`, `task.cancelled`).
    #[schema(example = json!(["task.executing", "task.completed"]))]
    events: Option<Vec<String>>,
}

/// Reads the field.
///
/// # Errors
/// What is wrong with it: its form, or that its URL can never be told anything.
pub fn read(value: &Value, policy: &Policy) -> Result<Webhook, String> {
    let (url, events) = match value {
        Value::String(url) => (url, Events::default()),
        Value::Object(fields) => (url(fields)?, events(fields)?),
        other => return Err(format!("expected a URL, or an object with `url` and `events`, found {}", type_of(other))),
    };
    let target = policy.read(url).map_err(|refusal| format!("it cannot be told anything: {refusal}"))?;
    Ok(Webhook { url: target.url().as_str().to_owned(), events })
}

fn url(fields: &Map<String, Value>) -> Result<&String, String> {
    if let Some(unknown) = fields.keys().find(|name| !matches!(name.as_str(), "url" | "events")) {
        return Err(format!("there is no field `{unknown}`: only `url` and `events`"));
    }
    match fields.get("url") {
        Some(Value::String(url)) => Ok(url),
        _ => Err("`url` must be there, and text".to_owned()),
    }
}

fn events(fields: &Map<String, Value>) -> Result<Events, String> {
    match fields.get("events") {
        None | Some(Value::Null) => Ok(Events::default()),
        Some(Value::Array(names)) if (1..=MAX_EVENTS).contains(&names.len()) => {
            names.iter().map(|name| config::event(name.as_str().unwrap_or_default())).collect()
        }
        Some(_) => Err(format!("`events` must be a list of 1 to {MAX_EVENTS} types of messages")),
    }
}

/// A task that names no webhook gets the service's own.
#[must_use]
pub fn or_default(config: &HttpConfig, mut request: TaskRequest) -> TaskRequest {
    if let (None, Some(webhook)) = (&request.payload.options.webhook, &config.webhook) {
        Arc::make_mut(&mut request.payload.options).webhook = Some(webhook.clone());
    }
    request
}

#[cfg(test)]
mod tests {
    use comfyd_actors::domain::event::Stage;
    use serde_json::json;

    use super::*;

    const URL: &str = "https://a.example/x";

    fn read(value: &Value) -> Result<Webhook, String> {
        super::read(value, &Policy::default())
    }

    #[test]
    fn a_url_alone_is_told_of_the_end() {
        let webhook = read(&json!("https://A.example/x#top")).unwrap();
        assert_eq!((webhook.url.as_str(), webhook.events), (URL, Events::default()));
        let webhook = read(&json!({"url": URL, "events": ["task.failed", "task.queued"]})).unwrap();
        assert_eq!(Vec::from(webhook.events), [Stage::Queued, Stage::Failed]);
        assert_eq!(read(&json!({"url": URL, "events": null})).unwrap().events, Events::default());
    }

    #[test]
    fn what_is_no_webhook_says_why() {
        for (given, word) in [
            (json!(7), "found a number"),
            (json!({}), "`url`"),
            (json!({"url": 7}), "`url`"),
            (json!({"url": URL, "secret": "s"}), "`secret`"),
            (json!({"url": URL, "events": []}), "1 to 9"),
            (json!({"url": URL, "events": ["task.complete"]}), "did you mean `task.completed`"),
            (json!({"url": URL, "events": [7]}), "task.completed"),
            (json!("http://a.example/x"), "only https"),
            (json!({"url": "https://10.0.0.1/"}), "not a public address"),
        ] {
            let fault = read(&given).unwrap_err();
            assert!(fault.contains(word), "{given}: {fault}");
        }
    }
}
