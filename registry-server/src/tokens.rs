//! Bearer tokens (RFC 6750) and their scopes, read from a file with the SHA-256 of each token.
//!
//! A token has 256 random bits and cannot be guessed, so a plain hash without key stretching is enough.

use std::collections::HashSet;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use registry_sdk::contract::{CHANGED_BY_REGISTRY, Timestamp, limits};
use registry_sdk::internal::is_valid_agent_id;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use subtle::{Choice, ConditionallySelectable, ConstantTimeEq};

pub use new_token::NewToken;

mod new_token;

/// Maximum length of a token's name.
const MAX_NAME_CHARACTERS: usize = 128;

/// The tokens of a file.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Tokens {
    tokens: Vec<Arc<Token>>,
}

/// A token without its secret text.
#[derive(Debug, PartialEq)]
pub(crate) struct Token {
    /// Name of the token in logs, errors, and the records that it changed.
    pub(crate) name: Arc<str>,
    digest: [u8; 32],
    scope: Scope,
    expires: Option<Timestamp>,
}

/// The operations that a token permits.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Scope {
    /// Read operations only.
    Read,
    /// Read operations, and writes to agents whose ids match one of these patterns.
    Agent(Vec<String>),
    /// Everything.
    Admin,
}

/// Error in the tokens file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokensError {
    /// The file cannot be read.
    #[error("cannot read the tokens file {0}: {1}")]
    Read(PathBuf, #[source] std::io::Error),
    /// The file has invalid content.
    #[error("the tokens file {0} is invalid: {1}")]
    Invalid(PathBuf, String),
    /// The file contains no token, as if it had been truncated.
    #[error(
        "the tokens file {0} contains no token, so no client could authenticate: add an entry with `registry-server token new --scope admin`"
    )]
    Empty(PathBuf),
    /// The file would be invalid with the entry of the new token.
    #[error("the tokens file would be invalid with this token: {0}")]
    InvalidEntry(String),
}

/// Content of the tokens file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TokensFile {
    #[serde(default)]
    token: Vec<TokenEntry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TokenEntry {
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
    /// Parses the content of a tokens file, or passes on the error from reading it.
    pub(crate) fn load(path: &Path, content: io::Result<&[u8]>) -> Result<Self, TokensError> {
        let content = content.map_err(|error| TokensError::Read(path.to_owned(), error))?;
        let text = std::str::from_utf8(content).map_err(|error| error.to_string());
        let tokens = text.and_then(Self::parse);
        let tokens = tokens.map_err(|reason| TokensError::Invalid(path.to_owned(), reason))?;
        if tokens.tokens.is_empty() { Err(TokensError::Empty(path.to_owned())) } else { Ok(tokens) }
    }

    fn parse(text: &str) -> Result<Self, String> {
        let file: TokensFile = toml::from_str(text).map_err(|error| error.to_string())?;
        let mut names = HashSet::new();
        let mut tokens = Vec::with_capacity(file.token.len());
        for entry in file.token {
            if !names.insert(entry.name.clone()) {
                return Err(format!("each token needs its own name, but {:?} is repeated", entry.name));
            }
            tokens.push(Arc::new(entry.into_token()?));
        }
        Ok(Self { tokens })
    }

    pub(crate) fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Returns the names of tokens that `others` does not contain.
    pub(crate) fn names_missing_in(&self, others: &Self) -> Vec<&str> {
        let known: HashSet<&str> = others.tokens.iter().map(|token| &*token.name).collect();
        self.tokens.iter().map(|token| &*token.name).filter(|name| !known.contains(name)).collect()
    }

    /// Returns the presented token if it exists and has not expired. Takes the same time for every token.
    pub(crate) fn find(&self, presented: &str, now: SystemTime) -> Option<Arc<Token>> {
        let digest = digest(presented);
        let mut found = u32::MAX;
        for (index, token) in (0..).zip(&self.tokens) {
            let same: Choice = token.digest.as_slice().ct_eq(&digest);
            found.conditional_assign(&index, same);
        }
        let token = self.tokens.get(usize::try_from(found).ok()?)?;
        let now = Timestamp::from(now);
        token.expires.is_none_or(|expires| now < expires).then(|| token.clone())
    }
}

