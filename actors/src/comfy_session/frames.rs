//! The pictures a prompt sends over the WebSocket (`SaveImageWebsocket`). No history names them and the server keeps none, so each is
//! stored the moment it comes, and a prompt that may have sent one unheard has not delivered. Pure.
//!
//! One socket carries its frames in order: whoever hears a prompt's end on the connection it was sent from has heard all of it.

use std::{borrow::Cow, collections::HashMap, time::Duration};

use serde::Deserialize;

use crate::{
    domain::{
        artifact::StoredObject,
        error::{ErrorCode, TaskError},
        options::OutputOptions,
        prompt::Frame,
        time::Timestamp,
    },
    uploads::transfer::Failure,
};

/// The class of the nodes that do so.
const SENDER: &str = "SaveImageWebsocket";
/// More pictures of one prompt than this are not believed.
const MAX_FRAMES: usize = 10_000;
/// The history may be read before the last frames are. After this long there are none.
const LATE: Duration = Duration::from_secs(2);

/// What is in a graph, as far as a session needs to know.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outline {
    /// Nodes.
    pub nodes: usize,
    /// Those that send their pictures, and are asked for.
    pub senders: Vec<String>,
}

impl Outline {
    /// Of a graph as JSON text. One that cannot be read has nothing in it.
    #[must_use]
    pub fn of(graph: &str, options: &OutputOptions) -> Self {
        #[derive(Deserialize)]
        struct Node<'a> {
            #[serde(borrow, default)]
            class_type: Option<Cow<'a, str>>,
        }
        let nodes: HashMap<Cow<'_, str>, Node<'_>> = serde_json::from_str(graph).unwrap_or_default();
        let sends = |node: &Node<'_>| node.class_type.as_deref() == Some(SENDER);
        let senders = nodes.iter().filter(|(id, node)| sends(node) && options.takes(id));
        Self { senders: senders.map(|(id, _)| id.to_string()).collect(), nodes: nodes.len() }
    }
}

/// The pictures of one prompt, in the order they came.
#[derive(Debug, Clone, Default)]
pub struct Frames {
    expected: bool,
    arrived: Vec<Arrival>,
    /// Why not all of them are here.
    failed: Option<TaskError>,
}

#[derive(Debug, Clone)]
struct Arrival {
    node_id: String,
    filename: String,
    object: Option<StoredObject>,
}

/// Whether a prompt that succeeded has delivered.
#[derive(Debug, Clone, PartialEq)]
pub enum Delivery {
    /// It has: these are its frames.
    Complete(Vec<Frame>),
    /// Not yet.
    Open,
    /// It never will.
    Failed(TaskError),
}

impl Frames {
    /// Of a prompt that sends pictures, or that does not.
    #[must_use]
    pub fn new(expected: bool) -> Self {
        Self { expected, ..Self::default() }
    }

    /// A picture of this node came. Returns its number and what it is called; `None` when there are too many.
    pub fn arrive(&mut self, node_id: &str) -> Option<(usize, String)> {
        let number = self.arrived.len();
        if number == MAX_FRAMES {
            let message =
                format!("the run sent more than {MAX_FRAMES} pictures over the WebSocket; save fewer in one task");
            self.fail(TaskError::new(ErrorCode::BackendError, message).permanent());
            return None;
        }
        let of_node = self.arrived.iter().filter(|arrival| arrival.node_id == node_id).count();
        let filename = format!("websocket_{:05}.png", of_node + 1);
        self.arrived.push(Arrival { node_id: node_id.to_owned(), filename: filename.clone(), object: None });
        Some((number, filename))
    }

    /// A picture is stored, or is not.
    pub fn kept(&mut self, number: usize, result: Result<StoredObject, Failure>) {
        match (result, self.arrived.get_mut(number)) {
            (Ok(object), Some(arrival)) => arrival.object = Some(object),
            (Ok(_), None) => {}
            (Err(failure), _) => self.fail(match failure {
                Failure::Unfit(reason) => TaskError::new(
                    ErrorCode::ConversionFailed,
                    format!("a picture sent over the WebSocket cannot be made into what output_options ask for: {reason}"),
                ),
                // The picture is gone: there is no upload to be tried again.
                Failure::TooLarge(_) => TaskError::new(
                    ErrorCode::UploadFailed,
                    format!("a picture sent over the WebSocket was not stored: {failure}"),
                ),
                Failure::Refused(reason) | Failure::Storage(reason) => TaskError::new(
                    ErrorCode::UploadFailed,
                    format!("a picture sent over the WebSocket could not be stored: {reason}. Mend the storage, then create the task again"),
                )
                .permanent(),
                other => lost(&format!("it could not be stored: {other}")),
            }),
        }
    }

    /// A picture came and could not be held.
    pub fn overflow(&mut self) {
        self.fail(lost("they came faster than they could be stored"));
    }

