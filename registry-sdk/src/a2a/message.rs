//! Messages to agents.

use serde_json::{Map, Value, json};

/// A message to an A2A agent, with parts of text and data. A string converts to a message with one text part.
///
/// ```
/// use registry_sdk::a2a::Message;
///
/// let message = Message::text("Find a recipe").data(serde_json::json!({"ingredients": ["leek"], "servings": 2}));
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
#[must_use = "a message is sent by `Delegation::send_message`"]
pub struct Message {
    parts: Vec<Part>,
    metadata: Map<String, Value>,
}

#[derive(Clone, Debug, PartialEq)]
enum Part {
    Text(String),
    Data(Value),
    Url { url: String, media_type: String },
}

/// The form of messages in a version of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// Version 1.0: the type of a part is the name of its field.
    V1,
    /// Version 0.3: a part has a `kind`.
    V03,
}

impl Message {
    /// Creates a message with a text part.
    pub fn text(text: impl Into<String>) -> Self {
        Self::default().and_text(text)
    }

    /// Adds a text part.
    pub fn and_text(mut self, text: impl Into<String>) -> Self {
        self.parts.push(Part::Text(text.into()));
        self
    }

    /// Adds a data part with any JSON value. Version 0.3 of the protocol only allows objects, so with any other value, agents of that version are
    /// skipped.
    pub fn data(mut self, data: impl Into<Value>) -> Self {
        self.parts.push(Part::Data(data.into()));
        self
    }

    /// Adds the URL and media type of a file for the agent to fetch.
    pub fn url(mut self, url: impl Into<String>, media_type: impl Into<String>) -> Self {
        self.parts.push(Part::Url { url: url.into(), media_type: media_type.into() });
        self
    }

    /// Sets a metadata value of the message.
    pub fn metadata(mut self, name: impl Into<String>, value: impl Into<Value>) -> Self {
        self.metadata.insert(name.into(), value.into());
        self
    }

    /// Whether the message has no part, so that it cannot be sent.
    pub(crate) fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// Returns the message in the form of a version of the protocol.
    ///
    /// # Errors
    /// If that version does not allow one of the parts.
    pub(super) fn encode(&self, form: Form, id: &str) -> Result<Value, &'static str> {
        let parts = self.parts.iter().map(|part| part.encode(form)).collect::<Result<Vec<_>, _>>()?;
        let mut message = match form {
            Form::V1 => json!({"messageId": id, "role": "ROLE_USER", "parts": parts}),
            Form::V03 => json!({"kind": "message", "messageId": id, "role": "user", "parts": parts}),
        };
        if !self.metadata.is_empty() {
            message["metadata"] = Value::Object(self.metadata.clone());
        }
        Ok(message)
    }
}

impl Part {
    fn encode(&self, form: Form) -> Result<Value, &'static str> {
        Ok(match (form, self) {
            (Form::V1, Self::Text(text)) => json!({"text": text}),
            (Form::V1, Self::Data(data)) => json!({"data": data, "mediaType": "application/json"}),
            (Form::V1, Self::Url { url, media_type }) => json!({"url": url, "mediaType": media_type}),
            (Form::V03, Self::Text(text)) => json!({"kind": "text", "text": text}),
            (Form::V03, Self::Data(Value::Object(data))) => json!({"kind": "data", "data": data}),
            (Form::V03, Self::Data(_)) => {
                return Err("it speaks version 0.3 of A2A, in which the data of a message are an object");
            }
            (Form::V03, Self::Url { url, media_type }) => {
                json!({"kind": "file", "file": {"uri": url, "mimeType": media_type}})
            }
        })
    }
}

impl<T: Into<String>> From<T> for Message {
    fn from(text: T) -> Self {
        Self::text(text)
    }
}