/// Checks a token's name, which appears in the records of the agents that it changes.
fn check_name(name: &str) -> Result<(), String> {
    if name.is_empty() || name.chars().count() > MAX_NAME_CHARACTERS || name.contains(char::is_control) {
        return Err(format!(
            "a token's name must have 1 to {MAX_NAME_CHARACTERS} characters, none of them a control character: {name:?}"
        ));
    }
    if name == CHANGED_BY_REGISTRY {
        return Err(format!(
            "a token must not be named {name:?}, which stands for the registry itself in records: give it another name"
        ));
    }
    Ok(())
}

impl Token {
    /// Returns the remaining lifetime, or `None` if the token never expires.
    pub(crate) fn expires_in(&self, now: SystemTime) -> Option<Duration> {
        Some(self.expires?.since(now.into()))
    }

    /// Whether the token permits registering and updating an agent.
    pub(crate) fn may_act_for(&self, agent_id: &str) -> bool {
        match &self.scope {
            Scope::Read => false,
            Scope::Agent(patterns) => patterns.iter().any(|pattern| glob_matches(pattern, agent_id)),
            Scope::Admin => true,
        }
    }
}

/// Checks that a pattern matches at least one valid agent id.
fn check_pattern(pattern: &str) -> Result<(), String> {
    let shortest = pattern.replace('*', "");
    // Some characters are valid in an id, but not at its beginning.
    let after_star = || pattern.starts_with('*') && is_valid_agent_id(&format!("a{shortest}"));
    if is_valid_agent_id(&shortest) || after_star() {
        return Ok(());
    }
    let most = limits::AGENT_ID;
    Err(format!(
        "the pattern {pattern:?} matches no agent id: ids have 1 to {most} characters of A-Z a-z 0-9 . _ -, starting with a \
         letter or digit, and * matches any of these"
    ))
}

impl TokenEntry {
    /// Checks the entry. The error names the token.
    fn into_token(self) -> Result<Token, String> {
        check_name(&self.name)?;
        let name = self.name.clone();
        self.check().map_err(|reason| format!("token {name:?}: {reason}"))
    }

