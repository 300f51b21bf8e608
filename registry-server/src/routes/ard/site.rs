//! The values that the entries of a response share: the publisher, and the URL of the registry.

use std::sync::Arc;

use axum::extract::FromRequestParts;
use axum::http::header::HOST;
use axum::http::request::Parts;
use axum::http::uri::Authority;

use crate::registry::Registry;
use crate::routes::problem::ApiError;

/// The publisher, and the URL at which the requesting client reaches the registry.
#[derive(Clone, Debug)]
pub(super) struct Site {
    /// Domain of the publisher.
    pub(super) publisher: String,
    /// Ends with a slash.
    base_url: String,
}

impl Site {
    /// Returns the URL of a path that has no leading slash.
    pub(super) fn url(&self, path: &str) -> String {
        format!("{}{path}", self.base_url)
    }

    /// Returns the base URL of the ARD operations.
    pub(super) fn ard_url(&self) -> String {
        self.url("ard/")
    }

    /// Returns the identifier of an agent.
    pub(super) fn identifier(&self, agent_id: &str) -> String {
        format!("urn:air:{}:agent:{agent_id}", self.publisher)
    }

    /// Returns the agent id in an identifier, if the identifier belongs to this publisher.
    pub(super) fn agent_id<'a>(&self, identifier: &'a str) -> Option<&'a str> {
        identifier.strip_prefix("urn:air:")?.strip_prefix(&*self.publisher)?.strip_prefix(":agent:")
    }
}

impl FromRequestParts<Arc<Registry>> for Site {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, registry: &Arc<Registry>) -> Result<Self, ApiError> {
        let config = registry.config();
        let publisher = config.ard_publisher.clone().unwrap_or_default();
        if let Some(url) = &config.public_url {
            return Ok(Self { publisher, base_url: format!("{}/", url.trim_end_matches('/')) });
        }
        let host = requested_host(parts).ok_or_else(|| {
            ApiError::bad_request("send the header Host, on which the URLs in the response are based")
        })?;
        let scheme = if config.tls_cert.is_some() { "https" } else { "http" };
        Ok(Self { publisher, base_url: format!("{scheme}://{host}/") })
    }
}

/// Returns the requested host and port.
///
/// A host in the request target takes precedence over the header (RFC 9112, section 3.2.2).
fn requested_host(parts: &Parts) -> Option<Authority> {
    let host = || parts.headers.get(HOST)?.to_str().ok()?.parse().ok();
    let named: Option<Authority> = parts.uri.authority().cloned().or_else(host);
    named.filter(|named| !named.as_str().contains('@'))
}
