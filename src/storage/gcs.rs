//! Outputs in a bucket of Google Cloud Storage, through its XML interface, by a service account whose key signs everything here: nobody is
//! asked for a token.
//!
//! Uploads in parts know no precondition here: what lies under the key is looked at before they begin, and two processes that begin at the
//! same time write the file of the same run.

use std::{future::ready, sync::Arc, time::Duration};

use async_trait::async_trait;
use comfyd_actors::{
    domain::retry::Backoff,
    ports::{
        ByteStream,
        object_store::{ByteRange, Link, ObjectError, ObjectStore, Reading, Written},
    },
};
use futures_util::{StreamExt, TryStreamExt};
use object_store::{
    Attribute, Attributes, BackoffConfig, Error, GetOptions, GetRange, ObjectStore as _, ObjectStoreExt as _, PutMode,
    PutMultipartOptions, PutOptions, RetryConfig,
    client::{ClientOptions, HttpClient, HttpConnector},
    gcp::{GoogleCloudStorage, GoogleCloudStorageBuilder},
    multipart::{MultipartStore, PartId},
    path::Path,
    signer::Signer,
};

use super::{
    CACHE_CONTROL, CHECK_EVERY, TRIES,
    answer::fault,
    causes, check_key,
    intake::Part,
    upload::{self, Bucket, ETag, Stat, Upload},
};
use crate::config::Gcs;

/// A bucket.
#[derive(Debug, Clone)]
pub struct GcsStorage {
    client: Arc<GoogleCloudStorage>,
    bucket: String,
    public_url: Option<String>,
    link_ttl: Duration,
}

impl GcsStorage {
    /// A bucket by its settings. Reads the key file, and asks nobody.
    ///
    /// # Errors
    /// What is wrong with the key file, without any of it.
    pub fn new(config: &Gcs, http: reqwest::Client, backoff: Backoff, link_ttl: Duration) -> Result<Self, String> {
        let path = config.credentials.display();
        let key = std::fs::read_to_string(&config.credentials)
            .map_err(|error| format!("GOOGLE_APPLICATION_CREDENTIALS: {path} cannot be read: {error}"))?;
        let retry = RetryConfig {
            max_retries: TRIES as usize - 1,
            backoff: BackoffConfig { init_backoff: backoff.base, max_backoff: backoff.cap, base: 2.0 },
            ..RetryConfig::default()
        };
        let mut builder = GoogleCloudStorageBuilder::new()
            .with_bucket_name(&config.bucket)
            .with_service_account_key(key)
            .with_http_connector(Connector(http))
            .with_retry(retry);
        if let Some(endpoint) = &config.endpoint {
            builder = builder.with_base_url(endpoint);
        }
        let client = builder.build().map_err(|_| {
            format!("GOOGLE_APPLICATION_CREDENTIALS: {path} is not the key file of a service account, as Google's console makes it (JSON)")
        })?;
        let (bucket, public_url) = (config.bucket.clone(), config.public_url.clone());
        Ok(Self { client: Arc::new(client), bucket, public_url, link_ttl })
    }

    fn fault(&self, error: &Error) -> ObjectError {
        let place = format!("bucket {}", self.bucket);
        let said = causes(error);
        // The library keeps the answer's text and not its status.
        if said.contains("NoSuchBucket") || said.contains("bucket does not exist") {
            return fault(404, "NoSuchBucket", "", &place);
        }
        match error {
            Error::NotFound { .. } => ObjectError::NotFound,
            Error::AlreadyExists { .. } | Error::Precondition { .. } => ObjectError::Taken,
            Error::Unauthenticated { .. } => fault(401, "", &said, &place),
            Error::PermissionDenied { .. } => fault(403, "", &said, &place),
            Error::InvalidPath { .. } | Error::NotSupported { .. } => fault(400, "", &said, &place),
            _ => ObjectError::Unavailable(format!("{place}: {said}")),
        }
    }

    fn path(key: &str) -> Result<Path, ObjectError> {
        check_key(key)?;
        Ok(Path::from(key))
    }
}

