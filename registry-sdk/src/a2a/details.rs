//! The card of an agent, made from its registration.

use serde_json::{Map, Value, json};
use url::Url;

use super::error::CardError;
use super::read::read_card;
use crate::contract::{AgentCard, Capability, Registration};

/// Default protocol version of an interface.
const PROTOCOL_VERSION: &str = "1.0";

/// The URL, binding and protocol version by which A2A clients call the agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    url: String,
    binding: String,
    version: String,
}

impl Interface {
    /// Creates an interface of version 1.0 with any binding, such as a custom one.
    #[must_use]
    pub fn new(binding: impl Into<String>, url: impl Into<String>) -> Self {
        Self { url: url.into(), binding: binding.into(), version: PROTOCOL_VERSION.to_owned() }
    }

    /// Creates an interface with the binding JSON-RPC.
    #[must_use]
    pub fn json_rpc(url: impl Into<String>) -> Self {
        Self::new("JSONRPC", url)
    }

    /// Creates an interface with the binding HTTP+JSON.
    #[must_use]
    pub fn http_json(url: impl Into<String>) -> Self {
        Self::new("HTTP+JSON", url)
    }

    /// Sets the version of the protocol, such as `0.3`.
    #[must_use]
    pub fn protocol_version(mut self, version: impl Into<String>) -> Self {
        self.version = version.into();
        self
    }
}

/// The fields of an agent's card that are not in its registration.
///
/// ```no_run
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use registry_sdk::a2a::{CardDetails, Interface};
/// use registry_sdk::{Agent, Capability, Registration, RegistryClient};
///
/// let registration = Registration::new("recipes", "Recipe Agent", "http://recipes:8000")
///     .capability(Capability::new("find_recipe").description("Finds recipes").tag("cooking"));
/// let details = CardDetails::new("Knows what to cook", "1.2.0", Interface::json_rpc("http://recipes:8000/a2a"))
///     .provider("Example", "https://example.org")
///     .streaming(true);
/// let card = details.card_of(&registration)?;
/// let agent = Agent::new(RegistryClient::new("http://127.0.0.1:8009")?, registration.card(card));
/// # #[cfg(feature = "axum")] {
/// // With the feature `axum`, the agent also serves the card to A2A clients.
/// let app = axum::Router::<()>::new(/* … the agent's own routes … */)
///     .merge(registry_sdk::a2a::CardEndpoint::new(&agent).router());
/// # }
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct CardDetails {
    interfaces: Vec<Interface>,
    input_modes: Vec<String>,
    output_modes: Vec<String>,
    streaming: bool,
    push_notifications: bool,
    /// The other fields of the card.
    fields: Map<String, Value>,
}

impl CardDetails {
    /// Creates the details with the fields that every card has: a description of the agent, the agent's version, and its preferred
    /// interface.
    #[must_use]
    pub fn new(description: impl Into<String>, version: impl Into<String>, interface: Interface) -> Self {
        let text = || vec!["text/plain".to_owned()];
        let details = Self {
            interfaces: vec![interface],
            input_modes: text(),
            output_modes: text(),
            streaming: false,
            push_notifications: false,
            fields: Map::new(),
        };
        details.field("description", description.into()).field("version", version.into())
    }

    /// Adds an interface. Clients prefer the ones that were added before it.
    #[must_use]
    pub fn interface(mut self, interface: Interface) -> Self {
        self.interfaces.push(interface);
        self
    }

    /// Sets the organization that offers the agent, and its URL. Default: none.
    #[must_use]
    pub fn provider(self, organization: impl Into<String>, url: impl Into<String>) -> Self {
        self.field("provider", json!({"organization": organization.into(), "url": url.into()}))
    }

    /// Sets the media types that the agent accepts. Default: `text/plain`.
    #[must_use]
    pub fn input_modes<T: Into<String>>(mut self, media_types: impl IntoIterator<Item = T>) -> Self {
        self.input_modes = media_types.into_iter().map(Into::into).collect();
        self
    }

    /// Sets the media types in which the agent answers. Default: `text/plain`.
    #[must_use]
    pub fn output_modes<T: Into<String>>(mut self, media_types: impl IntoIterator<Item = T>) -> Self {
        self.output_modes = media_types.into_iter().map(Into::into).collect();
        self
    }

    /// Sets whether the agent streams responses. Default: no.
    #[must_use]
    pub fn streaming(mut self, streams: bool) -> Self {
        self.streaming = streams;
        self
    }

    /// Sets whether the agent sends push notifications. Default: no.
    #[must_use]
    pub fn push_notifications(mut self, sends: bool) -> Self {
        self.push_notifications = sends;
        self
    }

    /// Sets any other field of the card, such as `securitySchemes` or `documentationUrl`. It replaces the field's usual value.
    #[must_use]
    pub fn field(mut self, name: impl Into<String>, value: impl Into<Value>) -> Self {
        self.fields.insert(name.into(), value.into());
        self
    }

    /// Returns the card of the agent with a registration. The card has the agent's name, and a skill for each capability.
    ///
    /// A card has to describe and tag each skill. Without a description, the capability's title is used, or its name if it has no
    /// title; without tags, its name.
    ///
    /// # Errors
    /// [`CardError::Invalid`] if an interface has no absolute URL, if there is no input or output mode, or if the card is longer than 64 KiB.
    pub fn card_of(&self, registration: &Registration) -> Result<AgentCard, CardError> {
        let no_url = |interface: &&Interface| Url::parse(&interface.url).is_err();
        if let Some(interface) = self.interfaces.iter().find(no_url) {
            let Interface { url, binding, .. } = interface;
            return Err(CardError::Invalid(format!(
                "the URL of its interface {binding} is not absolute: {url:?}"
            )));
        }
        if self.input_modes.is_empty() || self.output_modes.is_empty() {
            return Err(CardError::Invalid("it needs an input mode and an output mode".to_owned()));
        }
        let interfaces = self.interfaces.iter().map(|Interface { url, binding, version }| {
            json!({"url": url, "protocolBinding": binding, "protocolVersion": version})
        });
        let mut card = json!({
            "name": registration.agent_name,
            "supportedInterfaces": interfaces.collect::<Vec<_>>(),
            "capabilities": {"streaming": self.streaming, "pushNotifications": self.push_notifications},
            "defaultInputModes": self.input_modes,
            "defaultOutputModes": self.output_modes,
            "skills": registration.capabilities.iter().map(skill).collect::<Vec<_>>(),
        });
        for (name, value) in &self.fields {
            card[name] = value.clone();
        }
        read_card(card.to_string().as_bytes())
    }
}

fn skill(capability: &Capability) -> Value {
    let Capability { name, description, tags, title, examples, .. } = capability;
    let title = title.as_ref().unwrap_or(name);
    let description = if description.is_empty() { title } else { description };
    let own_name = [name.clone()];
    let tags = if tags.is_empty() { &own_name[..] } else { tags };
    let mut skill = json!({"id": name, "name": title, "description": description, "tags": tags});
    if !examples.is_empty() {
        skill["examples"] = json!(examples);
    }
    skill
}
