//! The A2A agent card of an agent: a JSON document that is passed on unchanged.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

/// Media type of a card in a response.
pub const CARD_MEDIA_TYPE: &str = "application/a2a-agent-card+json";

/// An [A2A](https://a2a-protocol.org) agent card.
///
/// The card is kept byte for byte, except for surrounding white space, because a signature may cover it. Its content is not
/// checked beyond the limits in [`Registration::validate`](super::Registration::validate).
///
/// ```
/// use registry_sdk::contract::AgentCard;
///
/// let card: AgentCard = r#"{"name": "Recipe Agent",  "skills": []}"#.parse()?;
/// assert_eq!(card.as_str(), r#"{"name": "Recipe Agent",  "skills": []}"#);
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Clone, Serialize, Deserialize)]
#[serde(transparent)]
pub struct AgentCard(Box<RawValue>);

impl AgentCard {
    /// Returns the document, unchanged.
    #[must_use]
    pub fn as_str(&self) -> &str {
        self.0.get()
    }

    /// Returns whether the document is a JSON object.
    pub(crate) fn is_object(&self) -> bool {
        self.as_str().starts_with('{')
    }

    /// Returns the number of nested lists and objects. Counts without recursion, because the depth has not been limited yet.
    pub(super) fn depth(&self) -> usize {
        let (mut depth, mut deepest) = (0_usize, 0);
        let (mut in_text, mut is_escaped) = (false, false);
        for byte in self.as_str().bytes() {
            match byte {
                _ if is_escaped => is_escaped = false,
                b'\\' => is_escaped = true,
                b'"' => in_text = !in_text,
                b'{' | b'[' if !in_text => depth += 1,
                b'}' | b']' if !in_text => depth = depth.saturating_sub(1),
                _ => {}
            }
            deepest = deepest.max(depth);
        }
        deepest
    }
}

impl FromStr for AgentCard {
    type Err = serde_json::Error;

    /// Reads a document, which may be any JSON value. Only a registration checks that it is an object.
    fn from_str(json: &str) -> Result<Self, Self::Err> {
        RawValue::from_string(json.to_owned()).map(Self)
    }
}

impl PartialEq for AgentCard {
    fn eq(&self, other: &Self) -> bool {
        self.as_str() == other.as_str()
    }
}

impl fmt::Debug for AgentCard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("AgentCard").field(&self.as_str()).finish()
    }
}

/// A card, only for the description of the API.
#[cfg(feature = "openapi")]
#[derive(utoipa::ToSchema)]
#[schema(
    description = "The agent's A2A agent card. It is passed on byte for byte.",
    value_type = Object
)]
#[expect(dead_code, reason = "it is never constructed: cards are documents")]
pub(super) struct Card(serde_json::Map<String, serde_json::Value>);

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn brackets_in_texts_are_no_levels() {
        let depth = |json: &str| json.parse::<AgentCard>().unwrap().depth();
        assert_eq!(depth("{}"), 1);
        assert_eq!(depth(r#"{"a": [{"b": "[[[{{{"}, []]}"#), 3);
        assert_eq!(depth(r#"{"\\\"[": "\\\\", "b": [1]}"#), 2);
    }
}
