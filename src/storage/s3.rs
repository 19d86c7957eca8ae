//! Outputs in a bucket of S3, R2, or what speaks like them.

use std::time::Duration;

use async_trait::async_trait;
use aws_runtime::auth::PayloadSigningOverride;
use aws_sdk_s3::{
    Client, Config,
    config::{
        BehaviorVersion, ConfigBag, Credentials, Intercept, Region, RequestChecksumCalculation,
        ResponseChecksumValidation, RuntimeComponents, StalledStreamProtectionConfig,
        interceptors::BeforeTransmitInterceptorContextMut, retry::RetryConfig,
    },
    error::{BoxError, ProvideErrorMetadata, SdkError},
    presigning::PresigningConfig,
    primitives::ByteStream as SdkStream,
    types::{CompletedMultipartUpload, CompletedPart, ServerSideEncryption},
};
use comfyd_actors::{
    domain::retry::Backoff,
    ports::{
        ByteStream,
        object_store::{ByteRange, Link, ObjectError, ObjectStore, Reading, Written},
    },
};
use futures_util::StreamExt;
use tokio_util::io::ReaderStream;

use super::{
    CACHE_CONTROL, CHECK_EVERY, TRIES,
    answer::fault,
    causes, check_key,
    client::SdkClient,
    intake::Part,
    upload::{self, Bucket, ETag, Stat, Upload},
};
use crate::config::S3;

/// A bucket.
#[derive(Debug, Clone)]
pub struct S3Storage {
    client: Client,
    bucket: String,
    public_url: Option<String>,
    link_ttl: Duration,
    if_none_match: bool,
}

impl S3Storage {
    /// A bucket by its settings. Asks nobody.
    #[must_use]
    pub fn new(config: &S3, http: reqwest::Client, backoff: Backoff, link_ttl: Duration) -> Self {
        let keys = Credentials::new(&config.access_key, config.secret_key.expose(), None, None, "configuration");
        let retries = RetryConfig::standard()
            .with_max_attempts(TRIES)
            .with_initial_backoff(backoff.base)
            .with_max_backoff(backoff.cap);
        let mut sdk = Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new(config.region.clone()))
            // Not everybody who speaks like S3 has a name per bucket; those who do take both, but for Amazon's newer regions.
            .force_path_style(config.endpoint.is_some() || config.bucket.contains('.'))
            .credentials_provider(keys)
            .http_client(SdkClient(http))
            // The signature does this ([`SignedAs`]), and R2 and older servers know nothing else.
            .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
            .response_checksum_validation(ResponseChecksumValidation::WhenRequired)
            // The client's own limit on silence does this.
            .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
            .retry_config(retries);
        sdk.set_endpoint_url(config.endpoint.clone());
        Self {
            client: Client::from_conf(sdk.build()),
            bucket: config.bucket.clone(),
            public_url: config.public_url.clone(),
            link_ttl,
            if_none_match: config.if_none_match,
        }
    }

    fn fault<E: ProvideErrorMetadata + std::error::Error + 'static>(&self, error: &SdkError<E>) -> ObjectError {
        let place = self.place();
        match error {
            SdkError::ServiceError(answer) => {
                let said = answer.err();
                let (code, words) = (said.code().unwrap_or_default(), said.message().unwrap_or_default());
                fault(answer.raw().status().as_u16(), code, words, &place)
            }
            other => ObjectError::Unavailable(format!("{place}: {}", causes(other))),
        }
    }

    fn place(&self) -> String {
        format!("bucket {}", self.bucket)
    }

    fn condition(&self) -> Option<String> {
        self.if_none_match.then(|| "*".to_owned())
    }
}

#[async_trait]
impl Bucket for S3Storage {
    async fn stat(&self, key: &str) -> Result<Option<Stat>, ObjectError> {
        match self.client.head_object().bucket(&self.bucket).key(key).send().await {
            Ok(head) => {
                let bytes = head.content_length().and_then(|bytes| u64::try_from(bytes).ok()).unwrap_or_default();
                Ok(Some(Stat { bytes, etag: ETag::new(head.e_tag()) }))
            }
            Err(error) => match self.fault(&error) {
                ObjectError::NotFound => Ok(None),
                // A refusal without a word: a HEAD has none, and credentials that ran out are refused like any nonsense.
                ObjectError::Refused(_) => Err(fault(401, "", "", &self.place())),
                other => Err(other),
            },
        }
    }

    async fn put_whole(&self, key: &str, content_type: &str, part: Part) -> Result<ETag, ObjectError> {
        if !self.if_none_match && self.stat(key).await?.is_some() {
            return Err(ObjectError::Taken);
        }
        let put = self.client.put_object().bucket(&self.bucket).key(key).content_type(content_type);
        let put = put.cache_control(CACHE_CONTROL).set_if_none_match(self.condition());
        let put = put.body(SdkStream::from(part.bytes)).customize().interceptor(SignedAs(part.sha256));
        let put = put.send().await.map_err(|error| self.fault(&error))?;
        Ok(ETag::new(put.e_tag()).sealed(is_sealed(put.server_side_encryption())))
    }

    async fn begin(&self, key: &str, content_type: &str) -> Result<String, ObjectError> {
        let create = self.client.create_multipart_upload().bucket(&self.bucket).key(key);
        let begun = create.content_type(content_type).cache_control(CACHE_CONTROL).send().await;
        let begun = begun.map_err(|error| self.fault(&error))?;
        let id = begun.upload_id().map(str::to_owned);
        id.ok_or_else(|| ObjectError::Unavailable("an upload was begun without a name".to_owned()))
    }

