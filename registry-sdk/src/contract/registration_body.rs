//! Reading the body of a registration, with an error for each invalid field.

use std::time::Duration;

use serde::Deserialize;
use serde::de::{self, IgnoredAny, Unexpected};
use serde_json::value::RawValue;

use super::agent::{AgentStatus, Capability};
use super::problem::{FieldError, ValidationError};
use super::registration::Registration;
use super::request_body::RequestBody;
use super::time::seconds;

impl RequestBody for Registration {
    fn from_json(body: &[u8]) -> Result<Result<Self, ValidationError>, serde_json::Error> {
        // Serde would accept a list of the field values for a struct, which the contract does not allow.
        let object = body.trim_ascii_start().first() == Some(&b'{');
        if !object && serde_json::from_slice::<IgnoredAny>(body).is_ok() {
            return Err(de::Error::invalid_type(Unexpected::Other("something else"), &"a JSON object"));
        }
        match serde_json::from_slice::<Self>(body) {
            Ok(registration) => Ok(registration.validate().map(|()| registration)),
            // The sender needs all errors, not only the first one, so each field is read separately.
            Err(_) => serde_json::from_slice::<Draft<'_>>(body).map(Draft::check),
        }
    }
}

/// A registration whose fields have not been read yet.
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
            // An unreadable capability keeps its index, so that errors name the right one.
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
        // Fields that could be read are checked against their limits as well. The others have an error already.
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

/// Reads a capability. Adds an error for each field that is missing or has the wrong type.
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
