//! What an agent says of itself.

use std::time::Duration;

use serde::de::{self, IgnoredAny, Unexpected};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use super::agent::{AgentStatus, Capability, null_is_default};
use super::card::AgentCard;
use super::own_health::ProbeMode;
use super::problem::{FieldError, ValidationError};
use super::time::{optional_seconds, seconds};

/// The body of `POST /register`.
///
/// ```
/// use std::time::Duration;
/// use registry_sdk::contract::{Capability, Registration};
///
/// let registration = Registration::new("feature-dev", "Feature Development Agent", "http://feature-dev:8002")
///     .capability(Capability::new("code_generation").tag("python"))
///     .heartbeat_interval(Duration::from_secs(30));
/// registration.validate()?;
/// # Ok::<(), registry_sdk::contract::ValidationError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(
    feature = "openapi",
    derive(utoipa::ToSchema),
    schema(description = "An agent that registers, or registers again.")
)]
#[non_exhaustive]
pub struct Registration {
    /// The agent's id: 1 to 64 of `A-Z a-z 0-9 . _ -`, the first a letter or digit.
    #[cfg_attr(
        feature = "openapi",
        schema(min_length = 1, max_length = 64, pattern = "^[A-Za-z0-9][A-Za-z0-9._-]*$")
    )]
    pub agent_id: String,
    /// The agent's name, for people: 1 to 128 characters.
    #[cfg_attr(feature = "openapi", schema(min_length = 1, max_length = 128, pattern = "^[^\\u0000]*$"))]
    pub agent_name: String,
    /// The URL at which callers reach the agent: absolute, `http` or `https`, without user info, query and fragment, up to
    /// 256 characters. Addresses that nobody can connect to, such as `0.0.0.0`, are refused.
    #[cfg_attr(feature = "openapi", schema(min_length = 1, max_length = 256, format = "uri"))]
    pub base_url: String,
    /// The path below `base_url` at which the agent says how it is: 1 to 256 characters, begins with one slash.
    /// `/health` by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(
        feature = "openapi",
        schema(
            min_length = 1,
            max_length = 256,
            pattern = "^/([^/?#\\\\\\s\\x00-\\x1f\\x7f-\\x9f][^?#\\\\\\s\\x00-\\x1f\\x7f-\\x9f]*)?$"
        )
    )]
    pub health_path: Option<String>,
    /// Whether the registry may ask the agent itself how it is, `on` by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probe: Option<ProbeMode>,
    /// What the agent can do: up to 128 capabilities with distinct names.
    #[cfg_attr(feature = "openapi", schema(max_items = 128))]
    pub capabilities: Vec<Capability>,
    /// The initial status, `active` by default.
    #[serde(default, deserialize_with = "null_is_default")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<AgentStatus>))]
    pub status: AgentStatus,
    /// Whatever else others should know about the agent: up to 16 KiB of JSON, nested up to 64 levels deep.
    #[serde(default, deserialize_with = "null_is_default")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<super::agent::Metadata>))]
    pub metadata: Map<String, Value>,
    /// The interval at which the agent intends to send heartbeats: above 0, up to a day. The registry waits at least
    /// twice as long before the agent counts as offline.
    #[serde(
        default,
        rename = "heartbeat_interval_seconds",
        with = "optional_seconds",
        skip_serializing_if = "Option::is_none"
    )]
    #[cfg_attr(feature = "openapi", schema(exclusive_minimum = 0, maximum = 86400, value_type = Option<f64>))]
    pub heartbeat_interval: Option<Duration>,
    /// The process, of those that may start with the same `agent_id`: 1 to 64 of the same characters. The youngest
    /// living process owns the id; heartbeats of another instance are refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(
        feature = "openapi",
        schema(min_length = 1, max_length = 64, pattern = "^[A-Za-z0-9][A-Za-z0-9._-]*$")
    )]
    pub instance_id: Option<String>,
    /// How long ago the process started, by a monotonic clock. Requires an `instance_id`. A registration is refused with
    /// 409 if its process is older than the living owner of the id; one without an age is always granted.
    #[serde(
        default,
        rename = "instance_age_seconds",
        with = "optional_seconds",
        skip_serializing_if = "Option::is_none"
    )]
    #[cfg_attr(feature = "openapi", schema(minimum = 0, maximum = 1_000_000_000, value_type = Option<f64>))]
    pub instance_age: Option<Duration>,
    /// The agent's A2A agent card, up to 64 KiB of JSON. It is kept byte for byte, apart from the record: `GET /agents/{id}/card`
    /// returns it. A registration without a card removes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<super::card::Card>))]
    pub card: Option<AgentCard>,
}

