//! An MCP server on standard input and output: the registry as tools for language models.
//!
//! Standard output carries the protocol and nothing else.

mod arguments;
mod check_health;
mod delegate_task;
mod explain;
mod filters;
mod get_agent;
mod list_agents;
mod search_agents;
mod server;
mod text;
mod tool;

use registry_sdk::{Orchestrator, RegistryClient};
use rmcp::ServiceExt;
use rmcp::service::{QuitReason, ServerInitializeError};
use rmcp::transport::stdio;

use crate::{Failure, Outcome};
use server::RegistryServer;

/// Serves one client until it closes standard input. The first request to the registry is made when a tool is called.
pub(crate) async fn serve(client: &RegistryClient, allow_delegation: bool) -> Result<Outcome, Failure> {
    let orchestrator = allow_delegation.then(|| Orchestrator::new(client.clone()));
    let running = match RegistryServer::new(client.clone(), orchestrator).serve(stdio()).await {
        Ok(running) => running,
        // The client closed standard input before it sent anything.
        Err(ServerInitializeError::ConnectionClosed(_)) => return Ok(Outcome::Positive),
        Err(error) => {
            let reason = text::cut(&error.to_string(), 300);
            return Err(Failure::Input(format!("the MCP client did not send `initialize` first: {reason}")));
        }
    };
    match running.waiting().await {
        Ok(QuitReason::JoinError(error)) | Err(error) => {
            Err(Failure::Input(format!("the MCP server failed: {error}")))
        }
        Ok(_) => Ok(Outcome::Positive),
    }
}
