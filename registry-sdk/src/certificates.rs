//! Certificates for TLS (feature `tls`).

use reqwest::{Certificate, ClientBuilder, Identity};

use crate::error::{Error, with_causes};

/// Certificates beside those of the system.
#[derive(Clone, Default)]
pub(crate) struct Certificates {
    /// Of authorities.
    roots: Vec<Certificate>,
    /// The client's own, with its key.
    own: Option<Identity>,
}

impl Certificates {
    /// Adds authorities: a PEM of one or several certificates.
    pub(crate) fn root(mut self, pem: &[u8]) -> Result<Self, Error> {
        let found = Certificate::from_pem_bundle(pem)
            .map_err(|error| invalid("the root certificate cannot be used", &error))?;
        if found.is_empty() {
            return Err(Error::Config("the root certificate has none in it".to_owned()));
        }
        self.roots.extend(found);
        Ok(self)
    }

    /// Sets the client's own: a PEM of the certificate's chain and its private key.
    pub(crate) fn own(mut self, pem: &[u8]) -> Result<Self, Error> {
        let own = Identity::from_pem(pem)
            .map_err(|error| invalid("the client certificate and its key cannot be used", &error))?;
        self.own = Some(own);
        Ok(self)
    }

    pub(crate) fn add_to(&self, builder: ClientBuilder) -> ClientBuilder {
        let builder = builder.tls_certs_merge(self.roots.clone());
        self.own.clone().into_iter().fold(builder, ClientBuilder::identity)
    }
}

fn invalid(what: &str, error: &reqwest::Error) -> Error {
    Error::Config(format!("{what}: {}", with_causes(error)))
}
