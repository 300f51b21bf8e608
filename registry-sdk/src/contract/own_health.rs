//! An agent's own health endpoint: its URL, and the meaning of its responses.

use std::borrow::Cow;
use std::fmt;

use serde::{Deserialize, Deserializer, Serialize};
use url::Url;

use super::words::{UnknownWord, words};

/// Default path of an agent's health endpoint, below its `base_url`.
pub const DEFAULT_HEALTH_PATH: &str = "/health";

/// Maximum number of redirects that are followed when an agent's health is checked.
pub const MAX_HEALTH_REDIRECTS: usize = 5;

/// Whether the registry may probe an agent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ProbeMode {
    /// The registry may request `GET {base_url}{health_path}`.
    #[default]
    On,
    /// The registry does not probe the agent, and judges it by its heartbeats alone.
    Off,
    /// A word that only a newer server knows. Such an agent is not probed, and no request can set this value.
    Unknown(UnknownWord),
}

words!(ProbeMode "Whether the registry may probe the agent.": On = "on", Off = "off");

/// Accepts any word, because a newer server may have stored it.
impl From<&str> for ProbeMode {
    fn from(word: &str) -> Self {
        Self::of_word(word)
    }
}

impl<'de> Deserialize<'de> for ProbeMode {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::tolerant(deserializer)
    }
}

/// Returns the URL of an agent's health endpoint, `{base_url}{health_path}`. Returns `None` if the base URL is invalid.
#[must_use]
pub fn health_url(base_url: &str, health_path: Option<&str>) -> Option<Url> {
    let mut url = Url::parse(base_url).ok().filter(Url::has_host)?;
    let path = format!("{}{}", url.path().trim_end_matches('/'), health_path.unwrap_or(DEFAULT_HEALTH_PATH));
    url.set_path(&path);
    url.set_query(None);
    url.set_fragment(None);
    Some(url)
}

/// What the status and headers of a response say about an agent's health. Registries and orchestrators use the same rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HealthAnswer {
    /// A success: healthy, unless [the body says otherwise](Self::says_unhealthy).
    Success,
    /// The agent is alive, but asks for credentials.
    Alive,
    /// There is no health endpoint at this path.
    CannotTell,
    /// A redirect to another URL of the same agent. Up to [`MAX_HEALTH_REDIRECTS`] are followed.
    Redirect(Url),
    /// The agent is unhealthy, for this reason.
    Failure(String),
}

impl HealthAnswer {
    /// Judges the status and the `Location` of a response from a URL.
    #[must_use]
    pub fn of_head(url: &Url, status: u16, location: Option<&str>) -> Self {
        match status {
            200..=299 => Self::Success,
            401 | 403 => Self::Alive,
            404 | 405 | 501 => Self::CannotTell,
            301 | 302 | 303 | 307 | 308 => match location.map(|location| url.join(location)) {
                Some(Ok(target)) if target.origin() == url.origin() => Self::Redirect(target),
                Some(Ok(target)) => {
                    let origin = target.origin().ascii_serialization();
                    Self::Failure(format!("it answered {status}, a redirect to another origin: {origin}"))
                }
                Some(Err(_)) | None => {
                    Self::Failure(format!("it answered {status}, a redirect without a location"))
                }
            },
            _ => Self::Failure(format!("it answered {status}")),
        }
    }

    /// Returns whether the body of a success reports an unhealthy agent. Most agents use the status alone.
    #[must_use]
    pub fn says_unhealthy(body: &[u8]) -> bool {
        let health = serde_json::from_slice::<serde_json::Value>(body).unwrap_or_default();
        health["status"] == "unhealthy"
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn health_path_is_appended_to_the_base_url() {
        let url = |path| health_url("http://agent:8000/v1/", path).unwrap();
        assert_eq!(url(None).as_str(), "http://agent:8000/v1/health");
        assert_eq!(url(Some("/healthz")).as_str(), "http://agent:8000/v1/healthz");
    }

    #[test]
    fn redirect_is_followed_within_the_same_origin() {
        let url = health_url("http://agent:8000", None).unwrap();
        let answer = |target| HealthAnswer::of_head(&url, 307, Some(target));
        let target = "http://agent:8000/health/".parse().unwrap();
        assert_eq!(answer("/health/"), HealthAnswer::Redirect(target));
        assert!(matches!(answer("http://other:8000/health"), HealthAnswer::Failure(_)));
        assert_eq!(HealthAnswer::of_head(&url, 401, None), HealthAnswer::Alive);
    }
}
