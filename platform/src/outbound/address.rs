//! Which addresses are public, and which hosts an operator allows beside them.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// What is not for everyone. Source: IANA's registry of special-purpose IPv4 addresses.
const SPECIAL_V4: [Ipv4Net; 15] = [
    v4(0, 0, 0, 0, 8),
    v4(10, 0, 0, 0, 8),
    v4(100, 64, 0, 0, 10),
    v4(127, 0, 0, 0, 8),
    v4(169, 254, 0, 0, 16),
    v4(172, 16, 0, 0, 12),
    v4(192, 0, 0, 0, 24),
    v4(192, 0, 2, 0, 24),
    v4(192, 88, 99, 0, 24),
    v4(192, 168, 0, 0, 16),
    v4(198, 18, 0, 0, 15),
    v4(198, 51, 100, 0, 24),
    v4(203, 0, 113, 0, 24),
    v4(224, 0, 0, 0, 4),
    v4(240, 0, 0, 0, 4),
];
/// All that IANA gives out as global unicast.
const GLOBAL_V6: Ipv6Net = v6(0x2000, 0, 3);
/// Of that: protocols (Teredo among them), documentation, and 6to4, which hides an IPv4 address.
const SPECIAL_V6: [Ipv6Net; 4] = [
    v6(0x2001, 0, 23),
    v6(0x2001, 0x0db8, 32),
    v6(0x2002, 0, 16),
    v6(0x3fff, 0, 20),
];
/// IPv4 behind a translator (RFC 6052): as public as what is behind it.
const NAT64: Ipv6Net = v6(0x0064, 0xff9b, 96);

const fn v4(a: u8, b: u8, c: u8, d: u8, length: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), length)
}

const fn v6(a: u16, b: u16, length: u8) -> Ipv6Net {
    Ipv6Net::new_assert(Ipv6Addr::new(a, b, 0, 0, 0, 0, 0, 0), length)
}

/// Whether everyone may call it: no loopback, no private network, no metadata service, in whichever spelling.
pub fn is_public(address: IpAddr) -> bool {
    match plain(address) {
        IpAddr::V4(address) => !SPECIAL_V4.iter().any(|net| net.contains(&address)),
        IpAddr::V6(address) => {
            GLOBAL_V6.contains(&address) && !SPECIAL_V6.iter().any(|net| net.contains(&address))
        }
    }
}

/// The IPv4 address that an IPv6 one stands for, if it does.
fn plain(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) if NAT64.contains(&v6) => {
            let [.., a, b, c, d] = v6.octets();
            Ipv4Addr::new(a, b, c, d).into()
        }
        other => other,
    }
}

/// A receiver inside the operator's own network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AllowedHost {
    /// In lower case, without a dot at its end.
    Name(String),
    Net(IpNet),
}

impl AllowedHost {
    pub fn has_name(&self, name: &str) -> bool {
        matches!(self, AllowedHost::Name(own) if *own == host_name(name))
    }

    pub fn has_address(&self, address: IpAddr) -> bool {
        matches!(self, AllowedHost::Net(net) if net.contains(&plain(address)) || net.contains(&address))
    }
}

/// As names are compared.
pub fn host_name(name: &str) -> String {
    name.trim_end_matches('.').to_ascii_lowercase()
}

impl FromStr for AllowedHost {
    type Err = ();

    /// A host name, an address or a network such as `10.1.0.0/16`.
    fn from_str(text: &str) -> Result<Self, ()> {
        if let Ok(net) = text.parse::<IpNet>() {
            return Ok(AllowedHost::Net(net));
        }
        if let Ok(address) = text.parse::<IpAddr>() {
            return Ok(AllowedHost::Net(address.into()));
        }
        let is_name = !text.is_empty()
            && text
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'));
        is_name
            .then(|| AllowedHost::Name(host_name(text)))
            .ok_or(())
    }
}

impl fmt::Display for AllowedHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AllowedHost::Name(name) => f.write_str(name),
            AllowedHost::Net(net) => net.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_everyone_may_reach_is_public() {
        for text in [
            "0.0.0.0",
            "10.1.2.3",
            "100.64.0.1",
            "127.0.0.1",
            "169.254.169.254",
            "172.31.255.255",
            "192.0.0.170",
            "192.168.0.1",
            "198.19.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::127.0.0.1",
            "::ffff:127.0.0.1",
            "64:ff9b::7f00:1",
            "64:ff9b:1::808:808",
            "100::1",
            "fc00::1",
            "fd00::1",
            "fe80::1",
            "fec0::1",
            "ff02::1",
            "2001::1",
            "2001:db8::1",
            "2002:7f00:1::",
            "3fff::1",
        ] {
            assert!(!is_public(text.parse().unwrap()), "{text}");
        }
        for text in [
            "1.1.1.1",
            "172.32.0.1",
            "100.128.0.1",
            "::ffff:8.8.8.8",
            "64:ff9b::808:808",
            "2606:4700::1111",
        ] {
            assert!(is_public(text.parse().unwrap()), "{text}");
        }
    }

    #[test]
    fn hosts_that_are_allowed_are_names_addresses_or_networks() {
        let allowed = |text: &str| text.parse::<AllowedHost>();
        assert!(allowed("Hooks.Example.").unwrap().has_name("hooks.example"));
        assert!(
            !allowed("hooks.example")
                .unwrap()
                .has_name("a.hooks.example")
        );
        let net = allowed("10.1.0.0/16").unwrap();
        assert!(net.has_address("::ffff:10.1.2.3".parse().unwrap()));
        assert!(!net.has_address("10.2.0.1".parse().unwrap()));
        assert!(allowed("::1").unwrap().has_address("::1".parse().unwrap()));
        for text in ["", "http://x", "a b", "10.0.0.0/33", "x:1"] {
            assert!(allowed(text).is_err(), "{text}");
        }
    }
}
