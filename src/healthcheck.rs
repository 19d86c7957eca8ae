//! `comfyd healthcheck`: asks a running service whether it lives. For container images, which have no shell to ask with.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use anyhow::{Context, bail};

use crate::config::Config;

/// A live process answers `/livez` from memory.
const PATIENCE: Duration = Duration::from_secs(5);

/// Asks `/livez` at the configured address, on this machine: that of an API, or else that of a consumer.
///
/// # Errors
/// No answer, or not a good one.
pub async fn run(config: &Config) -> anyhow::Result<()> {
    crate::tls::install_crypto_provider();
    let host = match config.server.host {
        IpAddr::V4(host) if host.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(host) if host.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        host => host,
    };
    let client = reqwest::Client::builder().no_proxy().timeout(PATIENCE).build()?;
    let url = |port| format!("http://{}/livez", SocketAddr::new(host, port));
    let (of_api, of_consumer) = (url(config.server.port), url(config.consumer.port));
    // Which of the two runs here its command knows, and not this one.
    let (url, answer) = match client.get(&of_api).send().await {
        Err(error) if error.is_connect() => (&of_consumer, client.get(&of_consumer).send().await),
        answer => (&of_api, answer),
    };
    let status = answer.with_context(|| format!("nobody answers at {of_api}, nor at {of_consumer}"))?.status();
    if !status.is_success() {
        bail!("{url} answered {status}");
    }
    Ok(())
}
