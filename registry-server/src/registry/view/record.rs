//! Encodes agents as the contract's `AgentRecord` and `CapabilityMatch`.
//!
//! Capabilities and metadata are already encoded, so they are only copied.

use std::time::Duration;

use registry_sdk::contract::Timestamp;
use registry_sdk::internal::heartbeat_timeout;

use super::entry::{EffectiveStatus, Entry, ReadContext};
use super::json::JsonObject;
use crate::store::{RegistrationTag, StoredAgent};

/// Compact JSON.
pub(crate) type Json = Vec<u8>;

/// The load that an agent reported.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Load {
    /// Fraction of the capacity in use.
    pub(crate) load: Option<f64>,
    pub(crate) active_tasks: Option<u32>,
}

/// An agent at a given time.
#[derive(Debug)]
pub(crate) struct Record<'a> {
    agent: &'a StoredAgent,
    last_heartbeat: Timestamp,
    timeout: Duration,
    effective: EffectiveStatus,
    load: Load,
}

impl<'a> Record<'a> {
    /// Creates a record with the status given the last heartbeat.
    pub(crate) fn current(
        agent: &'a StoredAgent,
        last_heartbeat: Timestamp,
        load: Load,
        context: &ReadContext,
    ) -> Self {
        Self::new(
            agent,
            last_heartbeat,
            EffectiveStatus::current(agent, last_heartbeat, context),
            load,
            context,
        )
    }

    /// Creates a record with the stored status.
    pub(crate) fn stored(agent: &'a StoredAgent, load: Load, context: &ReadContext) -> Self {
        Self::new(agent, agent.last_heartbeat, EffectiveStatus::stored(agent, context), load, context)
    }

    /// Creates a record of an entry whose effective status is known.
    pub(super) fn of_entry(entry: &'a Entry, effective: EffectiveStatus, context: &ReadContext) -> Self {
        let Entry { agent, liveness, .. } = entry;
        Self::new(agent, liveness.last_heartbeat(), effective, liveness.load(), context)
    }

    fn new(
        agent: &'a StoredAgent,
        last_heartbeat: Timestamp,
        effective: EffectiveStatus,
        load: Load,
        context: &ReadContext,
    ) -> Self {
        let timeout = heartbeat_timeout(context.policy.timeout, agent.heartbeat_interval);
        Self { agent, last_heartbeat, timeout, effective, load }
    }

