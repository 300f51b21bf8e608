//! Maintenance: taking an agent out of service for a while.

use std::time::Duration;

use reqwest::Method;

use super::{RegistryClient, encode, get, path_segment};
use crate::contract::{AgentRecord, MaintenanceRequest};
use crate::error::Error;
use crate::response::{ApiResponse, Kind};
use crate::transport::{Body, Request};

const SET: &str = "PUT /agents/{id}/maintenance";
const END: &str = "DELETE /agents/{id}/maintenance";

impl RegistryClient {
    /// Takes an agent out of service for a while, and replaces an earlier maintenance: searches skip the agent, and it is
    /// unhealthy. Neither its heartbeats nor its registrations end the maintenance.
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
    /// [`Error::NotFound`] if the registry does not know the agent; [`Error::Unsupported`] if the registry does not support
    /// maintenance. [`Error::Superseded`] if the request names a process that does not own the id.
    pub async fn set_maintenance(
        &self,
        agent_id: &str,
        request: &MaintenanceRequest,
    ) -> Result<AgentRecord, Error> {
        self.ask(Self::maintenance(agent_id, request)?).await
    }

    /// Ends an agent's maintenance. Succeeds if there is none.
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
    /// [`Error::NotFound`] and [`Error::Unsupported`], as in [`RegistryClient::set_maintenance`].
    pub async fn end_maintenance(&self, agent_id: &str) -> Result<AgentRecord, Error> {
        let mut request = get(Kind::OfAgent, ["agents", path_segment(agent_id)?, "maintenance"]);
        request.method = Method::DELETE;
        request.kind = Kind::Optional(END);
        self.ask(request).await
    }

    /// Begins maintenance of an agent in one attempt with a time limit. Any success counts, whatever its body. Returns whether
    /// an earlier maintenance continues instead, which belongs to the agent and not to a process.
    pub(crate) async fn set_maintenance_once(
        &self,
        agent_id: &str,
        request: &MaintenanceRequest,
        limit: Duration,
    ) -> Result<bool, Error> {
        let request = Self::maintenance(agent_id, request)?;
        let is_of_agent = |response: &ApiResponse| {
            let record = serde_json::from_slice::<AgentRecord>(&response.body).ok();
            let maintenance = record.and_then(|record| record.maintenance);
            Ok(maintenance.is_some_and(|maintenance| maintenance.instance_id.is_none()))
        };
        self.transport.send_within(&request, limit, is_of_agent).await
    }

    fn maintenance(agent_id: &str, body: &MaintenanceRequest) -> Result<Request, Error> {
        let mut request = get(Kind::OfAgent, ["agents", path_segment(agent_id)?, "maintenance"]);
        request.method = Method::PUT;
        request.body = Some(Body::Fixed(encode(body)?));
        request.kind = Kind::Optional(SET);
        Ok(request)
    }
}
