//! `[outbound]`: what clients may have us ask for.

use std::{collections::BTreeMap, time::Duration};

use super::{reader::Reader, sections, values::Secret};
use crate::outbound::{HostPattern, Policy, network};

/// `[outbound]`
#[derive(Debug, Clone)]
pub struct Outbound {
    /// What may be asked for.
    pub policy: Policy,
    /// Sent to the host of this name, and to no other.
    pub headers: BTreeMap<String, Vec<(String, Secret)>>,
    /// Longest wait for a connection.
    pub connect_timeout: Duration,
}

pub(super) fn outbound(r: &mut Reader) -> Outbound {
    Outbound {
        policy: Policy {
            allow_private: some(r.list("outbound.allow_private", |text| network(text).map(Some))),
            http: r.choice("outbound.http", &[("true", true), ("false", false)]),
            ports: r.list("outbound.ports", port),
            hosts: some(r.list("outbound.hosts", |text| HostPattern::parse(text).map(Some))),
        },
        headers: r.headers_by_host("outbound.headers", host),
        connect_timeout: r.duration("outbound.connect_timeout", sections::MS..=sections::secs(600)),
    }
}

fn port(text: &str) -> Result<u16, String> {
    text.parse().ok().filter(|port| *port > 0).ok_or_else(|| "expected a port from 1 to 65535".to_owned())
}

/// One host: all below a name would include those that belong to others.
fn host(text: &str) -> Result<String, String> {
    match HostPattern::parse(text)? {
        HostPattern::Exactly(host) => Ok(host),
        HostPattern::Below(_) => Err("expected the name of one host, without `*`".to_owned()),
    }
}

fn some<T>(list: Vec<Option<T>>) -> Vec<T> {
    list.into_iter().flatten().collect()
}
