//! UploadActor: one artifact to one place, then gone. Another try is another actor.
//!
//! Owns nothing but the stream from `/view` to storage · tells its supervisor how it ended · when it dies, its supervisor takes that
//! for a failed try · must never hold more than a chunk of the file.

use std::{fmt, sync::Arc};

use ractor::{Actor, ActorProcessingErr, ActorRef};

use super::UploadsMsg;
use crate::{
    domain::{
        artifact::{Artifact, StoredObject},
        id::TaskId,
        task::Fence,
    },
    kit::tasks::{Panicked, Tasks},
    ports::{
        comfy::{ComfyError, ComfyTransport},
        object_store::{ObjectError, ObjectStore},
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
    /// The transfer itself broke.
    Crashed(String),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing => f.write_str("the server does not have the file"),
            Self::Source(reason) | Self::Lost(reason) | Self::Storage(reason) | Self::Refused(reason) => {
                f.write_str(reason)
            }
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
    /// Where.
    pub key: String,
    /// Whence.
    pub comfy: Arc<dyn ComfyTransport>,
    /// Whither.
    pub objects: Arc<dyn ObjectStore>,
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
        let TransferArgs { id, fence, artifact, key, comfy, objects, uploads } = args;
        let index = artifact.index;
        let mut transfer = Tasks::default();
        transfer.run(&me, async move { store(&artifact, &key, &*comfy, &*objects).await }, Ended);
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

async fn store(
    artifact: &Artifact,
    key: &str,
    comfy: &dyn ComfyTransport,
    objects: &dyn ObjectStore,
) -> Result<StoredObject, Failure> {
    let download = comfy.view(&artifact.source).await.map_err(|error| match error {
        ComfyError::NotFound => Failure::Missing,
        ComfyError::Unavailable(reason) => Failure::Source(reason),
    })?;
    let content_type = artifact.source.media().1;
    objects.put(key, content_type, download.bytes, download.body).await.map_err(|error| match error {
        ObjectError::Unavailable(reason) => Failure::Storage(reason),
        ObjectError::Source(reason) => Failure::Source(reason),
        ObjectError::NotFound => Failure::Storage("the storage lost the object".to_owned()),
        ObjectError::Refused(reason) => Failure::Refused(reason),
    })
}
