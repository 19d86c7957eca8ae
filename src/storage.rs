//! Adapters of the `ObjectStore` port: where outputs are kept.

mod answer;
pub mod cf_images;
mod client;
mod folders;
pub mod gcs;
mod intake;
pub mod local;
pub mod s3;
mod upload;

#[cfg(test)]
mod local_tests;

use std::{collections::BTreeMap, io, sync::Arc, time::Duration};

use comfyd_actors::{
    domain::{retry::Backoff, storage::LOCAL},
    ports::object_store::{ObjectError, ObjectStore, round_trip},
    targets::{self, Target, Targets},
};

use self::{cf_images::CfImagesStorage, gcs::GcsStorage, local::LocalStorage, s3::S3Storage};
use crate::config::{Storage, TargetKind};

/// Keys are never written twice, so whoever has an object need not ask again.
const CACHE_CONTROL: &str = "max-age=31536000, immutable";
/// How often a bucket is asked whether it is there: a request that is charged for, and Cloudflare takes four a second in all.
const CHECK_EVERY: Duration = Duration::from_secs(15);
/// How often one request is tried before its file is given back to the uploads, which try it again for much longer.
const TRIES: u32 = 3;
/// Longest key, the limit of S3 and of what fits a path comfortably.
const MAX_KEY: usize = 1024;
/// Longest part of a key, the limit of a file name.
const MAX_PART: usize = 255;

/// Why the targets cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A folder cannot be made or written to.
    #[error("failed to open the folder of storage target {target}")]
    Folder {
        /// The target's name.
        target: String,
        /// What the system says.
        source: io::Error,
    },
    /// A target's settings make no sense to its adapter.
    #[error("failed to set up storage target {target}: {reason}")]
    Settings {
        /// The target's name.
        target: String,
        /// What is wrong.
        reason: String,
    },
    /// What every task would fail of.
    #[error("storage target {target} cannot be used: {reason}")]
    Unusable {
        /// The target's name.
        target: String,
        /// What it said, and what to do.
        reason: ObjectError,
    },
}

/// Makes the adapters of all targets. Nothing is asked of any of them; `backoff` is between the tries of one request.
///
/// # Errors
/// `Folder`, `Settings`.
pub fn open(config: &Storage, backoff: Backoff) -> Result<Targets, OpenError> {
    let folder = |target: &str, dir| {
        LocalStorage::new(dir).map(Arc::new).map_err(|source| OpenError::Folder { target: target.to_owned(), source })
    };
    let inputs = folder(LOCAL, &config.local_dir)?;
    let mut targets = far(config, backoff)?;
    for (name, target) in &config.targets {
        let TargetKind::Local { dir } = &target.kind else { continue };
        let store: Arc<dyn ObjectStore> = if *dir == config.local_dir { inputs.clone() } else { folder(name, dir)? };
        targets.insert(name.clone(), Target { store, prefix: target.prefix.clone(), others: target.others.clone() });
    }
    let (usual, fallback) = (config.usual.clone(), config.fallback.clone());
    Ok(Targets::new(targets::Parts { targets, inputs, usual, fallback }))
}

/// Makes the adapters of the targets that can be reached from any machine.
///
/// # Errors
/// `Settings`.
pub fn far(config: &Storage, backoff: Backoff) -> Result<BTreeMap<String, Target>, OpenError> {
    let settings = |target: &str, reason: String| OpenError::Settings { target: target.to_owned(), reason };
    let http = client::client(config.connect_timeout, config.request_timeout);
    let http = http.map_err(|error| settings(&config.usual, client::describe(error)))?;
    let mut targets = BTreeMap::new();
    for (name, target) in &config.targets {
        let store: Arc<dyn ObjectStore> = match &target.kind {
            TargetKind::Local { .. } => continue,
            TargetKind::S3(bucket) => Arc::new(S3Storage::new(bucket, http.clone(), backoff, config.link_ttl)),
            TargetKind::Gcs(bucket) => {
                let bucket = GcsStorage::new(bucket, http.clone(), backoff, config.link_ttl);
                Arc::new(bucket.map_err(|reason| settings(name, reason))?)
            }
            TargetKind::CfImages(account) => Arc::new(CfImagesStorage::new(account, http.clone(), backoff)),
        };
        targets.insert(name.clone(), Target { store, prefix: target.prefix.clone(), others: target.others.clone() });
    }
    Ok(targets)
}

/// Proves that outputs can be stored, before anything is taken on: a round trip to the usual target and to those it leads to. One that
/// does not answer is no reason not to start: it may be back before the first task is done, and tasks wait for it.
///
/// # Errors
/// `Unusable`.
pub async fn prove(targets: &Targets) -> Result<(), OpenError> {
    // Our own folder was made and swept a moment ago.
    for (name, target) in targets.needed().filter(|(name, _)| *name != LOCAL) {
        match round_trip(target.store.as_ref(), &target.prefix).await {
            Ok(None) => {}
            Ok(Some(error)) => {
                tracing::warn!(%error, target = name, "the storage takes outputs, but does not let comfyd list or delete them: what runs that were given up stored is left in it, perhaps a test picture too");
            }
            Err(error @ ObjectError::Unavailable(_)) => {
                tracing::warn!(%error, target = name, "outputs wait until the storage is back");
            }
            Err(reason) => return Err(OpenError::Unusable { target: name.to_owned(), reason }),
        }
    }
    Ok(())
}

/// An error with its causes: the outermost often says no more than that something failed.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}

/// Checks that a key is one of ours: ASCII letters, digits, `. _ -`, in parts set apart by single slashes. No adapter hands
/// on another, so no key can leave its folder or bucket prefix.
///
/// # Errors
/// `Refused`.
pub fn check_key(key: &str) -> Result<(), ObjectError> {
    let plain = |part: &str| {
        !matches!(part, "" | "." | "..")
            && part.len() <= MAX_PART
            && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'))
    };
    if key.len() <= MAX_KEY && key.split('/').all(plain) {
        Ok(())
    } else {
        Err(ObjectError::Refused("the key holds characters or parts that keys must not have".to_owned()))
    }
}
