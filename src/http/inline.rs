//! Small outputs that come with their task, as base64 (`output_options.inline`).

use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::BytesMut;
use comfyd_actors::{
    bridge::Standing,
    domain::artifact::StoredObject,
    ports::{object_store::ObjectError, store::TaskRecord},
};
use futures_util::TryStreamExt;

use super::{Service, storage, view::TaskView};

/// The task as `GET` shows it: with the bytes of what it asked to have inline, as far as they are small enough together. One that
/// cannot be read now is left out: its URL says more.
pub async fn full_view(service: &Service, record: TaskRecord, progress: Option<Standing>, base: &str) -> TaskView {
    let wanted = small(&record, service.config.inline_limit);
    let mut view = storage::view(service, record, progress, base).await;
    for (index, object) in wanted {
        match read(service, &object).await {
            Ok(bytes) => view.set_data(index, BASE64_STANDARD.encode(&bytes)),
            Err(error) => tracing::warn!(%error, key = object.key, "an output could not be read to come with its task"),
        }
    }
    view
}

/// What fits, in the order of the outputs.
fn small(record: &TaskRecord, limit: u64) -> Vec<(u32, StoredObject)> {
    let Some(each) = record.options.output.inline else { return Vec::new() };
    let mut left = limit;
    let stored = record.artifacts.iter().filter_map(|artifact| Some((artifact.index, artifact.object.clone()?)));
    let fits = |(_, object): &(u32, StoredObject)| {
        let taken = object.bytes <= each && object.bytes <= left;
        left -= if taken { object.bytes } else { 0 };
        taken
    };
    stored.filter(fits).collect()
}

async fn read(service: &Service, object: &StoredObject) -> Result<BytesMut, ObjectError> {
    let target = service.bridge.targets().holder(object).ok_or(ObjectError::NotFound)?;
    let body = target.store.open(&object.key, None).await?.body;
    let whole = body.try_fold(BytesMut::new(), async |mut whole, chunk| {
        whole.extend_from_slice(&chunk);
        Ok(whole)
    });
    whole.await.map_err(|error| ObjectError::Unavailable(error.to_string()))
}
