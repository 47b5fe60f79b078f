//! One suite for every object store: a directory, and a real S3 server. With `LUTHIER_TEST_S3_URL`,
//! `_ENDPOINT`, `_REGION`, `_ACCESS_KEY_ID` and `_SECRET_ACCESS_KEY` it also runs on that server.

use std::io;
use std::path::Path;

use bytes::Bytes;
use futures::{Stream, StreamExt, TryStreamExt, stream};
use platform::config::{ObjectsConfig, Secret};
use platform::objects::{Objects, ObjectsError, Stored};
use tests::s3::{ACCESS_KEY_ID, S3Server, SECRET_ACCESS_KEY};

const MIB: usize = 1024 * 1024;

fn dir_store(root: &Path) -> Objects {
    let url = format!("file://{}", root.display());
    Objects::open(&ObjectsConfig {
        url,
        ..Default::default()
    })
    .unwrap()
}

fn s3_store(server: &S3Server) -> Objects {
    Objects::open(&ObjectsConfig {
        url: format!("s3://{}/some/prefix", server.bucket),
        endpoint: Some(server.endpoint.clone()),
        access_key_id: Some(ACCESS_KEY_ID.to_owned()),
        secret_access_key: Some(Secret::from(SECRET_ACCESS_KEY)),
        ..Default::default()
    })
    .unwrap()
}

/// The server that the environment names, under a prefix that no other run uses.
fn named_store() -> Option<Objects> {
    let get = |name: &str| std::env::var(format!("LUTHIER_TEST_S3_{name}")).ok();
    let run = format!("{:08x}", rand::random::<u32>());
    Some(
        Objects::open(&ObjectsConfig {
            url: format!("{}/{run}", get("URL")?.trim_end_matches('/')),
            endpoint: get("ENDPOINT"),
            region: get("REGION").unwrap_or("us-east-1".to_owned()),
            access_key_id: get("ACCESS_KEY_ID"),
            secret_access_key: get("SECRET_ACCESS_KEY").map(Secret::from),
            ..Default::default()
        })
        .expect("LUTHIER_TEST_S3_URL and its companions name an S3 server"),
    )
}

/// Runs each test on each store.
macro_rules! suite {
    ($($name:ident)*) => {
        mod dir {
            $(#[tokio::test]
            async fn $name() {
                let root = tempfile::tempdir().unwrap();
                super::$name(super::dir_store(root.path())).await;
            })*
        }
        mod s3 {
            $(#[tokio::test]
            async fn $name() {
                let server = tests::s3::S3Server::start().await.unwrap();
                super::$name(super::s3_store(&server)).await;
                if let Some(store) = super::named_store() {
                    super::$name(store).await;
                }
            })*
        }
    };
}

suite! {
    what_is_put_comes_back
    a_put_replaces
    keys_may_be_as_long_as_ours_are
    a_body_that_fails_leaves_nothing
    a_dropped_upload_leaves_nothing
    ranges_are_cut_from_the_content
    absent_objects_are_not_found
    deleting_twice_is_deleting
    a_listing_holds_what_starts_with_the_prefix
    long_listings_are_whole
    a_fetched_file_is_verified_and_whole
    keys_that_could_escape_are_refused
    a_store_in_order_passes_its_check
}

/// `n` bytes that differ from their neighbours, in chunks of an odd size.
fn body(n: usize) -> impl Stream<Item = io::Result<Bytes>> + Send {
    const CHUNK: usize = 100_003;
    stream::iter((0..n.div_ceil(CHUNK)).map(move |i| {
        let part = i * CHUNK..((i + 1) * CHUNK).min(n);
        Ok(part.map(byte_at).collect::<Bytes>())
    }))
}

fn byte_at(i: usize) -> u8 {
    (i.wrapping_mul(2_654_435_761) >> 16) as u8
}

async fn collect(body: platform::objects::ByteStream) -> Vec<u8> {
    body.map_ok(|chunk| chunk.to_vec())
        .try_concat()
        .await
        .unwrap()
}

