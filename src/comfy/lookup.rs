//! Finds a prompt in `/queue`, `/history` and `/api/jobs`, by its id or by the marker we put into `extra_data`. Pure.
//!
//! The marker `{"comfyd": {"task": "<uuid>", "dispatch": n}}` is what the server echoes with the prompt: builds from before
//! client-chosen ids run a prompt under an id of their own, and when the answer that told it is lost, the marker is the
//! only way to find the prompt again.

use std::borrow::Cow;

use comfyd_actors::{
    domain::{
        error::{ErrorCode, TaskError},
        health::Load,
        id::PromptId,
        prompt::{Finished, Outcome, Sighting},
    },
    ports::comfy::Wanted,
};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{
    history::{self, Odd, Raw, Status},
    outputs,
};

/// Longest prompt id taken from a server. Theirs and ours are UUIDs of 36 characters.
const MAX_ID: usize = 128;

/// Ours in `extra_data`, under the key `comfyd`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Marker {
    /// The task.
    pub task: Uuid,
    /// The dispatch of the task.
    pub dispatch: i64,
}

/// The position of `extra_data` in a queue item and in a history entry's `prompt`: `[number, id, graph, extra_data, outputs]`.
const EXTRA_DATA: usize = 3;

/// The id a server gave a prompt, if it is fit to be put into paths and logs.
#[must_use]
pub fn plain_id(id: &str) -> Option<PromptId> {
    let plain = !id.is_empty()
        && id.len() <= MAX_ID
        && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'));
    plain.then(|| PromptId::new(id))
}

fn marker(tuple: &[Raw<'_>]) -> Option<Marker> {
    #[derive(Deserialize)]
    struct Extra {
        comfyd: Marker,
    }
    let extra: Extra = serde_json::from_str(tuple.get(EXTRA_DATA)?.get()).ok()?;
    Some(extra.comfyd)
}

fn is_marked(tuple: &[Raw<'_>], wanted: &Wanted) -> bool {
    marker(tuple) == Some(Marker { task: wanted.task.0, dispatch: wanted.dispatch })
}

/// The answer of `/queue`: who runs, and who waits in no useful order.
#[derive(Deserialize)]
struct Queue<'a> {
    #[serde(borrow)]
    queue_running: Vec<Vec<Raw<'a>>>,
    #[serde(borrow)]
    queue_pending: Vec<Vec<Raw<'a>>>,
}

impl<'a> Queue<'a> {
    fn read(text: &'a str) -> Result<Self, Odd> {
        serde_json::from_str(text).map_err(|error| Odd::json("a queue", &error))
    }
}

fn item_id(item: &[Raw<'_>]) -> Option<PromptId> {
    let id: Cow<'_, str> = serde_json::from_str(item.get(1)?.get()).ok()?;
    plain_id(&id)
}

/// What the answer of `/queue` says of everybody's prompts.
///
/// # Errors
/// When the text is not a queue.
pub fn load(text: &str) -> Result<Load, Odd> {
    let queue = Queue::read(text)?;
    let running = queue.queue_running.iter().filter_map(|item| item_id(item)).collect();
    Ok(Load { running, pending: queue.queue_pending.len() })
}

/// Looks for a prompt in the answer of `/queue`.
///
/// # Errors
/// When the text is not a queue.
pub fn in_queue(text: &str, wanted: &Wanted) -> Result<Option<Sighting>, Odd> {
    let queue = Queue::read(text)?;
    for (items, running) in [(&queue.queue_running, true), (&queue.queue_pending, false)] {
        for item in items {
            let Some(id) = item_id(item) else { continue };
            if id == wanted.prompt || is_marked(item, wanted) {
                return Ok(Some(Sighting::Alive { prompt: id, running }));
            }
        }
    }
    Ok(None)
}

/// A prompt among the others on its server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Neighbours {
    /// It is what runs.
    pub runs: bool,
    /// Something waits that no comfyd sent.
    pub strangers_wait: bool,
}

/// Who else is there, by the answer of `/queue`.
///
/// # Errors
/// When the text is not a queue.
pub fn neighbours(text: &str, prompt: &PromptId) -> Result<Neighbours, Odd> {
    let queue = Queue::read(text)?;
    let is_it = |item: &Vec<Raw<'_>>| item_id(item).as_ref() == Some(prompt);
    Ok(Neighbours {
        runs: queue.queue_running.iter().any(is_it),
        strangers_wait: queue.queue_pending.iter().any(|item| marker(item).is_none()),
    })
}

/// Looks for a marked prompt in the answer of `/history?max_items=n`.
///
/// # Errors
/// When the text is not a history.
pub fn in_history(text: &str, wanted: &Wanted) -> Result<Option<Finished>, Odd> {
    #[derive(Deserialize)]
    struct Entry<'a> {
        #[serde(borrow)]
        prompt: Vec<Raw<'a>>,
    }
    let task = wanted.task.to_string();
    for (id, raw) in history::entries(text)? {
        // Most entries are others': a plain search for our id spares parsing them.
        let Some(id) = plain_id(&id).filter(|_| raw.get().contains(&task)) else { continue };
        let Ok(entry) = serde_json::from_str::<Entry<'_>>(raw.get()) else { continue };
        if is_marked(&entry.prompt, wanted) {
            return history::entry(raw.get(), &id).map(Some);
        }
    }
    Ok(None)
}

