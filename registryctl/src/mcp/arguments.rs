//! Arguments of a tool call.

use std::ops::RangeInclusive;

use rmcp::model::JsonObject;
use serde_json::Value;

use super::text::cut;

/// Arguments of a call, which a tool takes out one by one.
///
/// Errors name the argument and say what to pass instead. `null` counts as missing: many models pass every argument in a schema.
#[derive(Debug)]
pub(super) struct Arguments {
    given: JsonObject,
    /// Names of the arguments that the tool has taken.
    known: Vec<&'static str>,
}

impl Arguments {
    pub(super) fn new(given: JsonObject) -> Self {
        Self { given, known: Vec::new() }
    }

    /// Returns an argument of any type.
    pub(super) fn value(&mut self, name: &'static str) -> Option<Value> {
        self.known.push(name);
        self.given.remove(name)
    }

    pub(super) fn text(&mut self, name: &'static str) -> Result<Option<String>, String> {
        match self.value(name) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) if text.trim().is_empty() => Err(format!("`{name}` is empty")),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(expected(name, "a string", &other)),
        }
    }

    pub(super) fn required_text(&mut self, name: &'static str) -> Result<String, String> {
        self.text(name)?.ok_or_else(|| missing(name))
    }

    pub(super) fn flag(&mut self, name: &'static str) -> Result<Option<bool>, String> {
        match self.value(name) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(flag)),
            Some(other) => Err(expected(name, "true or false", &other)),
        }
    }

    /// Returns a whole number from 1 to a maximum.
    pub(super) fn count(&mut self, name: &'static str, max: usize) -> Result<Option<usize>, String> {
        let number = match self.value(name) {
            None | Some(Value::Null) => return Ok(None),
            Some(number) => number,
        };
        let count = number.as_u64().and_then(|count| usize::try_from(count).ok());
        match count.filter(|count| (1..=max).contains(count)) {
            Some(count) => Ok(Some(count)),
            None => Err(expected(name, &format!("a whole number from 1 to {max}"), &number)),
        }
    }

    pub(super) fn number(
        &mut self,
        name: &'static str,
        range: RangeInclusive<f64>,
    ) -> Result<Option<f64>, String> {
        let value = match self.value(name) {
            None | Some(Value::Null) => return Ok(None),
            Some(value) => value,
        };
        if let Some(number) = value.as_f64().filter(|number| range.contains(number)) {
            return Ok(Some(number));
        }
        let range = format!("a number from {} to {}", range.start(), range.end());
        Err(expected(name, &range, &value))
    }

    /// Fails if there are arguments left that the tool does not know. Otherwise a misspelled filter would be ignored.
    pub(super) fn finish(self) -> Result<(), String> {
        match self.given.keys().next() {
            None => Ok(()),
            Some(name) => Err(format!(
                "unknown argument `{}`; this tool takes {}",
                cut(name, 64),
                self.known.iter().map(|known| format!("`{known}`")).collect::<Vec<_>>().join(", ")
            )),
        }
    }
}

pub(super) fn missing(name: &str) -> String {
    format!("missing argument `{name}`")
}

pub(super) fn expected(name: &str, expected: &str, given: &Value) -> String {
    format!("`{name}` must be {expected}, not {}", cut(&given.to_string(), 60))
}
