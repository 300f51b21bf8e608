//! The path of a card, and reading its text.

use super::error::CardError;
use super::json::without_byte_order_mark;
use crate::contract::{AgentCard, limits};

/// The path at which an agent serves its card.
pub const CARD_PATH: &str = "/.well-known/agent-card.json";

/// Reads a card from the bytes of a file or a response. Surrounding white space and a byte order mark are removed.
///
/// # Errors
/// [`CardError::Invalid`] if the bytes are not a JSON object, or longer than a card may be.
pub fn read_card(bytes: &[u8]) -> Result<AgentCard, CardError> {
    let invalid = |why: String| Err(CardError::Invalid(why));
    let bytes = without_byte_order_mark(bytes).trim_ascii();
    match bytes.first() {
        _ if bytes.len() > limits::CARD_BYTES => {
            return invalid(format!("a card has up to {} bytes, this is longer", limits::CARD_BYTES));
        }
        None => return invalid("it is empty".to_owned()),
        Some(b'<') => return invalid("it is HTML or XML; a card is JSON".to_owned()),
        Some(b'{') => {}
        Some(_) => return invalid("it is not a JSON object".to_owned()),
    }
    let Ok(text) = std::str::from_utf8(bytes) else { return invalid("it is not UTF-8".to_owned()) };
    text.parse().or_else(|error| invalid(format!("it is not JSON: {error}")))
}
