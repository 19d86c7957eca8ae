//! UploadActor: one artifact to one place, then gone. Another try is another actor.
//!
//! Owns nothing but the stream from `/view` to storage · tells its supervisor how it ended · when it dies, its supervisor takes that
//! for a failed try · must never hold more than a chunk of the file.

use std::{
    fmt, io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures_util::{StreamExt, stream};
use ractor::{Actor, ActorProcessingErr, ActorRef};

use super::UploadsMsg;
use crate::{
    domain::{
        artifact::{Artifact, Source, StoredObject},
        id::TaskId,
        options::TaskOptions,
        task::Fence,
    },
    kit::tasks::{Panicked, Tasks},
    ports::{
        comfy::{ComfyError, ComfyTransport},
        media::{Incoming, Media, MediaError, Prepared},
        object_store::ObjectError,
        outputs::{Output, Outputs},
    },
};

/// Why a transfer failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// The server does not have the file.
    Missing,
    /// The file could not be read to its end.
    Source(String),
    /// Its server is not there.
    Lost(String),
    /// The storage is away.
    Storage(String),
    /// The storage says no.
    Refused(String),
    /// It cannot be made into what was asked for.
    Unfit(String),
    /// It has more bytes than is stored of one file.
    TooLarge(u64),
    /// Other bytes lie where it was to go.
    Taken,
    /// The transfer itself broke.
    Crashed(String),
}

impl Failure {
    /// Its kind in a word.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Source(_) => "source",
            Self::Lost(_) => "lost",
            Self::Storage(_) => "storage",
            Self::Refused(_) => "refused",
            Self::Unfit(_) => "unfit",
            Self::TooLarge(_) => "too_large",
            Self::Taken => "taken",
            Self::Crashed(_) => "crashed",
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing => f.write_str("the server does not have the file"),
            Self::Source(reason) | Self::Lost(reason) | Self::Storage(reason) => f.write_str(reason),
            Self::Refused(reason) | Self::Unfit(reason) => f.write_str(reason),
            Self::TooLarge(limit) => {
                write!(f, "it is larger than {limit} bytes, the most that is stored of one output (tasks.max_output)")
            }
            Self::Taken => f.write_str("other bytes lie under its key"),
            Self::Crashed(reason) => write!(f, "the transfer crashed: {reason}"),
        }
    }
}

/// Start data.
pub struct TransferArgs {
    /// The task.
    pub id: TaskId,
    /// Under which fence.
    pub fence: Fence,
    /// What to store.
    pub artifact: Artifact,
    /// What to do with it on the way.
    pub options: Arc<TaskOptions>,
    /// Where: a key without its extension.
    pub stem: String,
    /// For how long the storage has been away.
    pub away: Duration,
    /// Whence.
    pub comfy: Arc<dyn ComfyTransport>,
    /// Whither.
    pub keeper: Keeper,
    /// Whom to tell.
    pub uploads: ActorRef<UploadsMsg>,
}

/// The transfer ended.
#[derive(Debug)]
pub struct Ended(Result<Result<StoredObject, Failure>, Panicked>);

/// One transfer.
pub struct UploadActor;

/// Its state: the transfer under way, and whom to tell.
pub struct State {
    id: TaskId,
    fence: Fence,
    index: u32,
    uploads: ActorRef<UploadsMsg>,
    _transfer: Tasks,
}

impl Actor for UploadActor {
    type Msg = Ended;
    type State = State;
    type Arguments = TransferArgs;

    async fn pre_start(&self, me: ActorRef<Ended>, args: TransferArgs) -> Result<State, ActorProcessingErr> {
        let TransferArgs { id, fence, artifact, options, stem, away, comfy, keeper, uploads } = args;
        let index = artifact.index;
        let mut transfer = Tasks::default();
        let work = async move {
            let incoming = open(artifact.source, &*comfy).await?;
            keeper.keep(incoming, &stem, &options, away).await
        };
        transfer.run(&me, work, Ended);
        Ok(State { id, fence, index, uploads, _transfer: transfer })
    }

