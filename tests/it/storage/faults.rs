//! Buckets that fail: what passes is tried again and stored once, what can be mended says how, and nothing damaged is ever found.

use comfyd::storage::{OpenError, prove};
use comfyd_actors::ports::object_store::{ObjectError, ObjectStore};

use super::conformance::{KEY, picture, put, read};
use crate::{
    buckets::{Bucket, Images, Proxy, Seen, Trouble, settings, targets, usual},
    support::sha256,
};

fn is_write(seen: &Seen) -> bool {
    matches!(seen.method.as_str(), "PUT" | "POST")
}

fn is_end(seen: &Seen) -> bool {
    seen.method == "POST" && seen.path.contains("uploadId")
}

/// What passes: each a few times less than one request is tried.
async fn passing(store: &dyn ObjectStore, proxy: &Proxy, length: usize, troubles: &[Trouble]) {
    for (index, trouble) in troubles.iter().enumerate() {
        let (key, bytes) = (format!("0/{index}.png"), picture(length, 1));
        proxy.inject(2, is_write, *trouble);
        let written = put(store, &key, &bytes).await.unwrap_or_else(|error| panic!("{trouble:?}: {error}"));
        assert_eq!((written.sha256, proxy.unused()), (sha256(&bytes), 0), "{trouble:?}");
        assert_eq!(read(store, &key, None).await.unwrap().1, bytes, "{trouble:?}");
    }
}

const PASSING: [Trouble; 5] = [
    Trouble::Answer(500, "InternalError"),
    Trouble::Answer(503, "SlowDown"),
    Trouble::Answer(502, "BadGateway"),
    Trouble::Cut,
    Trouble::Lose,
];

