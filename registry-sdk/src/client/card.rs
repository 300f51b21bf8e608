//! The A2A agent cards in a registry.

use super::{RegistryClient, get, path_segment};
use crate::contract::AgentCard;
use crate::error::Error;
use crate::response::Kind;

impl RegistryClient {
    /// Returns the A2A agent card of an agent, as the agent registered it.
    ///
    /// ```no_run
    /// # async fn example(client: registry_sdk::RegistryClient) -> Result<(), registry_sdk::Error> {
    /// println!("{}", client.get_card("recipes").await?.as_str());
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::NotFound`] if the registry does not know the agent, or if the agent has no card; [`Error::Unsupported`] if the
    /// registry does not support cards.
    pub async fn get_card(&self, agent_id: &str) -> Result<AgentCard, Error> {
        let mut request = get(Kind::OfAgent, ["agents", path_segment(agent_id)?, "card"]);
        request.kind = Kind::Optional("GET /agents/{id}/card");
        self.ask(request).await
    }
}
