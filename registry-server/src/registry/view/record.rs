//! An agent as it is sent: its record, or a match of one of its capabilities, in JSON.
//!
//! The contract's `AgentRecord` and `CapabilityMatch` are what is written here; what agents say of themselves is encoded
//! already, and only copied.

use std::time::Duration;

use registry_sdk::contract::{Timestamp, heartbeat_timeout};

use super::held::{Moment, Standing};
use super::json::Object;
use crate::store::{RegistrationTag, StoredAgent};

/// Compact JSON.
pub(crate) type Json = Vec<u8>;

/// What an agent said of its load.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Load {
    /// How much of its capacity is in use.
    pub(crate) load: Option<f64>,
    pub(crate) active_tasks: Option<u32>,
}

/// An agent at a moment.
#[derive(Debug)]
pub(crate) struct Record<'a> {
    agent: &'a StoredAgent,
    heard: Timestamp,
    timeout: Duration,
    standing: Standing,
    load: Load,
}

impl<'a> Record<'a> {
    /// By when it was last heard.
    pub(crate) fn at(agent: &'a StoredAgent, heard: Timestamp, load: Load, moment: &Moment) -> Self {
        Self::new(agent, heard, Standing::at(agent, heard, moment), load, moment)
    }

    /// As it was stored.
    pub(crate) fn stored(agent: &'a StoredAgent, load: Load, moment: &Moment) -> Self {
        Self::new(agent, agent.last_heartbeat, Standing::stored(agent, moment), load, moment)
    }

    pub(super) fn new(
        agent: &'a StoredAgent,
        heard: Timestamp,
        standing: Standing,
        load: Load,
        moment: &Moment,
    ) -> Self {
        let timeout = heartbeat_timeout(moment.patience.timeout, agent.heartbeat_interval);
        Self { agent, heard, timeout, standing, load }
    }

    /// The record, with the tag of what the agent registered.
    pub(crate) fn json(&self, tag: RegistrationTag) -> Json {
        let agent = self.agent;
        let mut out = Vec::with_capacity(
            512 + agent.capabilities.json().get().len() + agent.metadata.json().get().len(),
        );
        self.write(tag, &mut out);
        out
    }

    /// Writes the record.
    pub(super) fn write(&self, tag: RegistrationTag, out: &mut Json) {
        let agent = self.agent;
        let mut record = Object::begin(out);
        record
            .field("agent_id", &agent.agent_id)
            .field("agent_name", &agent.agent_name)
            .field("base_url", &agent.base_url)
            .encoded("capabilities", agent.capabilities.json().get())
            .field("status", &self.standing.status)
            .encoded("metadata", agent.metadata.json().get())
            .seconds("heartbeat_interval_seconds", agent.heartbeat_interval)
            .field("instance_id", &agent.instance_id)
            .field("registered_at", &agent.registered_at)
            .field("last_heartbeat", &self.heard)
            .seconds("heartbeat_timeout_seconds", Some(self.timeout))
            .field("load", &self.load.load)
            .field("active_tasks", &self.load.active_tasks)
            .field("healthy", &self.standing.is_healthy())
            .field("revision", &agent.revision)
            .field("registration_tag", &tag);
        record.end();
    }

    /// Writes the match of the capability at a place.
    pub(super) fn write_match(&self, out: &mut Json, place: usize, score: f64) {
        let agent = self.agent;
        // It begins with the capability's name, which a match calls otherwise.
        let fields = agent.capabilities.fields(place).and_then(|fields| fields.strip_prefix("\"name\":"));
        let mut found = Object::begin(out);
        found
            .field("agent_id", &agent.agent_id)
            .field("agent_name", &agent.agent_name)
            .field("base_url", &agent.base_url)
            .field("status", &self.standing.status)
            .field("last_heartbeat", &self.heard)
            .encoded("capability", fields.unwrap_or("\"\""))
            .field("score", &score)
            .field("healthy", &self.standing.is_healthy())
            .field("load", &self.load.load)
            .field("active_tasks", &self.load.active_tasks);
        found.end();
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use registry_sdk::contract::{AgentRecord, Capability, CapabilityMatch, Registration};

    use super::*;
    use crate::registry::rules::Patience;

    fn moment() -> Moment {
        let (timeout, margin) = (Duration::from_secs(60), Duration::from_secs(1));
        let patience = Patience { timeout, listening_since: None, margin, remove_after: None };
        Moment { now: Timestamp::from_unix_millis(0), patience, doubt: false, probes: true }
    }

    fn agents() -> Vec<StoredAgent> {
        let bare = Registration::new("bare", "Bare", "http://bare:8000");
        let full = Registration::new("full", "F\u{7}ull \"\\\u{1f980}\"", "http://full:8000/ä")
            .capability(Capability::new("one"))
            .capability(Capability::new("two \"2\"").description("d\n").cost_estimate("~1").tag("a").tag("{"))
            .metadata("deep", serde_json::json!({"list": [1, 2.5, null], "text": "\u{0}"}))
            .heartbeat_interval(Duration::from_millis(45_500))
            .instance_id("i-1");
        [bare, full].map(|given| StoredAgent::from_registration(given).unwrap()).into()
    }

    #[test]
    fn a_record_is_written_as_the_contract_has_it() {
        for agent in agents() {
            let load = Load { load: Some(0.25), active_tasks: Some(3) };
            for load in [load, Load::default()] {
                let json = Record::stored(&agent, load, &moment()).json(agent.registration_tag());
                let read: AgentRecord = serde_json::from_slice(&json).unwrap();
                assert_eq!(read.capabilities, agent.capabilities.decode());
                assert_eq!((read.load, read.active_tasks), (load.load, load.active_tasks));
                assert_eq!(read.registration_tag, Some(agent.registration_tag().to_string()));
                // Nothing is missing, and nothing is there that the contract does not know.
                let written = serde_json::to_string(&read).unwrap();
                assert_eq!(String::from_utf8(json).unwrap(), written);
            }
        }
    }

    #[test]
    fn a_match_is_written_as_the_contract_has_it() {
        let agent = agents().pop().unwrap();
        let mut json = Vec::new();
        Record::stored(&agent, Load::default(), &moment()).write_match(&mut json, 1, 0.9);
        let read: CapabilityMatch = serde_json::from_slice(&json).unwrap();
        assert_eq!(
            (read.capability.as_str(), &*read.tags),
            ("two \"2\"", &["a".to_owned(), "{".to_owned()][..])
        );
        assert_eq!(String::from_utf8(json).unwrap(), serde_json::to_string(&read).unwrap());
    }
}
