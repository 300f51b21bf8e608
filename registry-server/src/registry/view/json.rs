//! Writes a JSON object field by field, some of them encoded already.

use std::time::Duration;

use serde::Serialize;

/// An object that is being written.
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
            // Writing to memory does not fail, and what is written here are texts, numbers and lists of them.
            self.out.truncate(start);
            self.out.extend_from_slice(b"null");
        }
        self
    }

    /// A number of seconds, as the contract writes it: without a fraction where it is whole.
    pub(super) fn seconds(&mut self, name: &str, duration: Option<Duration>) -> &mut Self {
        match duration {
            Some(duration) if duration.subsec_nanos() == 0 => self.field(name, &duration.as_secs()),
            duration => self.field(name, &duration.map(|duration| duration.as_secs_f64())),
        }
    }

    /// A field whose value is JSON already.
    pub(super) fn raw(&mut self, name: &str, json: &str) -> &mut Self {
        self.name(name);
        self.out.extend_from_slice(json.as_bytes());
        self
    }

    pub(super) fn finish(&mut self) {
        self.out.push(b'}');
    }

    /// Names are this program's own, and need no escapes.
    fn name(&mut self, name: &str) {
        if !std::mem::take(&mut self.is_empty) {
            self.out.push(b',');
        }
        self.out.push(b'"');
        self.out.extend_from_slice(name.as_bytes());
        self.out.extend_from_slice(b"\":");
    }
}
