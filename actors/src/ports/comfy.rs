//! One ComfyUI server as the session sees it. Protocol facts are cited where they matter in the adapter.

use async_trait::async_trait;
use futures_util::stream::BoxStream;
use serde_json::Value;

use super::{
    ByteStream,
    passthrough::{FromClient, FromServer, Relay, RelayError, Relayed},
};
use crate::domain::{
    artifact::FileRef,
    catalogue::Catalogue,
    health::Load,
    id::{BackendId, ClientId, PromptId, TaskId},
    prompt::{Abilities, Finished, Receipt, Sighting, Signal},
};

/// A prompt to be run.
#[derive(Debug, Clone)]
pub struct Submission {
    /// The task it is for. Also written into `extra_data`, which the server echoes: the way to find a prompt on builds that
    /// ignore our prompt id.
    pub task: TaskId,
    /// Which dispatch of the task.
    pub dispatch: i64,
    /// The id we want.
    pub prompt: PromptId,
    /// The connection that shall get its events.
    pub client: ClientId,
    /// The graph, JSON text.
    pub graph: std::sync::Arc<str>,
    /// The server is asked for pictures of unfinished work.
    pub previews: bool,
}

/// What to look for when a prompt's fate is unclear.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// The id we sent, or the one the server goes by once it is known.
    pub prompt: PromptId,
    /// The marker in `extra_data`.
    pub task: TaskId,
    /// The dispatch in the marker.
    pub dispatch: i64,
}

/// Why a submission did not bring a receipt.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum SubmitError {
    /// The server said no (4xx): it does not have the prompt and never will.
    #[error("the server refused the prompt: {message}")]
    Refused {
        /// The server's words.
        message: String,
        /// The node at fault, if it named one.
        node_id: Option<String>,
        /// That node's class.
        class_type: Option<String>,
        /// The faults per node.
        node_errors: Option<Value>,
    },
    /// Nothing reached the server: the connection could not be opened.
    #[error("the prompt was not sent: {0}")]
    NotSent(String),
    /// The server stumbled over it (500). It may have it all the same: look before anything else; never send it again. Unlike with
    /// [`Unknown`](Self::Unknown) the next prompt of the same graph may well end alike.
    #[error("the server failed to take the prompt: {0}")]
    Failed(String),
    /// The answer was lost or was another 5xx: the server may have it, or may yet get it. Look before anything else; never send it
    /// again.
    #[error("it is unknown whether the server has the prompt: {0}")]
    Unknown(String),
}

/// Why a question to the server was not answered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ComfyError {
    /// No connection, no answer in time, a 5xx, or an answer that is not ComfyUI's. Worth asking again.
    #[error("the ComfyUI server is unavailable: {0}")]
    Unavailable(String),
    /// A file is not there (any more).
    #[error("the ComfyUI server does not have the file")]
    NotFound,
}

/// A file's bytes on their way from a server.
pub struct Download {
    /// The type `/view` told.
    pub content_type: Option<String>,
    /// Length, when the server told it. The stream fails if it ends early.
    pub bytes: Option<u64>,
    /// The bytes.
    pub body: ByteStream,
}

/// A file to be handed to a server.
pub struct Upload {
    /// The name we would like it to have: ASCII, no folder.
    pub name: String,
    /// Its media type.
    pub content_type: String,
    /// Its size.
    pub bytes: u64,
    /// The bytes, exactly so many.
    pub body: ByteStream,
}

/// Why a server does not have a file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UploadError {
    /// The server does not take this file, and never will.
    #[error("the server refused the file: {0}")]
    Refused(String),
    /// No connection, no answer in time, a 5xx, or a body that broke off. Worth trying again: the same bytes under the same name are
    /// stored once.
    #[error("the file could not be handed to the server: {0}")]
    Unavailable(String),
}

/// The frames of one connection. Ends when the connection does; the last item then says why.
pub type Signals = BoxStream<'static, Result<Signal, ComfyError>>;

