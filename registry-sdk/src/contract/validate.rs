//! The contract's limits and the checks of registrations.

use std::collections::HashSet;
use std::fmt;
use std::time::Duration;

use serde_json::Value;

use super::address::{check_base_url, check_health_path};
use super::agent::Capability;
use super::card::AgentCard;
use super::own_health::ProbeMode;
use super::problem::{FieldError, ValidationError};
use super::registration::Registration;

/// The contract's limits: the largest valid values.
pub mod limits {
    use std::time::Duration;

    /// Characters of an `agent_id`.
    pub const AGENT_ID: usize = 64;
    /// Characters of an `agent_name`.
    pub const AGENT_NAME: usize = 128;
    /// Characters of a `base_url`.
    pub const BASE_URL: usize = 256;
    /// Characters of a `health_path`.
    pub const HEALTH_PATH: usize = 256;
    /// Capabilities of one agent.
    pub const CAPABILITIES: usize = 128;
    /// Characters of a capability's name.
    pub const CAPABILITY_NAME: usize = 128;
    /// Characters of a capability's description.
    pub const DESCRIPTION: usize = 1_024;
    /// Characters of a capability's cost estimate.
    pub const COST_ESTIMATE: usize = 128;
    /// Tags of one capability.
    pub const TAGS: usize = 32;
    /// Characters of one tag.
    pub const TAG: usize = 64;
    /// Characters of a capability's title.
    pub const TITLE: usize = 128;
    /// Examples of one capability.
    pub const EXAMPLES: usize = 16;
    /// Characters of one example.
    pub const EXAMPLE: usize = 256;
    /// Bytes of the metadata, as compact JSON.
    pub const METADATA_BYTES: usize = 16 * 1_024;
    /// Levels of lists and objects in the metadata.
    ///
    /// JSON parsers have their own limits (often 128), and the metadata also has to be readable within a list of agents.
    pub const METADATA_DEPTH: usize = 64;
    /// Bytes of an A2A agent card.
    pub const CARD_BYTES: usize = 64 * 1_024;
    /// Levels of lists and objects in a card, for the same reason as in the metadata.
    pub const CARD_DEPTH: usize = 64;
    /// Bytes of a request's body.
    pub const BODY_BYTES: usize = 256 * 1_024;
    /// Maximum interval between two heartbeats.
    pub const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(86_400);
    /// Maximum age of a process.
    pub const INSTANCE_AGE: Duration = Duration::from_secs(1_000_000_000);
    /// Characters of the reason of a maintenance.
    pub const MAINTENANCE_REASON: usize = 256;
    /// Maximum duration of a maintenance that ends by itself.
    pub const MAINTENANCE: Duration = Duration::from_secs(31_536_000);
    /// Entries of one page of a list or a search.
    pub const PAGE: usize = 1_000;
    /// Matches of a search without a limit.
    pub const DEFAULT_MATCHES: usize = 100;
    /// Past events that an event stream begins with.
    pub const LAST_EVENTS: usize = 1_000;
}

/// Returns whether a text is a valid `agent_id`.
#[must_use]
pub fn is_valid_agent_id(text: &str) -> bool {
    let ordinary = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    text.len() <= limits::AGENT_ID
        && text.bytes().all(ordinary)
        && text.bytes().next().is_some_and(|first| first.is_ascii_alphanumeric())
}

/// What [`is_valid_agent_id`] accepts, for errors.
pub(super) const VALID_ID: &str = "1 to 64 characters of A-Z a-z 0-9 . _ -, the first a letter or digit";

impl Registration {
    /// Checks every limit of the contract.
    ///
    /// # Errors
    /// Returns all invalid fields, not only the first one.
    pub fn validate(&self) -> Result<(), ValidationError> {
        let mut check = Check::default();
        if !is_valid_agent_id(&self.agent_id) {
            check.fail("agent_id", format!("must be {VALID_ID}"));
        }
        if let Err(ValidationError(errors)) = self.status.check_known() {
            check.errors.extend(errors);
        }
        check.text("agent_name", &self.agent_name, 1, limits::AGENT_NAME);
        check.address(self);
        if let Some(ProbeMode::Unknown(word)) = self.probe {
            check.fail("probe", format!("must be \"on\" or \"off\", is {word:?}"));
        }
        check.capabilities(&self.capabilities);
        check.metadata(self);
        if let Some(interval) = self.heartbeat_interval
            && (interval == Duration::ZERO || interval > limits::HEARTBEAT_INTERVAL)
        {
            check.fail("heartbeat_interval_seconds", "must be above 0, up to 86400");
        }
        if self.instance_id.as_deref().is_some_and(|instance_id| !is_valid_agent_id(instance_id)) {
            check.fail("instance_id", format!("must be {VALID_ID}"));
        }
        if self.instance_age.is_some_and(|age| age > limits::INSTANCE_AGE) {
            check.fail("instance_age_seconds", "must be from 0 to 1000000000");
        } else if self.instance_age.is_some() && self.instance_id.is_none() {
            check.fail("instance_age_seconds", "needs an instance_id: it is the age of that process");
        }
        if let Some(card) = &self.card {
            check.card(card);
        }
        if check.errors.is_empty() { Ok(()) } else { Err(ValidationError(check.errors)) }
    }
}

