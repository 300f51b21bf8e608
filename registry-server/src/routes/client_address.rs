//! The address of a client, even behind proxies.

use std::net::{IpAddr, SocketAddr};

use axum::http::header::FORWARDED;
use axum::http::{HeaderMap, HeaderName};
use ipnet::IpNet;

use crate::networks::canonical;

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// Proxies whose headers are trusted.
#[derive(Debug)]
pub(super) struct TrustedProxies(Vec<IpNet>);

impl TrustedProxies {
    pub(super) fn new(networks: &[IpNet]) -> Self {
        Self(networks.iter().copied().map(canonical).collect())
    }

    /// Returns the client's address, given the address of the connection.
    ///
    /// Each proxy appends the address of its client to `X-Forwarded-For` or `Forwarded` (RFC 7239, section
    /// 4), so the last address that is not a trusted proxy is the client. Clients can forge the header that
    /// their proxy does not set: if the two headers name different clients, neither is trusted.
    pub(super) fn client_address(&self, peer: IpAddr, headers: &HeaderMap) -> IpAddr {
        if !self.contains(peer) {
            return peer;
        }
        let lines = |name| headers.get_all(name).iter().map(|value| value.to_str().unwrap_or_default());
        let listed: Vec<_> =
            lines(X_FORWARDED_FOR).flat_map(|line| line.split(',')).map(parse_address).collect();
        let forwarded: Vec<_> =
            lines(FORWARDED).flat_map(|line| split(line, ',')).map(forwarded_for).collect();
        match (self.last_untrusted(&listed), self.last_untrusted(&forwarded)) {
            (Some(one), Some(other)) if one != other => peer,
            (one, other) => one.or(other).unwrap_or(peer),
        }
    }

    /// Returns the last address that is not a trusted proxy, or else the first address. `None` if none can be
    /// parsed.
    fn last_untrusted(&self, hops: &[Option<IpAddr>]) -> Option<IpAddr> {
        let mut client = None;
        for hop in hops.iter().rev() {
            // A hidden or malformed address: everything before it could be forged.
            let Some(address) = *hop else { break };
            client = Some(address);
            if !self.contains(address) {
                break;
            }
        }
        client
    }

    fn contains(&self, address: IpAddr) -> bool {
        self.0.iter().any(|network| network.contains(&address))
    }
}

/// Returns the address in `for=` of a `Forwarded` element.
fn forwarded_for(element: &str) -> Option<IpAddr> {
    let pairs = split(element, ';').filter_map(|pair| pair.split_once('='));
    let mut named = pairs.filter(|(name, _)| name.trim().eq_ignore_ascii_case("for"));
    parse_address(named.next()?.1.trim().trim_matches('"'))
}

/// Parses an address, with or without a port.
fn parse_address(text: &str) -> Option<IpAddr> {
    let text = text.trim();
    let bare = || text.strip_prefix('[')?.strip_suffix(']')?.parse().ok();
    let with_port = || text.parse::<SocketAddr>().ok().map(|address| address.ip());
    text.parse().ok().or_else(with_port).or_else(bare).map(|address: IpAddr| address.to_canonical())
}

/// Splits a text at a separator outside of quotation marks.
fn split(text: &str, separator: char) -> impl Iterator<Item = &str> {
    let mut is_quoted = false;
    text.split(move |character| {
        is_quoted ^= character == '"';
        character == separator && !is_quoted
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    /// Returns the client's address behind a proxy at 10.0.0.1.
    fn client(headers: &[(&'static str, &'static str)]) -> String {
        let proxies =
            TrustedProxies::new(&["10.0.0.0/8".parse().unwrap(), "2001:db8:1::/48".parse().unwrap()]);
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, value.parse().unwrap());
        }
        proxies.client_address([10, 0, 0, 1].into(), &map).to_string()
    }

    #[test]
    fn last_address_that_is_not_a_proxy_is_the_client() {
        for (expected, headers) in [
            ("10.0.0.1", [].as_slice()),
            ("192.0.2.1", &[("x-forwarded-for", "192.0.2.1")]),
            ("192.0.2.1", &[("x-forwarded-for", "1.1.1.1, 192.0.2.1, 10.0.0.2")]),
            ("192.0.2.1", &[("x-forwarded-for", "1.1.1.1"), ("x-forwarded-for", "192.0.2.1:4711")]),
            ("10.0.0.3", &[("x-forwarded-for", "10.0.0.3, 10.0.0.2")]),
            ("10.0.0.2", &[("x-forwarded-for", "192.0.2.1, unknown, 10.0.0.2")]),
            ("10.0.0.1", &[("x-forwarded-for", "evil")]),
            ("2001:db8::1", &[("x-forwarded-for", "[2001:db8::1]:80, 2001:db8:1::7")]),
            ("192.0.2.1", &[("x-forwarded-for", "::ffff:192.0.2.1")]),
            ("192.0.2.1", &[("forwarded", "for=1.1.1.1, For=192.0.2.1;proto=http;by=10.0.0.1")]),
            ("2001:db8::1", &[("forwarded", "proto=https;for=\"[2001:db8::1]:4711\"")]),
            ("192.0.2.1", &[("forwarded", "for=1.1.1.1;host=\"a,for=1.1.1.2\", for=\"192.0.2.1:1\"")]),
            ("10.0.0.1", &[("forwarded", "for=_hidden")]),
            ("192.0.2.1", &[("forwarded", "for=192.0.2.1"), ("x-forwarded-for", "192.0.2.1")]),
            ("10.0.0.1", &[("forwarded", "for=1.1.1.1"), ("x-forwarded-for", "192.0.2.1")]),
        ] {
            assert_eq!(client(headers), expected, "{headers:?}");
        }
    }

    #[test]
    fn headers_of_untrusted_peers_are_ignored() {
        let proxies = TrustedProxies::new(&["10.0.0.0/8".parse().unwrap()]);
        let mut headers = HeaderMap::new();
        headers.insert("x-forwarded-for", "1.1.1.1".parse().unwrap());
        let peer = IpAddr::from([192, 0, 2, 1]);
        assert_eq!(proxies.client_address(peer, &headers), peer);
    }

    #[test]
    fn network_of_mapped_addresses_matches_ipv4() {
        let mut headers = HeaderMap::new();
        headers.insert("x-forwarded-for", "192.0.2.1".parse().unwrap());
        for (network, is_trusted) in [
            ("::ffff:10.0.0.1/128", true),
            ("::ffff:10.0.0.0/104", true),
            ("::ffff:0:0/96", true),
            ("::ffff:10.0.0.2/128", false),
            ("2001:db8::/32", false),
        ] {
            let proxies = TrustedProxies::new(&[network.parse().unwrap()]);
            let client = proxies.client_address([10, 0, 0, 1].into(), &headers).to_string();
            assert_eq!(client == "192.0.2.1", is_trusted, "{network}");
        }
    }
}
