//! The builder of a client.

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

/// A builder of a [`RegistryClient`].
///
/// ```no_run
/// use std::time::Duration;
/// use registry_sdk::{RegistryClient, RetryPolicy};
///
/// let client = RegistryClient::builder("https://registry-1.example:8009,https://registry-2.example:8009")
///     .token(std::env::var("REGISTRY_TOKEN").unwrap_or_default())
///     .timeout(Duration::from_secs(3))
///     .retry(RetryPolicy::discovery().attempts(5))
///     .build()?;
/// # Ok::<(), registry_sdk::Error>(())
/// ```
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
    /// Omits the URLs, which may carry passwords by mistake.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RegistryClientBuilder")
            .field("timeout", &self.timeout)
            .field("connect_timeout", &self.connect_timeout)
            .field("retry", &self.retry)
            .finish_non_exhaustive()
    }
}

impl RegistryClientBuilder {
    /// Sets the time limit of an attempt. It restarts each time another 64 KiB of a long response has arrived.
    ///
    /// Default: 5 s. If the policy allows further attempts, one takes at most half of the [`RetryPolicy::time_limit`], and less
    /// with more than two endpoints, so that the call has time for one at each endpoint.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Sets the time limit of making a connection, at most half of [`RegistryClientBuilder::timeout`]. Default: 2 s.
    #[must_use]
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// Sets a token that is sent with every request to the registry, as `Authorization: Bearer …`.
    ///
    /// It is never logged, and never sent to agents. Default: none.
    #[must_use]
    pub fn token(self, token: impl Into<String>) -> Self {
        let token = token.into();
        self.token_provider(move || token.clone())
    }

    /// Sets a provider of tokens that are renewed. It is called before every request and must not block.
    #[must_use]
    pub fn token_provider(mut self, token: impl Fn() -> String + Send + Sync + 'static) -> Self {
        self.credentials = Some(Credentials::new(token));
        self
    }

    /// Sets an HTTP proxy for all requests except those to loopback addresses.
    ///
    /// Its URL may carry a user name and a password. Default: the proxy in the environment variables `HTTP_PROXY`,
    /// `HTTPS_PROXY` and `ALL_PROXY`, with the exceptions of `NO_PROXY`.
    #[must_use]
    pub fn proxy(mut self, url: impl Into<String>) -> Self {
        self.proxy = ProxySetting::fixed(&url.into());
        self
    }

    /// Uses no proxy, whatever the environment variables say.
    #[must_use]
    pub fn no_proxy(mut self) -> Self {
        self.proxy = Ok(ProxySetting::None);
        self
    }

    /// Trusts an additional certificate authority: a PEM with one or several certificates. Also applies to requests to agents.
    #[cfg(feature = "tls")]
    #[must_use]
    pub fn root_certificate(mut self, pem: impl Into<Vec<u8>>) -> Self {
        self.certificates = self.certificates.and_then(|known| known.root(&pem.into()));
        self
    }

    /// Sets a client certificate for servers that ask for one (mutual TLS): a PEM with the certificate's chain and its private
    /// key.
    ///
    /// It is also presented to agents that ask for one, and by `a2a::fetch_card` to the hosts of cards.
    #[cfg(feature = "tls")]
    #[must_use]
    pub fn client_certificate(mut self, pem: impl Into<Vec<u8>>) -> Self {
        self.certificates = self.certificates.and_then(|known| known.own(&pem.into()));
        self
    }

    /// Sets a provider of client certificates that are renewed. They are used as in
    /// [`client_certificate`](Self::client_certificate).
    ///
    /// It is called when the client is built for an `https` URL, and whenever its connections are replaced: five minutes after
    /// the provider was last called, or ten seconds if a request has failed since then. Open connections keep their certificate.
    /// If the provider fails, the previous certificate stays in use, and a warning is logged. A request waits for the provider,
    /// so it may read a small file but not much more.
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

    /// Sends all requests to the registry with this HTTP client, unchanged: its proxy, certificates and connect timeout apply.
    ///
    /// It is never replaced, so it has to follow DNS changes itself. It should not follow redirects. Agents are not called with
    /// it, because its default headers may contain credentials: see
    /// [`OrchestratorBuilder::http_client`](crate::discovery::OrchestratorBuilder::http_client).
    #[must_use]
    pub fn http_client(mut self, client: reqwest::Client) -> Self {
        self.http_client = Some(client);
        self
    }

    /// Sets how failed calls are retried. Default: [`RetryPolicy::discovery`].
    #[must_use]
    pub fn retry(mut self, policy: RetryPolicy) -> Self {
        self.retry = policy;
        self
    }

    /// Creates the client. Sends nothing.
    ///
    /// # Errors
    /// [`Error::Config`] if a URL, the proxy or a certificate is invalid.
    pub fn build(self) -> Result<RegistryClient, Error> {
        // The user's own client may use another TLS implementation.
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
        // Invalid settings have to fail here and not at the first request.
        for url in endpoints.urls() {
            http.for_url(url)?;
        }
        let transport =
            Transport { http, endpoints, attempt_timeout: self.timeout, credentials: self.credentials };
        Ok(RegistryClient { transport, retry: self.retry })
    }
}

impl RegistryClient {
    /// Creates a client with default settings for the registry at a URL, such as `http://127.0.0.1:8009`.
    ///
    /// Several endpoints of one registry may be given, separated by commas: calls use the first one that is available, and fail
    /// over to the next.
    ///
    /// # Errors
    /// [`Error::Config`] if the URL is invalid.
    pub fn new(url: impl Into<String>) -> Result<Self, Error> {
        Self::builder(url).build()
    }

    /// Returns a builder of a client for the registry at one or several URLs.
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