impl Registration {
    /// An agent without capabilities, which are added one by one.
    #[must_use]
    pub fn new(
        agent_id: impl Into<String>,
        agent_name: impl Into<String>,
        base_url: impl Into<String>,
    ) -> Self {
        Self {
            agent_id: agent_id.into(),
            agent_name: agent_name.into(),
            base_url: base_url.into(),
            health_path: None,
            probe: None,
            capabilities: Vec::new(),
            status: AgentStatus::Active,
            metadata: Map::new(),
            heartbeat_interval: None,
            instance_id: None,
            instance_age: None,
            card: None,
        }
    }

    /// Adds one capability.
    #[must_use]
    pub fn capability(mut self, capability: Capability) -> Self {
        self.capabilities.push(capability);
        self
    }

    /// Sets the status to begin with.
    #[must_use]
    pub fn status(mut self, status: AgentStatus) -> Self {
        self.status = status;
        self
    }

    /// Adds one entry to the metadata.
    #[must_use]
    pub fn metadata(mut self, key: impl Into<String>, value: impl Into<Value>) -> Self {
        self.metadata.insert(key.into(), value.into());
        self
    }

    /// Sets the path below `base_url` at which the agent says how it is, in place of `/health`.
    #[must_use]
    pub fn health_path(mut self, path: impl Into<String>) -> Self {
        self.health_path = Some(path.into());
        self
    }

    /// Sets whether the registry may ask the agent itself how it is.
    #[must_use]
    pub fn probe(mut self, probe: ProbeMode) -> Self {
        self.probe = Some(probe);
        self
    }

    /// Keeps the registry from asking the agent itself: it is judged by its heartbeats alone.
    #[must_use]
    pub fn no_probe(self) -> Self {
        self.probe(ProbeMode::Off)
    }

    /// Declares how often heartbeats come.
    #[must_use]
    pub fn heartbeat_interval(mut self, interval: Duration) -> Self {
        self.heartbeat_interval = Some(interval);
        self
    }

    /// Tells this process apart from others with the same `agent_id`.
    #[must_use]
    pub fn instance_id(mut self, instance_id: impl Into<String>) -> Self {
        self.instance_id = Some(instance_id.into());
        self
    }

    /// Sets how long ago the process started. [`Agent`](crate::Agent) does so by itself, each time it registers.
    #[must_use]
    pub fn instance_age(mut self, age: Duration) -> Self {
        self.instance_age = Some(age);
        self
    }

    /// Sets the agent's A2A agent card, which the registry passes on as it is.
    #[must_use]
    pub fn card(mut self, card: AgentCard) -> Self {
        self.card = Some(card);
        self
    }

    /// Reads and checks the body of a registration.
    ///
    /// The error has all the fields that are missing, of a wrong type or out of their limits. A body that is
    /// no JSON object at all is for the caller to tell apart: see [`serde_json::from_slice`].
    pub fn from_json(body: &[u8]) -> Result<Result<Self, ValidationError>, serde_json::Error> {
        // Serde would take a list of the fields' values for a struct; the contract does not.
        let object = body.trim_ascii_start().first() == Some(&b'{');
        if !object && serde_json::from_slice::<IgnoredAny>(body).is_ok() {
            return Err(de::Error::invalid_type(Unexpected::Other("something else"), &"a JSON object"));
        }
        match serde_json::from_slice::<Self>(body) {
            Ok(registration) => Ok(registration.validate().map(|()| registration)),
            // The first error is not enough for the sender: look at each field by itself.
            Err(_) => serde_json::from_slice::<Draft<'_>>(body).map(Draft::check),
        }
    }
}

