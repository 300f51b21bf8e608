//! Agents: their status, capabilities and records.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::de::value::MapAccessDeserializer;
use serde::de::{self, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value};

use super::maintenance::Maintenance;
use super::own_health::ProbeMode;
use super::problem::{FieldError, ValidationError};
use super::time::{Timestamp, optional_seconds};
use super::words::{UnknownWord, words};

/// Whether an agent takes work. Searches prefer `active` to `busy`, and `busy` to `offline`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum AgentStatus {
    /// Alive and free to take work.
    #[default]
    Active,
    /// Alive and already working.
    Busy,
    /// Not taking work, because the agent said so or missed its deadline.
    Offline,
    /// A status that only a newer server knows. Such an agent is never selected, and no request can set this status.
    Unknown(UnknownWord),
}

words!(AgentStatus "Whether an agent takes work. Searches prefer `active` to `busy`, and `busy` to `offline`.": Active = "active", Busy = "busy", Offline = "offline");

impl AgentStatus {
    /// All statuses that this version knows, in the order in which a search prefers them.
    pub const ALL: [Self; 3] = [Self::Active, Self::Busy, Self::Offline];

    /// Returns whether this version knows the status.
    #[must_use]
    pub fn is_known(self) -> bool {
        !matches!(self, Self::Unknown(_))
    }

    /// Checks that a request can set the status.
    pub(crate) fn check_known(self) -> Result<(), ValidationError> {
        let Self::Unknown(word) = self else { return Ok(()) };
        let message = format!("must be one of \"active\", \"busy\", \"offline\", is {word:?}");
        Err(ValidationError(vec![FieldError::new("status", message)]))
    }

    /// Returns whether an agent with this status may be given work.
    #[must_use]
    pub fn takes_work(self) -> bool {
        matches!(self, Self::Active | Self::Busy)
    }

    /// [`AgentStatus::tolerant`] for a field that may be missing or `null`.
    pub(super) fn tolerant_option<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Self>, D::Error> {
        Ok(Option::<Cow<'_, str>>::deserialize(deserializer)?.map(|word| Self::of_word(&word)))
    }
}

/// Requests are read strictly: an unknown status is an error.
impl<'de> Deserialize<'de> for AgentStatus {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Cow::<str>::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// A word that is not an [`AgentStatus`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a status: use active, busy or offline")]
pub struct ParseStatusError(pub String);

impl FromStr for AgentStatus {
    type Err = ParseStatusError;

    fn from_str(word: &str) -> Result<Self, Self::Err> {
        match Self::of_word(word) {
            Self::Unknown(_) => Err(ParseStatusError(word.to_owned())),
            status => Ok(status),
        }
    }
}

/// Something that an agent can do.
///
/// ```
/// use registry_sdk::contract::Capability;
/// let capability = Capability::new("code_generation")
///     .description("Generates Python code")
///     .cost_estimate("~100 tokens")
///     .tag("python")
///     .title("Code generator")
///     .example("Write a function that parses dates");
/// assert_eq!(capability.tags, ["python"]);
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(
    feature = "openapi",
    derive(utoipa::ToSchema),
    schema(description = "Something that an agent can do.")
)]
#[serde(remote = "Self")]
#[non_exhaustive]
pub struct Capability {
    /// The name by which the capability is found: unique within one agent, 1 to 128 characters.
    #[cfg_attr(feature = "openapi", schema(min_length = 1, max_length = 128, pattern = "^[^\\u0000]*$"))]
    pub name: String,
    /// A description for people, which is searched as well: up to 1,024 characters.
    #[serde(default, deserialize_with = "null_is_default")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>, max_length = 1024, pattern = "^[^\\u0000]*$"))]
    pub description: String,
    /// The cost of a task, in the agent's own words: up to 128 characters.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(max_length = 128, pattern = "^[^\\u0000]*$"))]
    pub cost_estimate: Option<String>,
    /// Further words by which the capability is found: up to 32, each 1 to 64 characters.
    #[serde(default, deserialize_with = "null_is_default")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<Vec<Tag>>, max_items = 32))]
    pub tags: Vec<String>,
    // Omitted if empty, so that the registration tag of a capability without them is the same as on servers that do not know
    // them.
    /// A name for people, which is searched as well: 1 to 128 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(min_length = 1, max_length = 128, pattern = "^[^\\u0000]*$"))]
    pub title: Option<String>,
    /// Tasks and questions that the capability is meant for, in the words of the people who ask; searched as well. Up to 16,
    /// each 1 to 256 characters.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<Vec<Example>>, max_items = 16))]
    pub examples: Vec<String>,
}

impl Capability {
    /// Creates a capability that has only a name.
    #[must_use]
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), ..Self::default() }
    }

    /// Sets the description.
    #[must_use]
    pub fn description(mut self, description: impl Into<String>) -> Self {
        self.description = description.into();
        self
    }

    /// Sets the cost estimate.
    #[must_use]
    pub fn cost_estimate(mut self, cost: impl Into<String>) -> Self {
        self.cost_estimate = Some(cost.into());
        self
    }

    /// Adds a tag.
    #[must_use]
    pub fn tag(mut self, tag: impl Into<String>) -> Self {
        self.tags.push(tag.into());
        self
    }

    /// Sets the title.
    #[must_use]
    pub fn title(mut self, title: impl Into<String>) -> Self {
        self.title = Some(title.into());
        self
    }

    /// Adds an example of a task or question.
    #[must_use]
    pub fn example(mut self, example: impl Into<String>) -> Self {
        self.examples.push(example.into());
        self
    }
}