    /// Encodes the record, including the tag of the registration.
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
        let mut object = JsonObject::start(out);
        object
            .field("agent_id", &agent.agent_id)
            .field("agent_name", &agent.agent_name)
            .field("base_url", &agent.base_url)
            .field_if_some("health_path", agent.health_path.as_ref())
            .field_if_some("probe", agent.probe.as_ref())
            .raw("capabilities", agent.capabilities.json().get())
            .field("status", &self.effective.status)
            .raw("metadata", agent.metadata.json().get())
            .seconds("heartbeat_interval_seconds", agent.heartbeat_interval)
            .field("instance_id", &agent.instance_id)
            .field("registered_at", &agent.registered_at)
            .field("last_heartbeat", &self.last_heartbeat)
            .seconds("heartbeat_timeout_seconds", Some(self.timeout))
            .field("load", &self.load.load)
            .field("active_tasks", &self.load.active_tasks)
            .field("healthy", &self.effective.is_healthy());
        if let Some(maintenance) = agent.maintenance.as_ref().filter(|_| self.effective.in_maintenance) {
            object.field("maintenance", maintenance);
        }
        object.field_if_some("changed_by", agent.changed_by.as_ref());
        object.field_if_some("card_digest", agent.card_digest.as_ref());
        object.field("revision", &agent.revision).field("registration_tag", &tag);
        object.finish();
    }

    /// Writes a match for the capability at an index.
    pub(super) fn write_match(&self, out: &mut Json, index: usize, score: f64) {
        let agent = self.agent;
        // An encoded capability starts with its name, which a match calls `capability`.
        let fields = agent.capabilities.fields(index).and_then(|fields| fields.strip_prefix("\"name\":"));
        let mut object = JsonObject::start(out);
        object
            .field("agent_id", &agent.agent_id)
            .field("agent_name", &agent.agent_name)
            .field("base_url", &agent.base_url)
            .field_if_some("health_path", agent.health_path.as_ref())
            .field_if_some("probe", agent.probe.as_ref())
            .field("status", &self.effective.status)
            .field("last_heartbeat", &self.last_heartbeat)
            .raw("capability", fields.unwrap_or("\"\""))
            .field("score", &score)
            .field("healthy", &self.effective.is_healthy())
            .field("load", &self.load.load)
            .field("active_tasks", &self.load.active_tasks)
            .field_if_some("card_digest", agent.card_digest.as_ref());
        object.finish();
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use registry_sdk::contract::{
        AgentRecord, Capability, CapabilityMatch, MaintenanceRequest, Registration,
    };

    use super::*;
    use crate::registry::rules::DeadlinePolicy;
    use crate::registry::time::Silence;

    fn read_context() -> ReadContext {
        let (timeout, expiry_margin) = (Duration::from_secs(60), Duration::from_secs(1));
        let silence = Silence::starting_at(Timestamp::from_unix_millis(0));
        let policy = DeadlinePolicy { timeout, silence, expiry_margin, remove_after: None };
        ReadContext {
            now: Timestamp::from_unix_millis(0),
            policy,
            needs_confirmation: false,
            is_probing: true,
        }
    }

    fn agents() -> Vec<StoredAgent> {
        let bare = Registration::new("bare", "Bare", "http://bare:8000");
        let full = Registration::new("full", "F\u{7}ull \"\\\u{1f980}\"", "http://full:8000/ä")
            .health_path("/health \"z\"")
            .no_probe()
            .capability(Capability::new("one"))
            .capability(Capability::new("two \"2\"").description("d\n").cost_estimate("~1").tag("a").tag("{"))
            .capability(Capability::new("three").title("T\"").example("e }").example("f"))
            .metadata("deep", serde_json::json!({"list": [1, 2.5, null], "text": "\u{0}"}))
            .heartbeat_interval(Duration::from_millis(45_500))
            .instance_id("i-1")
            .card(r#"{"name": "Full"}"#.parse().unwrap());
        let mut agents =
            [bare, full].map(|registration| StoredAgent::from_registration(registration).unwrap());
        let request = MaintenanceRequest::new("\"disk\"").duration(Duration::from_secs(1)).instance_id("i-1");
        agents[1].maintenance = Some(request.begin(Timestamp::from_unix_millis(5)));
        agents[1].changed_by = Some("a \"token\"".to_owned());
        agents.into()
    }

    #[test]
    fn record_is_encoded_as_the_contract_says() {
        for agent in agents() {
            let load = Load { load: Some(0.25), active_tasks: Some(3) };
            for load in [load, Load::default()] {
                let json = Record::stored(&agent, load, &read_context()).json(agent.registration_tag());
                let read: AgentRecord = serde_json::from_slice(&json).unwrap();
                assert_eq!(read.capabilities, agent.capabilities.decode());
                assert_eq!((read.load, read.active_tasks), (load.load, load.active_tasks));
                assert_eq!((&read.maintenance, &read.changed_by), (&agent.maintenance, &agent.changed_by));
                assert_eq!(read.card_digest, agent.card_digest);
                assert_eq!(read.registration_tag, Some(agent.registration_tag().to_string()));
                // No field is missing, and no field is unknown to the contract.
                let written = serde_json::to_string(&read).unwrap();
                assert_eq!(String::from_utf8(json).unwrap(), written);
            }
        }
    }

    #[test]
    fn match_is_encoded_as_the_contract_says() {
        let agent = agents().pop().unwrap();
        let read = [0, 1, 2].map(|index| {
            let mut json = Vec::new();
            Record::stored(&agent, Load::default(), &read_context()).write_match(&mut json, index, 0.9);
            let read: CapabilityMatch = serde_json::from_slice(&json).unwrap();
            assert_eq!(String::from_utf8(json).unwrap(), serde_json::to_string(&read).unwrap());
            read
        });
        assert_eq!(read[0].card_digest, agent.card_digest);
        let text = |text: &str| text.to_owned();
        assert_eq!((&read[0].capability, &read[0].title), (&text("one"), &None));
        assert_eq!((&read[1].capability, &read[1].tags), (&text("two \"2\""), &vec![text("a"), text("{")]));
        assert_eq!((&read[2].title, &read[2].examples), (&Some(text("T\"")), &vec![text("e }"), text("f")]));
    }
}
