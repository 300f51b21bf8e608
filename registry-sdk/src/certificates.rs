//! Certificates for TLS (feature `tls`).

use crate::error::{Error, with_causes};

/// Certificates beside those of the system, as PEM.
#[derive(Clone, Default)]
pub(crate) struct Certificates {
    /// Of authorities.
    pub(crate) roots: Vec<Vec<u8>>,
    /// The client's own, with its key.
    pub(crate) own: Option<Vec<u8>>,
}

impl Certificates {
    /// Checks that all of them can be used.
    pub(crate) fn check(&self) -> Result<(), Error> {
        self.add_to(reqwest::Client::builder()).map(|_| ())
    }

    pub(crate) fn add_to(
        &self,
        mut builder: reqwest::ClientBuilder,
    ) -> Result<reqwest::ClientBuilder, Error> {
        let invalid =
            |what: &str, error: &reqwest::Error| Error::Config(format!("{what}: {}", with_causes(error)));
        for pem in &self.roots {
            let found = reqwest::Certificate::from_pem_bundle(pem)
                .map_err(|error| invalid("the root certificate cannot be used", &error))?;
            if found.is_empty() {
                return Err(Error::Config("the root certificate has none in it".to_owned()));
            }
            builder = builder.tls_certs_merge(found);
        }
        if let Some(pem) = &self.own {
            let own = reqwest::Identity::from_pem(pem)
                .map_err(|error| invalid("the client certificate and its key cannot be used", &error))?;
            builder = builder.identity(own);
        }
        Ok(builder)
    }
}
