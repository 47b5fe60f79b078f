//! Objects in an S3 bucket. Only what every S3 server understands is used: path style, CRC-32 on
//! multipart uploads, and no conditional writes.

use std::io;
use std::pin::Pin;
use std::time::Duration;

use aws_sdk_s3::Client;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{BehaviorVersion, Credentials, Region, StalledStreamProtectionConfig};
use aws_sdk_s3::error::{DisplayErrorContext, ProvideErrorMetadata, SdkError};
use aws_sdk_s3::primitives::ByteStream as S3Body;
use aws_sdk_s3::types::{ChecksumAlgorithm, CompletedMultipartUpload, CompletedPart};
use bytes::{Bytes, BytesMut};
use futures::{Stream, StreamExt};
use tokio::task::JoinSet;

use crate::config::ObjectsConfig;
use crate::objects::{ByteStream, ObjectMeta, ObjectsError};

/// Uploads above this are sent in parts of this size; 10,000 parts make 80 GB. Bytes.
const PART_BYTES: usize = 8 * 1024 * 1024;
/// Parts of an upload that are on their way while the next one comes in. A connection to S3 carries 50 to 90 MB/s.
const PARTS_AT_ONCE: usize = 2;
/// A server that does not accept a connection by then is down.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest silence of a server, before its answer and between two chunks of a body.
const READ_TIMEOUT: Duration = Duration::from_secs(60);
/// First try and two more, with the SDK's backoff.
const ATTEMPTS: u32 = 3;

/// A bucket, and the prefix before every key in it.
#[derive(Clone, Debug)]
pub(crate) struct S3Objects {
    client: Client,
    bucket: String,
    /// Empty, or ending with a slash.
    prefix: String,
}

