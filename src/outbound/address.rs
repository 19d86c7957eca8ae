//! Which addresses are nobody's but the public's: everything else is a way into the network this service stands in.
//!
//! Sources: IANA's registries of special-purpose addresses for IPv4 and IPv6 (RFC 6890 and its updates), and what clouds put at public
//! addresses.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

const fn v4(a: u8, b: u8, c: u8, d: u8, bits: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), bits)
}

const fn v6(a: u16, b: u16, bits: u8) -> Ipv6Net {
    Ipv6Net::new_assert(Ipv6Addr::new(a, b, 0, 0, 0, 0, 0, 0), bits)
}

/// What of IPv4 is not public, and what it is.
const NOT_PUBLIC_V4: [(Ipv4Net, &str); 16] = [
    (v4(0, 0, 0, 0, 8), "this machine itself"),
    (v4(10, 0, 0, 0, 8), "a private network"),
    (v4(100, 64, 0, 0, 10), "a provider's inner network"),
    (v4(127, 0, 0, 0, 8), "this machine itself"),
    // Azure's agent answers there, with keys, and only to the machine itself.
    (v4(168, 63, 129, 16, 32), "a cloud's metadata service"),
    (v4(169, 254, 0, 0, 16), "a link-local network, where clouds keep their metadata service"),
    (v4(172, 16, 0, 0, 12), "a private network"),
    (v4(192, 0, 0, 0, 24), "reserved for protocols"),
    (v4(192, 0, 2, 0, 24), "for documentation only"),
    (v4(192, 88, 99, 0, 24), "a relay between IPv6 and IPv4"),
    (v4(192, 168, 0, 0, 16), "a private network"),
    (v4(198, 18, 0, 0, 15), "for benchmarks only"),
    (v4(198, 51, 100, 0, 24), "for documentation only"),
    (v4(203, 0, 113, 0, 24), "for documentation only"),
    (v4(224, 0, 0, 0, 4), "multicast"),
    // The broadcast address is the last of them.
    (v4(240, 0, 0, 0, 4), "reserved"),
];

/// All of IPv6 that is given out to the public.
const PUBLIC_V6: Ipv6Net = v6(0x2000, 0, 3);

/// What of [`PUBLIC_V6`] is not public. The ways to write an IPv4 address in IPv6 are among it and outside it.
const NOT_PUBLIC_V6: [(Ipv6Net, &str); 4] = [
    (v6(0x2001, 0, 23), "reserved for protocols, or a tunnel to IPv4 (Teredo)"),
    (v6(0x2001, 0xdb8, 32), "for documentation only"),
    (v6(0x2002, 0, 16), "a tunnel to IPv4 (6to4)"),
    (v6(0x3fff, 0, 20), "for documentation only"),
];

/// What is known of the rest of IPv6, for the words of a refusal.
const KNOWN_V6: [(Ipv6Net, &str); 4] = [
    (v6(0x64, 0xff9b, 32), "a translation to IPv4 (NAT64)"),
    (v6(0xfc00, 0, 7), "a private network"),
    (v6(0xfe80, 0, 10), "a link-local network"),
    (v6(0xff00, 0, 8), "multicast"),
];

/// What an address is when it is not public; `None` for public ones.
#[must_use]
pub fn not_public(address: IpAddr) -> Option<&'static str> {
    match address.to_canonical() {
        IpAddr::V4(address) => among(&NOT_PUBLIC_V4, |network| network.contains(&address)),
        IpAddr::V6(address) if PUBLIC_V6.contains(&address) => {
            among(&NOT_PUBLIC_V6, |network| network.contains(&address))
        }
        IpAddr::V6(Ipv6Addr::LOCALHOST | Ipv6Addr::UNSPECIFIED) => Some("this machine itself"),
        IpAddr::V6(address) => {
            among(&KNOWN_V6, |network| network.contains(&address)).or(Some("not given out to the public"))
        }
    }
}

