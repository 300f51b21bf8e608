//! Agent cards, stored apart from the agents so that heartbeats and bulk reads never touch them.

use std::fmt::Write;

use registry_sdk::contract::AgentCard;
use sha2::{Digest, Sha256};

/// Length of a digest in bytes. Shorter than the hash, since it only distinguishes the cards of one agent.
const DIGEST_BYTES: usize = 16;

/// Returns the hash of a card, as hexadecimal digits.
pub(crate) fn card_digest(card: &str) -> String {
    let hash = Sha256::digest(card.as_bytes());
    hash.iter().take(DIGEST_BYTES).fold(String::with_capacity(2 * DIGEST_BYTES), |mut digits, byte| {
        // Writing to a `String` cannot fail.
        let _ = write!(digits, "{byte:02x}");
        digits
    })
}

/// The card of a registration.
#[derive(Clone, Debug)]
pub(crate) struct CardWrite {
    pub(crate) agent_id: String,
    /// `None` removes the card.
    pub(crate) card: Option<AgentCard>,
}
