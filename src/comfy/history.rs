//! Reads how a prompt ended: entries of `/history` and answers of `/api/jobs/{id}` (protocol 5). Pure.
//!
//! Only what is needed is parsed; graphs and exception inputs, which are most of the bytes, are skipped over.

use std::{borrow::Cow, collections::BTreeMap};

use comfyd_actors::domain::{
    error::{ErrorCode, TaskError},
    id::PromptId,
    prompt::{Finished, NodeOutput, Outcome},
};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{outputs, redact};

/// An answer that is not ComfyUI's, or a ComfyUI's from a future we do not know.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Odd(pub String);

impl Odd {
    pub(super) fn json(what: &str, error: &serde_json::Error) -> Self {
        Self(format!("the answer is not {what}: {error}"))
    }
}

/// A part of a document, not parsed yet.
pub(super) type Raw<'a> = &'a RawValue;

/// A `/history` answer: entries by prompt id, in no particular order.
pub(super) type Entries<'a> = BTreeMap<Cow<'a, str>, Raw<'a>>;

#[derive(Deserialize)]
struct Entry<'a> {
    /// `[number, id, graph, extra_data, output node ids]`.
    #[serde(borrow)]
    prompt: Option<Vec<Raw<'a>>>,
    #[serde(borrow)]
    outputs: Option<Raw<'a>>,
    #[serde(borrow)]
    status: Option<Status<'a>>,
    #[serde(borrow)]
    meta: Option<Raw<'a>>,
}

/// How the run ended; `/api/jobs` calls it `execution_status`.
#[derive(Deserialize)]
pub(super) struct Status<'a> {
    #[serde(borrow)]
    status_str: Option<Cow<'a, str>>,
    /// Pairs of an event's name and its data.
    #[serde(borrow)]
    messages: Option<Vec<Raw<'a>>>,
}

/// Reads the answer of `/history/{prompt}`. `None` when the server has no entry (`{}`).
///
/// # Errors
/// When the text is not a history.
pub fn answer(text: &str, prompt: &PromptId) -> Result<Option<Finished>, Odd> {
    entries(text)?.get(prompt.as_str()).map(|raw| entry(raw.get(), prompt)).transpose()
}

pub(super) fn entries(text: &str) -> Result<Entries<'_>, Odd> {
    serde_json::from_str(text).map_err(|error| Odd::json("a history", &error))
}

/// Reads one entry of the history.
///
/// # Errors
/// When the text is not a history entry.
pub fn entry(text: &str, prompt: &PromptId) -> Result<Finished, Odd> {
    let Entry { prompt: tuple, outputs, status, meta } =
        serde_json::from_str(text).map_err(|error| Odd::json("a history entry", &error))?;
    let names = outputs::Names::new(meta, tuple.as_ref().and_then(|tuple| tuple.get(2).copied()));
    let outcome = status.map_or_else(unclear, |status| status.outcome());
    Ok(finished(prompt, outcome, outputs::collect(outputs, &names)?))
}

/// Puts an end together. More outputs than anybody makes is an attack or a fault, and no success.
pub(super) fn finished(
    prompt: &PromptId,
    outcome: Outcome,
    outputs: Result<Vec<NodeOutput>, outputs::Unbelievable>,
) -> Finished {
    let prompt = prompt.clone();
    match outputs {
        Ok(outputs) => Finished { prompt, outcome, outputs },
        Err(unbelievable) => {
            let error = TaskError::new(ErrorCode::BackendError, unbelievable.to_string());
            let outcome = Outcome::Failed(error.permanent());
            Finished { prompt, outcome, outputs: Vec::new() }
        }
    }
}

impl Status<'_> {
    /// The last terminal message decides: failed and interrupted runs both carry `status_str: "error"`. Success needs the
    /// word of `status_str` as well.
    pub(super) fn outcome(&self) -> Outcome {
        let messages = self.messages.as_deref().unwrap_or_default();
        match messages.iter().rev().find_map(|message| terminal(message.get())) {
            Some(Terminal::Interrupted) => Outcome::Interrupted,
            Some(Terminal::Failed(error)) => Outcome::Failed(error),
            Some(Terminal::Success) | None if self.status_str.as_deref() == Some("success") => Outcome::Success,
            Some(Terminal::Success) | None => unclear(),
        }
    }
}

