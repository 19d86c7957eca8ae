//! Which URLs of clients may be asked for at all, before anything is resolved or connected to.

use std::{fmt, net::IpAddr};

use ipnet::IpNet;
use url::{Host, Url};

use super::address;

/// Longer ones than anything signs or understands.
pub const MAX_URL: usize = 8 << 10;

/// Endings of names that mean something in a local network only (RFC 6762, RFC 8375, ICANN's reservation of `internal`).
const LOCAL_ENDINGS: [&str; 6] = ["localhost", "local", "internal", "intranet", "lan", "home.arpa"];

/// What the operator allows, as plain data.
#[derive(Debug, Clone, Default)]
pub struct Policy {
    /// Networks that may be reached although they are not public.
    pub allow_private: Vec<IpNet>,
    /// Whether `http` is as good as `https`.
    pub http: bool,
    /// Ports that may be connected to; empty = any.
    pub ports: Vec<u16>,
    /// Hosts that may be asked; empty = any.
    pub hosts: Vec<HostPattern>,
}

/// A host, or all names below one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HostPattern {
    /// This one: a name or an address, as [`Url`] writes it.
    Exactly(String),
    /// Names that end in a dot and this.
    Below(String),
}

impl HostPattern {
    /// `files.example.org`, `*.example.org` or an address.
    ///
    /// # Errors
    /// What is expected.
    pub fn parse(text: &str) -> Result<Self, String> {
        let wanted = || "expected a host such as files.example.org, *.example.org or 192.0.2.1".to_owned();
        let (below, name) = text.strip_prefix("*.").map_or((false, text), |rest| (true, rest));
        let host = Host::parse(name).map_err(|_| wanted())?;
        match (below, host) {
            (false, host) => Ok(Self::Exactly(host.to_string())),
            (true, Host::Domain(name)) => Ok(Self::Below(name)),
            (true, _) => Err(wanted()),
        }
    }

    fn holds(&self, host: &str) -> bool {
        match self {
            Self::Exactly(name) => name == host,
            Self::Below(name) => host.strip_suffix(name.as_str()).is_some_and(|rest| rest.ends_with('.')),
        }
    }
}

/// Why a URL or an address is not asked: whole sentences without the URL, which may hold secrets.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Refusal(String);

/// A URL of which nothing but the addresses of its name is unknown. Shows its host only: paths and queries hold secrets.
#[derive(Clone, PartialEq, Eq)]
pub struct Target(Url);

impl Target {
    /// All of it, for the one place that asks for it, and for storing.
    #[must_use]
    pub fn url(&self) -> &Url {
        &self.0
    }

    /// The host, as `Url` writes it.
    #[must_use]
    pub fn host(&self) -> &str {
        self.0.host_str().unwrap_or_default()
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.origin().ascii_serialization())
    }
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Policy {
    /// Reads a URL that a client gave.
    ///
    /// # Errors
    /// Why it can never be asked for, whatever its name resolves to.
    pub fn read(&self, text: &str) -> Result<Target, Refusal> {
        // The parser drops tabs and line breaks and takes a backslash for a slash: whoever writes those does not want to be understood.
        let odd = |c: char| c.is_whitespace() || c.is_control() || c == '\\';
        if text.len() > MAX_URL || text.contains(odd) {
            return Err(refuse(format!("a URL has at most {MAX_URL} bytes and neither blanks nor backslashes")));
        }
        self.check(Url::parse(text).map_err(|error| refuse(format!("not a URL: {error}")))?)
    }

    /// Where a redirect of `from` leads.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn follow(&self, from: &Target, location: &str) -> Result<Target, Refusal> {
        let next = from.0.join(location).map_err(|error| refuse(format!("its redirect leads to no URL: {error}")))?;
        self.read(next.as_str()).map_err(|Refusal(why)| refuse(format!("it redirects elsewhere, and there: {why}")))
    }

    fn check(&self, mut url: Url) -> Result<Target, Refusal> {
        match url.scheme() {
            "https" => {}
            "http" if self.http => {}
            "http" => return Err(refuse("only https is allowed here; the operator can allow http (outbound.http)")),
            other => return Err(refuse(format!("expected an https URL, found the scheme `{other}`"))),
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(refuse("a URL with a user or password in it is not taken"));
        }
        self.check_host(&url)?;
        let port = url.port_or_known_default().unwrap_or_default();
        if !self.ports.is_empty() && !self.ports.contains(&port) {
            return Err(refuse(format!("port {port} is not allowed here (outbound.ports)")));
        }
        url.set_fragment(None);
        Ok(Target(url))
    }

    fn check_host(&self, url: &Url) -> Result<(), Refusal> {
        let host = url.host_str().unwrap_or_default();
        match url.host() {
            Some(Host::Ipv4(address)) => self.check_address(address.into(), host)?,
            Some(Host::Ipv6(address)) => self.check_address(address.into(), host)?,
            Some(Host::Domain(name)) => self.check_name(name)?,
            None => return Err(refuse("the URL names no host")),
        }
        if self.hosts.is_empty() || self.hosts.iter().any(|pattern| pattern.holds(host)) {
            Ok(())
        } else {
            Err(refuse(format!("{host} is not among the hosts allowed here (outbound.hosts)")))
        }
    }

    fn check_name(&self, name: &str) -> Result<(), Refusal> {
        if name.split('.').any(str::is_empty) {
            return Err(refuse("the host's name has an empty part: write it without dots at its end"));
        }
        let ends = |end: &str| name.strip_suffix(end).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
        let local = !name.contains('.') || LOCAL_ENDINGS.into_iter().any(ends);
        // With private networks allowed, its address decides.
        if local && self.allow_private.is_empty() {
            return Err(refuse(format!(
                "{name} is a name of a local network, and none is allowed here (OUTBOUND_ALLOW_PRIVATE)"
            )));
        }
        Ok(())
    }

    /// Whether an address may be connected to; `host` is what the client called it.
    ///
    /// # Errors
    /// What it is.
    pub fn check_address(&self, address: IpAddr, host: &str) -> Result<(), Refusal> {
        match address::not_public(address) {
            Some(what) if !address::is_in(&self.allow_private, address) => Err(refuse(format!(
                "{host} is not a public address: {what}. The operator can allow it (OUTBOUND_ALLOW_PRIVATE)"
            ))),
            _ => Ok(()),
        }
    }
}

pub(super) fn refuse(why: impl Into<String>) -> Refusal {
    Refusal(why.into())
}
