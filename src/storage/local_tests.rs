//! What the port promises, on a real folder.

use std::{
    fs::{self, File},
    io,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use comfyd_actors::ports::{
    ByteStream,
    object_store::{ByteRange, ObjectError, ObjectStore},
};
use futures_util::{StreamExt, TryStreamExt, stream};
use tempfile::TempDir;

use super::{check_key, local::LocalStorage};

const KEY: &str = "0/2026-01-02/task/1/9-0.png";

fn storage() -> (TempDir, LocalStorage) {
    let folder = tempfile::tempdir().unwrap();
    let storage = LocalStorage::new(folder.path()).unwrap();
    (folder, storage)
}

fn body(chunks: &[&'static str]) -> ByteStream {
    let chunks: Vec<io::Result<Bytes>> = chunks.iter().map(|chunk| Ok(Bytes::from_static(chunk.as_bytes()))).collect();
    stream::iter(chunks).boxed()
}

async fn read(storage: &LocalStorage, key: &str, range: Option<(u64, u64)>) -> Result<(u64, String), ObjectError> {
    let reading = storage.open(key, range.map(|(first, last)| ByteRange { first, last })).await?;
    let bytes: Vec<u8> = reading.body.map_ok(|chunk| chunk.to_vec()).try_concat().await.unwrap();
    Ok((reading.bytes, String::from_utf8(bytes).unwrap()))
}

fn temporary_files(folder: &Path) -> usize {
    fs::read_dir(folder.join(".tmp")).unwrap().count()
}

#[tokio::test]
async fn what_was_put_is_read() {
    let (folder, storage) = storage();
    let stored = storage.put(KEY, "image/png", Some(11), body(&["hello ", "", "world"])).await.unwrap();
    assert_eq!(stored.bytes, 11);
    assert_eq!(stored.sha256, "b94d27b9934d3e08a52e52d7da7dabfac484efe37a5380ee9088f7ace2efcde9");
    assert_eq!(storage.size(KEY).await, Ok(11));
    assert_eq!(read(&storage, KEY, None).await, Ok((11, "hello world".into())));
    for (range, text) in [((0, 0), "h"), ((6, 10), "world"), ((0, 10), "hello world")] {
        assert_eq!(read(&storage, KEY, Some(range)).await, Ok((11, text.into())), "{range:?}");
    }
    assert!(matches!(read(&storage, KEY, Some((6, 11))).await, Err(ObjectError::Refused(_))));
    assert_eq!(temporary_files(folder.path()), 0);
}

#[tokio::test]
async fn nothing_is_left_of_a_body_that_failed() {
    let (folder, storage) = storage();
    let broken: ByteStream = stream::iter([Ok(Bytes::from_static(b"half")), Err(io::Error::other("cut"))]).boxed();
    for (bytes, body) in [(Some(3), body(&["hello"])), (Some(9), body(&["hello"])), (None, broken)] {
        let error = storage.put(KEY, "image/png", bytes, body).await.unwrap_err();
        assert!(matches!(error, ObjectError::Source(_)), "{error}");
    }
    assert_eq!(storage.size(KEY).await, Err(ObjectError::NotFound));
    assert_eq!(temporary_files(folder.path()), 0);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "no folders are made for nothing");
}

#[tokio::test]
async fn an_abandoned_put_leaves_nothing() {
    let (folder, storage) = storage();
    let endless: ByteStream = stream::once(async { Ok(Bytes::from_static(b"x")) }).chain(stream::pending()).boxed();
    let put = storage.put(KEY, "image/png", None, endless);
    assert!(tokio::time::timeout(Duration::from_millis(50), put).await.is_err());
    while temporary_files(folder.path()) > 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(storage.size(KEY).await, Err(ObjectError::NotFound));
}

#[tokio::test]
async fn the_same_again_is_harmless_and_a_failure_keeps_the_old() {
    let (_folder, storage) = storage();
    for _ in 0..2 {
        storage.put(KEY, "image/png", None, body(&["one"])).await.unwrap();
    }
    storage.put(KEY, "image/png", Some(9), body(&["two"])).await.unwrap_err();
    assert_eq!(read(&storage, KEY, None).await, Ok((3, "one".into())));
}

#[tokio::test]
async fn puts_side_by_side_do_not_mix() {
    let (folder, storage) = storage();
    let storage = Arc::new(storage);
    let puts = (0..16).map(|n| {
        let storage = Arc::clone(&storage);
        let key = if n % 2 == 0 { KEY.to_owned() } else { format!("0/2026-01-02/task/1/{n}.png") };
        let chunk = Bytes::from(vec![b'a' + n; 50_000]);
        let chunks = (0..4).map(move |_| Ok(chunk.clone()));
        tokio::spawn(async move {
            let put = storage.put(&key, "image/png", Some(200_000), stream::iter(chunks).boxed()).await;
            // Who comes after another under the same key is told so.
            assert!(put.is_ok() || (key == KEY && put == Err(ObjectError::Taken)), "{put:?}");
        })
    });
    for put in puts.collect::<Vec<_>>() {
        put.await.unwrap();
    }
    let (bytes, text) = read(&storage, KEY, None).await.unwrap();
    assert_eq!(bytes, 200_000);
    assert!(text.bytes().all(|byte| byte == text.as_bytes()[0]), "one of the puts, whole");
    assert_eq!(temporary_files(folder.path()), 0);
}

#[tokio::test]
async fn hostile_keys_are_refused() {
    let (_folder, storage) = storage();
    let long = "a/".repeat(600) + "b";
    for key in
        ["", "/", "/etc/x", "a//b", "a/", "../x", "a/../b", "a/./b", "a\\b", "a b", "a\0b", "\u{e4}", ".tmp/x", &long]
    {
        for result in [
            storage.put(key, "image/png", None, body(&["x"])).await.map(|_| ()),
            storage.size(key).await.map(|_| ()),
            storage.open(key, None).await.map(|_| ()),
        ] {
            assert!(matches!(result, Err(ObjectError::Refused(_))), "{key:?}: {result:?}");
        }
    }
    assert!(check_key(&"a".repeat(256)).is_err());
    assert!(check_key(KEY).is_ok() && check_key("0/x/1.0_..__-3.png").is_ok());
}

#[tokio::test]
async fn what_is_no_object_is_not_found() {
    let (_folder, storage) = storage();
    storage.put("a/b", "image/png", None, body(&["x"])).await.unwrap();
    for key in ["a", "a/c", "a/b/c"] {
        assert_eq!(storage.size(key).await, Err(ObjectError::NotFound), "{key}");
    }
    for key in ["a", "a/b/c"] {
        let error = storage.put(key, "image/png", None, body(&["x"])).await.unwrap_err();
        assert!(matches!(error, ObjectError::Refused(_)), "{error}");
    }
}

#[tokio::test]
async fn a_storage_that_cannot_write_says_so_without_its_path() {
    let (folder, storage) = storage();
    assert_eq!(storage.check().await, Ok(()));
    assert_eq!(temporary_files(folder.path()), 0);
    // A file in place of the folder fails for every user, root included.
    fs::remove_dir(folder.path().join(".tmp")).unwrap();
    fs::write(folder.path().join(".tmp"), "").unwrap();
    let error = storage.check().await.unwrap_err().to_string();
    assert!(!error.contains(&folder.path().display().to_string()), "{error}");
    storage.put(KEY, "image/png", None, body(&["x"])).await.unwrap_err();
}

#[test]
fn old_temporary_files_are_swept_at_start() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join(".tmp")).unwrap();
    let left = File::create(folder.path().join(".tmp/left")).unwrap();
    left.set_modified(SystemTime::UNIX_EPOCH).unwrap();
    File::create(folder.path().join(".tmp/in-use")).unwrap();
    LocalStorage::new(folder.path()).unwrap();
    assert!(!folder.path().join(".tmp/left").exists());
    assert!(folder.path().join(".tmp/in-use").exists());
}
