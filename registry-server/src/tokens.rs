//! Who may do what: bearer tokens (RFC 6750), kept in a file as the SHA-256 of random values.
//!
//! A token has 256 random bits, so a plain hash of it is enough: there is nothing to guess and nothing to stretch.

use std::collections::HashSet;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use registry_sdk::contract::Timestamp;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use subtle::{Choice, ConditionallySelectable, ConstantTimeEq};

/// What the text of a token begins with, so that one that got out is recognized by scanners.
const PREFIX: &str = "agreg_";

/// The tokens of a file.
#[derive(Debug, Default)]
pub(crate) struct Tokens {
    tokens: Vec<Arc<Token>>,
}

/// One token, as far as it is known: not the token itself.
#[derive(Debug)]
pub(crate) struct Token {
    /// Whose it is, for the log and for errors.
    pub(crate) name: String,
    digest: [u8; 32],
    scope: Scope,
    expires: Option<Timestamp>,
}

/// What a token allows.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Scope {
    /// Everything that changes nothing.
    Read,
    /// The same, and to register and speak for agents whose ids match one of these patterns.
    Agent(Vec<String>),
    /// Everything.
    Admin,
}

/// Why a file of tokens cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokensError {
    /// It cannot be read.
    #[error("cannot read the tokens file {0}")]
    Unreadable(PathBuf, #[source] std::io::Error),
    /// It is not what it should be.
    #[error("the tokens file {0} is not as it has to be: {1}")]
    Invalid(PathBuf, String),
}

/// A file, as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    token: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    name: String,
    sha256: String,
    scope: String,
    #[serde(default)]
    agents: Vec<String>,
    expires: Option<Expiry>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Expiry {
    Text(String),
    Date(toml::value::Datetime),
}

impl Tokens {
    pub(crate) fn read(path: &Path) -> Result<Self, TokensError> {
        let text =
            std::fs::read_to_string(path).map_err(|error| TokensError::Unreadable(path.to_owned(), error))?;
        Self::parse(&text).map_err(|why| TokensError::Invalid(path.to_owned(), why))
    }

    fn parse(text: &str) -> Result<Self, String> {
        let file: File = toml::from_str(text).map_err(|error| error.to_string())?;
        let mut names = HashSet::new();
        let mut tokens = Vec::with_capacity(file.token.len());
        for entry in file.token {
            let name = entry.name.clone();
            if name.is_empty() || !names.insert(name.clone()) {
                return Err(format!("each token needs a name of its own, and {name:?} is none"));
            }
            let token = entry.check().map_err(|why| format!("token {name:?}: {why}"))?;
            tokens.push(Arc::new(token));
        }
        Ok(Self { tokens })
    }

    pub(crate) fn len(&self) -> usize {
        self.tokens.len()
    }

    /// The token that was presented, where it is one and has not expired. Takes the same time whichever it is.
    pub(crate) fn find(&self, presented: &str, now: SystemTime) -> Option<Arc<Token>> {
        let digest = digest(presented);
        let mut found = u32::MAX;
        for (place, token) in (0..).zip(&self.tokens) {
            let same: Choice = token.digest.as_slice().ct_eq(&digest);
            found.conditional_assign(&place, same);
        }
        let token = self.tokens.get(usize::try_from(found).ok()?)?;
        let now = Timestamp::from(now);
        token.expires.is_none_or(|expires| now < expires).then(|| token.clone())
    }
}

impl Token {
    /// How long it is still good; `None`: for ever.
    pub(crate) fn expires_in(&self, now: SystemTime) -> Option<Duration> {
        Some(self.expires?.since(now.into()))
    }

    /// Whether it allows to register and speak for an agent.
    pub(crate) fn may_speak_for(&self, agent_id: &str) -> bool {
        match &self.scope {
            Scope::Read => false,
            Scope::Agent(patterns) => patterns.iter().any(|pattern| matches(pattern, agent_id)),
            Scope::Admin => true,
        }
    }
}

impl Entry {
    fn check(self) -> Result<Token, String> {
        let scope = match (self.scope.as_str(), self.agents.is_empty()) {
            ("read", true) => Scope::Read,
            ("admin", true) => Scope::Admin,
            ("agent", false) => Scope::Agent(self.agents),
            ("agent", true) => return Err("scope \"agent\" needs agents, such as [\"team-a-*\"]".to_owned()),
            ("read" | "admin", false) => return Err("only scope \"agent\" has agents".to_owned()),
            (other, _) => return Err(format!("scope is \"read\", \"agent\" or \"admin\", not {other:?}")),
        };
        let digest = from_hex(&self.sha256)
            .ok_or("sha256 has to be 64 hexadecimal digits: `registry-server token new` gives them")?;
        let expires = self.expires.map(|expires| match expires {
            Expiry::Text(text) => text,
            Expiry::Date(date) => date.to_string(),
        });
        let expires = expires.map(|text| text.parse::<Timestamp>()).transpose();
        let expires = expires.map_err(|error| format!("expires: {error}"))?;
        Ok(Token { name: self.name, digest, scope, expires })
    }
}

/// A new token: its text, which is shown once and kept nowhere, and the digest for the file.
#[derive(Debug)]
pub struct NewToken {
    /// What its bearer sends.
    pub token: String,
    /// What the file has of it, as hexadecimal digits.
    pub sha256: String,
}

impl NewToken {
    /// Draws one from the system's source of randomness.
    ///
    /// # Errors
    /// Where the system has none to give.
    pub fn draw() -> std::io::Result<Self> {
        let mut random = [0; 32];
        getrandom::fill(&mut random).map_err(std::io::Error::other)?;
        let token = format!("{PREFIX}{}", Hex(&random));
        let sha256 = Hex(&digest(&token)).to_string();
        Ok(Self { token, sha256 })
    }
}