/// One ComfyUI server. Every call has its own time limit and is safe to repeat, but for [`submit`](Self::submit).
#[async_trait]
pub trait ComfyTransport: Send + Sync + 'static {
    /// Its name.
    fn id(&self) -> &BackendId;

    /// Asks over HTTP whether it is alive, and what it can do.
    ///
    /// # Errors
    /// `Unavailable`.
    async fn check(&self) -> Result<Abilities, ComfyError>;

    /// Opens a WebSocket under `client`, sends our feature flags as the first frame, and reads it eagerly: a reader that stops stalls
    /// every client of the server (PROTOCOL.md 6.8). Pings the server itself and ends the stream when it no longer answers.
    ///
    /// # Errors
    /// `Unavailable`, after at most 10 s.
    async fn connect(&self, client: &ClientId) -> Result<Signals, ComfyError>;

    /// Sends a prompt, once.
    ///
    /// # Errors
    /// See [`SubmitError`].
    async fn submit(&self, submission: &Submission) -> Result<Receipt, SubmitError>;

    /// Looks for a prompt, conclusively: `/api/jobs/{id}`, or `/queue` and then `/history` (never the other way round, as a
    /// prompt moves from the first to the second).
    ///
    /// # Errors
    /// `Unavailable`.
    async fn look(&self, wanted: &Wanted) -> Result<Sighting, ComfyError>;

    /// A prompt's end, if its history is written. Cheap while it runs; `None` says nothing about whether it exists.
    ///
    /// # Errors
    /// `Unavailable`.
    async fn history(&self, prompt: &PromptId) -> Result<Option<Finished>, ComfyError>;

    /// Asks the server to drop the prompt from its queue or to interrupt it, this one only. A request, not a result: it may
    /// still end as a success. Does nothing when the server does not have it.
    ///
    /// # Errors
    /// `Unavailable`.
    async fn cancel(&self, prompt: &PromptId) -> Result<(), ComfyError>;

    /// Takes the prompt out of the server's queue if it still waits there. One that runs is left alone.
    ///
    /// # Errors
    /// `Unavailable`.
    async fn withdraw(&self, prompt: &PromptId) -> Result<(), ComfyError>;

    /// Drops finished prompts from the server's history, which keeps every graph in memory otherwise.
    ///
    /// # Errors
    /// `Unavailable`.
    async fn forget(&self, prompts: &[PromptId]) -> Result<(), ComfyError>;

    /// Has the server forget the results it would reuse, as soon as it has nothing running; models stay loaded. Results of others
    /// go too: they are computed again.
    ///
    /// # Errors
    /// `Unavailable`.
    async fn drop_cache(&self) -> Result<(), ComfyError>;

    /// Has the server unload its models and forget results, as soon as it has nothing running: a wish, not a result. Prompts of others
    /// load their models again.
    ///
    /// # Errors
    /// `Unavailable`.
    async fn free(&self) -> Result<(), ComfyError>;

    /// What runs and waits on the server, prompts of others included.
    ///
    /// # Errors
    /// `Unavailable`.
    async fn load(&self) -> Result<Load, ComfyError>;

    /// Opens an output file.
    ///
    /// # Errors
    /// `NotFound`, `Unavailable`.
    async fn view(&self, file: &FileRef) -> Result<Download, ComfyError>;

    /// What the server can run: its `/object_info`, read. Heavy (the server stands still for it, 0.4 s and more), so for when it comes
    /// online and for slow timers.
    ///
    /// # Errors
    /// `Unavailable`, also when the answer is not understood.
    async fn object_info(&self) -> Result<Catalogue, ComfyError>;

    /// Hands a file over, for a graph to use. Returns the name a graph must use for it, which may differ from the one asked for.
    ///
    /// # Errors
    /// See [`UploadError`].
    async fn upload(&self, upload: Upload) -> Result<String, UploadError>;

    /// The server's own `/queue`, as it is.
    ///
    /// # Errors
    /// `Unavailable`.
    async fn queue(&self) -> Result<Value, ComfyError>;

    /// The server's own `/system_stats`, as it is.
    ///
    /// # Errors
    /// `Unavailable`.
    async fn system_stats(&self) -> Result<Value, ComfyError>;

    /// Hands a client's request to the server and brings the beginning of its answer; bodies are streamed both ways. There is no limit
    /// on the whole, only on the silence of either side.
    ///
    /// # Errors
    /// See [`RelayError`].
    async fn relay(&self, request: Relay) -> Result<Relayed, RelayError>;

    /// Opens a WebSocket on the server for a client, under whatever name the client chose.
    ///
    /// # Errors
    /// See [`RelayError`], after at most 10 s.
    async fn tunnel(&self, request: Relay, from_client: FromClient) -> Result<FromServer, RelayError>;
}