#[async_trait]
impl Bucket for GcsStorage {
    async fn stat(&self, key: &str) -> Result<Option<Stat>, ObjectError> {
        match self.client.head(&Path::from(key)).await.map_err(|error| self.fault(&error)) {
            Ok(meta) => Ok(Some(Stat { bytes: meta.size, etag: ETag::new(meta.e_tag.as_deref()) })),
            Err(ObjectError::NotFound) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn put_whole(&self, key: &str, content_type: &str, part: Part) -> Result<ETag, ObjectError> {
        let options = PutOptions { mode: PutMode::Create, attributes: about(content_type), ..PutOptions::default() };
        let put = self.client.put_opts(&Path::from(key), part.bytes.into(), options).await;
        Ok(ETag::new(put.map_err(|error| self.fault(&error))?.e_tag.as_deref()))
    }

    async fn begin(&self, key: &str, content_type: &str) -> Result<String, ObjectError> {
        let options = PutMultipartOptions { attributes: about(content_type), ..PutMultipartOptions::default() };
        self.client.create_multipart_opts(&Path::from(key), options).await.map_err(|error| self.fault(&error))
    }

    async fn send(&self, upload: Upload<'_>, number: usize, part: Part) -> Result<ETag, ObjectError> {
        let (path, id) = (Path::from(upload.key), upload.id.to_owned());
        let sent = self.client.put_part(&path, &id, number, part.bytes.into()).await;
        Ok(ETag::new(Some(&sent.map_err(|error| self.fault(&error))?.content_id)))
    }

    async fn finish(&self, upload: Upload<'_>, parts: Vec<String>) -> Result<(), ObjectError> {
        let (path, id) = (Path::from(upload.key), upload.id.to_owned());
        let parts = parts.into_iter().map(|content_id| PartId { content_id }).collect();
        self.client.complete_multipart(&path, &id, parts).await.map(|_| ()).map_err(|error| self.fault(&error))
    }

    async fn abandon(&self, upload: Upload<'_>) {
        let _ = self.client.abort_multipart(&Path::from(upload.key), &upload.id.to_owned()).await;
    }
}

fn about(content_type: &str) -> Attributes {
    Attributes::from_iter([
        (Attribute::ContentType, content_type.to_owned()),
        (Attribute::CacheControl, CACHE_CONTROL.to_owned()),
    ])
}

/// Our client, whatever options the library has for one of its own.
#[derive(Debug)]
struct Connector(reqwest::Client);

impl HttpConnector for Connector {
    fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(self.0.clone()))
    }
}

#[async_trait]
impl ObjectStore for GcsStorage {
    async fn put(
        &self,
        key: &str,
        content_type: &str,
        bytes: Option<u64>,
        body: ByteStream,
    ) -> Result<Written, ObjectError> {
        check_key(key)?;
        upload::put(self, key, content_type, bytes, body).await
    }

    async fn size(&self, key: &str) -> Result<u64, ObjectError> {
        check_key(key)?;
        self.stat(key).await?.map(|stat| stat.bytes).ok_or(ObjectError::NotFound)
    }

    async fn open(&self, key: &str, range: Option<ByteRange>) -> Result<Reading, ObjectError> {
        let path = Self::path(key)?;
        let range = range.map(|ByteRange { first, last }| GetRange::Bounded(first..last.saturating_add(1)));
        let got = self.client.get_opts(&path, GetOptions { range, ..GetOptions::default() }).await;
        let got = got.map_err(|error| self.fault(&error))?;
        Ok(Reading { bytes: got.meta.size, body: got.into_stream().map_err(std::io::Error::other).boxed() })
    }

    async fn delete(&self, key: &str) -> Result<(), ObjectError> {
        match self.client.delete(&Self::path(key)?).await.map_err(|error| self.fault(&error)) {
            Ok(()) | Err(ObjectError::NotFound) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// The library looks for whole parts only. The keys come in order, from just before the first that can be meant.
    async fn list(&self, prefix: &str, limit: usize) -> Result<Vec<String>, ObjectError> {
        check_key(prefix)?;
        let folder = prefix.rsplit_once('/').map(|(folder, _)| Path::from(folder));
        let before = Path::from(&prefix[..prefix.len() - 1]);
        let found = self.client.list_with_offset(folder.as_ref(), &before).map_ok(|object| object.location.to_string());
        let ours = found
            .try_skip_while(|key| ready(Ok(!key.starts_with(prefix))))
            .try_take_while(|key| ready(Ok(key.starts_with(prefix))));
        ours.take(limit).try_collect().await.map_err(|error| self.fault(&error))
    }

    async fn link(&self, key: &str) -> Result<Option<Link>, ObjectError> {
        let path = Self::path(key)?;
        let url = match &self.public_url {
            Some(public) => format!("{public}/{key}"),
            None => {
                let signed = self.client.signed_url(reqwest::Method::GET, &path, self.link_ttl).await;
                signed.map_err(|error| self.fault(&error))?.to_string()
            }
        };
        Ok(Some(Link { url, ..Link::default() }))
    }

    fn check_every(&self) -> Duration {
        CHECK_EVERY
    }

    async fn check(&self) -> Result<(), ObjectError> {
        match self.client.head(&Path::from("comfyd-check")).await.map_err(|error| self.fault(&error)) {
            // It answers, and what it says of an object that nobody wrote is no matter.
            Ok(_) | Err(ObjectError::NotFound | ObjectError::Misconfigured(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }
}
