//! Records and registrations as JSON, for programs that copy agents from one registry to another: fields that only other versions
//! know are kept.

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

/// One page of a list, as the registry sent it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct RawPage {
    /// The agents' records as JSON, by id.
    pub agents: Vec<Box<RawValue>>,
    /// Where the next page begins; `None` after the last.
    pub next_cursor: Option<String>,
    /// How old the records are. Zero, unless the registry answers from memory because its database is away.
    pub age: Duration,
}

impl RegistryClient {
    /// Lists agents as [`RegistryClient::list_agents`] does, with the records as the registry sent them.
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

    /// Registers an agent as [`RegistryClient::register`] does, with a body that is sent as it is.
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
    /// As [`RegistryClient::register`]. Fields that this version does not know are for the registry to judge.
    pub async fn register_raw(&self, registration: &RawValue) -> Result<AgentRecord, Error> {
        let body = registration.get().as_bytes();
        let read = Registration::from_json(body)
            .map_err(|error| Error::Config(format!("this is no registration: {error}")))??;
        let request = Self::registration(Body::Fixed(body.to_vec()));
        self.transport.send(&request, &self.retry, |response| decode::registered(&read, response)).await
    }
}
