//! Many objects become one, in constant memory. Its SHA-256 is known only once all bytes went by, so they go by here and
//! are not copied within the bucket.

use std::io;

use bytes::Bytes;
use domain::upload::UploadPart;
use futures::StreamExt;
use md5::{Digest, Md5};
use platform::objects::{ByteStream, Objects, ObjectsError, Stored};

use crate::app::objects_error;
use crate::error::ApiError;

/// Writes the parts, one behind the other, to `key`. `md5`: what the whole must have, in lower-case hexadecimal.
/// Errors: 400 for another MD5, 503; nothing is stored then.
pub(super) async fn join(
    objects: &Objects,
    key: &str,
    parts: Vec<UploadPart>,
    md5: Option<String>,
) -> Result<Stored, ApiError> {
    let joined = Joined {
        objects,
        parts: parts.into_iter(),
        current: None,
        md5: md5.map(|expected| (Md5::new(), expected)),
    };
    let body = futures::stream::try_unfold(joined, async |mut joined| {
        Ok(joined.next().await?.map(|chunk| (chunk, joined)))
    });
    objects.put(key, body).await.map_err(refused)
}

/// What is left to read.
struct Joined<'a> {
    objects: &'a Objects,
    parts: std::vec::IntoIter<UploadPart>,
    current: Option<ByteStream>,
    md5: Option<(Md5, String)>,
}

impl Joined<'_> {
    async fn next(&mut self) -> io::Result<Option<Bytes>> {
        loop {
            if let Some(current) = &mut self.current
                && let Some(chunk) = current.next().await.transpose()?
            {
                if let Some((md5, _)) = &mut self.md5 {
                    md5.update(&chunk);
                }
                return Ok(Some(chunk));
            }
            let Some(part) = self.parts.next() else {
                return self.check_md5().map(|()| None);
            };
            let content = self.objects.get(&part.object_key).await;
            self.current = Some(content.map_err(io::Error::other)?);
        }
    }

    fn check_md5(&mut self) -> io::Result<()> {
        let Some((md5, expected)) = self.md5.take() else {
            return Ok(());
        };
        let found: String = md5.finalize().iter().map(|b| format!("{b:02x}")).collect();
        if found == expected {
            return Ok(());
        }
        let message =
            format!("Invalid 'md5': the parts have the MD5 {found}, but {expected} was expected.");
        let error = ApiError::invalid("md5", "invalid_value", message);
        Err(io::Error::other(error))
    }
}

fn refused(error: ObjectsError) -> ApiError {
    let ObjectsError::Body(error) = error else {
        return objects_error(error);
    };
    let error = match error.downcast::<ApiError>() {
        Ok(refusal) => return refusal,
        Err(error) => error,
    };
    match error.downcast::<ObjectsError>() {
        Ok(error) => objects_error(error),
        // A part broke off while it was read.
        Err(error) => ApiError::unavailable(error.to_string()),
    }
}