/// A registration whose fields are yet to be read.
#[derive(Deserialize)]
struct Draft<'a> {
    #[serde(borrow)]
    agent_id: Option<&'a RawValue>,
    agent_name: Option<&'a RawValue>,
    base_url: Option<&'a RawValue>,
    health_path: Option<&'a RawValue>,
    probe: Option<&'a RawValue>,
    capabilities: Option<&'a RawValue>,
    status: Option<&'a RawValue>,
    metadata: Option<&'a RawValue>,
    heartbeat_interval_seconds: Option<&'a RawValue>,
    instance_id: Option<&'a RawValue>,
    instance_age_seconds: Option<&'a RawValue>,
    card: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Seconds(#[serde(with = "seconds")] Duration);

impl Draft<'_> {
    fn check(self) -> Result<Registration, ValidationError> {
        let mut errors = Vec::new();
        let agent_id = required(&mut errors, "agent_id", "a string", self.agent_id);
        let agent_name = required(&mut errors, "agent_name", "a string", self.agent_name);
        let base_url = required(&mut errors, "base_url", "a string", self.base_url);
        let health_path = optional(&mut errors, "health_path", "a string", self.health_path);
        let probe = optional(&mut errors, "probe", "\"on\" or \"off\"", self.probe);
        let capabilities =
            required::<Vec<&RawValue>>(&mut errors, "capabilities", "a list", self.capabilities);
        let mut unread = Vec::new();
        let mut capabilities_read = Vec::new();
        for (index, raw) in capabilities.unwrap_or_default().into_iter().enumerate() {
            let read = draft_capability(&mut errors, index, raw);
            if read.is_none() {
                unread.push(format!("capabilities[{index}]"));
            }
            // One that could not be read keeps its place, so that the others keep their numbers.
            capabilities_read.push(read.unwrap_or_default());
        }
        let status = optional::<AgentStatus>(
            &mut errors,
            "status",
            "one of \"active\", \"busy\", \"offline\"",
            self.status,
        );
        let metadata = optional(&mut errors, "metadata", "a JSON object", self.metadata);
        let interval = optional::<Seconds>(
            &mut errors,
            "heartbeat_interval_seconds",
            "a number of seconds above 0, up to 86400",
            self.heartbeat_interval_seconds,
        );
        let instance_id = optional(&mut errors, "instance_id", "a string", self.instance_id);
        let age = optional::<Seconds>(
            &mut errors,
            "instance_age_seconds",
            "a number of seconds from 0 to 1000000000",
            self.instance_age_seconds,
        );
        let card = optional(&mut errors, "card", "a JSON object", self.card);
        let registration = Registration {
            agent_id: agent_id.unwrap_or_default(),
            agent_name: agent_name.unwrap_or_default(),
            base_url: base_url.unwrap_or_default(),
            health_path,
            probe,
            capabilities: capabilities_read,
            status: status.unwrap_or_default(),
            metadata: metadata.unwrap_or_default(),
            heartbeat_interval: interval.map(|Seconds(duration)| duration),
            instance_id,
            instance_age: age.map(|Seconds(duration)| duration),
            card,
        };
        // What could be read is checked against its limits as well; what could not has its error already.
        if let Err(ValidationError(limits)) = registration.validate() {
            let is_reported = |field: &str| {
                errors.iter().any(|error| error.field == field)
                    || unread.iter().any(|field_path| {
                        field.strip_prefix(field_path).is_some_and(|rest| rest.starts_with('.'))
                    })
            };
            let unreported: Vec<_> = limits.into_iter().filter(|error| !is_reported(&error.field)).collect();
            errors.extend(unreported);
        }
        if errors.is_empty() { Ok(registration) } else { Err(ValidationError(errors)) }
    }
}

/// Reads one capability, with an error for each field that is missing or of a wrong type.
fn draft_capability(errors: &mut Vec<FieldError>, index: usize, raw: &RawValue) -> Option<Capability> {
    #[derive(Deserialize)]
    struct Draft<'a> {
        #[serde(borrow)]
        name: Option<&'a RawValue>,
        description: Option<&'a RawValue>,
        cost_estimate: Option<&'a RawValue>,
        tags: Option<&'a RawValue>,
        title: Option<&'a RawValue>,
        examples: Option<&'a RawValue>,
    }
    let at = |field: &str| format!("capabilities[{index}].{field}");
    let draft = Some(raw.get()).filter(|text| text.starts_with('{'));
    let Some(draft) = draft.and_then(|text| serde_json::from_str::<Draft<'_>>(text).ok()) else {
        errors.push(FieldError::new(format!("capabilities[{index}]"), "must be an object with a `name`"));
        return None;
    };
    let before = errors.len();
    let name = required(errors, &at("name"), "a string", draft.name);
    let description = optional(errors, &at("description"), "a string", draft.description);
    let cost_estimate = optional(errors, &at("cost_estimate"), "a string", draft.cost_estimate);
    let tags = optional(errors, &at("tags"), "a list of strings", draft.tags);
    let title = optional(errors, &at("title"), "a string", draft.title);
    let examples = optional(errors, &at("examples"), "a list of strings", draft.examples);
    if errors.len() > before {
        return None;
    }
    Some(Capability {
        name: name?,
        description: description.unwrap_or_default(),
        cost_estimate,
        tags: tags.unwrap_or_default(),
        title,
        examples: examples.unwrap_or_default(),
    })
}

fn required<'a, T: Deserialize<'a>>(
    errors: &mut Vec<FieldError>,
    field: &str,
    wanted: &str,
    raw: Option<&'a RawValue>,
) -> Option<T> {
    if raw.is_none() {
        errors.push(FieldError::new(field, format!("is required, and must be {wanted}")));
    }
    optional(errors, field, wanted, raw)
}

fn optional<'a, T: Deserialize<'a>>(
    errors: &mut Vec<FieldError>,
    field: &str,
    wanted: &str,
    raw: Option<&'a RawValue>,
) -> Option<T> {
    let value = serde_json::from_str(raw?.get()).ok();
    if value.is_none() {
        errors.push(FieldError::new(field, format!("must be {wanted}")));
    }
    value
}
