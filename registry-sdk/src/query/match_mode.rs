//! How the words of a search are matched.

use std::fmt;
use std::str::FromStr;

/// How the words of a search are matched.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum MatchMode {
    /// Every word has to match: as it is, in another form, or as the beginning of a word. The default.
    #[default]
    All,
    /// As a sentence: any word may match, and the score says how relevant the capability is.
    Best,
}

impl fmt::Display for MatchMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::All => "all",
            Self::Best => "best",
        })
    }
}

/// A word that is not a [`MatchMode`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a match mode: use all or best")]
pub struct ParseMatchModeError(pub String);

impl FromStr for MatchMode {
    type Err = ParseMatchModeError;

    fn from_str(word: &str) -> Result<Self, Self::Err> {
        match word {
            "all" => Ok(Self::All),
            "best" => Ok(Self::Best),
            other => Err(ParseMatchModeError(other.to_owned())),
        }
    }
}
