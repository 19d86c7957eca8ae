//! What the `ObjectStore` port promises, for every kind of target.

use bytes::Bytes;
use comfyd_actors::ports::{
    ByteStream,
    object_store::{ByteRange, ObjectError, ObjectStore, Written, round_trip},
};
use futures_util::{StreamExt, TryStreamExt, stream};
use reqwest::Client;

use crate::{
    buckets::{Bucket, Images, WithoutProxy, settings, targets, usual},
    support::sha256,
};

pub const KEY: &str = "renders/0/2026-01-02/task_1_9-0.png";
/// More than one part of an upload in parts, and not a multiple of them.
const LARGE: usize = (17 << 20) + 5;

/// Something that begins like a picture, of this length; `salt` makes it another one.
pub fn picture(length: usize, salt: u8) -> Bytes {
    let mut bytes = vec![salt; length];
    let magic = b"\x89PNG\r\n\x1a\n";
    bytes[..magic.len()].copy_from_slice(magic);
    bytes.into()
}

/// In pieces, as it comes from a server.
pub fn body(bytes: &Bytes) -> ByteStream {
    let bytes = bytes.clone();
    let pieces = (0..bytes.len()).step_by(100_000).map(move |at| Ok(bytes.slice(at..bytes.len().min(at + 100_000))));
    stream::iter(pieces.collect::<Vec<_>>()).boxed()
}

pub async fn put(store: &dyn ObjectStore, key: &str, bytes: &Bytes) -> Result<Written, ObjectError> {
    store.put(key, "image/png", Some(bytes.len() as u64), body(bytes)).await
}

pub async fn read(store: &dyn ObjectStore, key: &str, range: Option<ByteRange>) -> Result<(u64, Vec<u8>), ObjectError> {
    let reading = store.open(key, range).await?;
    let bytes = reading.body.map_ok(|chunk| chunk.to_vec()).try_concat().await.unwrap();
    Ok((reading.bytes, bytes))
}

async fn holds(store: &dyn ObjectStore) {
    let bytes = picture(250_000, 1);
    let written = put(store, KEY, &bytes).await.unwrap();
    assert_eq!(written, Written { bytes: 250_000, sha256: sha256(&bytes) });
    assert_eq!(store.size(KEY).await, Ok(250_000));
    assert_eq!(read(store, KEY, None).await.unwrap(), (250_000, bytes.to_vec()));
    for (first, last) in [(0, 0), (10, 99_999), (249_999, 249_999)] {
        let part = bytes.slice(usize::try_from(first).unwrap()..=usize::try_from(last).unwrap());
        assert_eq!(read(store, KEY, Some(ByteRange { first, last })).await.unwrap(), (250_000, part.to_vec()));
    }
    // The same again, whoever stored it, is as good as new; other bytes leave it alone.
    assert_eq!(put(store, KEY, &bytes).await.unwrap(), written);
    for other in [picture(250_000, 2), picture(249_999, 1)] {
        assert_eq!(put(store, KEY, &other).await, Err(ObjectError::Taken));
    }
    assert_eq!(read(store, KEY, None).await.unwrap().1, bytes);
}

async fn leaves_nothing_of_what_failed(store: &dyn ObjectStore) {
    let key = "0/failed.png";
    let bytes = picture(1_000, 1);
    let cut: ByteStream = stream::iter([Ok(bytes.slice(..500)), Err(std::io::Error::other("cut"))]).boxed();
    for (told, body) in [(Some(999), body(&bytes)), (Some(1_001), body(&bytes)), (Some(1_000), cut)] {
        let error = store.put(key, "image/png", told, body).await.unwrap_err();
        assert!(matches!(error, ObjectError::Source(_)), "{error}");
    }
    assert_eq!(store.size(key).await, Err(ObjectError::NotFound));
    assert!(matches!(store.open(key, None).await.err(), Some(ObjectError::NotFound)));
    assert_eq!(store.delete(key).await, Ok(()), "what is not there is as good as deleted");
}

