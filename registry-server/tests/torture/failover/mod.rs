//! The database's history changes under running servers: a standby that lacks the last changes is promoted,
//! an older copy is restored, or commits wait or are lost.
//!
//! Acknowledged changes may be gone afterwards, which asynchronous replication and backups imply. But then no
//! server may keep lost changes, and no client may keep believing in them.

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

/// Maximum time from the end of a fault until everything has recovered. Only asserted at full length.
const SOON: Duration = Duration::from_secs(5);

/// Maximum duration of a server's shutdown. Only asserted at full length.
const SHUTDOWN: Duration = Duration::from_secs(10);

/// A write that a client requests.
#[derive(Clone, Debug)]
enum Write {
    Status(String, AgentStatus),
    /// Registers an agent with a name.
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
    /// Retries the write until it is answered with 200, and checks that the next read on the same server
    /// shows it.
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

/// Shuts a server down as an operator would.
async fn end(server: &mut Server, when: &str) {
    let began = Instant::now();
    server.stop().await;
    let took = began.elapsed();
    println!("SIGTERM {when}: the server ended after {took:.2?}");
    assert!(!is_long() || took < SHUTDOWN, "SIGTERM {when}: {took:?}");
}
