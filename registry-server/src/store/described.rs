//! What agents say of themselves, kept as the JSON that is stored and sent: encoded once, and smaller than what it means.

use registry_sdk::contract::Capability;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::{RawValue, to_raw_value};
use serde_json::{Map, Value};

/// An agent's capabilities.
#[derive(Clone, Debug)]
pub(crate) struct Capabilities {
    json: Box<RawValue>,
    /// Where each of them ends in `json`.
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

    /// All of them, as a list.
    pub(crate) fn json(&self) -> &RawValue {
        &self.json
    }

    /// The fields of the one at a place: its object without the braces.
    pub(crate) fn fields(&self, place: usize) -> Option<&str> {
        let end = *self.ends.get(place)? as usize;
        // Behind the list's bracket, or behind a comma.
        let before = place.checked_sub(1).and_then(|before| self.ends.get(before)).copied().unwrap_or(0);
        self.json.get().get(before as usize + 1..end)?.strip_prefix('{')?.strip_suffix('}')
    }

    pub(crate) fn decode(&self) -> Vec<Capability> {
        // It was made of capabilities.
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

/// Whatever else an agent said of itself.
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
        let kept = Capabilities::new(&all).unwrap();
        assert_eq!(kept.decode(), all);
        for (place, capability) in all.iter().enumerate() {
            let object = format!("{{{}}}", kept.fields(place).unwrap());
            assert_eq!(&serde_json::from_str::<Capability>(&object).unwrap(), capability);
        }
        assert_eq!(kept.fields(2), None);
        assert_eq!(Capabilities::new(&[]).unwrap().fields(0), None);
    }
}
