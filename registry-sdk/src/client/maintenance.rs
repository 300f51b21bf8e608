//! Maintenance: taking an agent out for a while.

use std::time::Duration;

use reqwest::Method;

use super::{RegistryClient, encode, get, path_segment};
use crate::contract::{AgentRecord, MaintenanceRequest};
use crate::error::Error;
use crate::response::Kind;
use crate::transport::{Body, Request};

const SET: &str = "PUT /agents/{id}/maintenance";
const END: &str = "DELETE /agents/{id}/maintenance";

impl RegistryClient {
    /// Takes an agent out for a while, in place of an earlier maintenance: searches leave it out, and it is unhealthy. Neither
    /// its heartbeats nor its registrations end that.
    ///
    /// ```no_run
    /// # async fn example(client: registry_sdk::RegistryClient) -> Result<(), registry_sdk::Error> {
    /// use std::time::Duration;
    /// use registry_sdk::contract::MaintenanceRequest;
    ///
    /// let hour = MaintenanceRequest::new("disk upgrade").duration(Duration::from_secs(3_600));
    /// let agent = client.set_maintenance("feature-dev", &hour).await?;
    /// println!("until {:?}", agent.maintenance.and_then(|maintenance| maintenance.until));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::NotFound`] if the registry does not know the agent; [`Error::Unsupported`] if the registry knows no maintenance.
    /// [`Error::Superseded`] if the request names a process that does not own the id.
    pub async fn set_maintenance(
        &self,
        agent_id: &str,
        request: &MaintenanceRequest,
    ) -> Result<AgentRecord, Error> {
        self.ask(Self::maintenance(agent_id, request)?).await.map_err(|error| unless_supported(error, SET))
    }

    /// Ends an agent's maintenance. That there is none is no error.
    ///
    /// ```no_run
    /// # async fn example(client: registry_sdk::RegistryClient) -> Result<(), registry_sdk::Error> {
    /// let agent = client.end_maintenance("feature-dev").await?;
    /// assert!(agent.maintenance.is_none());
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::NotFound`] and [`Error::Unsupported`] as [`RegistryClient::set_maintenance`].
    pub async fn end_maintenance(&self, agent_id: &str) -> Result<AgentRecord, Error> {
        let mut request = get(Kind::OfAgent, ["agents", path_segment(agent_id)?, "maintenance"]);
        request.method = Method::DELETE;
        request.kind = Kind::Optional(END);
        self.ask(request).await.map_err(|error| unless_supported(error, END))
    }

    /// Takes an agent out in one attempt of limited length. Any success counts, whatever its body.
    pub(crate) async fn set_maintenance_once(
        &self,
        agent_id: &str,
        request: &MaintenanceRequest,
        limit: Duration,
    ) -> Result<(), Error> {
        let request = Self::maintenance(agent_id, request)?;
        let outcome = self.transport.send_within(&request, limit, |_| Ok(())).await;
        outcome.map_err(|error| unless_supported(error, SET))
    }

    fn maintenance(agent_id: &str, body: &MaintenanceRequest) -> Result<Request, Error> {
        let mut request = get(Kind::OfAgent, ["agents", path_segment(agent_id)?, "maintenance"]);
        request.method = Method::PUT;
        request.body = Some(Body::Fixed(encode(body)?));
        request.kind = Kind::Optional(SET);
        Ok(request)
    }
}

/// Tells a registry of an earlier version, which answers 404 in the contract's form and names the path, from one that does not
/// know the agent.
fn unless_supported(error: Error, operation: &'static str) -> Error {
    match error {
        Error::NotFound { detail } if detail.contains("/maintenance") => Error::Unsupported { operation },
        error => error,
    }
}
