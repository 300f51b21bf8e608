//! Errors of agent cards.

/// Error of reading, making or fetching a card, or of converting it to a registration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CardError {
    /// A document is not an A2A agent card, or a card cannot be made.
    #[error("invalid A2A agent card: {0}")]
    Invalid(String),

    /// The agent cannot be called over HTTP.
    #[error(
        "the A2A agent card of {name:?} has no interface with an http or https URL: {}",
        listed(interfaces)
    )]
    NoHttpInterface {
        /// Name of the agent.
        name: String,
        /// Descriptions of the agent's interfaces.
        interfaces: Vec<String>,
    },

    /// A card could not be fetched.
    #[error("no A2A agent card from {url}: {detail}")]
    NotFetched {
        /// The URL from which it was fetched.
        url: String,
        /// What happened.
        detail: String,
    },
}

fn listed(interfaces: &[String]) -> String {
    if interfaces.is_empty() { "it has no interface at all".to_owned() } else { interfaces.join(", ") }
}