async fn what_is_put_comes_back(objects: Objects) {
    for n in [0, 1, 100_003, 8 * MIB - 1, 8 * MIB, 8 * MIB + 1, 17 * MIB] {
        // A key each: s3s-fs keeps the old checksum when a multipart upload replaces an object.
        let key = format!("files/{n}");
        let stored = objects.put(&key, body(n)).await.unwrap();
        assert_eq!(stored.size_bytes, n as u64);
        assert_eq!(objects.size(&key).await.unwrap(), Some(n as u64));
        let content = collect(objects.get(&key).await.unwrap()).await;
        assert!(content.iter().copied().eq((0..n).map(byte_at)), "{n} bytes");
    }
    let stored = objects
        .put_bytes("files/abc", Bytes::from_static(b"abc"))
        .await
        .unwrap();
    // FIPS 180-2, appendix B.1
    let sha256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad".to_owned();
    assert_eq!(
        stored,
        Stored {
            size_bytes: 3,
            sha256
        }
    );
    assert_eq!(objects.get_bytes("files/abc").await.unwrap(), "abc");
}

async fn a_put_replaces(objects: Objects) {
    for text in ["a first text", "another"] {
        objects.put_bytes("a", Bytes::from(text)).await.unwrap();
        assert_eq!(objects.get_bytes("a").await.unwrap(), text);
    }
}

async fn keys_may_be_as_long_as_ours_are(objects: Objects) {
    let id = "x".repeat(24);
    let key = format!(
        "projects/proj_{id}/jobs/ftjob-{id}/attempts/12/step-123456/adapter/adapter_model.safetensors"
    );
    for n in [1, 9 * MIB] {
        objects.put(&key, body(n)).await.unwrap();
        assert_eq!(objects.size(&key).await.unwrap(), Some(n as u64));
        objects.delete(&key).await.unwrap();
    }
}

async fn a_body_that_fails_leaves_nothing(objects: Objects) {
    for n in [1000, 20 * MIB] {
        let broken = body(n).chain(stream::iter([Err(io::Error::other("the client left"))]));
        let error = objects.put("files/broken", broken).await.unwrap_err();
        assert!(matches!(&error, ObjectsError::Body(e) if e.to_string() == "the client left"));
        assert_eq!(objects.size("files/broken").await.unwrap(), None);
        assert_eq!(objects.list("").await.unwrap(), []);
    }
}

async fn a_dropped_upload_leaves_nothing(objects: Objects) {
    let (reached, mut wait) = tokio::sync::mpsc::channel(1);
    let endless = body(20 * MIB).chain(stream::once(async move {
        reached.send(()).await.unwrap();
        std::future::pending().await
    }));
    let uploading = objects.clone();
    let upload = tokio::spawn(async move { uploading.put("files/dropped", endless).await });
    wait.recv().await.unwrap();
    upload.abort();
    assert!(upload.await.unwrap_err().is_cancelled());
    assert_eq!(objects.list("").await.unwrap(), []);
}

#[tokio::test]
async fn the_next_part_comes_in_while_one_is_sent() {
    let server = tests::s3::S3Server::start().await.unwrap();
    let n_stored = || {
        let files = std::fs::read_dir(server.root()).unwrap();
        let names = files.map(|file| file.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.contains(".part-")).count()
    };
    let (asked, mut was_asked) = tokio::sync::mpsc::unbounded_channel();
    let parts = stream::iter(0..4).then(async |_| {
        asked.send(n_stored()).unwrap();
        Ok(Bytes::from(vec![7; 8 * MIB]))
    });
    let stored = s3_store(&server).put("files/four", parts).await.unwrap();
    assert_eq!(stored.size_bytes, 32 << 20);
    // How many parts the server had when each was asked for: one after the other, it would have 1 by the second.
    assert_eq!(was_asked.recv().await, Some(0));
    assert_eq!(was_asked.recv().await, Some(0));
}

async fn ranges_are_cut_from_the_content(objects: Objects) {
    objects
        .put_bytes("digits", Bytes::from_static(b"0123456789"))
        .await
        .unwrap();
    for (start, end, expected) in [(0, 10, "0123456789"), (2, 5, "234"), (7, 99, "789")] {
        let part = collect(objects.get_range("digits", start, end).await.unwrap()).await;
        assert_eq!(part, expected.as_bytes());
    }
    for (start, end) in [(10, 11), (5, 5), (5, 4)] {
        let error = objects.get_range("digits", start, end).await.err().unwrap();
        assert!(
            matches!(error, ObjectsError::Invalid { .. }),
            "{start}..{end}: {error}"
        );
    }
}

