//! Client credentials: tokens and certificates.

use std::fmt;
use std::sync::Arc;

use reqwest::header::HeaderValue;
use reqwest::{Certificate, Identity};

use crate::error::{Error, with_causes};

/// Source of the current token. Never shown, not even for debugging.
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

    /// The value of an `Authorization` header (RFC 6750, section 2.1).
    pub(crate) fn header(&self) -> Result<HeaderValue, Error> {
        let wrong = |_| Error::Config("the token has characters that no header can have".to_owned());
        let mut value = HeaderValue::try_from(format!("Bearer {}", (self.0)())).map_err(wrong)?;
        // So that nothing below logs it.
        value.set_sensitive(true);
        Ok(value)
    }
}

/// Certificates beside those of the system, as PEM.
#[derive(Clone, Default)]
pub(crate) struct Certificates {
    /// Of authorities.
    pub(crate) roots: Vec<Vec<u8>>,
    /// The client's own, with its key.
    pub(crate) own: Option<Vec<u8>>,
}

impl fmt::Debug for Certificates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificates")
            .field("roots", &self.roots.len())
            .field("own", &self.own.is_some())
            .finish()
    }
}

impl Certificates {
    pub(crate) fn add_to(
        &self,
        mut builder: reqwest::ClientBuilder,
    ) -> Result<reqwest::ClientBuilder, Error> {
        let wrong =
            |what: &str, error: &reqwest::Error| Error::Config(format!("{what}: {}", with_causes(error)));
        for pem in &self.roots {
            let found = Certificate::from_pem_bundle(pem)
                .map_err(|error| wrong("the root certificate cannot be used", &error))?;
            if found.is_empty() {
                return Err(Error::Config("the root certificate has none in it".to_owned()));
            }
            builder = builder.tls_certs_merge(found);
        }
        if let Some(pem) = &self.own {
            let own = Identity::from_pem(pem)
                .map_err(|error| wrong("the client certificate and its key cannot be used", &error))?;
            builder = builder.identity(own);
        }
        Ok(builder)
    }
}
