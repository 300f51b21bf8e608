//! `GET /ard/agents/{identifier}`: the complete entry of one agent.

use std::sync::Arc;

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, ETAG};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use sha2::{Digest, Sha256};

use super::entry::Entry;
use super::site::Site;
use crate::registry::{Error, Registry};
use crate::routes::etag::is_known;
use crate::routes::problem::ApiError;
use registry_sdk::internal::is_valid_agent_id;

/// Returns the entry of a registered agent, even of an unhealthy one.
pub(super) async fn retrieve_entry(
    State(registry): State<Arc<Registry>>,
    site: Site,
    headers: HeaderMap,
    identifier: Result<Path<String>, PathRejection>,
) -> Result<Response, ApiError> {
    let identifier = identifier.ok().map(|Path(identifier)| identifier).filter(|text| is_identifier(text));
    let identifier = identifier.ok_or_else(|| {
        let example = site.identifier("AGENT_ID");
        ApiError::bad_request(format!("write the whole identifier as one path segment: {example}"))
    })?;
    let agent_id = site.agent_id(&identifier).filter(|agent_id| is_valid_agent_id(agent_id));
    let agent_id =
        agent_id.ok_or_else(|| ApiError::not_found(format!("there is no entry {identifier:?}")))?;
    let agent = registry.find_agent(agent_id)?;
    let entry = serde_json::to_vec(&Entry::complete(&agent, &site)).map_err(|_| Error::Internal)?;
    let etag = etag(&entry);
    // The agent may change its registration at any time, and possibly only some clients may see it.
    let caching = [(CACHE_CONTROL, "private, no-cache"), (ETAG, &etag)];
    if is_known(&headers, &etag) {
        return Ok((StatusCode::NOT_MODIFIED, caching).into_response());
    }
    Ok((caching, [(CONTENT_TYPE, "application/json")], entry).into_response())
}

/// Whether a text is an identifier: `urn:air:`, a domain, and at least one name.
fn is_identifier(text: &str) -> bool {
    let is_domain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-');
    let is_name = |byte: u8| is_domain(byte) || byte == b'_';
    let Some((publisher, names)) = text.strip_prefix("urn:air:").and_then(|rest| rest.split_once(':')) else {
        return false;
    };
    !publisher.is_empty()
        && publisher.bytes().all(is_domain)
        && names.split(':').all(|name| !name.is_empty() && name.bytes().all(is_name))
}

fn etag(content: &[u8]) -> String {
    let digest = Sha256::digest(content);
    let hash = digest.iter().take(8).fold(0, |hash: u64, byte| hash << 8 | u64::from(*byte));
    format!("\"{hash:016x}\"")
}