fn digest(token: &str) -> [u8; 32] {
    Sha256::digest(token.as_bytes()).into()
}

struct Hex<'a>(&'a [u8]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

fn from_hex(text: &str) -> Option<[u8; 32]> {
    let text = text.as_bytes();
    let mut bytes = [0; 32];
    if text.len() != 64 {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(text.chunks(2)) {
        let digit = |digit: u8| char::from(digit).to_digit(16);
        let &[high, low] = pair else { return None };
        *byte = u8::try_from(digit(high)? * 16 + digit(low)?).ok()?;
    }
    Some(bytes)
}

/// Whether an id is as a pattern says, in which `*` stands for any characters, or none.
fn matches(pattern: &str, id: &str) -> bool {
    let Some((begin, rest)) = pattern.split_once('*') else { return pattern == id };
    let Some(mut left) = id.strip_prefix(begin) else { return false };
    let mut parts: Vec<&str> = rest.split('*').collect();
    let end = parts.pop().unwrap_or_default();
    for part in parts {
        // The first place it can be is as good as any later one.
        let Some(at) = left.find(part) else { return false };
        left = &left[at + part.len()..];
    }
    left.ends_with(end)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    fn file(entry: &str) -> String {
        format!("[[token]]\nname = \"a\"\nsha256 = \"{}\"\n{entry}\n", Hex(&digest("secret")))
    }

    #[test]
    fn a_token_is_found_by_its_text_until_it_expires() {
        let tokens = Tokens::parse(&file("scope = \"read\"\nexpires = 2027-01-01T00:00:00Z")).unwrap();
        let at = |text: &str| SystemTime::from(text.parse::<Timestamp>().unwrap());
        let before = at("2026-12-31T23:59:59Z");
        assert_eq!(tokens.find("secret", before).unwrap().name, "a");
        assert!(tokens.find("secret ", before).is_none() && tokens.find("", before).is_none());
        assert!(tokens.find("secret", at("2027-01-01T00:00:00Z")).is_none());
        assert!(Tokens::default().find("secret", before).is_none());
        let text = Tokens::parse(&file("scope = \"read\"\nexpires = \"2027-01-01T00:00:00Z\"")).unwrap();
        assert!(text.find("secret", before).is_some());
        assert!(text.find("secret", before + Duration::from_secs(1)).is_none());
    }

    #[test]
    fn a_new_token_is_the_one_that_its_digest_says() {
        let (one, other) = (NewToken::draw().unwrap(), NewToken::draw().unwrap());
        assert_ne!(one.token, other.token);
        let text = format!("[[token]]\nname = \"n\"\nsha256 = \"{}\"\nscope = \"admin\"", one.sha256);
        let tokens = Tokens::parse(&text).unwrap();
        assert!(tokens.find(&one.token, SystemTime::now()).is_some());
        assert!(tokens.find(&other.token, SystemTime::now()).is_none());
    }

    #[test]
    fn scopes_allow_what_they_say() {
        let may = |entry: &str, id: &str| Tokens::parse(&file(entry)).unwrap().tokens[0].may_speak_for(id);
        assert!(may("scope = \"admin\"", "any"));
        assert!(!may("scope = \"read\"", "any"));
        let team = "scope = \"agent\"\nagents = [\"team-a-*\", \"lonely\"]";
        assert!(may(team, "team-a-1") && may(team, "team-a-") && may(team, "lonely"));
        assert!(!may(team, "team-b-1") && !may(team, "lonely-2") && !may(team, "xteam-a-1"));
    }

    #[test]
    fn a_star_stands_for_anything() {
        for (pattern, id) in
            [("*", ""), ("*", "abc"), ("a*c", "ac"), ("a*c", "abbc"), ("*-x-*", "1-x-2"), ("a*b*b", "abb")]
        {
            assert!(matches(pattern, id), "{pattern} {id}");
        }
        for (pattern, id) in
            [("", "a"), ("a", "A"), ("a*c", "a"), ("a*c", "abcd"), ("ab*ba", "aba"), ("*-x-*", "-x")]
        {
            assert!(!matches(pattern, id), "{pattern} {id}");
        }
    }

    #[test]
    fn no_file_makes_it_panic() {
        let good = file("scope = \"agent\"\nagents = [\"a-*\"]");
        bolero::check!().with_type::<(u8, Vec<u8>)>().for_each(|(place, input)| {
            // Good up to somewhere, and then anything.
            let cut = usize::from(*place) % good.len();
            let text = format!("{}{}", &good[..cut], String::from_utf8_lossy(input));
            if let Ok(tokens) = Tokens::parse(&text) {
                assert!(tokens.find(&text, SystemTime::now()).is_none());
            }
        });
    }

    #[test]
    fn what_is_wrong_with_a_file_is_said() {
        for (entry, expected) in [
            ("", "missing field `scope`"),
            ("scope = \"all\"", "not \"all\""),
            ("scope = \"agent\"", "needs agents"),
            ("scope = \"read\"\nagents = [\"x\"]", "only scope"),
            ("scope = \"read\"\nexpires = \"soon\"", "expires"),
            ("scope = \"read\"\nsecret = \"x\"", "unknown field"),
            (
                "scope = \"read\"\n[[token]]\nname = \"a\"\nsha256 = \"00\"\nscope = \"read\"",
                "a name of its own",
            ),
            (
                "scope = \"read\"\n[[token]]\nname = \"b\"\nsha256 = \"00\"\nscope = \"read\"",
                "64 hexadecimal",
            ),
        ] {
            let error = Tokens::parse(&file(entry)).unwrap_err();
            assert!(error.contains(expected), "{entry}: {error}");
        }
    }
}