fn unclear() -> Outcome {
    Outcome::Failed(TaskError::new(
        ErrorCode::BackendError,
        "the server's history does not say how the run ended; look into the server's log",
    ))
}

enum Terminal {
    Success,
    Interrupted,
    Failed(TaskError),
}

/// A message that ends a run. A blocked branch is told as an error too, but the run goes on (protocol 6.4).
fn terminal(message: &str) -> Option<Terminal> {
    let (name, data): (Cow<'_, str>, Raw<'_>) = serde_json::from_str(message).ok()?;
    match &*name {
        "execution_success" => Some(Terminal::Success),
        "execution_interrupted" => Some(Terminal::Interrupted),
        "execution_error" => exception(data.get()).map(Terminal::Failed),
        _ => None,
    }
}

/// Reads the data of an `execution_error`. `None` for a blocked branch.
pub(super) fn exception(data: &str) -> Option<TaskError> {
    #[derive(Default, Deserialize)]
    struct Exception {
        exception_type: Option<String>,
        exception_message: Option<String>,
        node_id: Option<String>,
        node_type: Option<String>,
    }
    // An error we cannot read is still an error.
    let Exception { exception_type, exception_message, node_id, node_type } =
        serde_json::from_str(data).unwrap_or_default();
    let exception_type = exception_type.unwrap_or_else(|| "Error".to_owned());
    let message = redact::text(exception_message.as_deref().unwrap_or_default());
    let (node_id, node_type) = (redact::name(node_id), redact::name(node_type));
    (exception_type != "ExecutionBlocked")
        .then(|| TaskError::from_exception(&redact::text(&exception_type), &message, node_id, node_type))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn outcome(status: &str) -> Outcome {
        entry(&format!(r#"{{"outputs": {{}}, "status": {status}}}"#), &PromptId::new("p")).unwrap().outcome
    }

    #[test]
    fn the_last_terminal_message_decides() {
        let success = r#"["execution_success", {}]"#;
        let blocked = r#"["execution_error", {"exception_type": "ExecutionBlocked"}]"#;
        let stopped = r#"["execution_interrupted", {}]"#;
        assert_eq!(
            outcome(&format!(r#"{{"status_str": "success", "messages": [{success}, {blocked}]}}"#)),
            Outcome::Success
        );
        assert_eq!(outcome(&format!(r#"{{"status_str": "error", "messages": [{stopped}]}}"#)), Outcome::Interrupted);
        for unclear in ["null", "{}", r#"{"status_str": "error", "messages": null}"#, r#"{"messages": [7, []]}"#] {
            let Outcome::Failed(error) = outcome(unclear) else { panic!("{unclear}") };
            assert_eq!(error.code, ErrorCode::BackendError, "{unclear}");
        }
    }

    #[test]
    fn an_exception_is_shown_without_the_servers_folders() {
        let raised = r#"["execution_error", {"node_id": "4", "node_type": "LoadImage", "exception_type": "PIL.UnidentifiedImageError",
            "exception_message": "cannot identify image file '/srv/comfyui/input/a.png'\n", "traceback": ["secret"]}]"#;
        let Outcome::Failed(error) = outcome(&format!(r#"{{"status_str": "error", "messages": [{raised}]}}"#)) else {
            panic!("not a failure")
        };
        assert_eq!(error.message, "UnidentifiedImageError: cannot identify image file '.../a.png'");
        assert_eq!((error.node_id.as_deref(), error.class_type.as_deref()), (Some("4"), Some("LoadImage")));
        assert!(!error.is_retryable());
    }

    #[test]
    fn an_unknown_prompt_has_no_entry() {
        assert_eq!(answer("{}", &PromptId::new("p")), Ok(None));
        assert!(answer("[]", &PromptId::new("p")).is_err());
        assert!(answer(r#"{"p": 7}"#, &PromptId::new("p")).is_err());
    }

    proptest! {
        #[test]
        fn never_panics(text in "(\\{|\\}|\\[|\\]|,|:|\"(prompt|outputs|status|messages|meta|filename|p)\"|null|7){0,40}") {
            let _ = entry(&text, &PromptId::new("p"));
            let _ = answer(&text, &PromptId::new("p"));
        }
    }
}