async fn forgets(store: &dyn ObjectStore) {
    let bytes = picture(1_000, 3);
    // Its length is not always known.
    store.put("0/gone.png", "image/png", None, body(&bytes)).await.unwrap();
    assert_eq!(store.size("0/gone.png").await, Ok(1_000));
    store.delete("0/gone.png").await.unwrap();
    assert_eq!(store.size("0/gone.png").await, Err(ObjectError::NotFound));
}

/// By the beginnings of their keys, and whole ones.
async fn lists(store: &dyn ObjectStore) {
    let key = |name: &str| format!("renders/7/2026-01-02/{name}.png");
    let mine: Vec<_> = (0..12).map(|number| key(&format!("b_1_{number}"))).collect();
    let others = [key("a_1_0"), key("b-1_0"), key("bb_1_0"), "renders/7/2026-01-03/b_1_0.png".into()];
    for key in mine.iter().chain(&others) {
        put(store, key, &picture(10, 1)).await.unwrap();
    }
    let list = async |prefix: &str, limit| {
        let mut keys = store.list(prefix, limit).await.unwrap();
        keys.sort();
        keys
    };
    let mut all = mine.clone();
    all.sort();
    assert_eq!(list("renders/7/2026-01-02/b_", 100).await, all);
    assert_eq!(list("renders/7/2026-01-02/b_", 5).await.len(), 5);
    assert_eq!(list(&key("a_1_0"), 100).await, [key("a_1_0")]);
    for nothing in ["renders/7/2026-01-02/c_", "renders/8/2026-01-02/b_", "renders/7/2026-01-02/zz_"] {
        assert!(list(nothing, 100).await.is_empty(), "{nothing}");
    }
    for key in mine.iter().chain(&others) {
        store.delete(key).await.unwrap();
    }
    assert!(list("renders/7/2026-01-02/b_", 100).await.is_empty());
}

async fn refuses_foreign_keys(store: &dyn ObjectStore) {
    for key in ["", "/x", "a//b", "../x", "a/../b", "a b", "a?b", "a#b", "\u{e4}", "a%2fb"] {
        for refused in [
            put(store, key, &picture(10, 1)).await.map(|_| ()),
            store.size(key).await.map(|_| ()),
            store.open(key, None).await.map(|_| ()),
            store.delete(key).await,
            store.list(key, 1).await.map(|_| ()),
        ] {
            assert!(matches!(refused, Err(ObjectError::Refused(_))), "{key:?}: {refused:?}");
        }
    }
}

/// What all of them promise.
async fn conforms(store: &dyn ObjectStore) {
    holds(store).await;
    leaves_nothing_of_what_failed(store).await;
    forgets(store).await;
    lists(store).await;
    refuses_foreign_keys(store).await;
    assert_eq!(store.check().await, Ok(()));
    assert_eq!(round_trip(store, "below/this").await, Ok(None));
}

/// What those promise that hold large files.
async fn holds_large_ones(store: &dyn ObjectStore) {
    let bytes = picture(LARGE, 4);
    let written = Written { bytes: LARGE as u64, sha256: sha256(&bytes) };
    for length in [Some(LARGE as u64), None] {
        assert_eq!(store.put("0/large.png", "image/png", length, body(&bytes)).await, Ok(written.clone()));
    }
    assert_eq!(read(store, "0/large.png", None).await.unwrap().1, bytes);
    assert_eq!(put(store, "0/large.png", &picture(LARGE, 5)).await, Err(ObjectError::Taken));
}

