//! The `Media` port: what is done to an output's bytes on their way into the storage.

use std::sync::Arc;

use async_trait::async_trait;
use comfyd_actors::{
    domain::{
        artifact::{extension, media_of},
        options::OutputOptions,
    },
    ports::media::{Incoming, Media, MediaError, Prepared},
};

/// Treats outputs.
#[derive(Debug, Default)]
pub struct Studio;

#[async_trait]
impl Media for Studio {
    async fn prepare(&self, incoming: Incoming, _: &OutputOptions) -> Result<Prepared, MediaError> {
        let Incoming { filename, bytes, body } = incoming;
        let content_type = media_of(&filename).1.to_owned();
        Ok(Prepared { extension: extension(&filename), content_type, bytes, body, facts: Arc::default() })
    }
}
