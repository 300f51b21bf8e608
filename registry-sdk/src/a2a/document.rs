//! The parts of a card from which a registration is made. Some have other names in version 0.3 than in 1.0.

use serde::Deserialize;
use serde_json::{Number, Value};
use url::Url;

use super::error::CardError;
use super::json;
use crate::contract::{AgentCard, null_is_default};

/// The binding of an interface of version 0.3 that does not name it.
const DEFAULT_BINDING: &str = "JSONRPC";

/// A card. What a call needs is read field by field, so that a field of a wrong type counts as absent, and others do not matter.
#[derive(Debug)]
pub(super) struct Document(Value);

/// An interface as clients of the protocol see it.
#[derive(Debug)]
pub(super) struct Declared<'a> {
    pub(super) url: &'a str,
    binding: Option<&'a str>,
    pub(super) version: String,
    pub(super) tenant: Option<String>,
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
            return Err(CardError::Invalid("it is not a JSON object".to_owned()));
        }
        let json = json::parse(card.as_str().as_bytes());
        json.map(Self).map_err(|error| CardError::Invalid(error.to_string()))
    }

    /// Reads a field that a registration is made from.
    ///
    /// # Errors
    /// If it has another type.
    pub(super) fn field<'a, T: Deserialize<'a>>(&'a self, name: &str) -> Result<Option<T>, CardError> {
        let field = Option::deserialize(&self.0[name]);
        field.map_err(|error| CardError::Invalid(format!("its `{name}` is invalid: {error}")))
    }

    /// Returns all interfaces, the preferred one first: those of version 1.0, then those of version 0.3.
    pub(super) fn declared(&self) -> Vec<Declared<'_>> {
        let Self(card) = self;
        let list = |name: &str| card[name].as_array().into_iter().flatten();
        // In version 0.3, the card itself is the preferred interface, and has the version of all of them.
        let preferred = Declared::read(card, "0.3");
        let older = text(&card["protocolVersion"]).unwrap_or_else(|| "0.3".to_owned());
        let additional = list("additionalInterfaces").filter_map(|one| Declared::read(one, &older));
        let newer = list("supportedInterfaces").filter_map(|one| Declared::read(one, "1.0"));
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
    /// Reads an interface. The name of its binding has another field in version 0.3, and another one again in the card itself.
    fn read(interface: &'a Value, default_version: &str) -> Option<Self> {
        let bindings = ["protocolBinding", "transport", "preferredTransport"];
        Some(Self {
            url: interface["url"].as_str()?,
            binding: bindings.iter().find_map(|name| interface[name].as_str()),
            version: text(&interface["protocolVersion"]).unwrap_or_else(|| default_version.to_owned()),
            tenant: text(&interface["tenant"]).filter(|tenant| !tenant.is_empty()),
        })
    }

    pub(super) fn binding(&self) -> &'a str {
        self.binding.unwrap_or(DEFAULT_BINDING)
    }
}

/// Reads a text, which some cards have as a number: `"protocolVersion": 1.0`.
fn text(value: &Value) -> Option<String> {
    value.as_str().map(str::to_owned).or_else(|| value.as_number().map(Number::to_string))
}

fn is_http(url: &str) -> bool {
    Url::parse(url).is_ok_and(|url| matches!(url.scheme(), "http" | "https"))
}