    async fn handle(
        &self,
        me: ActorRef<Ended>,
        Ended(outcome): Ended,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        let result = outcome.unwrap_or_else(|panicked| Err(Failure::Crashed(panicked.to_string())));
        let State { id, fence, index, .. } = *state;
        // The supervisor outlives its children; if it is gone, so is the batch.
        let _ = state.uploads.cast(UploadsMsg::Transferred { id, fence, index, result });
        me.stop(None);
        Ok(())
    }
}

async fn open(source: Source, comfy: &dyn ComfyTransport) -> Result<Incoming, Failure> {
    match source {
        Source::File(file) => {
            let download = comfy.view(&file).await.map_err(|error| match error {
                ComfyError::NotFound => Failure::Missing,
                ComfyError::Unavailable(reason) => Failure::Source(reason),
            })?;
            Ok(Incoming { filename: file.filename, bytes: download.bytes, body: download.body })
        }
        Source::Text { filename, text } => Ok(Incoming::whole(filename, text.into())),
        // Its bytes came once, and a plan holds only those that were stored.
        Source::Frame { filename } => Err(Failure::Lost(format!("{filename} was not kept"))),
    }
}

/// The one way of an output into the storage, wherever its bytes come from.
#[derive(Clone)]
pub struct Keeper {
    /// What is done to it.
    pub media: Arc<dyn Media>,
    /// Where it goes.
    pub outputs: Arc<dyn Outputs>,
    /// Most bytes of one output.
    pub largest: u64,
}

impl Keeper {
    /// Stores an output under `stem` and its extension, as and where `options` want it; elsewhere when the storage has been `away` for
    /// long enough.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn keep(
        &self,
        incoming: Incoming,
        stem: &str,
        options: &TaskOptions,
        away: Duration,
    ) -> Result<StoredObject, Failure> {
        if incoming.bytes.is_some_and(|bytes| bytes > self.largest) {
            return Err(Failure::TooLarge(self.largest));
        }
        let (incoming, passed) = limited(incoming, self.largest);
        let stored = self.store(incoming, stem, options, away).await;
        // What the body failed of is known where it is read; behind it are only consequences.
        if stored.is_err() && passed.load(Ordering::Relaxed) { Err(Failure::TooLarge(self.largest)) } else { stored }
    }

    async fn store(
        &self,
        incoming: Incoming,
        stem: &str,
        options: &TaskOptions,
        away: Duration,
    ) -> Result<StoredObject, Failure> {
        let prepared = self.media.prepare(incoming, &options.output).await.map_err(|error| match error {
            MediaError::Source(reason) => Failure::Source(reason),
            MediaError::Unfit(reason) => Failure::Unfit(reason),
        })?;
        let Prepared { extension, content_type, bytes, body, facts } = prepared;
        let name = extension.map_or_else(|| stem.to_owned(), |extension| format!("{stem}.{extension}"));
        let choice = Arc::new(options.storage.clone());
        let stored = self.outputs.keep(Output { name, content_type, bytes, body, choice, away }).await;
        let stored = stored.map_err(|error| match error {
            ObjectError::Unavailable(reason) | ObjectError::Misconfigured(reason) => Failure::Storage(reason),
            ObjectError::Taken => Failure::Taken,
            ObjectError::Source(reason) => Failure::Source(reason),
            ObjectError::NotFound => Failure::Storage("the storage lost the object".to_owned()),
            ObjectError::Refused(reason) => Failure::Refused(reason),
        })?;
        Ok(StoredObject { facts: facts.get().cloned().unwrap_or_default(), ..stored })
    }
}

/// A file that fails when it turns out longer than `largest`, and whether it did.
fn limited(incoming: Incoming, largest: u64) -> (Incoming, Arc<AtomicBool>) {
    let passed = Arc::new(AtomicBool::new(false));
    let noted = passed.clone();
    let body = stream::unfold(Some((incoming.body, 0_u64)), move |reading| {
        let noted = noted.clone();
        async move {
            let (mut body, seen) = reading?;
            let chunk = body.next().await?;
            let seen = seen + chunk.as_ref().map_or(0, |chunk| chunk.len() as u64);
            if seen > largest {
                noted.store(true, Ordering::Relaxed);
                return Some((Err(io::Error::other("it is too large")), None));
            }
            Some((chunk, Some((body, seen))))
        }
    });
    (Incoming { body: body.boxed(), ..incoming }, passed)
}
