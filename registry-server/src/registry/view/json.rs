//! Writes JSON objects with fields that are partly encoded already.
//!
//! A derived `Serialize` with `RawValue` fields escapes every name again, which takes 1.4 times as long for a
//! list. For a match, it would also have to decode the capability's fields, since `flatten` does not support
//! raw values: 2.3 times.

use std::time::Duration;

use serde::Serialize;

/// A JSON object under construction.
#[derive(Debug)]
pub(super) struct JsonObject<'a> {
    out: &'a mut Vec<u8>,
    is_empty: bool,
}

impl<'a> JsonObject<'a> {
    pub(super) fn start(out: &'a mut Vec<u8>) -> Self {
        out.push(b'{');
        Self { out, is_empty: true }
    }

    pub(super) fn field(&mut self, name: &str, value: &(impl Serialize + ?Sized)) -> &mut Self {
        self.name(name);
        let start = self.out.len();
        if serde_json::to_writer(&mut *self.out, value).is_err() {
            // Cannot happen: writing to memory succeeds, and strings, numbers and lists always serialize.
            self.out.truncate(start);
            self.out.extend_from_slice(b"null");
        }
        self
    }

    /// Writes a field, unless the value is `None`.
    pub(super) fn field_if_some(&mut self, name: &str, value: Option<&impl Serialize>) -> &mut Self {
        if let Some(value) = value {
            self.field(name, value);
        }
        self
    }

    /// Writes a number of seconds, without a fraction if it is whole, as the contract requires.
    pub(super) fn seconds(&mut self, name: &str, duration: Option<Duration>) -> &mut Self {
        match duration {
            Some(duration) if duration.subsec_nanos() == 0 => self.field(name, &duration.as_secs()),
            duration => self.field(name, &duration.map(|duration| duration.as_secs_f64())),
        }
    }

    /// Writes a field whose value is already encoded.
    pub(super) fn raw(&mut self, name: &str, json: &str) -> &mut Self {
        self.name(name);
        self.out.extend_from_slice(json.as_bytes());
        self
    }

    pub(super) fn finish(&mut self) {
        self.out.push(b'}');
    }

    /// Writes a field name, which must not need escaping.
    fn name(&mut self, name: &str) {
        if !std::mem::take(&mut self.is_empty) {
            self.out.push(b',');
        }
        self.out.push(b'"');
        self.out.extend_from_slice(name.as_bytes());
        self.out.extend_from_slice(b"\":");
    }
}