fn among<N>(networks: &[(N, &'static str)], holds: impl Fn(&N) -> bool) -> Option<&'static str> {
    networks.iter().find(|(network, _)| holds(network)).map(|(_, what)| *what)
}

/// Whether one of the networks holds the address, in whichever of its forms.
#[must_use]
pub fn is_in(networks: &[IpNet], address: IpAddr) -> bool {
    networks.iter().any(|network| network.contains(&address.to_canonical()))
}

/// A network as people write it: `10.0.0.0/8`, `fd00::/8`, or a single address.
///
/// # Errors
/// What is expected.
pub fn network(text: &str) -> Result<IpNet, String> {
    let single = || text.parse::<IpAddr>().map(|address| IpNet::from(address.to_canonical()));
    text.parse().or_else(|_| single()).map_err(|_| {
        "expected a network such as 10.0.0.0/8 or fd00::/8, or a single address: names are resolved first and cannot be listed"
            .to_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_public_is_public() {
        for public in [
            "1.1.1.1",
            "8.8.8.8",
            "9.255.255.255",
            "11.0.0.0",
            "100.63.255.255",
            "100.128.0.0",
            "126.255.255.255",
            "128.0.0.0",
            "168.63.129.15",
            "168.63.129.17",
            "169.253.255.255",
            "169.255.0.0",
            "172.15.255.255",
            "172.32.0.0",
            "192.0.1.0",
            "192.167.255.255",
            "192.169.0.0",
            "198.17.255.255",
            "198.20.0.0",
            "223.255.255.255",
            "2000::1",
            "2001:200::1",
            "2001:4860:4860::8888",
            "2003::1",
            "2606:4700::1111",
            "3ffe::1",
            "::ffff:8.8.8.8",
        ] {
            assert_eq!(not_public(public.parse().unwrap()), None, "{public}");
        }
        for (not, word) in [
            ("0.0.0.0", "itself"),
            ("0.255.255.255", "itself"),
            ("10.0.0.0", "private"),
            ("10.255.255.255", "private"),
            ("100.64.0.0", "provider"),
            ("100.100.100.200", "provider"),
            ("100.127.255.255", "provider"),
            ("127.0.0.0", "itself"),
            ("127.0.0.1", "itself"),
            ("127.255.255.255", "itself"),
            ("168.63.129.16", "metadata"),
            ("169.254.0.0", "metadata"),
            ("169.254.169.254", "metadata"),
            ("172.16.0.0", "private"),
            ("172.31.255.255", "private"),
            ("192.0.0.192", "protocols"),
            ("192.0.2.1", "documentation"),
            ("192.88.99.1", "relay"),
            ("192.168.0.0", "private"),
            ("192.168.255.255", "private"),
            ("198.18.0.0", "benchmarks"),
            ("198.19.255.255", "benchmarks"),
            ("198.51.100.1", "documentation"),
            ("203.0.113.1", "documentation"),
            ("224.0.0.1", "multicast"),
            ("239.255.255.255", "multicast"),
            ("240.0.0.1", "reserved"),
            ("255.255.255.255", "reserved"),
            ("::", "itself"),
            ("::1", "itself"),
            ("::ffff:127.0.0.1", "itself"),
            ("::ffff:10.0.0.1", "private"),
            ("::127.0.0.1", "not given out"),
            ("::ffff:0:127.0.0.1", "not given out"),
            ("64:ff9b::7f00:1", "NAT64"),
            ("64:ff9b:1::a00:1", "NAT64"),
            ("100::1", "not given out"),
            ("2001::1", "Teredo"),
            ("2001:10::1", "protocols"),
            ("2001:1ff::1", "protocols"),
            ("2001:db8::1", "documentation"),
            ("2002:7f00:1::1", "6to4"),
            ("3fff::1", "documentation"),
            ("3fff:fff::1", "documentation"),
            ("4000::1", "not given out"),
            ("5f00::1", "not given out"),
            ("fc00::1", "private"),
            ("fd00:ec2::254", "private"),
            ("fe80::1", "link-local"),
            ("febf::1", "link-local"),
            ("fec0::1", "not given out"),
            ("ff02::1", "multicast"),
        ] {
            let found = not_public(not.parse().unwrap());
            assert!(found.is_some_and(|what| what.contains(word)), "{not}: {found:?}");
        }
    }

    #[test]
    fn networks_hold_every_form_of_an_address() {
        let networks: Vec<IpNet> =
            ["10.0.0.0/8", "127.0.0.2", "fd00::/8", "::ffff:10.9.9.9"].map(|n| network(n).unwrap()).into();
        for inside in ["10.1.2.3", "::ffff:10.1.2.3", "127.0.0.2", "fd12::1"] {
            assert!(is_in(&networks, inside.parse().unwrap()), "{inside}");
        }
        for outside in ["11.0.0.1", "127.0.0.1", "fc00::1", "::10.1.2.3", "64:ff9b::a01:203"] {
            assert!(!is_in(&networks, outside.parse().unwrap()), "{outside}");
        }
        for bad in ["", "10.0.0.0/33", "localhost", "10.0.0/8", "*"] {
            assert!(network(bad).is_err(), "{bad}");
        }
    }
}
