//! Agent cards and tasks of the A2A protocol (feature `a2a`).
//!
//! An [A2A](https://a2a-protocol.org) agent describes itself with a card, a JSON document. [`fetch_card`] reads the card of another
//! agent, and [`FetchedCard::registration`] converts it to a [`Registration`](crate::Registration), so that a sentence finds the
//! agent like any other:
//!
//! ```no_run
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use std::time::Duration;
//! use registry_sdk::{RegistryClient, SearchQuery, a2a};
//!
//! let client = RegistryClient::new("http://127.0.0.1:8009")?;
//! let fetched = a2a::fetch_card(&client, "https://recipes.example").await?;
//! let registration = fetched.registration()?.heartbeat_interval(Duration::from_secs(86_400));
//! client.register(&registration).await?;
//!
//! let found = client.search_capabilities(SearchQuery::sentence("What can I cook with leeks?")).await?;
//! let card = client.get_card(&found[0].agent_id).await?; // the same document, byte for byte
//! # Ok(())
//! # }
//! ```
//!
//! Such an agent sends no heartbeats. Unless it is registered again, it goes offline after twice the interval, here two days;
//! without an interval, by default after a minute: see [`FetchedCard::registration`].
//!
//! For an agent that uses this SDK, [`CardDetails`] makes the card from the agent's registration. The agent registers it, and, with the feature
//! `axum`, serves it to A2A clients with [`CardEndpoint`].
//!
//! The SDK reads cards of the versions 1.0 and 0.3, and makes cards of version 1.0. It passes signatures on, and neither checks nor makes them.
//!
//! An orchestrator delegates tasks over the protocol with
//! [`Delegation::send_message`](crate::discovery::Delegation::send_message): a [`Message`] goes to the best agent,
//! through the interface in its card, and the agent's [`Reply`] is returned once the task is done. The SDK supports
//! JSON-RPC and HTTP+JSON of version 1.0, and JSON-RPC of version 0.3, without streaming and push notifications.

pub(crate) mod a2a_error;
pub(crate) mod call;
pub(crate) mod cards;
mod details;
mod document;
#[cfg(feature = "axum")]
mod endpoint;
mod error;
mod fetch;
mod json;
mod mapping;
pub(crate) mod message;
mod read;
pub(crate) mod reply;
pub(crate) mod target;
pub(crate) mod task_state;

pub use a2a_error::A2aError;
pub use details::{CardDetails, Interface};
#[cfg(feature = "axum")]
pub use endpoint::CardEndpoint;
pub use error::CardError;
pub use fetch::{FetchedCard, fetch_card};
pub use mapping::registration_of;
pub use message::Message;
pub use read::{CARD_PATH, read_card};
pub use reply::Reply;
pub use task_state::TaskState;
