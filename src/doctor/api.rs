//! The API that a consumer works for: whether it lets this one in, and how far away it is.

use std::{collections::BTreeMap, time::Duration};

use comfyd_actors::ports::clock::Clock;

use super::{clock, report::Section};
use crate::{clock::SystemClock, config::Config, remote::ApiClient};

/// An answer that takes longer is felt: a task needs about ten, some of them while a GPU waits.
const SLOW: Duration = Duration::from_millis(100);

/// Looks at it; `None` when none is named.
pub(super) async fn examine(config: &Config) -> Option<Section> {
    let url = config.consumer.api_url.as_ref()?;
    let mut section = Section::new(format!("API  {url}"));
    match ApiClient::new(url, config.consumer.token.clone(), BTreeMap::new()) {
        Ok(api) => look(&mut section, &api).await,
        Err(error) => section.bad(error.to_string(), ""),
    }
    if url.expose().starts_with("http:") && config.consumer.token.is_some() {
        section.odd(
            "CONSUMER_TOKEN goes there in plain text: whoever reads it can take every task",
            "put TLS in front of the API and use https:// in TASK_API_URL, unless the network between is your own",
        );
    }
    Some(section)
}

async fn look(section: &mut Section, api: &ApiClient) {
    let ours = SystemClock::start();
    let began = ours.now();
    match api.greet().await {
        Ok(date) => {
            let ended = ours.now();
            let text = format!("it takes this consumer, and answers in {} ms", ended.since(began).as_millis());
            if ended.since(began) > SLOW {
                section.odd(text, "let the consumer prepare more ahead (queue.prepare_ahead), so that no GPU waits for answers");
            } else {
                section.good(text);
            }
            clock::compare(section, date.as_deref(), (began, ended));
        }
        Err(why) => section.bad(
            why,
            "see that TASK_API_URL is the address of `comfyd` or `comfyd api`, that CONSUMER_TOKEN is the same on both sides, and that what is \
             between them lets /api/consumer/ through",
        ),
    }
}
