//! `comfyd doctor`: looks at everything the service needs, the way the service will use it, and says of each fault what to do about it.
//!
//! Safe beside a running service: it changes nothing but a picture of one pixel that it stores and deletes again.

mod api;
mod clock;
mod comfyui;
mod postgres;
mod redis;
mod report;
mod server;
mod service;
mod storage;
mod store;

use std::io::{self, Write};

use futures_util::{StreamExt, stream};

use self::report::Section;
use crate::{app, config::Config};

/// Servers looked at at the same time.
const AT_ONCE: usize = 8;

/// Looks at everything and prints what it finds; false when something is at fault.
///
/// # Errors
/// When `out` cannot be written.
pub async fn run(config: &Config, warnings: Vec<String>, out: &mut impl Write) -> io::Result<bool> {
    crate::tls::install_crypto_provider();
    let mut sections = vec![settings(warnings), service::examine(config).await];
    sections.extend(api::examine(config).await);
    // A consumer without a database has its tasks from the API, and its files go there if it has no bucket.
    let kept = if config.consumer.remote {
        Vec::new()
    } else {
        let (store, kept) = store::examine(config).await;
        sections.push(store);
        kept
    };
    sections.extend(storage::examine(config).await);
    sections.extend(servers(config, kept).await);
    for section in &sections {
        section.print(out)?;
    }
    report::conclude(&sections, out)
}

fn settings(warnings: Vec<String>) -> Section {
    let mut section = Section::new("Settings");
    section.good("nothing is at fault; `comfyd check-config` prints them all");
    for warning in warnings {
        section.odd(warning, "");
    }
    section
}

async fn servers(config: &Config, kept: Vec<store::Kept>) -> Vec<Section> {
    let backends = match app::backends(config, comfyd_actors::system::Role::Both) {
        Ok(backends) => backends,
        Err(error) => {
            let mut section = Section::new("ComfyUI");
            section.bad(error.to_string(), "correct COMFYUI_URL and COMFYUI_HEADERS");
            return vec![section];
        }
    };
    let workflows = comfyui::workflows(config, kept);
    let looking = backends.iter().map(|backend| comfyui::examine(backend.as_ref(), config, &workflows));
    stream::iter(looking).buffered(AT_ONCE).collect().await
}
