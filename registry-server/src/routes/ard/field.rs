//! Fields by which entries are filtered and counted.

use registry_sdk::ListQuery;
use registry_sdk::internal::FilterParts;
use serde_json::Value;

use super::entry::{Artifact, distinct};
use super::site::Site;
use crate::registry::FoundAgent;
use crate::routes::problem::ApiError;

/// A field of entries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Field {
    Identifier,
    DisplayName,
    Type,
    /// The domain in the identifier.
    Publisher,
    Tags,
    Capabilities,
    /// Path of keys in the metadata, separated by dots.
    Metadata(String),
}

impl Field {
    /// Parses the path of a field.
    pub(super) fn read(path: &str) -> Result<Self, ApiError> {
        Ok(match path {
            "identifier" => Self::Identifier,
            "displayName" => Self::DisplayName,
            "type" => Self::Type,
            "publisher" => Self::Publisher,
            "tags" => Self::Tags,
            "capabilities" => Self::Capabilities,
            _ => match path.strip_prefix("metadata.").filter(|key| !key.is_empty()) {
                Some(key) => Self::Metadata(key.to_owned()),
                None => {
                    return Err(ApiError::bad_request(format!(
                        "the field {path:?} is not supported; use identifier, displayName, type, publisher, tags, \
                         capabilities or metadata.KEY"
                    )));
                }
            },
        })
    }

    /// Whether the field has one of these values.
    pub(super) fn has_any(&self, wanted: &[String], agent: &FoundAgent, site: &Site) -> bool {
        let Self::Metadata(path) = self else {
            return self.values(agent, site).iter().any(|value| wanted.contains(value));
        };
        let metadata = agent.metadata();
        // As in a list's filter `metadata.KEY`.
        wanted.iter().any(|value| ListQuery::all().metadata(path, value).filter.accepts_metadata(&metadata))
    }

    /// Returns the distinct values of the field.
    pub(super) fn values(&self, agent: &FoundAgent, site: &Site) -> Vec<String> {
        match self {
            Self::Identifier => vec![site.identifier(agent.agent_id())],
            Self::DisplayName => vec![agent.name().to_owned()],
            Self::Type => vec![Artifact::of(agent).media_type.to_owned()],
            Self::Publisher => vec![site.publisher.clone()],
            Self::Tags => distinct(agent.capabilities().iter().flat_map(|capability| &capability.tags)),
            Self::Capabilities => distinct(agent.capabilities().iter().map(|capability| &capability.name)),
            Self::Metadata(key) => match agent.metadata().remove(key) {
                Some(Value::String(text)) => vec![text],
                Some(value @ (Value::Bool(_) | Value::Number(_))) => vec![value.to_string()],
                _ => Vec::new(),
            },
        }
    }
}
