//! Making room on a server for a task that ran out of memory.

use std::time::Duration;

use tokio::time::Instant;
use tracing::debug;

use crate::{domain::memory::Memory, ports::comfy::ComfyTransport};

/// Time between two looks at the memory.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Has the server free its memory and waits until that shows, or for `patience`. The server only sets a flag that its worker reads when it
/// is idle: a prompt sent right away would run before.
///
/// Whatever goes wrong here, the prompt is sent all the same: how it ends tells.
pub(super) async fn make(comfy: &dyn ComfyTransport, patience: Duration) {
    let give_up = Instant::now() + patience;
    let before = look(comfy).await;
    if let Err(error) = comfy.free().await {
        debug!(backend = %comfy.id(), %error, "the server did not hear that it shall free its memory");
        return;
    }
    while !look(comfy).await.is_some_and(|now| now.is_freed_since(before.as_ref())) {
        if Instant::now() + LOOK_EVERY > give_up {
            debug!(backend = %comfy.id(), ?patience, "no memory became free");
            return;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// What the server says of its memory now.
pub(super) async fn look(comfy: &dyn ComfyTransport) -> Option<Memory> {
    Memory::of(&comfy.system_stats().await.ok()?)
}
