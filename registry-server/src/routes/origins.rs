//! Rejects requests of other sites' web pages to a server without tokens.
//!
//! A browser sends requests for any page that its user visits, even to addresses that only the user can
//! reach. This protects against two attacks: a page whose owner points its own name to this server's address,
//! so that its requests are same-origin ("DNS rebinding"), and forms and plain requests, which may go to any
//! origin (cross-site request forgery, CWE-352). Tokens protect against both as well.

use std::net::IpAddr;

use axum::extract::Request;
use axum::http::header::{HOST, ORIGIN};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

use super::auth::is_health_check;
use super::problem::ApiError;

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// The host names of a server without tokens.
#[derive(Debug)]
pub(crate) struct Origins {
    /// Names besides those that only this host or its private network can have.
    allowed_hosts: Vec<String>,
    /// Whether requests for other names are rejected. Beyond loopback, a server cannot know all of its names.
    checks_host: bool,
}

impl Origins {
    pub(crate) fn new(allowed_hosts: Vec<String>, checks_host: bool) -> Self {
        Self { allowed_hosts, checks_host }
    }

    /// Rejects requests for another host, and changes requested by web pages of other sites.
    pub(super) fn check(&self, request: &Request) -> Result<(), ApiError> {
        if self.checks_host && !is_health_check(request.uri().path()) {
            self.check_host(request)?;
        }
        if request.method().is_safe() { Ok(()) } else { self.check_origin(request.headers()) }
    }

    fn check_host(&self, request: &Request) -> Result<(), ApiError> {
        // A host in the request target takes precedence over the header (RFC 9112, section 3.2.2).
        let target = request.uri().authority().map(Authority::as_str);
        let named = request.headers().get_all(HOST).iter().map(|host| host.to_str().unwrap_or("?.?"));
        let is_other = |host: &&str| !host.is_empty() && !self.is_own(host);
        match target.into_iter().chain(named).find(is_other) {
            None => Ok(()),
            Some(host) => Err(ApiError::new(
                StatusCode::MISDIRECTED_REQUEST,
                format!(
                    "this server does not serve the host {host:?}; if that is one of its names, start it with \
                     --allowed-host NAME"
                ),
            )),
        }
    }

    /// Rejects changes from other origins.
    ///
    /// `Origin` is checked independently of the host, since the two are equal behind a name that an attacker
    /// points here.
    fn check_origin(&self, headers: &HeaderMap) -> Result<(), ApiError> {
        for origin in headers.get_all(ORIGIN) {
            let origin = origin.to_str().unwrap_or_default();
            let host = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
            if !host.is_some_and(|host| self.is_own(host) && !is_of_stranger(host, headers)) {
                return Err(forbidden(&format!("of the origin {origin:?}")));
            }
        }
        // Fetch Metadata Request Headers, section 2.4 (<https://www.w3.org/TR/fetch-metadata/#sec-fetch-site-header>).
        let is_cross_site = |site: &HeaderValue| site.as_bytes().eq_ignore_ascii_case(b"cross-site");
        if headers.get_all(SEC_FETCH_SITE).iter().any(is_cross_site) {
            return Err(forbidden("of another site"));
        }
        Ok(())
    }

    /// Whether a host, with or without a port, is an address, or a name that outsiders cannot point here.
    fn is_own(&self, host: &str) -> bool {
        let Some(name) = without_port(host) else { return false };
        let name = name.strip_suffix('.').unwrap_or(name);
        if name.parse::<IpAddr>().is_ok() {
            return true;
        }
        let is_below = |top: &str| {
            let start = name.len().checked_sub(top.len());
            start.and_then(|start| name.get(start..)).is_some_and(|end| end.eq_ignore_ascii_case(top))
        };
        // No top-level domain is a number, but short forms of addresses such as `127.1` end with one.
        let is_number = |label: &str| !label.is_empty() && label.bytes().all(|byte| byte.is_ascii_digit());
        // `localhost` has no dot. Names below it never leave the host (RFC 6761, section 6.3), and names
        // below `internal` cannot be registered (ICANN resolution 2024.07.29.06).
        !name.is_empty() && !name.contains('.')
            || name.rsplit('.').next().is_some_and(is_number)
            || is_below(".localhost")
            || is_below(".internal")
            || self.allowed_hosts.iter().any(|allowed| allowed.eq_ignore_ascii_case(name))
    }
}

/// Whether the host of an origin is a public address other than the server's, where anyone may host pages.
fn is_of_stranger(host: &str, headers: &HeaderMap) -> bool {
    let address = |host| without_port(host).and_then(|name| name.parse::<IpAddr>().ok());
    let Some(origin) = address(host).map(|address| address.to_canonical()) else { return false };
    let is_private = match origin {
        IpAddr::V4(address) => address.is_loopback() || address.is_private() || address.is_link_local(),
        IpAddr::V6(address) => {
            address.is_loopback() || address.is_unique_local() || address.is_unicast_link_local()
        }
    };
    let own = headers.get(HOST).and_then(|host| address(host.to_str().ok()?));
    !is_private && own != Some(origin)
}

fn forbidden(whose: &str) -> ApiError {
    let detail = format!(
        "web pages {whose} may not change anything on this server; if they are yours, start it with --allowed-host NAME or \
         --tokens-file"
    );
    ApiError::new(StatusCode::FORBIDDEN, detail)
}

/// Strips the port, and the brackets of an IPv6 address. `None` if the text is not a host.
fn without_port(host: &str) -> Option<&str> {
    let (name, port) = match host.strip_prefix('[') {
        Some(rest) => rest.split_once(']')?,
        None => host.split_at(host.find(':').unwrap_or(host.len())),
    };
    let port = port.strip_prefix(':').unwrap_or(port);
    port.bytes().all(|byte| byte.is_ascii_digit()).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_that_outsiders_cannot_point_here_are_own() {
        let origins = Origins::new(vec!["registry.example.com".to_owned()], true);
        for host in [
            "127.0.0.1:8009",
            "127.0.0.1",
            "[::1]:8009",
            "[::1]",
            "10.1.2.3",
            "localhost",
            "LocalHost:1",
            "localhost.",
            "127.0.0.1.",
            "127.1:8009",
            "2130706433",
            "a.b.localhost:80",
            "agent-registry:8009",
            "registry.internal",
            "A.INTERNAL.",
            "registry.example.com",
            "Registry.Example.com.:8009",
        ] {
            assert!(origins.is_own(host), "{host}");
        }
        for host in [
            "",
            ":8009",
            ".",
            "evil.test",
            "1.evil.test",
            "evil.1a",
            "evil.test:8009",
            "evil.test.",
            "localhost.evil.test",
            "127.0.0.1.evil.test",
            "evil.internal.test",
            "xinternal.test",
            "registry.example.com.evil.test",
            "sub.registry.example.com",
            "evil.test@localhost",
            "localhost:80@evil.test",
            "[::1].evil.test",
            "[::1",
            "::1]",
        ] {
            assert!(!origins.is_own(host), "{host}");
        }
    }
}