// Serde's derived implementation would also accept a list of the field values, which the contract does not allow.
impl<'de> Deserialize<'de> for Capability {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;
        impl<'de> Visitor<'de> for Object {
            type Value = Capability;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object with a `name`")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Capability, A::Error> {
                Capability::deserialize(MapAccessDeserializer::new(map))
            }
        }
        deserializer.deserialize_map(Object)
    }
}

impl Serialize for Capability {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Self::serialize(self, serializer)
    }
}

/// A tag, only for the description of the API.
#[cfg(feature = "openapi")]
#[derive(utoipa::ToSchema)]
#[schema(
    description = "A word by which a capability is found.",
    min_length = 1,
    max_length = 64,
    pattern = "^[^\\u0000]*$"
)]
#[expect(dead_code, reason = "it is never constructed: tags are strings")]
struct Tag(String);

/// An example, only for the description of the API.
#[cfg(feature = "openapi")]
#[derive(utoipa::ToSchema)]
#[schema(
    description = "A task or question that a capability is meant for.",
    min_length = 1,
    max_length = 256,
    pattern = "^[^\\u0000]*$"
)]
#[expect(dead_code, reason = "it is never constructed: examples are strings")]
struct Example(String);

/// Metadata, only for the description of the API: generated clients get one named type for it.
#[cfg(feature = "openapi")]
#[derive(utoipa::ToSchema)]
#[schema(description = "Any further information about the agent.", value_type = Object)]
#[expect(dead_code, reason = "it is never constructed: metadata is a map")]
pub(super) struct Metadata(Map<String, Value>);

/// A capability in a response, only for the description of the API: a registration may omit fields, but a response has all of
/// them except the title and the examples.
#[cfg(feature = "openapi")]
#[derive(utoipa::ToSchema)]
#[schema(description = "A capability of a registered agent.")]
#[expect(dead_code, reason = "it is never constructed: responses have `Capability`")]
struct RegisteredCapability {
    /// The name by which the capability is found, unique within one agent.
    name: String,
    /// A description for people, which is searched as well.
    description: String,
    /// The cost of a task, in the agent's own words.
    #[schema(required)]
    cost_estimate: Option<String>,
    /// Further words by which the capability is found.
    tags: Vec<String>,
    /// A name for people; omitted if there is none.
    title: Option<String>,
    /// Tasks and questions that the capability is meant for; omitted if there are none.
    #[schema(required = false)]
    examples: Vec<String>,
}

/// The [`AgentRecord::changed_by`] of a change that the registry itself made, such as a missed deadline.
///
/// No token can have this name.
pub const CHANGED_BY_REGISTRY: &str = "(registry)";

