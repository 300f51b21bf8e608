//! What all tools have in common: their descriptions, and the form of their results.

use std::sync::Arc;

use rmcp::handler::server::tool::schema_for_output;
use rmcp::model::{JsonObject, Tool, ToolAnnotations};
use rmcp::schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Map, Value, json};

/// The result of a tool as JSON, or what went wrong in words for the model.
pub(super) type Answer = Result<Value, String>;

/// Describes a tool that changes nothing. `R` is its result.
pub(super) fn read_only<R: JsonSchema + 'static>(
    name: &'static str,
    title: &str,
    description: &'static str,
    arguments: Map<String, Value>,
    required: &[&str],
) -> Tool {
    // The registry is all that such a tool asks.
    let annotations = ToolAnnotations::with_title(title).read_only(true).open_world(false);
    Tool::new(name, description, object(arguments, required))
        .with_title(title)
        .with_raw_output_schema(result_schema::<R>())
        .with_annotations(annotations)
}

/// Returns the schema of a tool's arguments.
pub(super) fn object(properties: Map<String, Value>, required: &[&str]) -> JsonObject {
    let mut schema = JsonObject::new();
    schema.insert("type".to_owned(), json!("object"));
    schema.insert("properties".to_owned(), Value::Object(properties));
    if !required.is_empty() {
        schema.insert("required".to_owned(), json!(required));
    }
    schema.insert("additionalProperties".to_owned(), json!(false));
    schema
}

/// Returns the schema of a tool's result.
pub(super) fn result_schema<R: JsonSchema + 'static>() -> Arc<JsonObject> {
    let mut schema = schema_for_output::<R>();
    Arc::make_mut(&mut schema).values_mut().for_each(remove_formats);
    schema
}

/// Removes the formats of Rust's numbers, such as `uint32`: JSON Schema does not know them, and some clients warn of each.
fn remove_formats(schema: &mut Value) {
    if let Value::Object(keywords) = schema {
        // A property of this name has a schema, not a text.
        if keywords.get("format").is_some_and(Value::is_string) {
            keywords.remove("format");
        }
        keywords.values_mut().for_each(remove_formats);
    }
}

/// Returns the arguments of a tool about one agent.
pub(super) fn agent_id() -> Map<String, Value> {
    let schema =
        json!({"type": "string", "description": "The agent's id, as search_agents and list_agents give it."});
    Map::from_iter([("agent_id".to_owned(), schema)])
}

/// Returns a result as JSON.
pub(super) fn answer(result: &impl Serialize) -> Answer {
    serde_json::to_value(result).map_err(|error| format!("the result cannot be written as JSON: {error}"))
}
