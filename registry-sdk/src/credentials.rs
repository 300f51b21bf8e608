//! Client credentials: tokens.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use reqwest::header::HeaderValue;

use crate::error::Error;

/// A provider of the current token. Tokens are never shown, not even for debugging.
#[derive(Clone)]
pub(crate) struct Credentials(Arc<dyn Fn() -> String + Send + Sync>);

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials(…)")
    }
}

impl Credentials {
    pub(crate) fn new(token: impl Fn() -> String + Send + Sync + 'static) -> Self {
        Self(Arc::new(token))
    }

    /// Returns the value of an `Authorization` header (RFC 6750, section 2.1).
    pub(crate) fn header(&self) -> Result<HeaderValue, Error> {
        let token = provided("the token provider", || (self.0)())?;
        let wrong = |_| Error::Config("the token has characters that are not allowed in a header".to_owned());
        let mut value = HeaderValue::try_from(format!("Bearer {token}")).map_err(wrong)?;
        // Keeps the token out of the logs of other crates.
        value.set_sensitive(true);
        Ok(value)
    }
}

/// Calls a provider of credentials. A panic is an error, because it must not end the task that sends heartbeats or follows the
/// registry.
pub(crate) fn provided<T>(name: &str, provider: impl FnOnce() -> T) -> Result<T, Error> {
    catch_unwind(AssertUnwindSafe(provider)).map_err(|_| Error::Config(format!("{name} panicked")))
}