async fn absent_objects_are_not_found(objects: Objects) {
    for key in ["nothing", "no/such/dir"] {
        assert_eq!(objects.size(key).await.unwrap(), None, "{key}");
        let error = objects.get(key).await.err().unwrap();
        assert!(
            matches!(error, ObjectsError::NotFound { .. }),
            "{key}: {error}"
        );
        let dest = tempfile::tempdir().unwrap();
        let error = objects
            .fetch_file(key, &dest.path().join("file"), None)
            .await
            .unwrap_err();
        assert!(
            matches!(error, ObjectsError::NotFound { .. }),
            "{key}: {error}"
        );
    }
}

async fn deleting_twice_is_deleting(objects: Objects) {
    objects
        .put_bytes("a/b", Bytes::from_static(b"x"))
        .await
        .unwrap();
    for key in ["a/b", "a/b", "never/was"] {
        objects.delete(key).await.unwrap();
    }
    assert_eq!(objects.size("a/b").await.unwrap(), None);
}

async fn a_listing_holds_what_starts_with_the_prefix(objects: Objects) {
    for key in ["jobs/1/a", "jobs/1/b/c", "jobs/10/a", "jobs-old", "files/1"] {
        objects.put_bytes(key, Bytes::from(key)).await.unwrap();
    }
    let all = ["files/1", "jobs-old", "jobs/1/a", "jobs/1/b/c", "jobs/10/a"];
    let cases: [(&str, &[&str]); 6] = [
        ("", &all),
        ("jobs", &all[1..]),
        ("jobs/", &all[2..]),
        ("jobs/1", &all[2..]),
        ("jobs/1/", &all[2..4]),
        ("nothing/", &[]),
    ];
    for (prefix, expected) in cases {
        let found = objects.list(prefix).await.unwrap();
        let keys: Vec<&str> = found.iter().map(|object| object.key.as_str()).collect();
        assert_eq!(keys, expected, "{prefix:?}");
        assert!(
            found
                .iter()
                .all(|object| object.size_bytes == object.key.len() as u64)
        );
        assert!(
            found
                .iter()
                .all(|object| object.modified_at > 1_700_000_000)
        );
    }
}

async fn long_listings_are_whole(objects: Objects) {
    // S3 gives at most 1,000 a page.
    const N: usize = 1003;
    let puts = (0..N).map(|i| {
        let objects = &objects;
        async move {
            objects
                .put_bytes(&format!("many/{i:04}"), Bytes::new())
                .await
        }
    });
    let stored: Vec<Stored> = stream::iter(puts).buffered(8).try_collect().await.unwrap();
    assert_eq!(stored.len(), N);
    let keys: Vec<String> = objects
        .list("many/")
        .await
        .unwrap()
        .into_iter()
        .map(|object| object.key)
        .collect();
    assert!(
        keys.iter()
            .cloned()
            .eq((0..N).map(|i| format!("many/{i:04}"))),
        "{}",
        keys.len()
    );
}

