//! Agents' cards: stored apart from the agents, so that neither heartbeats nor reads of many agents touch them.

use std::fmt::Write;

use registry_sdk::contract::AgentCard;
use sha2::{Digest, Sha256};

/// Length of a digest in bytes. It tells the cards of one agent apart, and so is shorter than the hash.
const DIGEST_BYTES: usize = 16;

/// Returns the hash of a card, as hexadecimal digits.
pub(crate) fn card_digest(card: &str) -> String {
    let hash = Sha256::digest(card.as_bytes());
    hash.iter().take(DIGEST_BYTES).fold(String::with_capacity(2 * DIGEST_BYTES), |mut digits, byte| {
        // A `String` takes whatever is written to it.
        let _ = write!(digits, "{byte:02x}");
        digits
    })
}

/// The card of an agent that registers.
#[derive(Clone, Debug)]
pub(crate) struct CardWrite {
    pub(crate) agent_id: String,
    /// `None` removes the card.
    pub(crate) card: Option<AgentCard>,
}
