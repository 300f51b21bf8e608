//! New tokens, with their entries for the tokens file.

use std::fmt::Write;

use serde_json::json;

use super::{Hex, TokenEntry, TokensError, digest};

/// Prefix of every token, which lets secret scanners recognize a leaked one.
const TOKEN_PREFIX: &str = "agreg_";

/// A new token, and its digest for the tokens file. The token itself is not stored.
#[derive(Debug)]
pub struct NewToken {
    /// The token, as clients send it.
    pub token: String,
    /// SHA-256 of the token, as hexadecimal digits.
    pub sha256: String,
}

impl NewToken {
    /// Generates a token from the operating system's random source.
    ///
    /// # Errors
    /// Fails if the random source is not available.
    pub fn generate() -> std::io::Result<Self> {
        let mut random = [0; 32];
        getrandom::fill(&mut random).map_err(std::io::Error::other)?;
        let token = format!("{TOKEN_PREFIX}{}", Hex(&random));
        let sha256 = Hex(&digest(&token)).to_string();
        Ok(Self { token, sha256 })
    }

    /// Returns the entry for the tokens file. Without a name, the token gets a unique one.
    ///
    /// ```
    /// let token = registry_server::NewToken::generate()?;
    /// let entry = token.entry(Some("team-a"), "agent", &["team-a-*".to_owned()])?;
    /// assert!(entry.contains(r#"agents = ["team-a-*"]"#));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`TokensError::InvalidEntry`] if the server would not accept the entry.
    pub fn entry(&self, name: Option<&str>, scope: &str, agents: &[String]) -> Result<String, TokensError> {
        let name = name.map_or_else(|| format!("token-{:.12}", self.sha256), str::to_owned);
        let (sha256, scope) = (self.sha256.clone(), scope.to_owned());
        let entry = TokenEntry { name, sha256, scope, agents: agents.to_vec(), expires: None };
        let text = entry.to_toml();
        entry.into_token().map_err(TokensError::InvalidEntry)?;
        Ok(text)
    }
}

impl TokenEntry {
    fn to_toml(&self) -> String {
        // A JSON string or a list of JSON strings is also valid TOML.
        let Self { name, sha256, scope, agents, .. } = self;
        let mut text =
            format!("[[token]]\nname = {}\nsha256 = \"{sha256}\"\nscope = \"{scope}\"\n", json!(name));
        if !agents.is_empty() {
            let _ = writeln!(text, "agents = {}", json!(agents));
        }
        text
    }
}
