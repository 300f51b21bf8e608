//! Words on the wire to which later versions may add.

use std::fmt;

/// A word from a newer server that this version does not know. Texts longer than 31 bytes are truncated.
///
/// ```
/// use registry_sdk::AgentStatus;
/// let health: registry_sdk::contract::AgentHealth =
///     serde_json::from_str(r#"{"agent_id": "a", "status": "degraded", "agent_status": "draining"}"#)?;
/// let Some(AgentStatus::Unknown(word)) = health.agent_status else { panic!() };
/// assert_eq!((word.as_str(), health.is_healthy()), ("draining", false));
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnknownWord {
    // Stored inline, so that the enums that hold it can be `Copy`.
    bytes: [u8; MAX_BYTES],
    length: u8,
}

const MAX_BYTES: usize = 31;

impl UnknownWord {
    pub(super) fn new(text: &str) -> Self {
        let text = cut(text, MAX_BYTES);
        let mut bytes = [0; MAX_BYTES];
        bytes[..text.len()].copy_from_slice(text.as_bytes());
        // The length is at most 31.
        Self { bytes, length: u8::try_from(text.len()).unwrap_or_default() }
    }

    /// Returns the word.
    #[must_use]
    pub fn as_str(&self) -> &str {
        // The bytes were copied from a text.
        std::str::from_utf8(&self.bytes[..usize::from(self.length)]).unwrap_or_default()
    }
}

impl fmt::Debug for UnknownWord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

/// Returns the beginning of a text, up to a number of bytes, cut between characters.
pub(crate) fn cut(text: &str, bytes: usize) -> &str {
    let mut end = bytes.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// Implements reading and writing of an enum with a variant `Unknown` for later words.
macro_rules! words {
    ($name:ident $description:literal: $($variant:ident = $word:literal),+) => {
        impl $name {
            /// Returns the word on the wire.
            #[must_use]
            pub fn as_str(&self) -> &str {
                match self {
                    $(Self::$variant => $word,)+
                    Self::Unknown(word) => word.as_str(),
                }
            }

            /// Accepts any word.
            pub(crate) fn of_word(word: &str) -> Self {
                match word {
                    $($word => Self::$variant,)+
                    _ => Self::Unknown(UnknownWord::new(word)),
                }
            }

            /// Reads a word of any server, including one that this version does not know.
            pub(super) fn tolerant<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                Ok(Self::of_word(&Cow::<str>::deserialize(deserializer)?))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.as_str())
            }
        }

        #[cfg(feature = "openapi")]
        impl utoipa::PartialSchema for $name {
            fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
                let words = utoipa::openapi::schema::ObjectBuilder::new()
                    .schema_type(utoipa::openapi::schema::Type::String)
                    .description(Some($description))
                    .enum_values(Some([$($word),+]));
                words.into()
            }
        }

        #[cfg(feature = "openapi")]
        impl utoipa::ToSchema for $name {}
    };
}

pub(super) use words;