async fn a_fetched_file_is_verified_and_whole(objects: Objects) {
    let stored = objects.put("weights", body(9 * MIB)).await.unwrap();
    let dest = tempfile::tempdir().unwrap();
    let path = dest.path().join("cache/weights");
    for sha256 in [
        None,
        Some(stored.sha256.as_str()),
        Some(stored.sha256.as_str()),
    ] {
        objects.fetch_file("weights", &path, sha256).await.unwrap();
        let content = std::fs::read(&path).unwrap();
        assert!(content.iter().copied().eq((0..9 * MIB).map(byte_at)));
    }
    let path = dest.path().join("cache/refused");
    let error = objects
        .fetch_file("weights", &path, Some("00ff"))
        .await
        .unwrap_err();
    assert!(matches!(error, ObjectsError::Corrupt { .. }), "{error}");
    let left: Vec<_> = std::fs::read_dir(dest.path().join("cache"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(left, ["weights"]);
}

async fn keys_that_could_escape_are_refused(objects: Objects) {
    let long = "x".repeat(241);
    for key in [
        "",
        "/etc/passwd",
        "../up",
        "a/../../up",
        "a//b",
        "a/",
        ".tmp/x",
        "a\\b",
        "a\nb",
        "./a",
        &long,
    ] {
        let error = objects.put_bytes(key, Bytes::new()).await.unwrap_err();
        assert!(
            matches!(error, ObjectsError::Invalid { .. }),
            "{key:?}: {error}"
        );
        let error = objects.get(key).await.err().unwrap();
        assert!(
            matches!(error, ObjectsError::Invalid { .. }),
            "{key:?}: {error}"
        );
    }
    assert!(objects.list("../").await.is_err());
}

async fn a_store_in_order_passes_its_check(objects: Objects) {
    objects.check().await.unwrap();
}

#[tokio::test]
async fn a_directory_on_the_way_to_an_object_is_no_object() {
    let root = tempfile::tempdir().unwrap();
    let objects = dir_store(root.path());
    objects
        .put_bytes("dir/file", Bytes::from_static(b"x"))
        .await
        .unwrap();
    for key in ["dir", "dir/file/below"] {
        assert_eq!(objects.size(key).await.unwrap(), None, "{key}");
        let error = objects.get(key).await.err().unwrap();
        assert!(
            matches!(error, ObjectsError::NotFound { .. }),
            "{key}: {error}"
        );
        let error = objects.put_bytes(key, Bytes::new()).await.unwrap_err();
        assert!(
            matches!(error, ObjectsError::Invalid { .. }),
            "{key}: {error}"
        );
        objects.delete(key).await.unwrap();
    }
    assert_eq!(objects.get_bytes("dir/file").await.unwrap(), "x");
}

#[tokio::test]
async fn an_s3_server_that_is_gone_is_unavailable_not_absent() {
    let server = S3Server::start().await.unwrap();
    let objects = s3_store(&server);
    objects
        .put_bytes("a", Bytes::from_static(b"x"))
        .await
        .unwrap();
    drop(server);
    for error in [
        objects.size("a").await.unwrap_err(),
        objects.get("a").await.err().unwrap(),
        objects.check().await.unwrap_err(),
    ] {
        assert!(matches!(error, ObjectsError::Unavailable { .. }), "{error}");
    }
}

#[tokio::test]
async fn a_missing_bucket_and_a_wrong_key_are_named() {
    let server = S3Server::start().await.unwrap();
    let config = ObjectsConfig {
        url: "s3://elsewhere".to_owned(),
        endpoint: Some(server.endpoint.clone()),
        access_key_id: Some(ACCESS_KEY_ID.to_owned()),
        secret_access_key: Some(Secret::from(SECRET_ACCESS_KEY)),
        ..Default::default()
    };
    let objects = Objects::open(&config).unwrap();
    assert!(matches!(
        objects.check().await,
        Err(ObjectsError::Unavailable { .. })
    ));

    let secret_access_key = Some(Secret::from("wrong"));
    let url = format!("s3://{}", server.bucket);
    let objects = Objects::open(&ObjectsConfig {
        url,
        secret_access_key,
        ..config
    })
    .unwrap();
    let error = objects
        .put_bytes("a", Bytes::new())
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("SignatureDoesNotMatch"), "{error}");
}

#[tokio::test]
async fn an_aborted_multipart_upload_leaves_no_parts_on_the_server() {
    let server = S3Server::start().await.unwrap();
    let broken = body(20 * MIB).chain(stream::iter([Err(io::Error::other("the client left"))]));
    s3_store(&server)
        .put("files/broken", broken)
        .await
        .unwrap_err();
    let parts = || {
        let names = std::fs::read_dir(server.root()).unwrap();
        names
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.contains("part"))
            .collect::<Vec<_>>()
    };
    // The abort is sent in the background.
    for _ in 0..200 {
        if parts().is_empty() {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    panic!("left behind: {:?}", parts());
}
