//! Networks of addresses configured by the operator.

use ipnet::{IpNet, Ipv4Net};

/// Returns the IPv4 network for one that is mapped into IPv6 (`::ffff:10.0.0.1`), since addresses are
/// compared in that form.
pub(crate) fn canonical(network: IpNet) -> IpNet {
    let IpNet::V6(mapped) = network else { return network };
    let prefix = mapped.prefix_len().checked_sub(96);
    let address = mapped.addr().to_ipv4_mapped();
    match prefix.zip(address).map(|(prefix, address)| Ipv4Net::new(address, prefix)) {
        Some(Ok(network)) => IpNet::V4(network),
        _ => network,
    }
}
