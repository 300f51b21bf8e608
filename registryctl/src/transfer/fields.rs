//! Fields of a JSON object, with the original text of each value.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;

/// Fields of a record or of a line. Numbers keep all their digits.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(transparent)]
pub(super) struct Fields(BTreeMap<String, Box<RawValue>>);

/// Reason why a text is not an object with distinct fields.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum NoFields {
    /// A syntax error, with its position.
    Syntax(String),
    /// A duplicate field. JSON parsers differ in which of the two values they use.
    Twice(String),
}

impl fmt::Display for NoFields {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Syntax(reason) => write!(f, "must be a JSON object: {reason}"),
            Self::Twice(field) => write!(f, "{field}: duplicate field"),
        }
    }
}

impl Fields {
    /// Parses an object.
    pub(super) fn read(json: &[u8]) -> Result<Self, NoFields> {
        let read: Pairs = serde_json::from_slice(json).map_err(|error| NoFields::Syntax(reason(&error)))?;
        let mut fields = BTreeMap::new();
        for (name, value) in read.0 {
            if fields.contains_key(&name) {
                return Err(NoFields::Twice(name));
            }
            fields.insert(name, value);
        }
        Ok(Self(fields))
    }

    /// Returns the value of a field, unless the value is `null`.
    pub(super) fn get(&self, name: &str) -> Option<&RawValue> {
        self.0.get(name).map(|value| &**value).filter(|value| value.get() != "null")
    }

    pub(super) fn contains(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    pub(super) fn insert(&mut self, name: &str, value: Box<RawValue>) {
        self.0.insert(name.to_owned(), value);
    }

    /// Removes a field. Returns its value, unless the value is `null`.
    pub(super) fn remove(&mut self, name: &str) -> Option<Box<RawValue>> {
        self.0.remove(name).filter(|value| value.get() != "null")
    }

    pub(super) fn remove_all(&mut self, names: &[&str]) {
        self.0.retain(|name, _| !names.contains(&name.as_str()));
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }
}

/// Returns the message of a JSON error, with the column but without the line: the parser only sees a single line of the file.
pub(super) fn reason(error: &serde_json::Error) -> String {
    let text = error.to_string();
    match text.rsplit_once(" at line ") {
        Some((text, _)) => format!("{text} at column {}", error.column()),
        None => text,
    }
}

/// Fields in their original order, duplicates included.
struct Pairs(Vec<(String, Box<RawValue>)>);

impl<'de> Deserialize<'de> for Pairs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;
        impl<'de> Visitor<'de> for Object {
            type Value = Pairs;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Pairs, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(Pairs(pairs))
            }
        }
        deserializer.deserialize_map(Object)
    }
}
