//! Asking for URLs that clients gave, without letting them reach what only this machine can reach.
//!
//! A URL becomes a [`Target`] by the [`Policy`] and by nothing else, so nothing unchecked can be asked for. Addresses written in the URL
//! are checked there; those of names where they are resolved, and what is connected to is what was checked. Redirects are URLs like any
//! other. No proxy of the environment and no cookie takes part, and what the operator sends to a host goes to that host alone.

mod address;
#[cfg(any(test, feature = "fuzz"))]
pub(crate) mod fuzz;
mod later;
mod policy;
mod resolver;

use std::{collections::BTreeMap, error::Error, sync::Arc, time::Duration};

use bytes::Bytes;
use reqwest::{
    Client, Method, Response,
    header::{HeaderMap, HeaderName, HeaderValue, LOCATION},
    redirect,
};

pub use self::{
    address::network,
    later::retry_after,
    policy::{HostPattern, MAX_URL, Policy, Refusal, Target},
    resolver::{Names, SystemNames},
};
use crate::{config, describe::describe, tls};

/// Idle connections are kept this long, and so many per host: a client names new hosts at will.
const POOL_IDLE: Duration = Duration::from_secs(15);
const POOL_PER_HOST: usize = 4;
/// How hosts see us.
const USER_AGENT: &str = concat!("comfyd/", env!("CARGO_PKG_VERSION"));

/// The one way out to URLs of clients. Cheap to clone.
#[derive(Clone)]
pub struct Outbound {
    client: Client,
    policy: Arc<Policy>,
    headers: Arc<BTreeMap<String, HeaderMap>>,
}

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DialError {
    /// It is not allowed; as long as its name means the same, trying again is no use.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// More redirects than are followed.
    #[error("it redirects more than {0} times")]
    TooManyRedirects(usize),
    /// No connection, or it broke: worth another try. Without the URL.
    #[error("{0}")]
    Failed(String),
}

impl Outbound {
    /// By the configuration, with the system's resolver.
    ///
    /// # Errors
    /// When the system cannot make a client, in words.
    pub fn new(settings: &config::Outbound) -> Result<Self, String> {
        Self::with_names(settings, Arc::new(SystemNames))
    }

    /// With a resolver of the caller's.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn with_names(settings: &config::Outbound, names: Arc<dyn Names>) -> Result<Self, String> {
        let policy = Arc::new(settings.policy.clone());
        let client = Client::builder()
            .tls_backend_preconfigured((*tls::client_config()).clone())
            .user_agent(USER_AGENT)
            .connect_timeout(settings.connect_timeout)
            .pool_idle_timeout(POOL_IDLE)
            .pool_max_idle_per_host(POOL_PER_HOST)
            .tcp_nodelay(true)
            // Each of these would connect to something that was not checked.
            .no_proxy()
            .redirect(redirect::Policy::none())
            .dns_resolver(resolver::Guarded { policy: policy.clone(), names })
            // Whoever calls knows whether and when to try again.
            .retry(reqwest::retry::never())
            .build()
            .map_err(describe)?;
        let headers = settings.headers.iter().map(|(host, pairs)| (host.clone(), sensitive(pairs))).collect();
        Ok(Self { client, policy, headers: Arc::new(headers) })
    }

    /// Reads a URL that a client gave, and connects to nothing.
    ///
    /// # Errors
    /// Why it can never be asked for.
    pub fn read(&self, text: &str) -> Result<Target, Refusal> {
        self.policy.read(text)
    }

    /// Asks for it and follows at most so many redirects. `limit` is for each answer, to its last byte. The answer may be any but a
    /// redirect, and its body is the caller's to limit.
    ///
    /// # Errors
    /// [`DialError`].
    pub async fn get(&self, target: &Target, redirects: usize, limit: Duration) -> Result<Response, DialError> {
        let mut target = target.clone();
        for _ in 0..=redirects {
            let answer = self.send(Method::GET, &target, HeaderMap::new(), Bytes::new(), limit).await?;
            let location = answer.headers().get(LOCATION).filter(|_| answer.status().is_redirection());
            let Some(location) = location else { return Ok(answer) };
            target = self.policy.follow(&target, &String::from_utf8_lossy(location.as_bytes()))?;
        }
        Err(DialError::TooManyRedirects(redirects))
    }

    /// Sends something there, and follows nothing: a redirect is an answer like another. `limit` is for the answer, to its last byte.
    ///
    /// # Errors
    /// [`DialError`]; never `TooManyRedirects`.
    pub async fn post(
        &self,
        target: &Target,
        headers: HeaderMap,
        body: impl Into<Bytes>,
        limit: Duration,
    ) -> Result<Response, DialError> {
        self.send(Method::POST, target, headers, body.into(), limit).await
    }

    /// The operator's headers for the host win over the caller's.
    async fn send(
        &self,
        method: Method,
        target: &Target,
        headers: HeaderMap,
        body: Bytes,
        limit: Duration,
    ) -> Result<Response, DialError> {
        let mut request = self.client.request(method, target.url().clone()).headers(headers).timeout(limit);
        if let Some(headers) = self.headers.get(target.host()) {
            request = request.headers(headers.clone());
        }
        if !body.is_empty() {
            request = request.body(body);
        }
        request.send().await.map_err(dial_error)
    }
}

/// What the resolver refused comes back as the innermost cause.
fn dial_error(error: reqwest::Error) -> DialError {
    let mut cause = error.source();
    while let Some(inner) = cause {
        if let Some(refusal) = inner.downcast_ref::<Refusal>() {
            return DialError::Refused(refusal.clone());
        }
        cause = inner.source();
    }
    DialError::Failed(describe(error))
}

/// Headers that no log shows. They were found fit to be sent when the configuration was read.
fn sensitive(pairs: &[(String, config::values::Secret)]) -> HeaderMap {
    let one = |(name, value): &(String, config::values::Secret)| {
        let mut value = HeaderValue::try_from(value.expose()).ok()?;
        value.set_sensitive(true);
        Some((HeaderName::try_from(name.as_str()).ok()?, value))
    };
    pairs.iter().filter_map(one).collect()
}

#[cfg(test)]
mod tests;