impl S3Objects {
    /// `place` is `bucket` or `bucket/prefix`.
    pub(crate) fn open(place: &str, config: &ObjectsConfig) -> Result<Self, ObjectsError> {
        let (bucket, prefix) = place.split_once('/').unwrap_or((place, ""));
        let prefix = prefix.trim_matches('/');
        let missing = |what: &str| ObjectsError::Invalid {
            reason: format!("{what} is not set"),
        };
        if bucket.is_empty() {
            return Err(missing("the bucket in objects.url"));
        }
        let id = config
            .access_key_id
            .as_ref()
            .ok_or_else(|| missing("objects.access_key_id"))?;
        let secret = config
            .secret_access_key
            .as_ref()
            .ok_or_else(|| missing("objects.secret_access_key"))?;
        let timeouts = TimeoutConfig::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(READ_TIMEOUT)
            .build();
        let mut builder = aws_sdk_s3::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new(config.region.clone()))
            .credentials_provider(Credentials::new(id, secret.expose(), None, None, "luthier"))
            .force_path_style(config.path_style)
            .timeout_config(timeouts)
            .retry_config(RetryConfig::standard().with_max_attempts(ATTEMPTS))
            // It takes a slow reader for a slow server; bodies have a timeout of their own below.
            .stalled_stream_protection(StalledStreamProtectionConfig::disabled());
        if let Some(endpoint) = &config.endpoint {
            builder = builder.endpoint_url(endpoint);
        }
        let prefix = if prefix.is_empty() {
            String::new()
        } else {
            format!("{prefix}/")
        };
        Ok(Self {
            client: Client::from_conf(builder.build()),
            bucket: bucket.to_owned(),
            prefix,
        })
    }

    fn full(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }

    pub(crate) async fn check(&self) -> Result<(), ObjectsError> {
        let answer = self.client.head_bucket().bucket(&self.bucket).send().await;
        answer.map(drop).map_err(|error| failed("check", &error))
    }

    pub(crate) async fn put(
        &self,
        key: &str,
        mut body: Pin<&mut (impl Stream<Item = io::Result<Bytes>> + Send)>,
    ) -> Result<(), ObjectsError> {
        let mut rest = Bytes::new();
        let first = next_part(&mut body, &mut rest, 0).await?;
        if first.len() < PART_BYTES {
            return self.put_whole(key, first).await;
        }
        let mut upload = Multipart::create(self, key).await?;
        let mut part = first;
        while !part.is_empty() {
            upload.send(part).await?;
            part = next_part(&mut body, &mut rest, PART_BYTES).await?;
        }
        upload.complete().await
    }

    async fn put_whole(&self, key: &str, content: Bytes) -> Result<(), ObjectsError> {
        let put = self
            .client
            .put_object()
            .bucket(&self.bucket)
            .key(self.full(key));
        let answer = put.body(S3Body::from(content)).send().await;
        answer.map(drop).map_err(|error| failed("put", &error))
    }

    pub(crate) async fn get(
        &self,
        key: &str,
        range: Option<(u64, u64)>,
    ) -> Result<ByteStream, ObjectsError> {
        let range = range.map(|(start, end)| format!("bytes={start}-{}", end - 1));
        let get = self
            .client
            .get_object()
            .bucket(&self.bucket)
            .key(self.full(key));
        let answer =
            get.set_range(range.clone())
                .send()
                .await
                .map_err(|error| match status(&error) {
                    Some(404) if error.code() != Some("NoSuchBucket") => ObjectsError::NotFound {
                        key: key.to_owned(),
                    },
                    Some(416) => {
                        let range = range.unwrap_or_default();
                        ObjectsError::Invalid {
                            reason: format!("{key} ends before {range}"),
                        }
                    }
                    _ => failed("get", &error),
                })?;
        Ok(Box::pin(futures::stream::try_unfold(
            answer.body,
            |mut body| async {
                match tokio::time::timeout(READ_TIMEOUT, body.next()).await {
                    Err(_) => {
                        let reason = format!("no byte for {} s", READ_TIMEOUT.as_secs());
                        Err(io::Error::new(io::ErrorKind::TimedOut, reason))
                    }
                    Ok(Some(Err(error))) => {
                        Err(io::Error::other(DisplayErrorContext(error).to_string()))
                    }
                    Ok(Some(Ok(chunk))) => Ok(Some((chunk, body))),
                    Ok(None) => Ok(None),
                }
            },
        )))
    }

    pub(crate) async fn size(&self, key: &str) -> Result<Option<u64>, ObjectsError> {
        let head = self
            .client
            .head_object()
            .bucket(&self.bucket)
            .key(self.full(key));
        match head.send().await {
            Ok(answer) => {
                let size = answer
                    .content_length()
                    .and_then(|size| u64::try_from(size).ok());
                size.map(Some).ok_or_else(|| ObjectsError::Unavailable {
                    operation: "size",
                    reason: "the server gave no content length".to_owned(),
                })
            }
            // The answer to HEAD has no body, so a missing bucket looks the same.
            Err(error) if status(&error) == Some(404) => Ok(None),
            Err(error) => Err(failed("size", &error)),
        }
    }

    pub(crate) async fn delete(&self, key: &str) -> Result<(), ObjectsError> {
        let delete = self
            .client
            .delete_object()
            .bucket(&self.bucket)
            .key(self.full(key));
        match delete.send().await {
            Ok(_) => Ok(()),
            // Some servers say so; deleting twice is no error here.
            Err(error) if error.code() == Some("NoSuchKey") => Ok(()),
            Err(error) => Err(failed("delete", &error)),
        }
    }

    pub(crate) async fn list(&self, prefix: &str) -> Result<Vec<ObjectMeta>, ObjectsError> {
        let list = self
            .client
            .list_objects_v2()
            .bucket(&self.bucket)
            .prefix(self.full(prefix));
        let mut pages = list.into_paginator().send();
        let mut found = Vec::new();
        while let Some(page) = pages.next().await {
            let page = page.map_err(|error| failed("list", &error))?;
            for object in page.contents() {
                let Some(key) = object.key().and_then(|key| key.strip_prefix(&self.prefix)) else {
                    continue;
                };
                found.push(ObjectMeta {
                    key: key.to_owned(),
                    size_bytes: object
                        .size()
                        .and_then(|s| u64::try_from(s).ok())
                        .unwrap_or(0),
                    modified_at: object.last_modified().map_or(0, |at| at.secs()),
                });
            }
        }
        // S3 sorts by UTF-8 bytes, as this does; some servers sort per page only.
        found.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(found)
    }
}

/// Reads up to [`PART_BYTES`]; less only at the end of the body. `rest` keeps what a chunk holds
/// beyond the part; `expected` is how many bytes there probably are.
async fn next_part(
    body: &mut Pin<&mut (impl Stream<Item = io::Result<Bytes>> + Send)>,
    rest: &mut Bytes,
    expected: usize,
) -> Result<Bytes, ObjectsError> {
    let mut part = BytesMut::with_capacity(expected);
    loop {
        let room = PART_BYTES - part.len();
        part.extend_from_slice(&rest.split_to(room.min(rest.len())));
        if part.len() == PART_BYTES {
            return Ok(part.freeze());
        }
        match body.next().await {
            Some(chunk) => *rest = chunk.map_err(ObjectsError::Body)?,
            None => return Ok(part.freeze()),
        }
    }
}

/// A multipart upload that is aborted when it is dropped before it completed.
struct Multipart {
    objects: S3Objects,
    key: String,
    /// Taken by `complete`.
    upload_id: Option<String>,
    n_parts: i32,
    sending: JoinSet<Result<CompletedPart, ObjectsError>>,
    /// In the order in which they arrived.
    sent: Vec<CompletedPart>,
}

