//! Which addresses a probe may reach. Whoever may register an agent chooses what the server asks: it must not be
//! made to ask its own host, or the metadata service of the cloud it runs in (server-side request forgery, CWE-918).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};

/// Metadata services at addresses that are not link-local: Alibaba Cloud, Azure, Oracle Cloud.
const METADATA_V4: [Ipv4Addr; 3] =
    [Ipv4Addr::new(100, 100, 100, 200), Ipv4Addr::new(168, 63, 129, 16), Ipv4Addr::new(192, 0, 0, 192)];

/// The same of AWS and of Google Cloud.
const METADATA_V6: [Ipv6Addr; 2] = [
    Ipv6Addr::new(0xfd00, 0x0ec2, 0, 0, 0, 0, 0, 0x0254),
    Ipv6Addr::new(0xfd20, 0x00ce, 0, 0, 0, 0, 0, 0x0254),
];

/// Lets probes reach what is not refused, and what is allowed all the same. It also resolves names, so that the
/// address that was checked is the one that is dialled.
#[derive(Clone, Debug)]
pub(super) struct AddressFilter {
    allowed: Arc<[IpNet]>,
}

/// An address that a probe may not reach.
#[derive(Debug, thiserror::Error)]
#[error("is_probing may not reach {0}: see --probe-allow")]
pub(super) struct ForbiddenAddress(IpAddr);

impl AddressFilter {
    pub(super) fn new(allowed: &[IpNet]) -> Self {
        Self { allowed: allowed.into() }
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
            let found: Vec<SocketAddr> = tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
            // One bad address is reason enough: who gives a name several means to have one of them slip through.
            for address in &found {
                filter.check(address.ip())?;
            }
            Ok(Box::new(found.into_iter()) as Addrs)
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
        // "This host" (RFC 1122, section 3.2.1.3): a connection there arrives at the own host.
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

/// The IPv4 address that a translator would make of an IPv6 one: NAT64 (RFC 6052), 6to4 (RFC 3056), and the
/// old "compatible" form (RFC 4291, section 2.5.5.1).
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

    fn may(filter: &AddressFilter, address: &str) -> bool {
        filter.check(address.parse().unwrap()).is_ok()
    }

    #[test]
    fn a_probe_reaches_ordinary_addresses_and_no_others() {
        let filter = AddressFilter::new(&[]);
        for address in ["10.1.2.3", "192.168.0.7", "172.16.0.1", "93.184.216.34", "2001:db8::7", "fd12::1"] {
            assert!(may(&filter, address), "{address}");
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
            // The same in disguise.
            "::ffff:127.0.0.1",
            "::ffff:169.254.169.254",
            "::127.0.0.1",
            "64:ff9b::7f00:1",
            "64:ff9b::a9fe:a9fe",
            "2002:7f00:1::",
            "2002:a9fe:a9fe::1",
        ] {
            assert!(!may(&filter, address), "{address}");
        }
    }

    #[test]
    fn what_is_allowed_is_reached_all_the_same() {
        let filter = AddressFilter::new(&["127.0.0.0/8".parse().unwrap()]);
        assert!(may(&filter, "127.0.0.1") && may(&filter, "::ffff:127.0.0.1"));
        assert!(!may(&filter, "::1") && !may(&filter, "169.254.169.254"));
    }
}