#[tokio::test(flavor = "multi_thread")]
async fn what_passes_is_tried_again_and_stored_once() {
    let bucket = Bucket::new().await;
    for env in [bucket.s3(), bucket.gcs()] {
        let (_dir, targets) = targets(&env);
        let store = usual(&targets);
        passing(store.as_ref(), &bucket.proxy, 10_000, &PASSING).await;
        assert_eq!(bucket.objects().await.len(), PASSING.len());
        for index in 0..PASSING.len() {
            store.delete(&format!("0/{index}.png")).await.unwrap();
        }
    }
    let images = Images::start().await;
    let (_dir, targets) = targets(&images.settings());
    passing(usual(&targets).as_ref(), &images.proxy, 10_000, &PASSING).await;
    assert_eq!(images.ids().len(), PASSING.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_file_is_not_begun_anew_for_a_part_that_failed() {
    let bucket = Bucket::new().await;
    for env in [bucket.s3(), bucket.gcs()] {
        let (_dir, targets) = targets(&env);
        let store = usual(&targets);
        let before = bucket.proxy.seen(|seen| seen.path.contains("uploads")).len();
        passing(store.as_ref(), &bucket.proxy, 9 << 20, &PASSING[..1]).await;
        // Its end is done, and nobody hears of it.
        bucket.proxy.inject(1, is_end, Trouble::Lose);
        put(store.as_ref(), KEY, &picture(9 << 20, 2)).await.unwrap();
        assert_eq!(bucket.proxy.unused(), 0);
        assert_eq!(read(store.as_ref(), KEY, None).await.unwrap().1, picture(9 << 20, 2));
        let begun = bucket.proxy.seen(|seen| seen.path.contains("uploads")).len() - before;
        // The first fault met the beginning itself, twice.
        assert_eq!(begun, 4, "each began once");
        for key in [KEY, "0/0.png"] {
            store.delete(key).await.unwrap();
        }
    }
    assert_eq!(bucket.unfinished().await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_damaged_on_its_way_is_never_found() {
    let bucket = Bucket::new().await;
    for env in [bucket.s3(), bucket.gcs()] {
        let (_dir, targets) = targets(&env);
        let store = usual(&targets);
        for length in [10_000, 9 << 20] {
            bucket.proxy.inject(1, |seen| seen.method == "PUT" && seen.bytes > 1_000, Trouble::Damage);
            let failed = put(store.as_ref(), KEY, &picture(length, 1)).await;
            assert!(matches!(failed, Err(ObjectError::Unavailable(_))), "{failed:?}");
            assert_eq!((bucket.proxy.unused(), store.size(KEY).await), (0, Err(ObjectError::NotFound)));
            if env == bucket.s3() {
                let deleted = bucket
                    .proxy
                    .seen(|seen| seen.method == "DELETE" && seen.path.contains(KEY) && !seen.path.contains("uploadId"));
                assert_eq!(
                    deleted.len(),
                    usize::from(length > 10_000),
                    "it was refused, as its signature covers its bytes"
                );
            }
            put(store.as_ref(), KEY, &picture(length, 1)).await.unwrap();
            assert_eq!(read(store.as_ref(), KEY, None).await.unwrap().1, picture(length, 1));
            store.delete(KEY).await.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_is_dropped_is_given_up() {
    let bucket = Bucket::new().await;
    for env in [bucket.s3(), bucket.gcs()] {
        let (_dir, targets) = targets(&env);
        let store = usual(&targets);
        // Its second part never ends.
        bucket.proxy.inject(9, |seen| seen.path.contains("partNumber=2"), Trouble::Answer(500, "InternalError"));
        let failed = put(store.as_ref(), KEY, &picture(17 << 20, 1)).await;
        assert!(matches!(failed, Err(ObjectError::Unavailable(_))), "{failed:?}");
        crate::witness::until_level("given up", || {
            !bucket.proxy.seen(|seen| seen.method == "DELETE" && seen.path.contains("uploadId")).is_empty()
        })
        .await;
        assert_eq!(store.size(KEY).await, Err(ObjectError::NotFound));
    }
}

/// What can be mended, and what is said of it.
const MENDED: [(u16, &str, &str); 4] = [
    (400, "ExpiredToken", "renew"),
    (403, "InvalidAccessKeyId", "renew"),
    (401, "Unauthorized", "renew"),
    (403, "RequestTimeTooSkewed", "clock"),
];

#[tokio::test(flavor = "multi_thread")]
async fn credentials_that_ran_out_say_so_and_are_no_reason_to_give_an_output_up() {
    let bucket = Bucket::new().await;
    let (_s3, s3) = targets(&bucket.s3());
    for (status, code, words) in MENDED {
        bucket.proxy.always(Some(Trouble::Answer(status, code)));
        let failed = put(usual(&s3).as_ref(), KEY, &picture(100, 1)).await.unwrap_err();
        assert!(matches!(&failed, ObjectError::Misconfigured(why) if why.contains(words)), "{code}: {failed}");
        assert!(!failed.to_string().contains("hunter2"));
        // Its first request is one that is answered without words.
        let failed = put(usual(&s3).as_ref(), KEY, &picture(9 << 20, 1)).await.unwrap_err();
        assert!(matches!(&failed, ObjectError::Misconfigured(_)), "{code}: {failed}");
    }
    let (_gcs, gcs) = targets(&bucket.gcs());
    for status in [401, 403] {
        bucket.proxy.always(Some(Trouble::Answer(status, "AccessDenied")));
        let failed = put(usual(&gcs).as_ref(), KEY, &picture(100, 1)).await.unwrap_err();
        assert!(matches!(&failed, ObjectError::Misconfigured(why) if why.contains("renew")), "{failed}");
    }
    let images = Images::start().await;
    images.proxy.always(Some(Trouble::Answer(403, "Authentication error")));
    let (_dir, targets) = targets(&images.settings());
    let failed = put(usual(&targets).as_ref(), KEY, &picture(100, 1)).await.unwrap_err();
    assert!(matches!(&failed, ObjectError::Misconfigured(why) if why.contains("renew")), "{failed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_bucket_is_told_at_the_start_and_one_that_is_away_is_waited_for() {
    let bucket = Bucket::missing().await;
    for env in [bucket.s3(), bucket.r2(), bucket.gcs()] {
        let (_dir, targets) = targets(&env);
        let refused = prove(&targets).await.unwrap_err().to_string();
        assert!(refused.contains(&bucket.name) && refused.contains("create it"), "{refused}");
    }
    bucket.proxy.always(Some(Trouble::Answer(503, "SlowDown")));
    for env in [bucket.s3(), bucket.gcs()] {
        let (_dir, targets) = targets(&env);
        prove(&targets).await.unwrap();
        assert!(usual(&targets).check().await.is_err());
    }
    let images = Images::start().await;
    let mut env = images.settings();
    env.retain(|(name, _)| name != "CF_IMAGES_API_TOKEN");
    env.extend(settings(&[("CF_IMAGES_API_TOKEN", "another")]));
    let (_dir, targets) = targets(&env);
    assert!(matches!(prove(&targets).await, Err(OpenError::Unusable { .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_preconditions_is_looked_at_before() {
    let bucket = Bucket::new().await;
    let mut env = bucket.s3();
    env.extend(settings(&[("COMFYD_STORAGE__S3_IF_NONE_MATCH", "false")]));
    let (_dir, targets) = targets(&env);
    let store = usual(&targets);
    for length in [100, 9 << 20] {
        put(store.as_ref(), KEY, &picture(length, 1)).await.unwrap();
        put(store.as_ref(), KEY, &picture(length, 1)).await.unwrap();
        assert_eq!(put(store.as_ref(), KEY, &picture(length, 2)).await, Err(ObjectError::Taken));
        store.delete(KEY).await.unwrap();
    }
    assert!(bucket.proxy.seen(|seen| seen.headers.contains_key("if-none-match")).is_empty());
}
