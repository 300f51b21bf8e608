//! Clients, and an agent to register.

use registry_sdk::contract::{Capability, Registration};
use registry_sdk::{RegistryClient, RetryPolicy};

use crate::LONG;

/// Returns a client that reports every error at once, and waits for a response as long as it takes.
pub fn impatient_client(url: &str) -> RegistryClient {
    RegistryClient::builder(url).timeout(LONG).retry(RetryPolicy::none()).build().unwrap()
}

/// Returns a client that retries while the server is overloaded or its database does not answer: either may happen for a
/// moment on a busy machine.
pub fn patient_client(url: &str) -> RegistryClient {
    impatient_client(url).with_retry(RetryPolicy::discovery().attempts(1_000).time_limit(LONG))
}

/// Returns an agent with one capability.
pub fn agent(agent_id: &str, capability: &str) -> Registration {
    Registration::new(agent_id, format!("Agent {agent_id}"), format!("http://agents.example:8000/{agent_id}"))
        .capability(Capability::new(capability))
}
