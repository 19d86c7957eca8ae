//! Storing what came over the WebSocket, while its prompt still runs.

use std::time::Duration;

use ractor::ActorRef;
use tokio::time::{Instant, sleep};
use tracing::warn;

use super::{SessionMsg, State, feed::Picture};
use crate::{
    domain::{
        artifact::{StoredObject, frame_stem},
        id::TaskId,
        options::TaskOptions,
        task::Fence,
    },
    ports::media::Incoming,
    system::UploadSettings,
    uploads::transfer::{Failure, Keeper},
};

impl State {
    pub(super) fn on_frame(&mut self, me: &ActorRef<SessionMsg>, id: TaskId, node: &str, picture: Option<Picture>) {
        let Some((flight, _)) = self.flights.get_mut(&id) else { return };
        let Some(picture) = picture else { return flight.frames.overflow() };
        let Some((number, filename)) = flight.frames.arrive(node) else { return };
        let (fence, options) = (flight.task.fence, flight.options.clone());
        let frame = Frame { picture, filename, stem: frame_stem(&flight.task, node, number) };
        let (keeper, uploads) = (self.system.keeper(), self.system.settings.uploads);
        let work = async move { frame.keep(&keeper, &options, uploads).await };
        let guard = self.tasks.run_abortable(me, work, move |result| {
            let result = result.unwrap_or_else(|panicked| Err(Failure::Crashed(panicked.to_string())));
            SessionMsg::FrameKept { id, fence, number, result: Box::new(result) }
        });
        self.keeping.entry(id).or_default().push(guard);
    }

    pub(super) fn on_frame_kept(
        &mut self,
        me: &ActorRef<SessionMsg>,
        id: TaskId,
        fence: Fence,
        number: usize,
        result: Result<StoredObject, Failure>,
    ) {
        if let Some((flight, _)) = self.flights.get_mut(&id).filter(|(flight, _)| flight.task.fence == fence) {
            flight.frames.kept(number, result);
            self.advance(me, id);
        }
    }
}

/// A picture on its way into the storage.
struct Frame {
    picture: Picture,
    filename: String,
    stem: String,
}

impl Frame {
    /// A storage that is away is waited for, as for any output; the picture holds its room meanwhile.
    async fn keep(
        self,
        keeper: &Keeper,
        options: &TaskOptions,
        settings: UploadSettings,
    ) -> Result<StoredObject, Failure> {
        let begun = Instant::now();
        let mut failures = 0;
        let mut away: Option<Instant> = None;
        loop {
            let incoming = Incoming::whole(self.filename.clone(), self.picture.bytes.clone());
            match keeper.keep(incoming, &self.stem, options, away.map_or(Duration::ZERO, |since| since.elapsed())).await
            {
                Err(Failure::Storage(reason)) if begun.elapsed() < settings.patience => {
                    away.get_or_insert_with(Instant::now);
                    failures += 1;
                    let delay = settings.backoff.delay_at_least_half(failures, rand::random());
                    warn!(key = self.stem, reason, ?delay, "a picture could not be stored; trying again");
                    sleep(delay).await;
                }
                ended => return ended,
            }
        }
    }
}
