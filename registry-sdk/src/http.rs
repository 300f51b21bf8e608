//! The HTTP clients of the transport: their settings and their renewal.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use reqwest::redirect;
use tokio::time::{Instant, timeout_at};
use url::Url;

#[cfg(feature = "tls")]
use crate::certificates::Certificates;
use crate::contract::address::is_loopback;
use crate::error::{Error, with_causes};

/// Maximum age of a client. A new one makes new connections, and so resolves names again.
const MAX_AGE: Duration = Duration::from_secs(300);

/// Maximum age of a client after a failed request. Not zero, because a new client may read the system's certificates again.
const MIN_AGE: Duration = Duration::from_secs(10);

/// How long idle connections are kept: shorter than on the server, so that no request uses a connection that the server is
/// closing.
const MAX_IDLE: Duration = Duration::from_secs(60);

/// The same for agents, with servers of any kind: gunicorn keeps connections for 2 s, uvicorn and Node for 5 s.
const MAX_IDLE_AGENT: Duration = Duration::from_secs(1);

/// Maximum number of redirects of a request.
const MAX_REDIRECTS: usize = 5;

/// The settings of the HTTP clients.
#[derive(Clone, Default)]
pub(crate) struct HttpSettings {
    pub(crate) connect_timeout: Duration,
    pub(crate) proxy: ProxySetting,
    #[cfg(feature = "tls")]
    pub(crate) certificates: Certificates,
    /// The user's own client, used unchanged.
    pub(crate) client: Option<reqwest::Client>,
    pub(crate) purpose: Purpose,
}

/// The purpose of requests, which decides which redirects are followed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Calls to the registry: no redirects are followed.
    #[default]
    Calls,
    /// Tasks of agents: redirects within the same origin that keep the method and the body are followed.
    Tasks,
    /// Documents of agents, which are only read: all redirects within the same origin are followed.
    #[cfg(feature = "a2a")]
    Documents,
}

/// The proxy for requests. Requests to loopback addresses never use one.
#[derive(Clone, Default)]
pub(crate) enum ProxySetting {
    /// The proxy in `HTTP_PROXY`, `HTTPS_PROXY`, `ALL_PROXY` and `NO_PROXY`.
    #[default]
    Environment,
    None,
    Fixed(Box<reqwest::Proxy>),
}

impl ProxySetting {
    /// Parses a proxy's URL. It may contain a user name and a password, so no error repeats it.
    pub(crate) fn fixed(url: &str) -> Result<Self, Error> {
        let parsed = Url::parse(url).ok().filter(|url| matches!(url.scheme(), "http" | "https"));
        let proxy = parsed.and_then(|url| reqwest::Proxy::all(url).ok());
        proxy
            .map(|proxy| Self::Fixed(Box::new(proxy)))
            .ok_or_else(|| Error::Config("the proxy's URL must have the form http://proxy:3128".to_owned()))
    }
}

/// A pool of HTTP clients. Clones share them.
///
/// There is one client for each combination of settings, created when it is first needed. The system's certificates are read
/// only for `https`, so plain `http` works without any. A proxy is set up only for addresses beyond loopback.
#[derive(Clone)]
pub(crate) struct HttpClients {
    settings: Arc<HttpSettings>,
    made: Arc<[Mutex<Option<Made>>; 4]>,
}

/// A client, when it was created, and whether a request has failed since.
struct Made {
    client: reqwest::Client,
    at: Instant,
    has_failed: bool,
}

impl fmt::Debug for HttpClients {
    /// Omits the settings, because a proxy's URL may contain a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpClients").finish_non_exhaustive()
    }
}

impl HttpClients {
    pub(crate) fn new(settings: HttpSettings) -> Self {
        Self { settings: Arc::new(settings), made: Arc::default() }
    }

    /// Returns clients with the same settings for requests to agents, which may redirect. Does not use the user's own client:
    /// its default headers may contain credentials, and its timeout is that of calls to the registry.
    pub(crate) fn for_agents(&self) -> Self {
        self.for_purpose(Purpose::Tasks)
    }

    /// Returns clients with the same settings for documents of agents.
    #[cfg(feature = "a2a")]
    pub(crate) fn for_documents(&self) -> Self {
        self.for_purpose(Purpose::Documents)
    }

    fn for_purpose(&self, purpose: Purpose) -> Self {
        let settings = HttpSettings::clone(&self.settings);
        Self::new(HttpSettings { purpose, client: None, ..settings })
    }

    /// Creates a pool that uses the user's own client for all URLs.
    pub(crate) fn fixed(client: reqwest::Client) -> Self {
        Self::new(HttpSettings { client: Some(client), ..HttpSettings::default() })
    }

