//! The interface by which an agent is called.

use url::Url;

use super::document::{Declared, Document};
use crate::contract::AgentCard;

/// The interface by which an agent is called.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    pub(super) url: Url,
    pub(super) dialect: Dialect,
    pub(super) tenant: Option<String>,
}

/// A binding and a version of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dialect {
    /// JSON-RPC, version 1.0.
    JsonRpc,
    /// HTTP+JSON, version 1.0.
    HttpJson,
    /// JSON-RPC, version 0.3.
    OldJsonRpc,
}

impl Target {
    /// Returns the first interface of a card that the SDK supports.
    ///
    /// # Errors
    /// The reason if there is none, as the second half of a sentence that begins with the agent's id.
    pub(super) fn of_card(card: &AgentCard) -> Result<Self, String> {
        let document = Document::read(card).map_err(|error| error.to_string())?;
        let declared = document.declared();
        declared.iter().find_map(Self::of_interface).ok_or_else(|| {
            let names = declared.iter().map(|Declared { url, binding, version, .. }| {
                format!("{binding} of version {version} at {url:?}")
            });
            format!(
                "its A2A agent card has no interface that this SDK supports, but {}",
                listed(&names.collect::<Vec<_>>())
            )
        })
    }

    fn of_interface(interface: &Declared<'_>) -> Option<Self> {
        let dialect = Dialect::of(interface.binding, interface.version)?;
        let url = Url::parse(interface.url.trim()).ok()?;
        matches!(url.scheme(), "http" | "https").then(|| Self {
            url,
            dialect,
            tenant: interface.tenant.map(str::to_owned),
        })
    }

    /// Returns the URL of the interface.
    pub(crate) fn url(&self) -> &Url {
        &self.url
    }
}

impl Dialect {
    /// A patch number in the version is ignored.
    fn of(binding: &str, version: &str) -> Option<Self> {
        let mut numbers = version.trim().split('.');
        match (binding, numbers.next()?, numbers.next()?) {
            ("JSONRPC", "1", "0") => Some(Self::JsonRpc),
            ("HTTP+JSON", "1", "0") => Some(Self::HttpJson),
            ("JSONRPC", "0", "3") => Some(Self::OldJsonRpc),
            _ => None,
        }
    }

    /// The version that is sent with each request.
    pub(super) fn version(self) -> &'static str {
        match self {
            Self::JsonRpc | Self::HttpJson => "1.0",
            Self::OldJsonRpc => "0.3",
        }
    }
}

fn listed(names: &[String]) -> String {
    if names.is_empty() { "none at all".to_owned() } else { names.join(", ") }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use serde_json::json;

    use super::*;

    fn target(card: &serde_json::Value) -> Result<(String, Dialect), String> {
        let card = card.to_string().parse().unwrap();
        Target::of_card(&card).map(|target| (target.url.to_string(), target.dialect))
    }

    fn interfaces(list: &[(&str, &str, &str)]) -> serde_json::Value {
        let list = list.iter().map(|(binding, version, url)| {
            json!({"url": url, "protocolBinding": binding, "protocolVersion": version})
        });
        json!({"name": "a", "supportedInterfaces": list.collect::<Vec<_>>()})
    }

    #[test]
    fn first_interface_that_is_spoken_is_used() {
        for (list, expected) in [
            (&[("JSONRPC", "1.0", "http://a/rpc"), ("HTTP+JSON", "1.0", "http://a/")][..], Dialect::JsonRpc),
            (&[("HTTP+JSON", "1.0.1", "http://a/"), ("JSONRPC", "1.0", "http://a/rpc")], Dialect::HttpJson),
            (&[("GRPC", "1.0", "http://a:1"), ("JSONRPC", "0.3.0", "https://a/rpc")], Dialect::OldJsonRpc),
            (&[("HTTP+JSON", "0.3", "http://a/"), ("JSONRPC", "0.3", "http://a/rpc")], Dialect::OldJsonRpc),
            (
                &[
                    ("JSONRPC", "1.0", "ws://a/"),
                    ("JSONRPC", "1.0", "/rpc"),
                    ("HTTP+JSON", "1.0", "http://a/"),
                ],
                Dialect::HttpJson,
            ),
            (
                &[
                    ("JSONRPC", "2.0", "http://a/"),
                    ("JSONRPC", "1", "http://a/"),
                    ("HTTP+JSON", "1.0", "http://a/"),
                ],
                Dialect::HttpJson,
            ),
        ] {
            assert_eq!(target(&interfaces(list)).unwrap().1, expected, "{list:?}");
        }
    }

    #[test]
    fn older_cards_have_their_preferred_interface_first() {
        let old = json!({"name": "a", "protocolVersion": "0.3.0", "url": "http://a/1", "additionalInterfaces": [
            {"url": "http://a/2", "transport": "JSONRPC"},
        ]});
        assert_eq!(target(&old).unwrap(), ("http://a/1".to_owned(), Dialect::OldJsonRpc));
        let mut grpc = old.clone();
        grpc["preferredTransport"] = json!("GRPC");
        assert_eq!(target(&grpc).unwrap(), ("http://a/2".to_owned(), Dialect::OldJsonRpc));
        let mut both = old;
        both["supportedInterfaces"] =
            json!([{"url": "http://a/3", "protocolBinding": "HTTP+JSON", "protocolVersion": "1.0"}]);
        assert_eq!(target(&both).unwrap(), ("http://a/3".to_owned(), Dialect::HttpJson));
    }

    #[test]
    fn card_without_such_an_interface_says_which_it_has() {
        let error = target(&interfaces(&[("GRPC", "1.0", "http://a:1")])).unwrap_err();
        assert_eq!(
            error,
            "its A2A agent card has no interface that this SDK supports, but GRPC of version 1.0 at \"http://a:1\""
        );
        assert!(target(&json!({"name": "a"})).unwrap_err().ends_with("but none at all"));
        assert!(target(&json!([])).unwrap_err().contains("a card is a JSON object"));
    }
}
