//! Records and registrations as raw JSON, for programs that copy agents between registries: unknown fields of other versions
//! are kept.

use std::time::Duration;

use serde_json::value::RawValue;

use super::{RegistryClient, get};
use crate::contract::request_body::RequestBody;
use crate::contract::{AgentRecord, Registration};
use crate::decode;
use crate::error::Error;
use crate::query::ListQuery;
use crate::response::{ApiResponse, Kind};
use crate::transport::Body;

/// A page of a list, as the registry sent it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct RawPage {
    /// The agents' records as JSON, ordered by id.
    pub agents: Vec<Box<RawValue>>,
    /// The cursor of the next page; `None` on the last page.
    pub next_cursor: Option<String>,
    /// Age of the records. Zero, unless the registry answers from memory because its database is unavailable.
    pub age: Duration,
}

impl RegistryClient {
    /// Lists agents like [`RegistryClient::list_agents`], but returns the records as the registry sent them.
    ///
    /// A registry that does not know a filter ignores it. Nothing is dropped from its response.
    ///
    /// ```no_run
    /// # async fn example(client: registry_sdk::RegistryClient) -> Result<(), registry_sdk::Error> {
    /// use registry_sdk::ListQuery;
    ///
    /// for record in client.list_raw(&ListQuery::all().limit(100)).await?.agents {
    ///     println!("{record}");
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub async fn list_raw(&self, query: &ListQuery) -> Result<RawPage, Error> {
        let mut request = get(Kind::List, ["agents"]);
        request.query = query.pairs();
        let page = |response: &ApiResponse| {
            let agents = decode::items(response)?.into_iter().map(RawValue::to_owned).collect();
            Ok(RawPage { agents, next_cursor: response.next_cursor(), age: response.age() })
        };
        self.transport.send(&request, &self.retry, page).await
    }

    /// Registers an agent like [`RegistryClient::register`], but sends the body unchanged.
    ///
    /// ```no_run
    /// # async fn example(client: registry_sdk::RegistryClient) -> Result<(), Box<dyn std::error::Error>> {
    /// let json = r#"{"agent_id": "a", "agent_name": "A", "base_url": "http://a:80", "capabilities": [], "new": 1}"#;
    /// client.register_raw(&serde_json::value::RawValue::from_string(json.to_owned())?).await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// The same as those of [`RegistryClient::register`]. The registry checks fields that this version does not know.
    pub async fn register_raw(&self, registration: &RawValue) -> Result<AgentRecord, Error> {
        let body = registration.get().as_bytes();
        let read = Registration::from_json(body)
            .map_err(|error| Error::Config(format!("this is not a registration: {error}")))??;
        let request = Self::registration(Body::Fixed(body.to_vec()));
        self.transport.send(&request, &self.retry, |response| decode::registered(&read, response)).await
    }
}
