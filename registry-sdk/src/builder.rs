//! Setting up a client.

use std::fmt;
use std::time::Duration;

#[cfg(feature = "tls")]
use crate::certificates::Certificates;
use crate::client::RegistryClient;
use crate::credentials::Credentials;
use crate::endpoints::Endpoints;
use crate::error::Error;
use crate::http::{HttpClients, HttpSettings, ProxySetting, Purpose};
use crate::retry::RetryPolicy;
use crate::transport::Transport;

/// Sets up a [`RegistryClient`].
#[derive(Clone)]
pub struct RegistryClientBuilder {
    url: String,
    timeout: Duration,
    connect_timeout: Duration,
    credentials: Option<Credentials>,
    proxy: Result<ProxySetting, Error>,
    #[cfg(feature = "tls")]
    certificates: Result<Certificates, Error>,
    http_client: Option<reqwest::Client>,
    retry: RetryPolicy,
}

impl fmt::Debug for RegistryClientBuilder {
    /// Leaves out the URLs, which may carry passwords by mistake.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RegistryClientBuilder")
            .field("timeout", &self.timeout)
            .field("connect_timeout", &self.connect_timeout)
            .field("retry", &self.retry)
            .finish_non_exhaustive()
    }
}

impl RegistryClientBuilder {
    /// Sets the time limit of one attempt: until its response has arrived, or, for a long one, for each further 64 KiB of
    /// it. Default: 5 s.
    ///
    /// An attempt takes at most half of the [`RetryPolicy::time_limit`], and less with more than two endpoints, so that a call that
    /// may be repeated has time for others.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Sets the time limit of making a connection. At most half of [`RegistryClientBuilder::timeout`]. Default: 2 s.
    #[must_use]
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// Sends a token with every request to the registry: `Authorization: Bearer …`. It is never logged, and not sent to
    /// agents. Default: none.
    #[must_use]
    pub fn token(self, token: impl Into<String>) -> Self {
        let token = token.into();
        self.token_provider(move || token.clone())
    }

    /// The same for tokens that are renewed: asks for the current one before every request. It must not block.
    #[must_use]
    pub fn token_provider(mut self, token: impl Fn() -> String + Send + Sync + 'static) -> Self {
        self.credentials = Some(Credentials::new(token));
        self
    }

    /// Sends all requests through an HTTP proxy, but those to loopback addresses. Its URL may carry a user name and a
    /// password. Default: the proxy that the environment variables `HTTP_PROXY`, `HTTPS_PROXY` and `ALL_PROXY` name, with
    /// the exceptions of `NO_PROXY`.
    #[must_use]
    pub fn proxy(mut self, url: impl Into<String>) -> Self {
        self.proxy = ProxySetting::fixed(&url.into());
        self
    }

    /// Uses no proxy, whatever the environment says.
    #[must_use]
    pub fn no_proxy(mut self) -> Self {
        self.proxy = Ok(ProxySetting::None);
        self
    }

    /// Trusts an authority beside those of the system: a PEM of one or several certificates. This also applies to requests to
    /// agents.
    #[cfg(feature = "tls")]
    #[must_use]
    pub fn root_certificate(mut self, pem: impl Into<Vec<u8>>) -> Self {
        self.certificates = self.certificates.and_then(|known| known.root(&pem.into()));
        self
    }

    /// Presents a certificate to servers that ask for one (mutual TLS): a PEM of the certificate's chain and its private key.
    #[cfg(feature = "tls")]
    #[must_use]
    pub fn client_certificate(mut self, pem: impl Into<Vec<u8>>) -> Self {
        self.certificates = self.certificates.and_then(|known| known.own(&pem.into()));
        self
    }

    /// The same for certificates that are renewed: asks for the current one whenever connections are made anew, that is every
    /// five minutes, and ten seconds after the last time if a request failed since. Meanwhile open connections keep theirs. If
    /// there is none that can be used, the previous one stays in use, and the log has a warning. It is called while a request
    /// waits: reading a small file is fine.
    ///
    /// ```no_run
    /// # use registry_sdk::{Error, RegistryClient};
    /// // The chain and the key in one file, which is replaced when they are renewed.
    /// let client = RegistryClient::builder("https://registry.example:8009")
    ///     .client_certificate_provider(|| std::fs::read("/etc/agent/client.pem"))
    ///     .build()?;
    /// # Ok::<(), Error>(())
    /// ```
    #[cfg(feature = "tls")]
    #[must_use]
    pub fn client_certificate_provider<E: Into<Box<dyn std::error::Error + Send + Sync>>>(
        mut self,
        pem: impl Fn() -> Result<Vec<u8>, E> + Send + Sync + 'static,
    ) -> Self {
        self.certificates = self.certificates.map(|known| known.own_provider(pem));
        self
    }

    /// Sends all requests to the registry with this HTTP client, which is taken as it is: its own proxy, certificates and connect
    /// timeout apply, and it is never replaced, so it is up to it to follow changes in DNS. Redirects should be off. Agents are
    /// not asked with it, since its default headers may be credentials: see
    /// [`OrchestratorBuilder::http_client`](crate::discovery::OrchestratorBuilder::http_client).
    #[must_use]
    pub fn http_client(mut self, client: reqwest::Client) -> Self {
        self.http_client = Some(client);
        self
    }

    /// Sets how failed calls are repeated. Default: [`RetryPolicy::discovery`].
    #[must_use]
    pub fn retry(mut self, policy: RetryPolicy) -> Self {
        self.retry = policy;
        self
    }

    /// Makes the client. Nothing is sent yet.
    ///
    /// # Errors
    /// [`Error::Config`] if a URL or a certificate cannot be used.
    pub fn build(self) -> Result<RegistryClient, Error> {
        // A client of the user's own may have TLS of another kind.
        let has_tls = cfg!(feature = "tls") || self.http_client.is_some();
        let endpoints = Endpoints::parse(&self.url, has_tls)?;
        let http = HttpClients::new(HttpSettings {
            connect_timeout: self.connect_timeout.min(self.timeout / 2),
            proxy: self.proxy?,
            #[cfg(feature = "tls")]
            certificates: self.certificates?,
            client: self.http_client,
            purpose: Purpose::Calls,
        });
        // Whatever is wrong with the settings shows now.
        for url in endpoints.urls() {
            http.for_url(url)?;
        }
        let transport =
            Transport { http, endpoints, attempt_timeout: self.timeout, credentials: self.credentials };
        Ok(RegistryClient { transport, retry: self.retry })
    }
}

impl RegistryClient {
    /// A client with the default settings for the registry at a URL, such as `http://127.0.0.1:8009`. Several endpoints of
    /// one registry may be given, separated by commas: calls use the first that is up, and go on at the next if it fails.
    ///
    /// # Errors
    /// [`Error::Config`] if the URL cannot be used.
    pub fn new(url: impl Into<String>) -> Result<Self, Error> {
        Self::builder(url).build()
    }

    /// Sets up a client for the registry at one or several URLs.
    #[must_use]
    pub fn builder(url: impl Into<String>) -> RegistryClientBuilder {
        RegistryClientBuilder {
            url: url.into(),
            timeout: Duration::from_secs(5),
            connect_timeout: Duration::from_secs(2),
            credentials: None,
            proxy: Ok(ProxySetting::Environment),
            #[cfg(feature = "tls")]
            certificates: Ok(Certificates::default()),
            http_client: None,
            retry: RetryPolicy::discovery(),
        }
    }
}