    /// Returns the client for a URL.
    pub(crate) fn for_url(&self, url: &Url) -> Result<reqwest::Client, Error> {
        if let Some(client) = &self.settings.client {
            return Ok(client.clone());
        }
        let needs = Needs::of(url);
        let mut made = self.made(needs);
        if let Some(made) = made.as_ref().filter(|made| made.is_current()) {
            return Ok(made.client.clone());
        }
        let client = match (self.settings.build(needs), made.as_ref()) {
            (Ok(client), _) => client,
            // The certificate files may just be being replaced.
            (Err(error), Some(made)) => {
                tracing::warn!(%error, "cannot renew the HTTP client, going on with the previous one");
                made.client.clone()
            }
            (Err(error), None) => return Err(error),
        };
        *made = Some(Made { client: client.clone(), at: Instant::now(), has_failed: false });
        Ok(client)
    }

    /// Makes the next request to a URL use new connections, because the last one failed.
    pub(crate) fn renew(&self, url: &Url) {
        if let Some(made) = &mut *self.made(Needs::of(url)) {
            made.has_failed = true;
        }
    }

    fn made(&self, Needs { tls, proxy }: Needs) -> MutexGuard<'_, Option<Made>> {
        let index = usize::from(tls) + 2 * usize::from(proxy);
        self.made[index].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The properties of a URL on which its client depends.
#[derive(Clone, Copy)]
struct Needs {
    tls: bool,
    /// Whether requests may use a proxy.
    proxy: bool,
}

impl Needs {
    fn of(url: &Url) -> Self {
        Self { tls: url.scheme() == "https", proxy: !is_loopback(url) }
    }
}

impl Made {
    fn is_current(&self) -> bool {
        let age = self.at.elapsed();
        age < if self.has_failed { MIN_AGE } else { MAX_AGE }
    }
}

impl HttpSettings {
    fn build(&self, needs: Needs) -> Result<reqwest::Client, Error> {
        let (max_idle, redirects) = match self.purpose {
            Purpose::Calls => (MAX_IDLE, redirect::Policy::none()),
            Purpose::Tasks => (MAX_IDLE_AGENT, same_origin(|status| matches!(status, 307 | 308))),
            #[cfg(feature = "a2a")]
            Purpose::Documents => (MAX_IDLE_AGENT, same_origin(|_| true)),
        };
        let mut builder = reqwest::Client::builder()
            .connect_timeout(self.connect_timeout)
            .pool_idle_timeout(max_idle)
            .redirect(redirects)
            .user_agent(concat!("registry-sdk/", env!("CARGO_PKG_VERSION")));
        builder = match &self.proxy {
            ProxySetting::Environment if needs.proxy => builder,
            ProxySetting::Fixed(proxy) if needs.proxy => builder.proxy((**proxy).clone()),
            _ => builder.no_proxy(),
        };
        #[cfg(feature = "tls")]
        {
            // With an empty list, the system's certificates are not read.
            builder = if needs.tls { self.certificates.add_to(builder)? } else { builder.tls_certs_only([]) };
        }
        builder.build().map_err(|error| {
            let causes = with_causes(&error.without_url());
            Error::Config(format!("the HTTP client cannot be set up: {causes}"))
        })
    }
}

/// Follows redirects with certain statuses within the same origin.
fn same_origin(is_followed: fn(u16) -> bool) -> redirect::Policy {
    redirect::Policy::custom(move |attempt| {
        let is_same = attempt.previous().iter().all(|url| url.origin() == attempt.url().origin());
        if is_followed(attempt.status().as_u16()) && is_same && attempt.previous().len() <= MAX_REDIRECTS {
            attempt.follow()
        } else {
            attempt.stop()
        }
    })
}

/// Why a body could not be read, with the part that had arrived.
pub(crate) enum Unread {
    /// The body is longer than the limit.
    TooLong(Vec<u8>),
    /// The body did not end in time.
    Late(Vec<u8>),
    /// Nothing more of the body arrived for the longest pause.
    Stalled(Vec<u8>),
    /// The connection broke.
    Broken(Vec<u8>, reqwest::Error),
}

impl Unread {
    /// Returns the part that had arrived.
    pub(crate) fn into_part(self) -> Vec<u8> {
        match self {
            Self::TooLong(part) | Self::Late(part) | Self::Stalled(part) | Self::Broken(part, _) => part,
        }
    }
}

/// Reads a body up to a length and a deadline, and if there is a longest pause, as long as no pause is longer.
pub(crate) async fn read_bounded(
    mut response: reqwest::Response,
    max: usize,
    deadline: Instant,
    max_pause: Option<Duration>,
) -> Result<Vec<u8>, Unread> {
    let mut body = Vec::new();
    loop {
        let arrived_by = max_pause.map_or(deadline, |pause| deadline.min(Instant::now() + pause));
        let chunk = match timeout_at(arrived_by, response.chunk()).await {
            Err(_) if arrived_by < deadline => return Err(Unread::Stalled(body)),
            Err(_) => return Err(Unread::Late(body)),
            Ok(Err(error)) => return Err(Unread::Broken(body, error.without_url())),
            Ok(Ok(None)) => return Ok(body),
            Ok(Ok(Some(chunk))) => chunk,
        };
        let is_too_long = chunk.len() > max - body.len();
        body.extend_from_slice(&chunk[..chunk.len().min(max - body.len())]);
        if is_too_long {
            return Err(Unread::TooLong(body));
        }
    }
}
