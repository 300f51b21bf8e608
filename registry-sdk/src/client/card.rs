//! The A2A agent cards in a registry.

use reqwest::header::ETAG;

use super::{RegistryClient, get, path_segment};
use crate::contract::AgentCard;
use crate::error::Error;
use crate::response::{ApiResponse, Kind};

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
        self.card_with_digest(agent_id).await.map(|(card, _)| card)
    }

    /// The card with its digest, as records and matches have it, if the registry sent one.
    pub(crate) async fn card_with_digest(
        &self,
        agent_id: &str,
    ) -> Result<(AgentCard, Option<String>), Error> {
        let mut request = get(Kind::OfAgent, ["agents", path_segment(agent_id)?, "card"]);
        request.kind = Kind::Optional("GET /agents/{id}/card");
        let decode = |response: &ApiResponse| {
            let tag = response.headers.get(ETAG).and_then(|tag| tag.to_str().ok());
            // A proxy that changes the encoding makes the tag weak.
            let digest = tag.map(|tag| tag.strip_prefix("W/").unwrap_or(tag).trim_matches('"').to_owned());
            Ok((response.decode()?, digest))
        };
        self.transport.send(&request, &self.retry, decode).await
    }
}