    fn check(self) -> Result<Token, String> {
        let scope = match (self.scope.as_str(), self.agents.is_empty()) {
            ("read", true) => Scope::Read,
            ("admin", true) => Scope::Admin,
            ("agent", false) => Scope::Agent(self.agents),
            ("agent", true) => return Err("scope \"agent\" needs agents, such as [\"team-a-*\"]".to_owned()),
            ("read" | "admin", false) => return Err("only scope \"agent\" takes agents".to_owned()),
            (other, _) => {
                return Err(format!("scope must be \"read\", \"agent\" or \"admin\", not {other:?}"));
            }
        };
        if let Scope::Agent(patterns) = &scope {
            patterns.iter().try_for_each(|pattern| check_pattern(pattern))?;
        }
        let digest = decode_hex(&self.sha256)
            .ok_or("sha256 must be 64 hexadecimal digits, as printed by `registry-server token new`")?;
        let expires = self.expires.map(|expires| match expires {
            Expiry::Text(text) => text,
            Expiry::Date(date) => date.to_string(),
        });
        let expires = expires.map(|text| text.parse::<Timestamp>()).transpose();
        let expires = expires.map_err(|error| format!("expires: {error}"))?;
        Ok(Token { name: self.name.into(), digest, scope, expires })
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

fn decode_hex(text: &str) -> Option<[u8; 32]> {
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

/// Whether an id matches a pattern in which `*` matches any number of characters.
fn glob_matches(pattern: &str, id: &str) -> bool {
    let Some((prefix, rest)) = pattern.split_once('*') else { return pattern == id };
    let Some(mut rest_of_id) = id.strip_prefix(prefix) else { return false };
    let mut parts: Vec<&str> = rest.split('*').collect();
    let suffix = parts.pop().unwrap_or_default();
    for part in parts {
        // The first match leaves the longest rest for the following parts.
        let Some(start) = rest_of_id.find(part) else { return false };
        rest_of_id = &rest_of_id[start + part.len()..];
    }
    rest_of_id.ends_with(suffix)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    fn file(entry: &str) -> String {
        format!("[[token]]\nname = \"a\"\nsha256 = \"{}\"\n{entry}\n", Hex(&digest("secret")))
    }

    #[test]
    fn token_is_found_until_it_expires() {
        let tokens = Tokens::parse(&file("scope = \"read\"\nexpires = 2027-01-01T00:00:00Z")).unwrap();
        let at = |text: &str| SystemTime::from(text.parse::<Timestamp>().unwrap());
        let before = at("2026-12-31T23:59:59Z");
        assert_eq!(&*tokens.find("secret", before).unwrap().name, "a");
        assert!(tokens.find("secret ", before).is_none() && tokens.find("", before).is_none());
        assert!(tokens.find("secret", at("2027-01-01T00:00:00Z")).is_none());
        assert!(Tokens::default().find("secret", before).is_none());
        let text = Tokens::parse(&file("scope = \"read\"\nexpires = \"2027-01-01T00:00:00Z\"")).unwrap();
        assert!(text.find("secret", before).is_some());
        assert!(text.find("secret", before + Duration::from_secs(1)).is_none());
    }

    #[test]
    fn generated_token_matches_its_digest() {
        let (one, other) = (NewToken::generate().unwrap(), NewToken::generate().unwrap());
        assert_ne!(one.token, other.token);
        let text = format!("[[token]]\nname = \"n\"\nsha256 = \"{}\"\nscope = \"admin\"", one.sha256);
        let tokens = Tokens::parse(&text).unwrap();
        assert!(tokens.find(&one.token, SystemTime::now()).is_some());
        assert!(tokens.find(&other.token, SystemTime::now()).is_none());
    }

    #[test]
    fn scope_limits_the_agents_that_a_token_may_act_for() {
        let may = |entry: &str, id: &str| Tokens::parse(&file(entry)).unwrap().tokens[0].may_act_for(id);
        assert!(may("scope = \"admin\"", "any"));
        assert!(!may("scope = \"read\"", "any"));
        let team = "scope = \"agent\"\nagents = [\"team-a-*\", \"lonely\"]";
        assert!(may(team, "team-a-1") && may(team, "team-a-") && may(team, "lonely"));
        assert!(!may(team, "team-b-1") && !may(team, "lonely-2") && !may(team, "xteam-a-1"));
    }

    #[test]
    fn star_matches_any_characters() {
        for (pattern, id) in
            [("*", ""), ("*", "abc"), ("a*c", "ac"), ("a*c", "abbc"), ("*-x-*", "1-x-2"), ("a*b*b", "abb")]
        {
            assert!(glob_matches(pattern, id), "{pattern} {id}");
        }
        for (pattern, id) in
            [("", "a"), ("a", "A"), ("a*c", "a"), ("a*c", "abcd"), ("ab*ba", "aba"), ("*-x-*", "-x")]
        {
            assert!(!glob_matches(pattern, id), "{pattern} {id}");
        }
    }

    #[test]
    fn no_tokens_file_causes_a_panic() {
        let good = file("scope = \"agent\"\nagents = [\"a-*\"]");
        bolero::check!().with_type::<(u8, Vec<u8>)>().for_each(|(index, input)| {
            // A valid prefix, followed by arbitrary text.
            let cut = usize::from(*index) % good.len();
            let text = format!("{}{}", &good[..cut], String::from_utf8_lossy(input));
            if let Ok(tokens) = Tokens::parse(&text) {
                assert!(tokens.find(&text, SystemTime::now()).is_none());
            }
        });
    }

    #[test]
    fn names_that_records_cannot_contain_are_rejected() {
        let parse =
            |name: &str| Tokens::parse(&file("scope = \"read\"").replace("\"a\"", &format!("{name:?}")));
        for name in ["registry", "(Registry)", "team a", &"ä".repeat(128)] {
            assert_eq!(&*parse(name).unwrap().tokens[0].name, name);
        }
        assert!(parse("(registry)").unwrap_err().contains("stands for the registry itself"));
        for name in ["", "a\nb", "a\tb", &"a".repeat(129)] {
            assert!(parse(name).unwrap_err().contains("1 to 128 characters"), "{name:?}");
        }
        let with_nul = file("scope = \"read\"").replace("\"a\"", "\"\\u0000\"");
        assert!(Tokens::parse(&with_nul).unwrap_err().contains("control character"));
    }

    #[test]
    fn errors_describe_the_problem_in_the_file() {
        for (entry, expected) in [
            ("", "missing field `scope`"),
            ("scope = \"all\"", "not \"all\""),
            ("scope = \"agent\"", "needs agents"),
            ("scope = \"read\"\nagents = [\"x\"]", "only scope"),
            ("scope = \"read\"\nexpires = \"soon\"", "expires"),
            ("scope = \"read\"\nsecret = \"x\"", "unknown field"),
            ("scope = \"read\"\n[[token]]\nname = \"a\"\nsha256 = \"00\"\nscope = \"read\"", "its own name"),
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
