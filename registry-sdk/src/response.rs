//! Responses: reading the contract's JSON, and the errors of failed requests.

use std::time::{Duration, SystemTime};

use reqwest::StatusCode;
use reqwest::header::{CONTENT_TYPE, HeaderMap, LINK, RETRY_AFTER};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use url::Url;

use crate::contract::problem::UNKNOWN_PATH_DETAIL;
use crate::contract::{FieldError, HealthStatus, Owner, STALE_HEADER, ServerHealth, cut};
use crate::error::Error;

/// Maximum length of the quote from an invalid response.
const QUOTED: usize = 200;

/// Maximum length of an error's text in bytes.
const MAX_DETAIL: usize = 2_000;

/// The kind of a request, which decides how its response is read and what a 404 means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A record at a path that every registry has, so a 404 comes from something in between.
    Record,
    /// A list of records at such a path.
    List,
    /// A record of an agent, which may be unknown. A 404 with an HTML page comes from something in between.
    OfAgent,
    /// A heartbeat. After any 404 the agent registers again.
    Heartbeat,
    /// An optional operation of registries, by method and path in the contract.
    Optional(&'static str),
}

/// A complete response.
#[derive(Debug)]
pub(crate) struct ApiResponse {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Vec<u8>,
}

impl ApiResponse {
    /// Decodes the body as JSON of the contract.
    pub(crate) fn decode<T: DeserializeOwned>(&self) -> Result<T, Error> {
        serde_json::from_slice(&self.body).map_err(|error| self.invalid(error))
    }

    /// Decodes the body's fields without a schema. Returns none if the body is empty, or JSON other than an object.
    pub(crate) fn fields(&self) -> Result<Map<String, Value>, Error> {
        if self.body.trim_ascii().is_empty() && self.may_be_empty() {
            return Ok(Map::new());
        }
        match self.decode()? {
            Value::Object(fields) => Ok(fields),
            _ => Ok(Map::new()),
        }
    }

    /// Returns the age of the response when it was sent: see [`STALE_HEADER`]. It is above zero, even within the first second,
    /// if the registry answered from memory.
    pub(crate) fn age(&self) -> Duration {
        let Some(value) = self.headers.get(STALE_HEADER) else { return Duration::ZERO };
        let seconds = value.to_str().ok().and_then(|text| text.trim().parse().ok()).unwrap_or_default();
        Duration::try_from_secs_f64(seconds).unwrap_or_default().max(Duration::from_millis(1))
    }

    /// Returns the cursor in a `Link: <?…&cursor=…>; rel="next"` header (RFC 8288). Only the query of the target matters.
    pub(crate) fn next_cursor(&self) -> Option<String> {
        let links = self.headers.get_all(LINK).iter().filter_map(|value| value.to_str().ok());
        let next = links.flat_map(|value| value.split(',')).find(|link| link.contains("rel=\"next\""))?;
        let (target, _) = next.trim().strip_prefix('<')?.split_once('>')?;
        // The target may be relative.
        let target = Url::parse("http://registry").ok()?.join(target).ok()?;
        target.query_pairs().find(|(name, _)| name == "cursor").map(|(_, cursor)| cursor.into_owned())
    }

    /// An empty 200 is more likely truncated than intended.
    pub(crate) fn may_be_empty(&self) -> bool {
        matches!(self.status, 201 | 202 | 204)
    }

    pub(crate) fn invalid(&self, why: impl std::fmt::Display) -> Error {
        Error::InvalidResponse { status: self.status, detail: format!("{why} in {}", quote(&self.body)) }
    }

    /// Decodes an error in the contract's form. All members of RFC 9457 may be missing or malformed.
    fn problem(&self) -> Option<Refusal> {
        let kind = self.headers.get(CONTENT_TYPE)?.to_str().ok()?;
        let is_problem = kind
            .split(';')
            .next()
            .is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/problem+json"));
        let members: Map<String, Value> =
            is_problem.then(|| serde_json::from_slice(&self.body).ok()).flatten()?;
        let text = |name| members.get(name).and_then(Value::as_str).map(str::to_owned);
        let errors = members.get("errors").and_then(Value::as_array).into_iter().flatten();
        Some(Refusal {
            detail: text("detail"),
            title: text("title"),
            errors: errors.filter_map(|error| FieldError::deserialize(error).ok()).collect(),
            owner: members.get("owner").and_then(|owner| Owner::deserialize(owner).ok()),
        })
    }
}

/// The members of a problem (RFC 9457) that are read.
#[derive(Default)]
struct Refusal {
    detail: Option<String>,
    title: Option<String>,
    errors: Vec<FieldError>,
    owner: Option<Owner>,
}

