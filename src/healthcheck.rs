//! `comfyd healthcheck`: asks a running service whether it lives. For container images, which have no shell to ask with.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use anyhow::{Context, bail};

use crate::config::Config;

/// A live process answers `/livez` from memory.
const PATIENCE: Duration = Duration::from_secs(5);

/// Asks `/livez` at the configured address, on this machine.
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
    let url = format!("http://{}/livez", SocketAddr::new(host, config.server.port));
    let client = reqwest::Client::builder().no_proxy().timeout(PATIENCE).build()?;
    let status = client.get(&url).send().await.with_context(|| format!("nobody answers at {url}"))?.status();
    if !status.is_success() {
        bail!("{url} answered {status}");
    }
    Ok(())
}
