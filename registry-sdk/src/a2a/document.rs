//! The parts of a card that a registration is made of. The versions 1.0 and 0.3 name some of them differently.

use serde::Deserialize;
use url::Url;

use super::error::CardError;
use crate::contract::{AgentCard, null_is_default};

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Document {
    pub(super) name: Option<String>,
    #[serde(default, deserialize_with = "null_is_default")]
    supported_interfaces: Vec<Interface>,
    /// Version 0.3: the preferred interface.
    url: Option<String>,
    preferred_transport: Option<String>,
    #[serde(default, deserialize_with = "null_is_default")]
    additional_interfaces: Vec<Interface>,
    #[serde(default, deserialize_with = "null_is_default")]
    pub(super) skills: Vec<Skill>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Interface {
    url: Option<String>,
    protocol_binding: Option<String>,
    /// Its name in version 0.3.
    transport: Option<String>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Skill {
    pub(super) id: Option<String>,
    pub(super) name: Option<String>,
    pub(super) description: Option<String>,
    #[serde(default, deserialize_with = "null_is_default")]
    pub(super) tags: Vec<String>,
    #[serde(default, deserialize_with = "null_is_default")]
    pub(super) examples: Vec<String>,
}

impl Document {
    pub(super) fn read(card: &AgentCard) -> Result<Self, CardError> {
        if !card.is_object() {
            return Err(CardError::Invalid("a card is a JSON object".to_owned()));
        }
        serde_json::from_str(card.as_str()).map_err(|error| CardError::Invalid(error.to_string()))
    }

    /// Returns the URL at which the agent is called over HTTP, or else all interfaces, for people.
    ///
    /// The first one is preferred. gRPC is not: its URLs are those of HTTP, but a plain request gets no answer there.
    pub(super) fn http_url(&self) -> Result<&str, Vec<String>> {
        let preferred = self.url.as_deref().map(|url| (self.preferred_transport.as_deref(), url));
        let interfaces = self.supported_interfaces.iter().filter_map(Interface::parts).chain(preferred);
        let interfaces = interfaces.chain(self.additional_interfaces.iter().filter_map(Interface::parts));
        let is_grpc = |binding: Option<&str>| binding.is_some_and(|name| name.eq_ignore_ascii_case("GRPC"));
        let of_http = interfaces.clone().filter(|(_, url)| is_http(url));
        of_http.min_by_key(|(binding, _)| is_grpc(*binding)).map(|(_, url)| url.trim()).ok_or_else(|| {
            interfaces.map(|(binding, url)| format!("{} at {url:?}", binding.unwrap_or("one"))).collect()
        })
    }
}

impl Interface {
    /// Returns the binding and the URL.
    fn parts(&self) -> Option<(Option<&str>, &str)> {
        let binding = self.protocol_binding.as_deref().or(self.transport.as_deref());
        self.url.as_deref().map(|url| (binding, url))
    }
}

fn is_http(url: &str) -> bool {
    Url::parse(url).is_ok_and(|url| matches!(url.scheme(), "http" | "https"))
}