/// Where the link leads.
async fn linked(store: &dyn ObjectStore, key: &str) -> Bytes {
    let link = store.link(key).await.unwrap().unwrap();
    let answer = Client::new_without_proxy().get(link.url).send().await.unwrap();
    assert!(answer.status().is_success(), "{answer:?}");
    answer.bytes().await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_does() {
    let (_dir, targets) = targets(&[]);
    let store = usual(&targets);
    conforms(store.as_ref()).await;
    holds_large_ones(store.as_ref()).await;
    assert_eq!(store.link(KEY).await, Ok(None), "we serve it");
}

async fn a_bucket_does(bucket: &Bucket, settings: &[(String, String)]) {
    let (_dir, targets) = targets(settings);
    let store = usual(&targets);
    conforms(store.as_ref()).await;
    holds_large_ones(store.as_ref()).await;
    let found = bucket.object(KEY).await;
    assert_eq!(found.headers()["content-type"], "image/png");
    assert_eq!(found.headers()["cache-control"], "max-age=31536000, immutable");
    assert_eq!(linked(store.as_ref(), KEY).await, picture(250_000, 1));
    let keys: Vec<String> = bucket.objects().await.into_keys().collect();
    assert_eq!(keys, ["0/large.png", KEY], "nothing is left of the rest");
    assert_eq!(bucket.unfinished().await, 0);
    // Once whole, once not at all, once only as far as it takes to see that it is another one.
    let parts = bucket.proxy.seen(|seen| seen.path.contains("partNumber"));
    assert_eq!(parts.iter().map(|part| part.bytes).collect::<Vec<_>>(), [5 << 20, 5 << 20, 5 << 20, (2 << 20) + 5]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_of_s3_does() {
    let bucket = Bucket::new().await;
    a_bucket_does(&bucket, &bucket.s3()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_of_r2_does() {
    let bucket = Bucket::new().await;
    a_bucket_does(&bucket, &bucket.r2()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_of_google_does() {
    let bucket = Bucket::new().await;
    a_bucket_does(&bucket, &bucket.gcs()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn cloudflare_images_do() {
    let images = Images::start().await;
    let (_dir, targets) = targets(&images.settings());
    let store = usual(&targets);
    conforms(store.as_ref()).await;
    assert_eq!(images.ids(), [KEY.replace('/', ".")]);

    // More than one page.
    let key = |number| format!("0/2026-01-02/many_{number}_9-0.png");
    for number in 0..105 {
        put(store.as_ref(), &key(number), &picture(10, 1)).await.unwrap();
    }
    let mut keys = store.list("0/2026-01-02/many_", 1_000).await.unwrap();
    keys.sort_by_key(|key| (key.len(), key.clone()));
    assert_eq!(keys, (0..105).map(key).collect::<Vec<_>>());
    assert_eq!(store.list("0/2026-01-02/many_", 103).await.unwrap().len(), 103);

    // Links are made from what the answers told, and after a restart from what they tell of an image.
    assert_eq!(linked(store.as_ref(), KEY).await, picture(250_000, 1));
    let (_dir, targets) = self::targets(&images.settings());
    let link = usual(&targets).link(KEY).await.unwrap().unwrap();
    assert_eq!(link.variants.keys().collect::<Vec<_>>(), ["public", "thumb"]);
    assert_eq!(link.url, link.variants["public"]);
    assert!(link.url.starts_with(&images.proxy.url()) && link.url.ends_with("/public"), "{}", link.url);

    for (content_type, bytes) in [("video/mp4", Some(10)), ("image/avif", None), ("image/png", Some(10_000_001))] {
        assert!(store.takes(content_type, bytes).is_err(), "{content_type}");
        let refused = store.put("0/x.mp4", content_type, bytes, body(&picture(10, 1))).await;
        assert!(matches!(refused, Err(ObjectError::Refused(_))), "{refused:?}");
    }
    let refused = store.put("0/x.png", "image/png", None, body(&picture(10_000_001, 1))).await;
    assert!(matches!(refused, Err(ObjectError::Refused(_))), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_public_domain_is_what_links_lead_to() {
    let bucket = Bucket::new().await;
    for (mut env, name) in
        [(bucket.s3(), "S3_PUBLIC_DOMAIN"), (bucket.r2(), "R2_PUBLIC_DOMAIN"), (bucket.gcs(), "GCS_PUBLIC_DOMAIN")]
    {
        for (domain, url) in
            [("cdn.example.org", "https://cdn.example.org/0/x.png"), ("http://cdn:8/y/", "http://cdn:8/y/0/x.png")]
        {
            env.retain(|(known, _)| known != name);
            env.extend(settings(&[(name, domain)]));
            let (_dir, targets) = targets(&env);
            assert_eq!(usual(&targets).link("0/x.png").await.unwrap().unwrap().url, url);
        }
    }
    assert_eq!(bucket.proxy.seen(|_| true).len(), 0, "nobody is asked");
}