/// Everything that the registry knows about an agent.
///
/// A field that the server did not send is `None` or the default of its type.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(
    feature = "openapi",
    derive(utoipa::ToSchema),
    schema(description = "Everything that the registry knows about an agent.")
)]
#[non_exhaustive]
pub struct AgentRecord {
    /// The agent's id.
    pub agent_id: String,
    /// The agent's name, for people.
    #[serde(default, deserialize_with = "null_is_default")]
    #[cfg_attr(feature = "openapi", schema(required))]
    pub agent_name: String,
    /// The URL at which the agent answers.
    #[serde(default, deserialize_with = "null_is_default")]
    #[cfg_attr(feature = "openapi", schema(required))]
    pub base_url: String,
    /// The path below `base_url` of the agent's health endpoint; omitted if the agent registered none, which means
    /// `/health`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health_path: Option<String>,
    /// Whether the registry may probe the agent; omitted if the agent did not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probe: Option<ProbeMode>,
    /// The agent's capabilities.
    #[serde(default, deserialize_with = "null_is_default")]
    #[cfg_attr(feature = "openapi", schema(value_type = Vec<RegisteredCapability>, required))]
    pub capabilities: Vec<Capability>,
    /// The status at the time of the response; `offline` after the agent's deadline.
    #[serde(deserialize_with = "AgentStatus::tolerant")]
    pub status: AgentStatus,
    /// Any further information that the agent registered.
    #[serde(default, deserialize_with = "null_is_default")]
    #[cfg_attr(feature = "openapi", schema(value_type = Metadata, required))]
    pub metadata: Map<String, Value>,
    /// The interval at which the agent intends to send heartbeats, if it declared one.
    #[serde(default, rename = "heartbeat_interval_seconds", with = "optional_seconds")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<f64>, required))]
    pub heartbeat_interval: Option<Duration>,
    /// The process that last registered the agent, if it named itself.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(required))]
    pub instance_id: Option<String>,
    /// When the agent first registered.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(value_type = Timestamp, required))]
    pub registered_at: Option<Timestamp>,
    /// When the agent was last heard from.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(value_type = Timestamp, required))]
    pub last_heartbeat: Option<Timestamp>,
    /// How long after its last heartbeat the agent counts as offline.
    #[serde(default, rename = "heartbeat_timeout_seconds", with = "optional_seconds")]
    #[cfg_attr(feature = "openapi", schema(value_type = f64, required))]
    pub heartbeat_timeout: Option<Duration>,
    /// The fraction of the agent's capacity that is in use, from 0 to 1, if a heartbeat has reported it since the server
    /// started.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(minimum = 0, maximum = 1, required))]
    pub load: Option<f64>,
    /// The number of tasks that the agent is working on, if a heartbeat has reported it since the server started.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(format = Int64, minimum = 0, maximum = 4_294_967_295_u32, required))]
    pub active_tasks: Option<u32>,
    /// Whether a health check would have reported the agent healthy at that time.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(value_type = bool, required))]
    pub healthy: Option<bool>,
    /// Why and until when the agent is given no work, if it is in maintenance.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Maintenance, required = false))]
    pub maintenance: Option<Maintenance>,
    /// The name of the token whose request made the agent's last change, or `(registry)` if the registry itself made it.
    /// Omitted if that request needed no token, or if the change was made by a version that did not record it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = String, required = false))]
    pub changed_by: Option<String>,
    /// An opaque text that changes with the agent's A2A agent card, if it registered one. `GET /agents/{id}/card` returns the
    /// card.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = String, required = false))]
    pub card_digest: Option<String>,
    /// The revision of the agent's last change; plain heartbeats do not count. Of two records of an agent, the one with the
    /// greater revision is newer.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(value_type = u64, required))]
    pub revision: Option<u64>,
    /// An opaque tag of the registration, also sent in the response to a heartbeat. As long as it stays the same, the registry
    /// has the same registration.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(value_type = String, required))]
    pub registration_tag: Option<String>,
}

impl AgentRecord {
    /// Creates a record with only an identity and a status. For tests, which set the other fields.
    #[must_use]
    pub fn new(agent_id: impl Into<String>, status: AgentStatus) -> Self {
        Self {
            agent_id: agent_id.into(),
            agent_name: String::new(),
            base_url: String::new(),
            health_path: None,
            probe: None,
            capabilities: Vec::new(),
            status,
            metadata: Map::new(),
            heartbeat_interval: None,
            instance_id: None,
            registered_at: None,
            last_heartbeat: None,
            heartbeat_timeout: None,
            load: None,
            active_tasks: None,
            healthy: None,
            maintenance: None,
            changed_by: None,
            card_digest: None,
            revision: None,
            registration_tag: None,
        }
    }
}

/// Reads `null` as the default: clients in other languages send it for a field that has no value.
pub(crate) fn null_is_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}
