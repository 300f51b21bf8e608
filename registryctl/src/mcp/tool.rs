//! Helpers for all tools: descriptions and results.

use std::sync::Arc;

use rmcp::handler::server::tool::schema_for_output;
use rmcp::model::{JsonObject, Tool, ToolAnnotations};
use rmcp::schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Map, Value, json};

/// The result of a tool as JSON, or an error message for the model.
pub(super) type Answer = Result<Value, String>;

/// Describes a read-only tool. `R` is the type of its result.
pub(super) fn read_only<R: JsonSchema + 'static>(
    name: &'static str,
    title: &str,
    description: &'static str,
    arguments: Map<String, Value>,
    required: &[&str],
) -> Tool {
    // Not an "open world": the tool only makes requests to the registry.
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

/// Removes formats such as `uint32`: they are not defined in JSON Schema, and some clients print a warning for each.
fn remove_formats(schema: &mut Value) {
    if let Value::Object(keywords) = schema {
        // If the value is an object, then `format` is the name of a property.
        if keywords.get("format").is_some_and(Value::is_string) {
            keywords.remove("format");
        }
        keywords.values_mut().for_each(remove_formats);
    }
}

/// Returns the argument of a tool for one agent.
pub(super) fn agent_id() -> Map<String, Value> {
    let schema = json!({"type": "string", "description": "Id of the agent, as returned by search_agents and list_agents."});
    Map::from_iter([("agent_id".to_owned(), schema)])
}

/// Returns a result as JSON.
pub(super) fn answer(result: &impl Serialize) -> Answer {
    serde_json::to_value(result).map_err(|error| format!("cannot serialize the result: {error}"))
}
