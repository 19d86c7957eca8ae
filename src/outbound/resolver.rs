//! Names to addresses, through the policy: the client connects to what comes out here and asks nobody again, so a name cannot mean one
//! thing when it is checked and another when it is connected to.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use async_trait::async_trait;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};

use super::policy::{Policy, Refusal};

/// Who knows the addresses of names.
#[async_trait]
pub trait Names: Send + Sync + 'static {
    /// All addresses of a name.
    ///
    /// # Errors
    /// When it is unknown, or nobody answers.
    async fn lookup(&self, name: &str) -> io::Result<Vec<IpAddr>>;
}

/// The system's resolver, with its files and servers.
pub struct SystemNames;

#[async_trait]
impl Names for SystemNames {
    async fn lookup(&self, name: &str) -> io::Result<Vec<IpAddr>> {
        Ok(tokio::net::lookup_host((name, 0)).await?.map(|address| address.ip()).collect())
    }
}

/// Leaves of a name's addresses those that may be connected to.
pub(super) struct Guarded {
    pub(super) policy: Arc<Policy>,
    pub(super) names: Arc<dyn Names>,
}

impl Resolve for Guarded {
    fn resolve(&self, name: Name) -> Resolving {
        let (policy, names) = (self.policy.clone(), self.names.clone());
        Box::pin(async move {
            let found = names.lookup(name.as_str()).await?;
            let allowed = permitted(&policy, name.as_str(), found)?;
            Ok(Box::new(allowed.into_iter().map(|address| SocketAddr::new(address, 0))) as Addrs)
        })
    }
}

/// What may be connected to; the reason for the first that may not when that is none.
fn permitted(policy: &Policy, name: &str, found: Vec<IpAddr>) -> Result<Vec<IpAddr>, Refusal> {
    let (mut allowed, mut refusal) = (Vec::new(), None);
    for address in found {
        match policy.check_address(address, name) {
            Ok(()) => allowed.push(address),
            Err(why) => refusal = refusal.or(Some(why)),
        }
    }
    match refusal {
        Some(refusal) if allowed.is_empty() => Err(refusal),
        _ => Ok(allowed),
    }
}