impl Multipart {
    async fn create(objects: &S3Objects, key: &str) -> Result<Self, ObjectsError> {
        let create = objects.client.create_multipart_upload();
        let answer = create
            .bucket(&objects.bucket)
            .key(objects.full(key))
            // Without it some servers refuse the checksums that the SDK sends with each part.
            .checksum_algorithm(ChecksumAlgorithm::Crc32)
            .send()
            .await
            .map_err(|error| failed("put", &error))?;
        let upload_id = answer.upload_id().map(str::to_owned);
        if upload_id.is_none() {
            let reason = "the server gave no upload id".to_owned();
            return Err(ObjectsError::Unavailable {
                operation: "put",
                reason,
            });
        }
        let key = objects.full(key);
        Ok(Self {
            objects: objects.clone(),
            key,
            upload_id,
            n_parts: 0,
            sending: JoinSet::new(),
            sent: Vec::new(),
        })
    }

    /// Sends the next part, after one before it where [`PARTS_AT_ONCE`] are on their way. Errors: one before it could not be sent.
    async fn send(&mut self, content: Bytes) -> Result<(), ObjectsError> {
        if self.sending.len() == PARTS_AT_ONCE {
            self.wait_for_one().await?;
        }
        self.n_parts += 1;
        let part_number = self.n_parts;
        let upload = self
            .objects
            .client
            .upload_part()
            .bucket(&self.objects.bucket)
            .key(&self.key)
            .set_upload_id(self.upload_id.clone())
            .part_number(part_number)
            .checksum_algorithm(ChecksumAlgorithm::Crc32)
            .body(S3Body::from(content));
        self.sending.spawn(async move {
            let answer = upload.send().await;
            let answer = answer.map_err(|error| failed("put", &error))?;
            let part = CompletedPart::builder()
                .part_number(part_number)
                .set_e_tag(answer.e_tag().map(str::to_owned))
                .set_checksum_crc32(answer.checksum_crc32().map(str::to_owned));
            Ok(part.build())
        });
        Ok(())
    }

    /// Whether there was one.
    async fn wait_for_one(&mut self) -> Result<bool, ObjectsError> {
        let Some(ended) = self.sending.join_next().await else {
            return Ok(false);
        };
        let part = ended.map_err(|error| ObjectsError::Unavailable {
            operation: "put",
            reason: error.to_string(),
        })?;
        self.sent.push(part?);
        Ok(true)
    }

    async fn complete(mut self) -> Result<(), ObjectsError> {
        while self.wait_for_one().await? {}
        let mut parts = std::mem::take(&mut self.sent);
        parts.sort_by_key(|part| part.part_number);
        let parts = CompletedMultipartUpload::builder()
            .set_parts(Some(parts))
            .build();
        let complete = self.objects.client.complete_multipart_upload();
        complete
            .bucket(&self.objects.bucket)
            .key(&self.key)
            .set_upload_id(self.upload_id.clone())
            .multipart_upload(parts)
            .send()
            .await
            .map_err(|error| failed("put", &error))?;
        self.upload_id = None;
        Ok(())
    }
}

impl Drop for Multipart {
    fn drop(&mut self) {
        let (Some(upload_id), Ok(runtime)) =
            (self.upload_id.take(), tokio::runtime::Handle::try_current())
        else {
            return;
        };
        let mut sending = std::mem::take(&mut self.sending);
        let abort = self.objects.client.abort_multipart_upload();
        let abort = abort
            .bucket(&self.objects.bucket)
            .key(&self.key)
            .upload_id(upload_id);
        let key = std::mem::take(&mut self.key);
        runtime.spawn(async move {
            // A part that arrives after the abort would stay.
            while sending.join_next().await.is_some() {}
            if let Err(error) = abort.send().await {
                let error = DisplayErrorContext(error).to_string();
                tracing::warn!(
                    key,
                    error,
                    "parts of an unfinished upload stay in the bucket"
                );
            }
        });
    }
}

fn status<E>(error: &SdkError<E>) -> Option<u16> {
    error
        .raw_response()
        .map(|response| response.status().as_u16())
}

fn failed<E>(operation: &'static str, error: &SdkError<E>) -> ObjectsError
where
    E: std::error::Error + ProvideErrorMetadata + Send + Sync + 'static,
{
    // The SDK's full display prints the raw response, headers and all.
    let reason = match (error.code(), error.message(), status(error)) {
        (Some(code), message, _) => format!("{code} {}", message.unwrap_or_default()),
        (None, _, Some(status)) => format!("the server answered {status}"),
        (None, _, None) => deepest(error),
    };
    ObjectsError::Unavailable {
        operation,
        reason: reason.trim_end().to_owned(),
    }
}

/// The text of the innermost cause, such as "connection refused".
fn deepest(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}