/// Reads the answer of `/api/jobs/{prompt}`: pending, running and finished prompts alike.
///
/// # Errors
/// When the text is not a job.
pub fn job(text: &str, prompt: &PromptId) -> Result<Sighting, Odd> {
    #[derive(Deserialize)]
    struct Job<'a> {
        #[serde(borrow)]
        status: Cow<'a, str>,
        #[serde(borrow)]
        execution_error: Option<Raw<'a>>,
        #[serde(borrow)]
        execution_status: Option<Status<'a>>,
        #[serde(borrow)]
        outputs: Option<Raw<'a>>,
        #[serde(borrow)]
        workflow: Option<Workflow<'a>>,
    }
    #[derive(Deserialize)]
    struct Workflow<'a> {
        #[serde(borrow)]
        prompt: Option<Raw<'a>>,
    }
    let job: Job<'_> = serde_json::from_str(text).map_err(|error| Odd::json("a job", &error))?;
    let failed = || {
        let raised = job.execution_error.and_then(|error| history::exception(error.get()));
        match (raised, job.execution_status.as_ref().map(Status::outcome)) {
            (Some(error), _) | (None, Some(Outcome::Failed(error))) => error,
            _ => TaskError::new(ErrorCode::BackendError, "the server does not say why the run failed"),
        }
    };
    let outcome = match &*job.status {
        "pending" => return Ok(Sighting::Alive { prompt: prompt.clone(), running: false }),
        "in_progress" => return Ok(Sighting::Alive { prompt: prompt.clone(), running: true }),
        "completed" => Outcome::Success,
        "cancelled" => Outcome::Interrupted,
        "failed" => Outcome::Failed(failed()),
        other => return Err(Odd(format!("a job is in the unknown state {:?}", super::redact::text(other)))),
    };
    let names = outputs::Names::new(None, job.workflow.and_then(|workflow| workflow.prompt));
    Ok(Sighting::Ended(history::finished(prompt, outcome, outputs::collect(job.outputs, &names)?)))
}

#[cfg(test)]
mod tests {
    use comfyd_actors::domain::id::TaskId;
    use proptest::prelude::*;

    use super::*;

    fn wanted() -> Wanted {
        Wanted { prompt: PromptId::new("ours"), task: TaskId(Uuid::from_u128(7)), dispatch: 2 }
    }

    fn item(id: &str, dispatch: i64) -> String {
        let task = Uuid::from_u128(7);
        format!(
            r#"[5, "{id}", {{"1": {{}}}}, {{"comfyd": {{"task": "{task}", "dispatch": {dispatch}}}}}, ["1"], "more"]"#
        )
    }

