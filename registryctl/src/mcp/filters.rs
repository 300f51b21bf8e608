//! Filters for lists, searches and delegations.

use registry_sdk::{AgentFilter, MetadataFilter};
use serde_json::{Map, Value, json};

use super::arguments::{Arguments, expected};

/// Returns the schemas of all filters. A tool adds its own arguments to them.
pub(super) fn properties() -> Map<String, Value> {
    let mut properties = Map::new();
    let mut add = |name: &str, schema| properties.insert(name.to_owned(), schema);
    add(
        "status",
        json!({"type": "string", "enum": ["active", "busy", "offline"], "description": "Only agents with this status."}),
    );
    add(
        "healthy",
        json!({"type": "boolean", "description": "true: only agents that can be given work now. false: only agents that cannot."}),
    );
    add(
        "capability",
        json!({"type": "string", "description": "Only agents with a capability of exactly this name."}),
    );
    add("tags", tags());
    add("metadata", metadata());
    properties
}

pub(super) fn tags() -> Value {
    json!({
        "type": "array", "items": {"type": "string"},
        "description": "Only agents with a capability that has all these tags, exactly as written.",
    })
}

pub(super) fn metadata() -> Value {
    json!({
        "type": "object", "additionalProperties": {"type": ["string", "number", "boolean"]},
        "description": "Only agents whose metadata has all these values. A key may be a path, such as zone.region.",
    })
}

pub(super) fn take(arguments: &mut Arguments) -> Result<AgentFilter, String> {
    let mut filter = AgentFilter::default();
    let status = arguments.text("status")?.map(|word| word.parse());
    filter.status = status.transpose().map_err(|error| format!("`status`: {error}"))?;
    filter.healthy = arguments.flag("healthy")?;
    filter.capability = arguments.text("capability")?;
    filter.tags = take_tags(arguments)?;
    filter.metadata = take_metadata(arguments)?;
    Ok(filter)
}

pub(super) fn take_tags(arguments: &mut Arguments) -> Result<Vec<String>, String> {
    let given = match arguments.value("tags") {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(given) => given,
    };
    let tags = given.as_array().map(|tags| tags.iter().map(Value::as_str).collect::<Option<Vec<_>>>());
    match tags.flatten() {
        Some(tags) => Ok(tags.into_iter().map(str::to_owned).collect()),
        None => Err(expected("tags", "an array of strings", &given)),
    }
}

pub(super) fn take_metadata(arguments: &mut Arguments) -> Result<Vec<MetadataFilter>, String> {
    let given = match arguments.value("metadata") {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(given) => given,
    };
    let wrong = || expected("metadata", "an object of strings, numbers and booleans", &given);
    let pairs = given.as_object().ok_or_else(wrong)?;
    let filter = |(path, value): (&String, &Value)| {
        let value = match value {
            Value::String(text) => text.clone(),
            Value::Number(_) | Value::Bool(_) => value.to_string(),
            _ => return Err(wrong()),
        };
        Ok(MetadataFilter { path: path.clone(), value })
    };
    pairs.iter().map(filter).collect()
}