    async fn send(&self, upload: Upload<'_>, number: usize, part: Part) -> Result<ETag, ObjectError> {
        let send = self.client.upload_part().bucket(&self.bucket).key(upload.key).upload_id(upload.id);
        let send = send.part_number(counted(number)).body(SdkStream::from(part.bytes));
        let send = send.customize().interceptor(SignedAs(part.sha256));
        let sent = send.send().await.map_err(|error| self.fault(&error))?;
        Ok(ETag::new(sent.e_tag()).sealed(is_sealed(sent.server_side_encryption())))
    }

    async fn finish(&self, upload: Upload<'_>, parts: Vec<String>) -> Result<(), ObjectError> {
        let part = |(number, etag)| CompletedPart::builder().part_number(counted(number)).e_tag(etag).build();
        let parts =
            CompletedMultipartUpload::builder().set_parts(Some(parts.into_iter().enumerate().map(part).collect()));
        let finish = self.client.complete_multipart_upload().bucket(&self.bucket).key(upload.key).upload_id(upload.id);
        let finish = finish.set_if_none_match(self.condition()).multipart_upload(parts.build());
        finish.send().await.map(|_| ()).map_err(|error| self.fault(&error))
    }

    async fn abandon(&self, upload: Upload<'_>) {
        let abort = self.client.abort_multipart_upload().bucket(&self.bucket).key(upload.key).upload_id(upload.id);
        let _ = abort.send().await;
    }
}

#[async_trait]
impl ObjectStore for S3Storage {
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
        check_key(key)?;
        let range = range.map(|ByteRange { first, last }| format!("bytes={first}-{last}"));
        let get = self.client.get_object().bucket(&self.bucket).key(key).set_range(range);
        let got = get.send().await.map_err(|error| self.fault(&error))?;
        let whole = got.content_range().and_then(|range| range.rsplit_once('/')?.1.parse().ok());
        let length = got.content_length().and_then(|bytes| u64::try_from(bytes).ok()).unwrap_or_default();
        Ok(Reading { bytes: whole.unwrap_or(length), body: ReaderStream::new(got.body.into_async_read()).boxed() })
    }

    async fn delete(&self, key: &str) -> Result<(), ObjectError> {
        check_key(key)?;
        let deleted = self.client.delete_object().bucket(&self.bucket).key(key).send().await;
        deleted.map(|_| ()).map_err(|error| self.fault(&error))
    }

    async fn list(&self, prefix: &str, limit: usize) -> Result<Vec<String>, ObjectError> {
        check_key(prefix)?;
        let mut pages = self.client.list_objects_v2().bucket(&self.bucket).prefix(prefix).into_paginator().send();
        let mut keys = Vec::new();
        while let Some(page) = pages.next().await {
            let page = page.map_err(|error| self.fault(&error))?;
            keys.extend(page.contents.unwrap_or_default().into_iter().filter_map(|object| object.key));
            if keys.len() >= limit {
                break;
            }
        }
        keys.truncate(limit);
        Ok(keys)
    }

    async fn link(&self, key: &str) -> Result<Option<Link>, ObjectError> {
        check_key(key)?;
        if let Some(public) = &self.public_url {
            return Ok(Some(Link { url: format!("{public}/{key}"), ..Link::default() }));
        }
        let unsigned = |why: String| ObjectError::Misconfigured(format!("no link can be signed: {why}"));
        let ttl = PresigningConfig::expires_in(self.link_ttl).map_err(|error| unsigned(error.to_string()))?;
        let signed = self.client.get_object().bucket(&self.bucket).key(key).presigned(ttl).await;
        let signed = signed.map_err(|error| unsigned(causes(&error)))?;
        Ok(Some(Link { url: signed.uri().to_owned(), ..Link::default() }))
    }

    fn check_every(&self) -> Duration {
        CHECK_EVERY
    }

    async fn check(&self) -> Result<(), ObjectError> {
        match self.client.head_bucket().bucket(&self.bucket).send().await {
            Ok(_) => Ok(()),
            Err(error) => match self.fault(&error) {
                // A HEAD has no words, so this is all that is said of a bucket that is gone.
                ObjectError::NotFound => Err(fault(404, "NoSuchBucket", "", &self.place())),
                // Who may write and read need not be allowed to look at the bucket as such.
                ObjectError::Misconfigured(_) => Ok(()),
                other => Err(other),
            },
        }
    }
}

/// Signs a body by the hash that is known already, so that the bucket refuses what was damaged on its way, and nothing is hashed twice.
#[derive(Debug)]
struct SignedAs(String);

impl Intercept for SignedAs {
    fn name(&self) -> &'static str {
        "SignedAs"
    }

    fn modify_before_signing(
        &self,
        _: &mut BeforeTransmitInterceptorContextMut<'_>,
        _: &RuntimeComponents,
        settings: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        settings.interceptor_state().store_put(PayloadSigningOverride::Precomputed(self.0.clone()));
        Ok(())
    }
}

fn is_sealed(encryption: Option<&ServerSideEncryption>) -> bool {
    matches!(encryption, Some(ServerSideEncryption::AwsKms | ServerSideEncryption::AwsKmsDsse))
}

/// Parts are counted from 1.
fn counted(number: usize) -> i32 {
    i32::try_from(number + 1).unwrap_or(i32::MAX)
}
