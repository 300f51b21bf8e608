//! TLS certificates (feature `tls`).

use std::error::Error as StdError;
use std::sync::Arc;

use reqwest::{Certificate, ClientBuilder, Identity};

use crate::credentials::provided;
use crate::error::{Error, with_causes};

/// Certificates in addition to those of the system.
#[derive(Clone, Default)]
pub(crate) struct Certificates {
    /// Additional certificate authorities.
    roots: Vec<Certificate>,
    /// Provider of the client certificate and its key.
    own: Option<Arc<dyn Fn() -> Result<Identity, Error> + Send + Sync>>,
}

impl Certificates {
    /// Adds authorities from a PEM with one or several certificates.
    pub(crate) fn root(mut self, pem: &[u8]) -> Result<Self, Error> {
        let found = Certificate::from_pem_bundle(pem)
            .map_err(|error| invalid("the root certificate is invalid", &error))?;
        if found.is_empty() {
            return Err(Error::Config("the root certificate contains no certificate".to_owned()));
        }
        self.roots.extend(found);
        Ok(self)
    }

    /// Sets the client certificate from a PEM with its chain and its private key.
    pub(crate) fn own(mut self, pem: &[u8]) -> Result<Self, Error> {
        let own = identity(pem)?;
        self.own = Some(Arc::new(move || Ok(own.clone())));
        Ok(self)
    }

    /// Sets the provider of the client certificate and its key.
    pub(crate) fn own_provider<E: Into<Box<dyn StdError + Send + Sync>>>(
        mut self,
        provider: impl Fn() -> Result<Vec<u8>, E> + Send + Sync + 'static,
    ) -> Self {
        self.own = Some(Arc::new(move || {
            let pem = provided("the provider of the client certificate", &provider)?;
            let pem = pem
                .map_err(|error| invalid("the provider of the client certificate failed", &*error.into()))?;
            identity(&pem)
        }));
        self
    }

    pub(crate) fn add_to(&self, builder: ClientBuilder) -> Result<ClientBuilder, Error> {
        let builder = builder.tls_certs_merge(self.roots.clone());
        match &self.own {
            Some(own) => Ok(builder.identity(own()?)),
            None => Ok(builder),
        }
    }
}

fn identity(pem: &[u8]) -> Result<Identity, Error> {
    Identity::from_pem(pem).map_err(|error| invalid("the client certificate or its key is invalid", &error))
}

fn invalid(what: &str, error: &dyn StdError) -> Error {
    Error::Config(format!("{what}: {}", with_causes(error)))
}