/// Returns what is wrong with a text, or `None` if it is valid.
pub(super) fn text_error(text: &str, least: usize, most: usize) -> Option<String> {
    let length = text.chars().count();
    if length < least || length > most {
        Some(format!("must have {least} to {most} characters, has {length}"))
    } else {
        // PostgreSQL cannot store NUL, and no text for people contains it.
        text.contains('\0').then(|| "must not contain a NUL character".to_owned())
    }
}

/// The errors found so far.
#[derive(Default)]
struct Check {
    errors: Vec<FieldError>,
}

impl Check {
    fn fail(&mut self, field: impl fmt::Display, message: impl Into<String>) {
        self.errors.push(FieldError::new(field.to_string(), message));
    }

    /// The field's path is only formatted if there is an error.
    fn text(&mut self, field: impl fmt::Display, text: &str, least: usize, most: usize) {
        if let Some(error) = text_error(text, least, most) {
            self.fail(field, error);
        }
    }

    /// Checks a list of texts, none of which may be empty.
    fn texts(&mut self, field: fmt::Arguments<'_>, texts: &[String], most: usize, most_characters: usize) {
        if texts.len() > most {
            self.fail(field, format!("must have up to {most} entries, has {}", texts.len()));
        }
        for (position, text) in texts.iter().enumerate() {
            self.text(format_args!("{field}[{position}]"), text, 1, most_characters);
        }
    }

    fn address(&mut self, given: &Registration) {
        let Registration { base_url, health_path, .. } = given;
        let error = text_error(base_url, 1, limits::BASE_URL).or_else(|| check_base_url(base_url).err());
        if let Some(error) = error {
            self.fail("base_url", error);
        }
        let Some(path) = health_path else { return };
        let error = text_error(path, 1, limits::HEALTH_PATH).or_else(|| check_health_path(path).err());
        if let Some(error) = error {
            self.fail("health_path", error);
        }
    }

    fn capabilities(&mut self, all: &[Capability]) {
        if all.len() > limits::CAPABILITIES {
            let most = limits::CAPABILITIES;
            self.fail("capabilities", format!("must have up to {most} entries, has {}", all.len()));
        }
        let mut names = HashSet::new();
        for (index, capability) in all.iter().enumerate() {
            if !capability.name.is_empty() && !names.insert(capability.name.as_str()) {
                self.fail(
                    format_args!("capabilities[{index}].name"),
                    format!("{:?} is used twice: names must be distinct", capability.name),
                );
            }
            self.capability(index, capability);
        }
    }

    fn capability(&mut self, index: usize, capability: &Capability) {
        let Capability { name, description, cost_estimate, tags, title, examples } = capability;
        self.text(format_args!("capabilities[{index}].name"), name, 1, limits::CAPABILITY_NAME);
        self.text(format_args!("capabilities[{index}].description"), description, 0, limits::DESCRIPTION);
        let cost = cost_estimate.as_deref().unwrap_or_default();
        self.text(format_args!("capabilities[{index}].cost_estimate"), cost, 0, limits::COST_ESTIMATE);
        self.texts(format_args!("capabilities[{index}].tags"), tags, limits::TAGS, limits::TAG);
        if let Some(title) = title {
            self.text(format_args!("capabilities[{index}].title"), title, 1, limits::TITLE);
        }
        let field = format_args!("capabilities[{index}].examples");
        self.texts(field, examples, limits::EXAMPLES, limits::EXAMPLE);
    }

    fn card(&mut self, card: &AgentCard) {
        let (bytes, depth) = (card.as_str().len(), card.depth());
        if !card.is_object() {
            self.fail("card", "must be a JSON object, the A2A agent card");
        } else if bytes > limits::CARD_BYTES {
            let most = limits::CARD_BYTES;
            self.fail("card", format!("must have up to {most} bytes of JSON, has {bytes}"));
        } else if depth > limits::CARD_DEPTH {
            let most = limits::CARD_DEPTH;
            self.fail("card", format!("must be nested up to {most} levels deep, is nested {depth}"));
        }
    }

    fn metadata(&mut self, given: &Registration) {
        let bytes = serde_json::to_vec(&given.metadata).map_or(usize::MAX, |json| json.len());
        if bytes > limits::METADATA_BYTES {
            let most = limits::METADATA_BYTES;
            self.fail("metadata", format!("must have up to {most} bytes of JSON, has {bytes}"));
        }
        let has_nul = given.metadata.iter().any(|(key, value)| key.contains('\0') || contains_nul(value));
        if has_nul {
            self.fail("metadata", "must not contain a NUL character");
        }
        let depth = 1 + given.metadata.values().map(depth).max().unwrap_or_default();
        if depth > limits::METADATA_DEPTH {
            let most = limits::METADATA_DEPTH;
            self.fail("metadata", format!("must be nested up to {most} levels deep, is nested {depth}"));
        }
    }
}

/// Returns the number of nested lists and objects.
fn depth(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(depth).max().unwrap_or_default(),
        Value::Object(entries) => 1 + entries.values().map(depth).max().unwrap_or_default(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => 0,
    }
}

/// The recursion is bounded, because JSON nested deeper than 128 levels cannot be read in the first place.
fn contains_nul(value: &Value) -> bool {
    match value {
        Value::String(text) => text.contains('\0'),
        Value::Array(items) => items.iter().any(contains_nul),
        Value::Object(entries) => {
            entries.iter().any(|(key, value)| key.contains('\0') || contains_nul(value))
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => false,
    }
}
