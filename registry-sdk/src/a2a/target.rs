//! The interface by which an agent is called.

use url::Url;

use super::document::{Declared, Document};
use crate::contract::{AgentCard, cut};

/// Maximum number of interfaces in a reason.
const MAX_LISTED: usize = 10;

/// Maximum length of the description of an interface, and of a decoder's message.
const MAX_DESCRIPTION: usize = 200;

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
        let document =
            Document::read(card).map_err(|error| cut(&error.to_string(), MAX_DESCRIPTION).to_owned())?;
        let declared = document.declared();
        if declared.is_empty() {
            return Err("its A2A agent card has no interface with a URL".to_owned());
        }
        declared.iter().find_map(Self::of_interface).ok_or_else(|| {
            let interfaces = listed(&declared);
            format!("its A2A agent card has no interface that this SDK supports, only {interfaces}")
        })
    }

    fn of_interface(interface: &Declared<'_>) -> Option<Self> {
        let dialect = Dialect::of(interface.binding(), &interface.version)?;
        let url = Url::parse(interface.url.trim()).ok()?;
        let is_supported = url.scheme() == "http" || url.scheme() == "https" && cfg!(feature = "tls");
        // Credentials are chosen by the caller, not by the agent.
        (is_supported && !has_credentials(&url)).then(|| Self {
            url,
            dialect,
            tenant: interface.tenant.clone(),
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

/// Describes the first interfaces of a card. The card may be long, and the reason is kept.
fn listed(interfaces: &[Declared<'_>]) -> String {
    let names = interfaces.iter().take(MAX_LISTED).map(described).collect::<Vec<_>>().join(", ");
    match interfaces.len().saturating_sub(MAX_LISTED) {
        0 => names,
        more => format!("{names} and {more} more"),
    }
}

fn described(interface: &Declared<'_>) -> String {
    let (binding, version, url) = (interface.binding(), &interface.version, interface.url);
    let location = match Url::parse(url.trim()) {
        // Errors are logged.
        Ok(url) if has_credentials(&url) => "a URL with a user name or password".to_owned(),
        Ok(url) if url.scheme() == "https" && !cfg!(feature = "tls") => {
            format!("{url:?}, which needs the feature `tls` of registry-sdk", url = url.as_str())
        }
        _ => format!("{url:?}"),
    };
    cut(&format!("{binding} of version {version} at {location}"), MAX_DESCRIPTION).to_owned()
}

fn has_credentials(url: &Url) -> bool {
    !url.username().is_empty() || url.password().is_some()
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
            (&[("GRPC", "1.0", "http://a:1"), ("JSONRPC", "0.3.0", "http://a/rpc")], Dialect::OldJsonRpc),
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
    fn interface_with_credentials_in_its_url_is_not_used() {
        for url in ["http://user:secret@a/", "http://:secret@a/", "http://user@a/", "http://user:@a/"] {
            let list = interfaces(&[("JSONRPC", "1.0", url), ("HTTP+JSON", "1.0", "http://a/")]);
            assert_eq!(target(&list).unwrap(), ("http://a/".to_owned(), Dialect::HttpJson), "{url}");
            let error = target(&interfaces(&[("JSONRPC", "1.0", url)])).unwrap_err();
            assert!(
                error.ends_with("only JSONRPC of version 1.0 at a URL with a user name or password"),
                "{error}"
            );
        }
    }

    #[test]
    fn https_needs_the_feature_for_it() {
        let list = interfaces(&[("JSONRPC", "1.0", "https://a/"), ("HTTP+JSON", "1.0", "http://a/")]);
        let expected = if cfg!(feature = "tls") { Dialect::JsonRpc } else { Dialect::HttpJson };
        assert_eq!(target(&list).unwrap().1, expected);
    }

    #[test]
    fn reason_is_short_however_long_the_card_is() {
        let long = "x".repeat(10_000);
        let list = vec![("GRPC", "1.0", "http://a:1"); 25];
        let error = target(&interfaces(&list)).unwrap_err();
        assert_eq!(error.matches("GRPC of version 1.0").count(), 10, "{error}");
        assert!(error.ends_with(" and 15 more"), "{error}");
        for list in [[(&*long, "1.0", "http://a")], [("GRPC", &*long, "http://a")], [("GRPC", "1.0", &*long)]]
        {
            let error = target(&interfaces(&list)).unwrap_err();
            assert!(error.len() < 500, "{error}");
        }
        let error = target(&json!({"name": "a", "skills": long})).unwrap_err();
        assert!(error.len() < 500, "{error}");
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
    fn odd_fields_that_a_call_does_not_need_are_ignored() {
        let odd = json!({"name": 7, "skills": [{"tags": [null]}, 1], "url": null, "additionalInterfaces": {},
            "supportedInterfaces": [null, "http://a/", {"url": ["http://a/"]},
                {"url": "http://a/1", "protocolBinding": "JSONRPC", "protocolVersion": 1.0, "transport": 7}]});
        assert_eq!(target(&odd).unwrap(), ("http://a/1".to_owned(), Dialect::JsonRpc));
        let old = json!({"protocolVersion": 0.3, "url": "http://a/2", "preferredTransport": null});
        assert_eq!(target(&old).unwrap(), ("http://a/2".to_owned(), Dialect::OldJsonRpc));
        let cut = r#"{"description": "cut \ud83d", "url": "http://a/3"}"#.parse().unwrap();
        assert_eq!(Target::of_card(&cut).unwrap().url.as_str(), "http://a/3");
    }

    #[test]
    fn card_without_such_an_interface_says_which_it_has() {
        let error = target(&interfaces(&[("GRPC", "1.0", "http://a:1")])).unwrap_err();
        assert_eq!(
            error,
            "its A2A agent card has no interface that this SDK supports, only GRPC of version 1.0 at \"http://a:1\""
        );
        assert!(target(&json!({"name": "a"})).unwrap_err().ends_with("no interface with a URL"));
        assert!(target(&json!([])).unwrap_err().contains("it is not a JSON object"));
    }
}
