//! Checks of agents' addresses: callers and probes must be able to connect to them.
//!
//! The URL standard's parser accepts many malformed texts (missing slashes, backslashes, surrounding spaces), so the text
//! itself is checked first. The parsed URL is checked afterwards, because the parser understands every spelling of an address.

use std::net::{Ipv4Addr, Ipv6Addr};

use url::{Host, ParseError, Url};

const EXAMPLE: &str = "use the name or address at which callers reach the agent, such as http://agent:8002";

/// Maximum length of a DNS name and of one of its labels (RFC 1035, section 2.3.4), without the trailing dot.
const MAX_NAME: usize = 253;
const MAX_LABEL: usize = 63;

/// Checks that callers can connect to a `base_url`.
///
/// # Errors
/// Returns a message that says what is wrong and what to write instead.
pub(super) fn check_base_url(text: &str) -> Result<(), String> {
    let authority = authority(text)?;
    let no_host = || {
        if authority.contains(['{', '}', '$', '<', '>', '*']) {
            return format!("{authority:?} is a placeholder that was not filled in: {EXAMPLE}");
        }
        format!(
            "{authority:?} is not a host name or address (a name has letters, digits, - and _ in parts of up to {MAX_LABEL}): \
             {EXAMPLE}"
        )
    };
    let url = match Url::parse(text) {
        // A host name has no percent sign, but the parser would decode one.
        Ok(url) if !authority.contains('%') => url,
        Err(ParseError::InvalidPort) => {
            return Err("its port must be a number from 1 to 65535, such as in http://agent:8002".to_owned());
        }
        _ => return Err(no_host()),
    };
    if url.port() == Some(0) {
        return Err(format!("nobody can connect to port 0: {EXAMPLE}"));
    }
    let unreachable = match url.host() {
        Some(Host::Domain(name)) => return if is_host_name(name) { Ok(()) } else { Err(no_host()) },
        Some(Host::Ipv4(address)) => unreachable_v4(address),
        Some(Host::Ipv6(address)) => unreachable_v6(address),
        None => return Err(no_host()),
    };
    unreachable.map_or(Ok(()), |why| Err(format!("{authority} is {why}: {EXAMPLE}")))
}

/// Returns the part of the text between the scheme and the path.
fn authority(text: &str) -> Result<&str, String> {
    if text.contains('\\') {
        return Err("must have no backslash: write it with slashes, such as http://agent:8002/v1".to_owned());
    }
    if text.contains(|character: char| character.is_whitespace() || character.is_control()) {
        return Err(
            "must have no white space or control characters: write it like http://agent:8002".to_owned()
        );
    }
    let (scheme, rest) = text.split_once("://").unwrap_or_default();
    if !is_http(scheme) {
        return Err("must be an absolute http or https URL, such as http://agent:8002".to_owned());
    }
    if text.contains(['?', '#']) {
        return Err(
            "must have no query and no fragment, since paths are appended to it: write it without them, \
                    such as http://agent:8002/v1"
                .to_owned(),
        );
    }
    let authority = rest.split('/').next().unwrap_or_default();
    if authority.is_empty() {
        return Err(format!("names no host: {EXAMPLE}"));
    }
    if authority.contains('@') {
        return Err("must not carry a user name or a password: write it without, such as http://agent:8002"
            .to_owned());
    }
    if authority.strip_suffix(':').is_some_and(is_http) {
        return Err("has its scheme twice: write it once, such as http://agent:8002".to_owned());
    }
    Ok(authority)
}

/// Returns whether a URL points to the host of the program that uses it.
///
/// No names are resolved, except for `localhost` and the names below it.
#[must_use]
pub fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => {
            let name = name.trim_end_matches('.');
            name == "localhost" || name.ends_with(".localhost")
        }
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.to_canonical().is_loopback(),
        None => false,
    }
}

fn is_http(scheme: &str) -> bool {
    scheme.eq_ignore_ascii_case("http") || scheme.eq_ignore_ascii_case("https")
}

/// Returns whether a name is valid in DNS, in `/etc/hosts` or in a compose network, which allow underscores.
fn is_host_name(name: &str) -> bool {
    let name = name.strip_suffix('.').unwrap_or(name);
    let is_label = |label: &str| {
        let ordinary = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        (1..=MAX_LABEL).contains(&label.len()) && label.bytes().all(ordinary)
    };
    name.len() <= MAX_NAME && name.split('.').all(is_label)
}

/// Returns why nobody can connect to an address, or `None` if it may be possible.
fn unreachable_v4(address: Ipv4Addr) -> Option<&'static str> {
    if address.octets()[0] == 0 {
        Some("an address to listen on, nobody can connect to it")
    } else if address.is_multicast() || address.is_broadcast() {
        Some("an address of many hosts, and a connection needs one receiver")
    } else {
        None
    }
}

fn unreachable_v6(address: Ipv6Addr) -> Option<&'static str> {
    if address.is_multicast() {
        Some("an address of many hosts, and a connection needs one receiver")
    } else if address.is_unicast_link_local() {
        Some("a link-local address, which needs a zone, and a URL cannot name one")
    } else if address.is_loopback() {
        None
    } else {
        // `::` counts as an IPv6 address that embeds an IPv4 address.
        address.to_ipv4().and_then(unreachable_v4)
    }
}

/// Checks the characters of a `health_path`, which must stay below the `base_url`.
///
/// # Errors
/// Returns a message that says what is wrong and what to write instead.
pub(super) fn check_health_path(path: &str) -> Result<(), String> {
    let is_odd = |character: char| {
        character.is_whitespace() || character.is_control() || matches!(character, '?' | '#' | '\\')
    };
    if !path.starts_with('/') || path.starts_with("//") {
        return Err("must begin with one slash, such as /healthz".to_owned());
    }
    if path.contains(is_odd) {
        return Err("must have no query, fragment, backslash, white space or control characters: write it like /healthz".to_owned());
    }
    // URL parsers also treat these spellings as a dot.
    let is_dots = |segment: &str| matches!(&*segment.to_ascii_lowercase().replace("%2e", "."), "." | "..");
    if path.split('/').any(is_dots) {
        return Err("must have no segment . or ..: write it like /healthz".to_owned());
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_of_a_loopback_address_is_recognized() {
        for (url, expected) in [
            ("http://127.1:8002", true),
            ("http://a.localhost.", true),
            ("http://[::1]", true),
            ("http://[::ffff:127.0.0.1]", true),
            ("http://agent:8002", false),
            ("http://localhost.example", false),
        ] {
            assert_eq!(is_loopback(&url.parse().unwrap()), expected, "{url}");
        }
    }
}
