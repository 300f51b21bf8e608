//! How the words of a search are matched.

use std::fmt;
use std::str::FromStr;

use super::parameters::{InvalidParameter, invalid};

/// How the words of a search are matched. By default, all of them have to be there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum MatchMode {
    /// By every word: as it is, in another form, or as the beginning of a word.
    #[default]
    All,
    /// As a sentence: any word counts, and the score says how much.
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

impl FromStr for MatchMode {
    type Err = InvalidParameter;

    fn from_str(text: &str) -> Result<Self, InvalidParameter> {
        match text {
            "all" => Ok(Self::All),
            "best" => Ok(Self::Best),
            other => Err(invalid(format!("match has to be all or best, is {other:?}"))),
        }
    }
}
