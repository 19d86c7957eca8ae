//! Every target: what is stored there can be read back, by us and by those who get its URL, and deleted.

use std::time::{Duration, Instant};

use comfyd_actors::{
    ports::object_store::{ObjectError, ObjectStore, put_picture},
    targets::Target,
};
use futures_util::TryStreamExt;
use reqwest::{Client, StatusCode, redirect};

use super::report::Section;
use crate::{config::Config, storage, tls};

/// Longest wait for a URL's answer.
const PATIENCE: Duration = Duration::from_secs(15);

pub(super) async fn examine(config: &Config) -> Vec<Section> {
    let (storage, backoff) = (&config.storage, config.tasks.upload_retry);
    // What a consumer does not reach itself goes through its API.
    let opened = if config.consumer.remote {
        storage::far(storage, backoff)
    } else {
        storage::open(storage, backoff)
            .map(|targets| targets.iter().map(|(name, target)| (name.to_owned(), target.clone())).collect())
    };
    let targets = match opened {
        Ok(targets) => targets,
        Err(error) => {
            let mut section = Section::new("Storage");
            section.bad(error.to_string(), "");
            return vec![section];
        }
    };
    let mut sections = Vec::new();
    for (name, target) in &targets {
        let usual = if *name == storage.usual { "  (the usual one)" } else { "" };
        let mut section = Section::new(format!("Storage  {name}{usual}"));
        look(&mut section, target).await;
        sections.push(section);
    }
    sections
}

async fn look(section: &mut Section, target: &Target) {
    let store = target.store.as_ref();
    let began = Instant::now();
    let key = match write_and_read(store, &target.prefix).await {
        Ok(key) => key,
        Err(error) => {
            return section.bad(format!("a picture cannot be stored there and read back: {error}"), cure(&error));
        }
    };
    section.good(format!("a picture was stored and read back in {} ms", began.elapsed().as_millis()));
    fetch(section, store, &key).await;
    if let Err(error) = store.list(&key, 1).await {
        section.odd(
            format!("it could not be found by the beginning of its key ({error})"),
            "allow comfyd to list objects: outputs of runs that were given up are left behind otherwise",
        );
    }
    match store.delete(&key).await {
        Ok(()) => section.good("and deleted"),
        Err(error) => section.odd(
            format!("it could not be deleted ({error}), and is left there as {key}"),
            "allow comfyd to delete objects: outputs of runs that were given up are left behind otherwise",
        ),
    }
}

/// Returns the key of the picture.
async fn write_and_read(store: &dyn ObjectStore, prefix: &str) -> Result<String, ObjectError> {
    let key = put_picture(store, prefix).await?;
    let reading = store.open(&key, None).await?;
    // Storage may serve pictures in another format than they came in: then something else than an exact copy is right.
    let whole = reading.body.try_fold(0_u64, async |sum, chunk| Ok(sum + chunk.len() as u64)).await;
    match whole.map_err(|error| ObjectError::Unavailable(error.to_string()))? {
        0 => Err(ObjectError::Misconfigured("what was just stored there is empty when it is read".to_owned())),
        _ => Ok(key),
    }
}

/// Whether the URL that clients get leads anywhere.
async fn fetch(section: &mut Section, store: &dyn ObjectStore, key: &str) {
    let link = match store.link(key).await {
        Ok(Some(link)) => link,
        Ok(None) => return section.good("clients get its bytes through this service"),
        Err(error) => return section.bad(format!("no URL can be made for clients: {error}"), cure(&error)),
    };
    let client = Client::builder()
        .tls_backend_preconfigured((*tls::client_config()).clone())
        .timeout(PATIENCE)
        .redirect(redirect::Policy::none())
        .build();
    let answer = match client {
        Ok(client) => client.get(&link.url).send().await.map(|answer| answer.status()),
        Err(error) => Err(error),
    };
    // Where presigned, a URL is a key: it is not printed.
    match answer.map_err(reqwest::Error::without_url) {
        Ok(StatusCode::OK) => section.good("the URL that clients get leads to it"),
        Ok(status) => section.odd(
            format!("the URL that clients get is answered {status}"),
            "connect the public domain to the bucket and allow everybody to read it, or leave the domain unset for presigned URLs",
        ),
        Err(error) => section.odd(
            format!("the URL that clients get is not answered from here: {error}"),
            "if clients do not reach it either, correct the public domain of the target",
        ),
    }
}

fn cure(error: &ObjectError) -> &'static str {
    match error {
        ObjectError::Unavailable(_) => "see that this machine reaches it; until then outputs wait here",
        ObjectError::Taken | ObjectError::NotFound | ObjectError::Source(_) => {
            "something else writes or deletes there at the same time, or a cache lies in between: give comfyd a bucket or a prefix of its own"
        }
        // They say themselves what to do.
        ObjectError::Misconfigured(_) | ObjectError::Refused(_) => "",
    }
}
