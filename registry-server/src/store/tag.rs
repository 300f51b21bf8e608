//! The tag of a registration, by which an agent notices that the registry lost its registration.

use std::fmt;

use serde::{Serialize, Serializer};
use sha2::{Digest, Sha256};

use super::agent::StoredAgent;

/// A hash of what an agent registered.
///
/// The same on every replica, with both databases, and in every version of the server: if two replicas
/// disagreed, agents would register again with each heartbeat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RegistrationTag(u64);

impl RegistrationTag {
    fn compute(agent: &StoredAgent) -> Self {
        let mut hash = FieldHasher(Sha256::new());
        hash.field(Some(agent.agent_name.as_bytes()));
        hash.field(Some(agent.base_url.as_bytes()));
        // Both databases yield the same text, since values read from a row are encoded again.
        hash.field(Some(agent.capabilities.json().get().as_bytes()));
        hash.field(Some(agent.metadata.json().get().as_bytes()));
        let interval = agent.heartbeat_interval.map(|interval| interval.as_nanos().to_be_bytes());
        hash.field(interval.as_ref().map(<[u8; 16]>::as_slice));
        hash.field(agent.instance_id.as_deref().map(str::as_bytes));
        // Fields that older servers do not know only count if they are set, so that the tag matches theirs.
        if agent.health_path.is_some() || agent.probe.is_some() {
            hash.field(agent.health_path.as_deref().map(str::as_bytes));
            hash.field(agent.probe.as_ref().map(|probe| probe.as_str().as_bytes()));
        }
        if let Some(digest) = &agent.card_digest {
            hash.field(Some(digest.as_bytes()));
        }
        let digest = hash.0.finalize();
        // A SHA-256 digest has 32 bytes, so there always is a first chunk.
        Self(digest.first_chunk().copied().map_or(0, u64::from_be_bytes))
    }
}

impl StoredAgent {
    /// Returns the tag of the registration.
    pub(crate) fn registration_tag(&self) -> RegistrationTag {
        RegistrationTag::compute(self)
    }
}

impl fmt::Display for RegistrationTag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl Serialize for RegistrationTag {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

struct FieldHasher(Sha256);

impl FieldHasher {
    /// Hashes a field after its length, so that different lists of fields never yield the same bytes.
    fn field(&mut self, field: Option<&[u8]>) {
        let Some(bytes) = field else {
            // A length that no field has.
            return self.0.update(u64::MAX.to_be_bytes());
        };
        self.0.update((bytes.len() as u64).to_be_bytes());
        self.0.update(bytes);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::time::Duration;

    use registry_sdk::contract::{AgentStatus, Capability, ProbeMode, Registration};

    use super::*;

    fn registration() -> Registration {
        Registration::new("a", "Agent ä", "http://a:8000")
            .capability(Capability::new("work").tag("b").tag("a"))
            .metadata("nested", serde_json::json!({"z": [1, 2.5e-7, null], "a": {"\u{1f980}": "é"}}))
            .heartbeat_interval(Duration::from_millis(100))
            .instance_id("one")
    }

    fn tag(registration: Registration) -> String {
        StoredAgent::from_registration(registration).unwrap().registration_tag().to_string()
    }

    #[test]
    fn tag_is_the_same_in_every_version() {
        assert_eq!(tag(registration()), "880af82e0d922f14");
        assert_eq!(tag(Registration::new("b", "B", "http://b")), "aae9e6a0634762d2");
    }

    #[test]
    fn every_registered_field_except_status_and_age_changes_the_tag() {
        let mut seen = vec![tag(registration())];
        let changes: [fn(&mut Registration); 16] = [
            |given| given.agent_name.push('x'),
            |given| given.base_url.push('x'),
            |given| given.health_path = Some("/health".to_owned()),
            |given| given.health_path = Some("on".to_owned()),
            |given| given.probe = Some(ProbeMode::On),
            |given| given.probe = Some(ProbeMode::Off),
            |given| given.capabilities[0].tags.reverse(),
            |given| given.capabilities[0].title = Some("Work".to_owned()),
            |given| given.capabilities[0].examples.push("Work!".to_owned()),
            |given| drop(given.metadata.insert("more".to_owned(), 1.into())),
            |given| given.heartbeat_interval = Some(Duration::from_nanos(100_000_001)),
            |given| given.heartbeat_interval = None,
            |given| given.instance_id = Some("two".to_owned()),
            |given| given.instance_id = None,
            |given| given.card = Some(r#"{"name":"A"}"#.parse().unwrap()),
            |given| given.card = Some(r#"{"name": "A"}"#.parse().unwrap()),
        ];
        for change in changes {
            let mut other = registration();
            change(&mut other);
            seen.push(tag(other));
        }
        let count = seen.len();
        seen.sort();
        seen.dedup();
        assert_eq!(seen.len(), count);
        let busy = registration().status(AgentStatus::Busy).instance_age(Duration::from_secs(5));
        assert_eq!(tag(busy), tag(registration()));
    }

    #[test]
    fn text_moved_to_the_next_field_changes_the_tag() {
        assert_ne!(
            tag(Registration::new("a", "Ahttp://a", "http://b")),
            tag(Registration::new("a", "A", "http://ahttp://b"))
        );
    }

    #[test]
    fn tag_survives_encoding_and_decoding() {
        // Floats that an inexact parser rounds differently.
        let floats = serde_json::json!([
            2.003_039_774_426_776_2e-253,
            7.101_215_824_554_616e260,
            1.769_268_377_902_049e74,
            -1.672_751_781_854_207_5e58,
            3.928_753_217_337_331_5e299,
            -0.0,
            1e21
        ]);
        let agent = StoredAgent::from_registration(registration().metadata("floats", floats)).unwrap();
        let again: StoredAgent = serde_json::from_str(&serde_json::to_string(&agent).unwrap()).unwrap();
        assert_eq!(again.registration_tag(), agent.registration_tag());
    }
}
