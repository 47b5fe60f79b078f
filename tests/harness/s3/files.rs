//! s3s-fs for keys of any length that we use. It keeps what it knows of an unfinished upload in a
//! file named after the key, in base 64, and fails where that name is longer than 255 bytes.

use s3s::dto::*;
use s3s::{S3, S3Request, S3Response, S3Result};
use s3s_fs::FileSystem;

/// Longest key whose unfinished uploads s3s-fs can name, whatever the bucket. Bytes.
const MAX_KEY_BYTES: usize = 90;

/// Objects as files; every operation that the product uses.
pub(super) struct Files(pub(super) FileSystem);

/// Methods that are s3s-fs's own.
macro_rules! pass_on {
    ($($name:ident: $input:ident -> $output:ident;)*) => {
        #[async_trait::async_trait]
        impl S3 for Files {
            $(async fn $name(&self, request: S3Request<$input>) -> S3Result<S3Response<$output>> {
                self.0.$name(request).await
            })*

            /// The upload is known by its id from here on; the key is given again at its end.
            async fn create_multipart_upload(
                &self,
                mut request: S3Request<CreateMultipartUploadInput>,
            ) -> S3Result<S3Response<CreateMultipartUploadOutput>> {
                let key = request.input.key.clone();
                if key.len() > MAX_KEY_BYTES {
                    request.input.key = "unfinished".to_owned();
                }
                let mut response = self.0.create_multipart_upload(request).await?;
                response.output.key = Some(key);
                Ok(response)
            }
        }
    };
}

pass_on! {
    abort_multipart_upload: AbortMultipartUploadInput -> AbortMultipartUploadOutput;
    complete_multipart_upload: CompleteMultipartUploadInput -> CompleteMultipartUploadOutput;
    copy_object: CopyObjectInput -> CopyObjectOutput;
    create_bucket: CreateBucketInput -> CreateBucketOutput;
    delete_object: DeleteObjectInput -> DeleteObjectOutput;
    delete_objects: DeleteObjectsInput -> DeleteObjectsOutput;
    get_object: GetObjectInput -> GetObjectOutput;
    head_bucket: HeadBucketInput -> HeadBucketOutput;
    head_object: HeadObjectInput -> HeadObjectOutput;
    list_objects_v2: ListObjectsV2Input -> ListObjectsV2Output;
    list_parts: ListPartsInput -> ListPartsOutput;
    put_object: PutObjectInput -> PutObjectOutput;
    upload_part: UploadPartInput -> UploadPartOutput;
}
