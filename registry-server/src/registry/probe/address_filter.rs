//! The addresses that probes may reach.
//!
//! Anyone who may register an agent chooses a URL that the server requests. Probes must not reach the
//! server's own host or the metadata service of its cloud (server-side request forgery, CWE-918).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};

use crate::networks::canonical;

/// Metadata services with addresses that are not link-local: Alibaba Cloud, Azure, Oracle Cloud.
const METADATA_V4: [Ipv4Addr; 3] =
    [Ipv4Addr::new(100, 100, 100, 200), Ipv4Addr::new(168, 63, 129, 16), Ipv4Addr::new(192, 0, 0, 192)];

/// Metadata services of AWS and Google Cloud.
const METADATA_V6: [Ipv6Addr; 2] = [
    Ipv6Addr::new(0xfd00, 0x0ec2, 0, 0, 0, 0, 0, 0x0254),
    Ipv6Addr::new(0xfd20, 0x00ce, 0, 0, 0, 0, 0, 0x0254),
];

/// Rejects forbidden addresses that are not explicitly allowed.
///
/// Also resolves names, so that connections only use addresses that were checked.
#[derive(Clone, Debug)]
pub(super) struct AddressFilter {
    allowed: Arc<[IpNet]>,
}

/// An address that probes may not reach.
#[derive(Debug, thiserror::Error)]
#[error("probes may not reach {0}: see --probe-allow")]
pub(super) struct ForbiddenAddress(IpAddr);

impl AddressFilter {
    pub(super) fn new(allowed: &[IpNet]) -> Self {
        Self { allowed: allowed.iter().copied().map(canonical).collect() }
    }

    pub(super) fn check(&self, address: IpAddr) -> Result<(), ForbiddenAddress> {
        let address = address.to_canonical();
        if self.allowed.iter().any(|net| net.contains(&address)) || !is_forbidden(address) {
            Ok(())
        } else {
            Err(ForbiddenAddress(address))
        }
    }
}

impl Resolve for AddressFilter {
    fn resolve(&self, name: Name) -> Resolving {
        let filter = self.clone();
        Box::pin(async move {
            let addresses: Vec<SocketAddr> = tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
            // Reject the name if one address is forbidden: mixed results could get that address past the
            // check.
            for address in &addresses {
                filter.check(address.ip())?;
            }
            Ok(Box::new(addresses.into_iter()) as Addrs)
        })
    }
}

fn is_forbidden(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_forbidden_v4(address),
        IpAddr::V6(address) => is_forbidden_v6(address) || embedded_v4(address).is_some_and(is_forbidden_v4),
    }
}

fn is_forbidden_v4(address: Ipv4Addr) -> bool {
    address.is_loopback()
        || address.is_link_local()
        || address.is_multicast()
        || address.is_broadcast()
        // "This host" (RFC 1122, section 3.2.1.3): such connections reach the server's own host.
        || address.octets()[0] == 0
        || METADATA_V4.contains(&address)
}

fn is_forbidden_v6(address: Ipv6Addr) -> bool {
    address.is_loopback()
        || address.is_unspecified()
        || address.is_multicast()
        || address.is_unicast_link_local()
        || METADATA_V6.contains(&address)
}

/// Returns the IPv4 address embedded in an IPv6 address.
///
/// Covers NAT64 (RFC 6052), 6to4 (RFC 3056) and "IPv4-compatible" addresses (RFC 4291, section 2.5.5.1).
fn embedded_v4(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let halves = address.segments();
    let v4 = |high: u16, low: u16| Ipv4Addr::from(u32::from(high) << 16 | u32::from(low));
    match halves {
        [0x64, 0xff9b, 0, 0, 0, 0, high, low]
        | [0, 0, 0, 0, 0, 0, high, low]
        | [0x2002, high, low, _, _, _, _, _] => Some(v4(high, low)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_allowed(filter: &AddressFilter, address: &str) -> bool {
        filter.check(address.parse().unwrap()).is_ok()
    }

    #[test]
    fn probes_only_reach_ordinary_addresses() {
        let filter = AddressFilter::new(&[]);
        for address in ["10.1.2.3", "192.168.0.7", "172.16.0.1", "93.184.216.34", "2001:db8::7", "fd12::1"] {
            assert!(is_allowed(&filter, address), "{address}");
        }
        for address in [
            "127.0.0.1",
            "127.9.9.9",
            "0.0.0.0",
            "0.1.2.3",
            "169.254.169.254",
            "169.254.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "100.100.100.200",
            "168.63.129.16",
            "192.0.0.192",
            "::1",
            "::",
            "fe80::1",
            "ff02::1",
            "fd00:ec2::254",
            "fd20:ce::254",
            // The same addresses, embedded in IPv6.
            "::ffff:127.0.0.1",
            "::ffff:169.254.169.254",
            "::127.0.0.1",
            "64:ff9b::7f00:1",
            "64:ff9b::a9fe:a9fe",
            "2002:7f00:1::",
            "2002:a9fe:a9fe::1",
        ] {
            assert!(!is_allowed(&filter, address), "{address}");
        }
    }

    #[test]
    fn explicitly_allowed_addresses_are_reachable() {
        let filter = AddressFilter::new(&["127.0.0.0/8".parse().unwrap()]);
        assert!(is_allowed(&filter, "127.0.0.1") && is_allowed(&filter, "::ffff:127.0.0.1"));
        assert!(!is_allowed(&filter, "::1") && !is_allowed(&filter, "169.254.169.254"));
    }
}
