//! Errors of agent cards.

/// Why there is no card, or no registration of it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CardError {
    /// A text is no A2A agent card, or a card cannot be made.
    #[error("no A2A agent card: {0}")]
    Invalid(String),

    /// The agent cannot be called over HTTP.
    #[error(
        "the A2A agent card of {name:?} has no interface with an http or https URL: {}",
        listed(interfaces)
    )]
    NoHttpInterface {
        /// Name of the agent.
        name: String,
        /// The interfaces that it has, for people.
        interfaces: Vec<String>,
    },

    /// A card could not be fetched.
    #[error("no A2A agent card from {url}: {detail}")]
    NotFetched {
        /// Where it was looked for.
        url: String,
        /// What happened.
        detail: String,
    },
}

fn listed(interfaces: &[String]) -> String {
    if interfaces.is_empty() { "it has no interface at all".to_owned() } else { interfaces.join(", ") }
}
