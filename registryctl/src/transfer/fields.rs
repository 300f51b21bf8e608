//! The fields of a JSON object, with each value as it was written.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;

/// The fields of a record or of a line. Values keep the digits with which they were written.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(transparent)]
pub(super) struct Fields(BTreeMap<String, Box<RawValue>>);

/// Why a text is no object whose fields can be told apart.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum NoFields {
    /// What is wrong with the JSON, and where.
    Syntax(String),
    /// A field that is there twice. Readers of JSON differ in which of the two they take.
    Twice(String),
}

impl fmt::Display for NoFields {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Syntax(reason) => write!(f, "must be a JSON object: {reason}"),
            Self::Twice(field) => write!(f, "{field}: is there twice"),
        }
    }
}

impl Fields {
    /// Reads an object of one line.
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

    /// The value of a field, unless that is `null`.
    pub(super) fn get(&self, name: &str) -> Option<&RawValue> {
        self.0.get(name).map(|value| &**value).filter(|value| value.get() != "null")
    }

    pub(super) fn contains(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    pub(super) fn insert(&mut self, name: &str, value: Box<RawValue>) {
        self.0.insert(name.to_owned(), value);
    }

    /// Takes a field out. Returns its value, unless that is `null`.
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

/// What is wrong with the JSON of one line. The line of the file is for the caller to say.
pub(super) fn reason(error: &serde_json::Error) -> String {
    let text = error.to_string();
    match text.rsplit_once(" at line ") {
        Some((text, _)) => format!("{text} at column {}", error.column()),
        None => text,
    }
}

/// The fields in their order.
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
