//! Rejects what web pages of other sites ask of a server without tokens.
//!
//! A browser sends requests for any page that its user reads, also to addresses that only the user can reach. Two ways are
//! closed: a name that the page's owner points to this server's address makes its requests same-origin ("DNS
//! rebinding"), and forms and plain requests go to any origin (cross-site request forgery, CWE-352). A token closes both.

use std::net::IpAddr;

use axum::extract::Request;
use axum::http::header::{HOST, ORIGIN};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderName, StatusCode};

use super::auth::is_health_check;
use super::problem::ApiError;

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// The host names of a server without tokens.
#[derive(Debug)]
pub(crate) struct Origins {
    /// Names besides those that only the machine or its private network can have.
    allowed_hosts: Vec<String>,
    /// Whether requests for other names are rejected. Beyond loopback, nobody knows all names of a server.
    checks_host: bool,
}

impl Origins {
    pub(crate) fn new(allowed_hosts: Vec<String>, checks_host: bool) -> Self {
        Self { allowed_hosts, checks_host }
    }

    /// Rejects a request for another host, and a change that a web page of another site asks for.
    pub(super) fn check(&self, request: &Request) -> Result<(), ApiError> {
        if self.checks_host && !is_health_check(request.uri().path()) {
            self.check_host(request)?;
        }
        if request.method().is_safe() { Ok(()) } else { self.check_origin(request.headers()) }
    }

    fn check_host(&self, request: &Request) -> Result<(), ApiError> {
        // A target with a host in it comes before the header (RFC 9112, section 3.2.2).
        let target = request.uri().authority().map(Authority::as_str);
        let named = request.headers().get_all(HOST).iter().map(|host| host.to_str().unwrap_or_default());
        match target.into_iter().chain(named).find(|host| !self.is_own(host)) {
            None => Ok(()),
            Some(host) => Err(ApiError::new(
                StatusCode::MISDIRECTED_REQUEST,
                format!(
                    "this server does not answer for the host {host:?}; if it is one of its names, start it with \
                     --allowed-host NAME"
                ),
            )),
        }
    }

    /// `Origin` is checked whatever the host: behind a name that is pointed here the two are equal.
    fn check_origin(&self, headers: &HeaderMap) -> Result<(), ApiError> {
        for origin in headers.get_all(ORIGIN) {
            let origin = origin.to_str().unwrap_or_default();
            let host = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
            if !host.is_some_and(|host| self.is_own(host)) {
                return Err(forbidden(&format!("of the origin {origin:?}")));
            }
        }
        // Fetch Metadata Request Headers, section 2.4 (<https://www.w3.org/TR/fetch-metadata/#sec-fetch-site-header>).
        if headers.get(SEC_FETCH_SITE).is_some_and(|site| site == "cross-site") {
            return Err(forbidden("of another site"));
        }
        Ok(())
    }

    /// Whether a host, with or without a port, is an address or a name that no outsider can point here.
    fn is_own(&self, host: &str) -> bool {
        let Some(name) = without_port(host) else { return false };
        if name.parse::<IpAddr>().is_ok() {
            return true;
        }
        let name = name.strip_suffix('.').unwrap_or(name);
        let is_below = |top: &str| {
            let start = name.len().checked_sub(top.len());
            start.and_then(|start| name.get(start..)).is_some_and(|end| end.eq_ignore_ascii_case(top))
        };
        // `localhost` has no dot. Names below it never leave the machine (RFC 6761, section 6.3), and nobody can register
        // one below `internal` (ICANN resolution 2024.07.29.06).
        !name.is_empty() && !name.contains('.')
            || is_below(".localhost")
            || is_below(".internal")
            || self.allowed_hosts.iter().any(|allowed| allowed.eq_ignore_ascii_case(name))
    }
}

fn forbidden(whose: &str) -> ApiError {
    let detail = format!(
        "web pages {whose} may not change anything here; if they are yours, start the server with --allowed-host NAME, or \
         with --tokens-file"
    );
    ApiError::new(StatusCode::FORBIDDEN, detail)
}

/// Returns the host before a port, and an IPv6 address without its brackets; `None` for what is no host.
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
    fn hosts_are_own_that_no_outsider_can_point_here() {
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
