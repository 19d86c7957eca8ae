//! URLs that clients give.

use url::Host;

use super::{Policy, address::not_public};
use crate::fuzz::{Target, text};

pub const TARGETS: &[Target] = &[Target {
    name: "url_policy",
    run: url_policy,
    seeds: &[
        b"https://example.org/a.png?X-Amz-Signature=abc#part",
        b"https://user:pw@example.org@127.0.0.1/",
        b"https://0x7f.1/",
        b"https://2130706433/",
        b"https://[::ffff:169.254.169.254]/",
        b"https://[fe80::1%25eth0]/",
        b"https://xn--bcher-kva.example:443/",
        b"https://\xe2\x91\xa0\xe2\x91\xa1\xe2\x91\xa6.0.0.1/",
        b"https://localhost./",
        b"https:\\\\127.0.0.1\\",
        b"//10.0.0.1/x",
        b"file:///etc/passwd",
    ],
}];

/// Whatever is let through is an https URL to a public host on an allowed port, means the same when read again, and leads nowhere else by
/// any redirect.
fn url_policy(data: &[u8]) {
    let policy = Policy { ports: vec![443], ..Policy::default() };
    let given = text(data);
    let check = |target: &super::Target| {
        let url = target.url();
        assert_eq!((url.scheme(), url.port_or_known_default()), ("https", Some(443)), "{url}");
        assert!(url.username().is_empty() && url.password().is_none(), "{url}");
        match url.host() {
            Some(Host::Ipv4(address)) => assert_eq!(not_public(address.into()), None, "{url}"),
            Some(Host::Ipv6(address)) => assert_eq!(not_public(address.into()), None, "{url}"),
            Some(Host::Domain(name)) => {
                assert!(name.parse::<std::net::IpAddr>().is_err() && name.contains('.'), "{url}");
            }
            None => panic!("{url} has no host"),
        }
        assert_eq!(policy.read(url.as_str()).as_ref(), Ok(target), "{url}");
        assert!(!format!("{target} {target:?}").contains('?'), "{url}");
    };
    let start = policy.read("https://example.org/a/b?c").unwrap_or_else(|why| panic!("{why}"));
    [policy.read(&given), policy.follow(&start, &given)].iter().flatten().for_each(check);
}
