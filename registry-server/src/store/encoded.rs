//! Capabilities and metadata, kept as the JSON that is stored and sent.
//!
//! They are encoded once, and the JSON takes less memory than the decoded values.

use registry_sdk::AgentFilter;
use registry_sdk::contract::Capability;
use registry_sdk::internal::FilterParts;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::{RawValue, to_raw_value};
use serde_json::{Map, Value};

/// The capabilities of an agent.
#[derive(Clone, Debug)]
pub(crate) struct Capabilities {
    json: Box<RawValue>,
    /// End offset of each capability in `json`.
    ends: Box<[u32]>,
}

impl Capabilities {
    pub(crate) fn new(all: &[Capability]) -> serde_json::Result<Self> {
        let mut json = String::from("[");
        let mut ends = Vec::with_capacity(all.len());
        for capability in all {
            if !ends.is_empty() {
                json.push(',');
            }
            json.push_str(&serde_json::to_string(capability)?);
            ends.push(u32::try_from(json.len()).unwrap_or(u32::MAX));
        }
        json.push(']');
        Ok(Self { json: RawValue::from_string(json)?, ends: ends.into() })
    }

    /// Returns the JSON array of all capabilities.
    pub(crate) fn json(&self) -> &RawValue {
        &self.json
    }

    /// Returns the JSON object of the capability at an index.
    fn object(&self, index: usize) -> Option<&str> {
        let end = *self.ends.get(index)? as usize;
        // Skip the opening bracket of the array, or the comma.
        let start = index.checked_sub(1).and_then(|previous| self.ends.get(previous)).copied().unwrap_or(0);
        self.json.get().get(start as usize + 1..end)
    }

    /// Returns the fields of the capability at an index: its JSON object without the braces.
    pub(crate) fn fields(&self, index: usize) -> Option<&str> {
        self.object(index)?.strip_prefix('{')?.strip_suffix('}')
    }

    /// Whether the capability at an index passes a filter.
    pub(crate) fn passes(&self, index: usize, filter: &AgentFilter) -> bool {
        let capability = self.object(index).and_then(|object| serde_json::from_str(object).ok());
        capability.is_some_and(|capability| filter.accepts_capability(&capability))
    }

    /// Whether at least one of the capabilities passes a filter.
    pub(crate) fn any_passes(&self, filter: &AgentFilter) -> bool {
        (0..self.ends.len()).any(|index| self.passes(index, filter))
    }

    pub(crate) fn decode(&self) -> Vec<Capability> {
        // Always decodes, since the JSON was encoded from capabilities.
        serde_json::from_str(self.json.get()).unwrap_or_default()
    }
}

impl PartialEq for Capabilities {
    fn eq(&self, other: &Self) -> bool {
        self.json.get() == other.json.get()
    }
}

impl Serialize for Capabilities {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.json.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Capabilities {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::new(&Vec::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

/// The metadata of an agent.
#[derive(Clone, Debug, Serialize)]
#[serde(transparent)]
pub(crate) struct Metadata(Box<RawValue>);

impl Metadata {
    pub(crate) fn new(metadata: &Map<String, Value>) -> serde_json::Result<Self> {
        to_raw_value(metadata).map(Self)
    }

    pub(crate) fn json(&self) -> &RawValue {
        &self.0
    }

    /// Whether the metadata passes a filter. Decodes the metadata only if the filter needs it.
    pub(crate) fn passes(&self, filter: &AgentFilter) -> bool {
        let decoded = || serde_json::from_str(self.0.get()).unwrap_or_default();
        filter.metadata.is_empty() || filter.accepts_metadata(&decoded())
    }
}

impl PartialEq for Metadata {
    fn eq(&self, other: &Self) -> bool {
        self.0.get() == other.0.get()
    }
}

impl<'de> Deserialize<'de> for Metadata {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::new(&Map::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn each_capability_is_found_in_the_list() {
        let all = [Capability::new("a \"b\"").tag("},{"), Capability::new("c").description("d]")];
        let encoded = Capabilities::new(&all).unwrap();
        assert_eq!(encoded.decode(), all);
        for (index, capability) in all.iter().enumerate() {
            let object = format!("{{{}}}", encoded.fields(index).unwrap());
            assert_eq!(&serde_json::from_str::<Capability>(&object).unwrap(), capability);
        }
        assert_eq!(encoded.fields(2), None);
        assert_eq!(Capabilities::new(&[]).unwrap().fields(0), None);
    }
}
