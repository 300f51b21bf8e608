//! The parts of a card from which a registration is made. Some have other names in version 0.3 than in 1.0.

use serde::Deserialize;
use url::Url;

use super::error::CardError;
use crate::contract::{AgentCard, null_is_default};

/// The binding of an interface of version 0.3 that does not name it.
const DEFAULT_BINDING: &str = "JSONRPC";

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
    /// Version 0.3: the protocol version of all interfaces.
    protocol_version: Option<String>,
    #[serde(default, deserialize_with = "null_is_default")]
    pub(super) skills: Vec<Skill>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Interface {
    url: Option<String>,
    protocol_binding: Option<String>,
    /// The binding's name in version 0.3.
    transport: Option<String>,
    protocol_version: Option<String>,
    tenant: Option<String>,
}

/// An interface as clients of the protocol see it.
#[derive(Debug)]
pub(super) struct Declared<'a> {
    pub(super) url: &'a str,
    binding: Option<&'a str>,
    pub(super) version: &'a str,
    pub(super) tenant: Option<&'a str>,
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

    /// Returns all interfaces, the preferred one first: those of version 1.0, then those of version 0.3.
    pub(super) fn declared(&self) -> Vec<Declared<'_>> {
        let older = self.protocol_version.as_deref().unwrap_or("0.3");
        let preferred = self.url.as_deref().map(|url| Declared {
            url,
            binding: self.preferred_transport.as_deref(),
            version: older,
            tenant: None,
        });
        let newer = self.supported_interfaces.iter().filter_map(|interface| interface.declared("1.0"));
        let additional = self.additional_interfaces.iter().filter_map(|interface| interface.declared(older));
        newer.chain(preferred).chain(additional).collect()
    }

    /// Returns the URL of the first HTTP interface, or, as an error, a description of all interfaces.
    ///
    /// gRPC does not count, although its URLs are http URLs: a plain request gets no response there.
    pub(super) fn http_url(&self) -> Result<&str, Vec<String>> {
        let interfaces = self.declared();
        let of_http = interfaces.iter().filter(|interface| is_http(interface.url));
        let preferred = of_http.min_by_key(|interface| interface.binding().eq_ignore_ascii_case("GRPC"));
        preferred.map(|interface| interface.url.trim()).ok_or_else(|| {
            let described = |&Declared { url, binding, .. }: &Declared<'_>| {
                format!("{} at {url:?}", binding.unwrap_or("one"))
            };
            interfaces.iter().map(described).collect()
        })
    }
}

impl<'a> Declared<'a> {
    pub(super) fn binding(&self) -> &'a str {
        self.binding.unwrap_or(DEFAULT_BINDING)
    }
}

impl Interface {
    fn declared<'a>(&'a self, version: &'a str) -> Option<Declared<'a>> {
        let binding = self.protocol_binding.as_deref().or(self.transport.as_deref());
        let version = self.protocol_version.as_deref().unwrap_or(version);
        let tenant = self.tenant.as_deref().filter(|tenant| !tenant.is_empty());
        Some(Declared { url: self.url.as_deref()?, binding, version, tenant })
    }
}

fn is_http(url: &str) -> bool {
    Url::parse(url).is_ok_and(|url| matches!(url.scheme(), "http" | "https"))
}
