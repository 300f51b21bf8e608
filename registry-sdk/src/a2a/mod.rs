//! A2A (feature `a2a`): a card as a registration, the card of an agent of one's own, and messages to agents.
//!
//! An [A2A](https://a2a-protocol.org) agent describes itself by a card, a JSON document. [`fetch_card`] reads the card of an agent that
//! runs elsewhere, and makes it a [`Registration`](crate::Registration), so that the agent is found by a sentence like any other:
//!
//! ```no_run
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use registry_sdk::{RegistryClient, SearchQuery, a2a};
//!
//! let client = RegistryClient::new("http://127.0.0.1:8009")?;
//! let fetched = a2a::fetch_card(&client, "https://recipes.example").await?;
//! client.register(&fetched.registration()?).await?;
//!
//! let found = client.search_capabilities(SearchQuery::sentence("What can I cook with leeks?")).await?;
//! let card = client.get_card(&found[0].agent_id).await?; // the same document, byte for byte
//! # Ok(())
//! # }
//! ```
//!
//! Nobody sends heartbeats for such an agent, so it goes offline like any agent that is not heard: see [`FetchedCard::registration`].
//!
//! An agent that uses this SDK has its card made from its registration by [`CardDetails`], registers it, and, with the feature `axum`,
//! serves it to A2A clients by [`CardEndpoint`].
//!
//! Cards of the versions 1.0 and 0.3 are read, and cards of version 1.0 are made. Signatures are passed on, and neither checked nor made.
//!
//! An orchestrator delegates tasks over the protocol by [`Delegation::send_message`](crate::discovery::Delegation::send_message): a
//! [`Message`] goes to the best agent, by the interface in its card, and the agent's [`Reply`] comes back once the task is done. JSON-RPC
//! and HTTP+JSON of version 1.0 are spoken, and JSON-RPC of version 0.3; messages are neither streamed nor pushed.

pub(crate) mod a2a_error;
pub(crate) mod call;
pub(crate) mod cards;
mod details;
mod document;
#[cfg(feature = "axum")]
mod endpoint;
mod error;
mod fetch;
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
