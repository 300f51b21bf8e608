//! The database's history changes under running servers: a standby that lacks the last changes is promoted, an older copy is
//! restored, commits wait or are lost.
//!
//! What was answered before may be gone afterwards; that is what asynchronous replication and backups mean. But then no
//! server goes on with what is gone, and no client is left to believe it.

mod commits;
mod emptied_events;
mod lost_heartbeats;
mod postgres;
mod scene;
mod sqlite;
mod suspended;
mod synchronous;
mod truth;

use std::time::{Duration, Instant};

use registry_sdk::Error;
use registry_sdk::contract::AgentStatus;

use crate::support::{Server, agent, is_long};

/// How soon after the end of a fault everything has to be well again. Asserted in the long run alone.
const SOON: Duration = Duration::from_secs(5);

/// How long a server may take to end. Asserted in the long run alone.
const SHUTDOWN: Duration = Duration::from_secs(10);

/// Something that a client wants of the registry.
#[derive(Clone, Debug)]
enum Write {
    Status(String, AgentStatus),
    /// Registers an agent under a name.
    Register(String, &'static str),
    Remove(String),
}

/// Name of an agent's first registration.
const FIRST: &str = "first";

fn status(agent_id: &str, status: AgentStatus) -> Write {
    Write::Status(agent_id.to_owned(), status)
}

fn register(agent_id: impl Into<String>) -> Write {
    Write::Register(agent_id.into(), FIRST)
}

impl Write {
    /// Tries until it is answered 200, and looks whether the next read on the same server shows it.
    async fn make(&self, server: &Server) {
        let (patient, client) = (server.patient_client(), server.client());
        match self {
            Self::Status(id, status) => {
                patient.update_status(id, *status).await.unwrap();
                let record = client.get_agent(id).await.unwrap();
                assert_eq!(record.status, *status, "PUT of {id}'s status was answered 200, and then GET");
            }
            Self::Register(id, name) => {
                let mut registration = agent(id, "endure");
                (*name).clone_into(&mut registration.agent_name);
                patient.register(&registration).await.unwrap();
                let record = client.get_agent(id).await;
                let shown = record.as_ref().map(|record| record.agent_name.as_str());
                assert_eq!(shown.ok(), Some(*name), "{id} was registered, and then GET: {record:?}");
            }
            Self::Remove(id) => {
                patient.deregister(id).await.unwrap();
                let record = client.get_agent(id).await;
                assert!(
                    matches!(record, Err(Error::NotFound { .. })),
                    "{id} was removed, and then GET: {record:?}"
                );
            }
        }
    }
}

/// Ends a server as an operator would.
async fn end(server: &mut Server, when: &str) {
    let began = Instant::now();
    server.stop().await;
    let took = began.elapsed();
    println!("SIGTERM {when}: the server ended after {took:.2?}");
    assert!(!is_long() || took < SHUTDOWN, "SIGTERM {when}: {took:?}");
}