    fn queue(running: &str, pending: &str) -> Option<Sighting> {
        in_queue(&format!(r#"{{"queue_running": [{running}], "queue_pending": [{pending}]}}"#), &wanted()).unwrap()
    }

    #[test]
    fn a_queued_prompt_is_found_by_id_or_by_marker() {
        let alive = |id: &str, running| Some(Sighting::Alive { prompt: PromptId::new(id), running });
        assert_eq!(queue("", r#"[1, "ours", {}, {}, []]"#), alive("ours", false));
        assert_eq!(queue(&item("theirs", 2), ""), alive("theirs", true));
        assert_eq!(queue("", &item("theirs", 2)), alive("theirs", false));
        assert_eq!(queue(&item("older-dispatch", 1), r#"[], [1], [1, 2], [1, "../x", {}, {}]"#), None);
    }

    #[test]
    fn neighbours_are_told_apart_by_the_marker() {
        let ours = PromptId::new("ours");
        let read = |running: &str, pending: &str| {
            neighbours(&format!(r#"{{"queue_running": [{running}], "queue_pending": [{pending}]}}"#), &ours).unwrap()
        };
        let running = r#"[1, "ours", {}, {}, []]"#;
        let stranger = r#"[2, "theirs", {}, {"client_id": "x"}, []]"#;
        let seen = |runs, strangers_wait| Neighbours { runs, strangers_wait };
        assert_eq!(read(running, ""), seen(true, false));
        assert_eq!(read(running, &item("another of ours", 1)), seen(true, false));
        assert_eq!(read(running, &format!("{}, {stranger}", item("another of ours", 1))), seen(true, true));
        assert_eq!(read(stranger, running), seen(false, true), "it waits itself, and has no marker here");
        assert!(neighbours("[]", &ours).is_err());
    }

    #[test]
    fn a_queue_tells_what_runs_and_how_many_wait() {
        let text = format!(r#"{{"queue_running": [{}], "queue_pending": [[1], {}]}}"#, item("one", 1), item("two", 1));
        assert_eq!(load(&text), Ok(Load { running: vec![PromptId::new("one")], pending: 2 }));
        assert!(load("[]").is_err());
    }

    #[test]
    fn a_finished_prompt_is_found_by_marker() {
        let end = r#""outputs": {}, "status": {"status_str": "success", "messages": []}"#;
        let other = r#""other": {"prompt": null}"#;
        let text = |dispatch| format!(r#"{{{other}, "theirs": {{"prompt": {}, {end}}}}}"#, item("theirs", dispatch));
        let found = in_history(&text(2), &wanted()).unwrap().unwrap();
        assert_eq!((found.prompt.as_str(), found.outcome), ("theirs", Outcome::Success));
        assert_eq!(in_history(&text(3), &wanted()), Ok(None));
    }

    #[test]
    fn jobs_in_every_state() {
        let read = |status: &str| job(&format!(r#"{{"status": "{status}"}}"#), &PromptId::new("p"));
        assert!(matches!(read("pending"), Ok(Sighting::Alive { running: false, .. })));
        assert!(matches!(read("in_progress"), Ok(Sighting::Alive { running: true, .. })));
        for (status, outcome) in [("completed", Outcome::Success), ("cancelled", Outcome::Interrupted)] {
            assert!(matches!(read(status), Ok(Sighting::Ended(end)) if end.outcome == outcome));
        }
        assert!(matches!(read("failed"), Ok(Sighting::Ended(Finished { outcome: Outcome::Failed(_), .. }))));
        assert!(read("levitating").is_err());
    }

    #[test]
    fn only_plain_ids_are_taken() {
        for id in ["", "..", "a/b", "a b", "\u{e4}", &"a".repeat(129)] {
            assert_eq!(plain_id(id), None, "{id}");
        }
        assert!(plain_id("8bc360d2-7244-4fd0-8ea8-919b8182fb16").is_some());
    }

    proptest! {
        #[test]
        fn never_panics(text in "(\\{|\\}|\\[|\\]|,|:|\"(queue_running|queue_pending|status|prompt|p)\"|null|7){0,40}") {
            let _ = in_queue(&text, &wanted());
            let _ = in_history(&text, &wanted());
            let _ = load(&text);
            let _ = job(&text, &wanted().prompt);
        }
    }
}