    /// What has come of a prompt whose history was read at `over`. `heard` when its end was heard on its own connection.
    #[must_use]
    pub fn delivery(&self, heard: bool, over: Timestamp, now: Timestamp) -> Delivery {
        if !self.expected {
            return Delivery::Complete(Vec::new());
        }
        if let Some(error) = &self.failed {
            return Delivery::Failed(error.clone());
        }
        if !heard {
            let reason = "the connection to the ComfyUI server was lost while it ran";
            return if now.since(over) < LATE { Delivery::Open } else { Delivery::Failed(lost(reason)) };
        }
        let frames: Option<Vec<Frame>> = self.arrived.iter().map(Arrival::frame).collect();
        frames.map_or(Delivery::Open, Delivery::Complete)
    }

    fn fail(&mut self, error: TaskError) {
        self.failed.get_or_insert(error);
    }
}

impl Arrival {
    fn frame(&self) -> Option<Frame> {
        let Self { node_id, filename, object } = self.clone();
        Some(Frame { node_id, filename, object: object? })
    }
}

fn lost(reason: &str) -> TaskError {
    TaskError::new(
        ErrorCode::OutputMissing,
        format!(
            "pictures that SaveImageWebsocket sends exist nowhere but on the connection, and some of this run are lost: {reason}. \
             Only another run can bring them; SaveImage keeps its files"
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::artifact::Facts;

    const OVER: Timestamp = Timestamp(10_000);

    fn object(key: &str) -> StoredObject {
        StoredObject {
            target: "local".into(),
            key: key.into(),
            content_type: "image/png".into(),
            bytes: 1,
            sha256: String::new(),
            facts: Facts::default(),
        }
    }

    #[test]
    fn an_outline_names_the_senders_that_are_asked_for() {
        let graph = r#"{"1": {"class_type": "EmptyImage"}, "2": {"class_type": "SaveImageWebsocket", "inputs": {}},
            "3": {"class_type": "SaveImageWebsocket"}, "4": {}}"#;
        let mut all = Outline::of(graph, &OutputOptions::default());
        all.senders.sort();
        assert_eq!(all, Outline { nodes: 4, senders: vec!["2".into(), "3".into()] });
        let some = OutputOptions { nodes: Some(vec!["3".into(), "1".into()]), ..OutputOptions::default() };
        assert_eq!(Outline::of(graph, &some).senders, ["3"]);
        assert_eq!(Outline::of("7", &some), Outline::default());
    }

    #[test]
    fn all_is_there_when_the_end_was_heard_and_everything_is_stored() {
        let mut frames = Frames::new(true);
        let numbers: Vec<_> = ["2", "9", "2"].iter().filter_map(|node| frames.arrive(node)).collect();
        let names = ["websocket_00001.png", "websocket_00001.png", "websocket_00002.png"];
        assert!(numbers.iter().map(|(number, name)| (*number, name.as_str())).eq(names.into_iter().enumerate()));
        for number in [2, 0] {
            frames.kept(number, Ok(object(&number.to_string())));
            assert_eq!(frames.delivery(true, OVER, OVER), Delivery::Open);
        }
        frames.kept(1, Ok(object("1")));
        let Delivery::Complete(found) = frames.delivery(true, OVER, OVER) else { panic!() };
        assert!(found.iter().map(|frame| frame.object.key.as_str()).eq(["0", "1", "2"]));
        // A prompt without such nodes owes nothing.
        assert_eq!(Frames::new(false).delivery(false, OVER, OVER), Delivery::Complete(Vec::new()));
    }

    #[test]
    fn an_end_that_nobody_heard_is_waited_for_and_then_costs_a_run() {
        let frames = Frames::new(true);
        assert_eq!(frames.delivery(false, OVER, OVER.after(Duration::from_millis(1_999))), Delivery::Open);
        let Delivery::Failed(error) = frames.delivery(false, OVER, OVER.after(LATE)) else { panic!() };
        assert_eq!((error.code, error.is_retryable()), (ErrorCode::OutputMissing, true));
        assert_eq!(frames.delivery(true, OVER, OVER.after(LATE)), Delivery::Complete(Vec::new()));
    }

    #[test]
    fn what_could_not_be_kept_fails_at_once() {
        for (failure, code, retryable) in [
            (Failure::Unfit(String::new()), ErrorCode::ConversionFailed, false),
            (Failure::Storage(String::new()), ErrorCode::UploadFailed, false),
            (Failure::Crashed(String::new()), ErrorCode::OutputMissing, true),
        ] {
            let mut frames = Frames::new(true);
            frames.arrive("2");
            frames.kept(0, Err(failure));
            let Delivery::Failed(error) = frames.delivery(true, OVER, OVER) else { panic!() };
            assert_eq!((error.code, error.is_retryable()), (code, retryable));
        }
        let mut frames = Frames::new(true);
        frames.overflow();
        assert!(matches!(frames.delivery(true, OVER, OVER), Delivery::Failed(error) if error.is_retryable()));
        let mut flood = Frames::new(true);
        assert_eq!((0..=MAX_FRAMES).filter_map(|_| flood.arrive("2")).count(), MAX_FRAMES);
        assert!(matches!(flood.delivery(true, OVER, OVER), Delivery::Failed(error) if !error.is_retryable()));
    }
}