/// Returns the error for a response that is not a success.
pub(crate) fn failure(status: StatusCode, response: &ApiResponse, kind: Kind) -> Error {
    let problem = response.problem();
    let is_own = problem.is_some();
    let Refusal { detail, title, errors: fields, owner } = problem.unwrap_or_default();
    let detail = shorten(detail.or(title).unwrap_or_else(|| plain_detail(&response.body)));
    let code = status.as_u16();
    // This project's server describes an unknown path like this.
    let is_unknown_path = code == 404 && is_own && detail.starts_with(UNKNOWN_PATH_DETAIL);
    // A server without the operation does not know its path.
    if let Kind::Optional(operation) = kind
        && (matches!(code, 405 | 501) || is_unknown_path || code == 404 && !is_own)
    {
        return Error::Unsupported { operation };
    }
    match code {
        404 if !is_unknown_path && is_not_found(kind, is_own, &response.body) => Error::NotFound { detail },
        409 if is_own => Error::Superseded { detail, owner },
        401 | 403 if is_own => Error::Denied { status: code, detail },
        400 | 413 | 415 | 422 if is_own => Error::Invalid { detail, fields },
        408 | 425 | 429 | 500 | 502 | 503 | 504 => {
            Error::Unavailable { status: code, detail, retry_after: retry_after(&response.headers) }
        }
        _ => Error::InvalidResponse { status: code, detail },
    }
}

/// Returns whether a 404 means that the agent is unknown.
fn is_not_found(kind: Kind, is_own: bool, body: &[u8]) -> bool {
    let is_json = matches!(body.trim_ascii_start().first(), None | Some(b'{' | b'[' | b'"'));
    match kind {
        Kind::Heartbeat => true,
        Kind::OfAgent => is_own || is_json,
        Kind::Optional(_) => is_own,
        Kind::Record | Kind::List => false,
    }
}

/// Truncates a text, because errors are logged and kept in states.
fn shorten(mut text: String) -> String {
    text.truncate(cut(&text, MAX_DETAIL).len());
    text
}

/// Returns the message of an error of another service. FastAPI sends only a `detail`, which is a text or a list.
fn plain_detail(body: &[u8]) -> String {
    #[derive(serde::Deserialize)]
    struct Plain {
        detail: Value,
    }
    if serde_json::from_slice::<ServerHealth>(body)
        .is_ok_and(|health| health.status == HealthStatus::Unhealthy)
    {
        return "it reports itself unhealthy; its database may not be responding".to_owned();
    }
    match serde_json::from_slice::<Plain>(body) {
        Ok(Plain { detail: Value::String(text) }) => text,
        Ok(Plain { detail }) => detail.to_string(),
        Err(_) => quote(body),
    }
}

/// Parses the header in either of its forms: seconds, or an HTTP date (RFC 9110, section 10.2.3).
pub(crate) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let value = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = value.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = httpdate::parse_http_date(value).ok()?;
    Some(date.duration_since(SystemTime::now()).unwrap_or_default())
}

/// Quotes the beginning of a body on one line.
fn quote(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(&body[..body.len().min(QUOTED)]);
    if body.is_empty() { "an empty body".to_owned() } else { format!("{text:?}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_read_in_both_forms() {
        let read = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(RETRY_AFTER, value.parse().unwrap());
            retry_after(&headers)
        };
        assert_eq!(read("7"), Some(Duration::from_secs(7)));
        let date = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(60));
        let wait = read(&date).unwrap();
        assert!(wait > Duration::from_secs(50) && wait <= Duration::from_secs(60), "{wait:?}");
        assert_eq!(read("Sun, 06 Nov 1994 08:49:37 GMT"), Some(Duration::ZERO));
        assert_eq!(read("soon"), None);
    }

    /// Servers have sent the whole path, and later only the query.
    #[test]
    fn next_cursor_is_read_from_every_form_of_link() {
        let read = |link: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(LINK, link.parse().unwrap());
            ApiResponse { status: 200, headers, body: Vec::new() }.next_cursor()
        };
        for target in [
            "?limit=2&cursor=a%2B1",
            "/agents?limit=2&cursor=a%2B1",
            "https://h/registry/agents?cursor=a%2B1",
        ] {
            assert_eq!(read(&format!("<{target}>; rel=\"next\"")).as_deref(), Some("a+1"), "{target}");
            let among_others = format!("</docs>; rel=\"help\", <{target}>; rel=\"next\"");
            assert_eq!(read(&among_others).as_deref(), Some("a+1"), "{target}");
        }
        assert_eq!(read("<?cursor=a>; rel=\"prev\""), None);
    }

    #[test]
    fn errors_of_other_services_are_understood() {
        assert_eq!(plain_detail(br#"{"detail": "Agent not found"}"#), "Agent not found");
        assert_eq!(plain_detail(br#"{"detail": [1]}"#), "[1]");
        assert_eq!(plain_detail(b"<html>\n502 Bad Gateway</html>"), r#""<html>\n502 Bad Gateway</html>""#);
    }
}
