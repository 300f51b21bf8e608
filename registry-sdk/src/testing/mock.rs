//! The mock registry: its server and the control of its faults.

use std::collections::VecDeque;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use futures_util::{StreamExt, future, stream};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::header::{CONTENT_TYPE, ETAG, LINK, RETRY_AFTER};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::event_stream::follow;
use super::faults::{InjectedFault, Inner, Shared, StreamEnd};
use super::request_log::RequestLog;
use super::routes::{MockRequest, MockResponse, answer};
use super::state::{Backup, MockState};
use crate::client::RegistryClient;
use crate::contract::{AgentRecord, CARD_MEDIA_TYPE, FieldError};
use crate::retry::{RetryPolicy, deadline_after};

/// A registry for tests.
///
/// It follows the contract, keeps its agents in memory, and fails on request. It stops when it is dropped.
///
/// Counted faults apply to the next requests, in the order in which the faults were requested.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), registry_sdk::Error> {
/// use registry_sdk::testing::MockRegistry;
/// use registry_sdk::{Capability, Registration};
///
/// let registry = MockRegistry::start().await;
/// let client = registry.client();
/// let registration = Registration::new("sec-scan", "Security Scanner", "http://sec-scan:8003")
///     .capability(Capability::new("security_scanning"));
/// client.register(&registration).await?;
///
/// registry.fail_next(1, 503);
/// assert!(client.get_stats().await.is_err());
/// assert_eq!(client.search_capabilities("security scan").await?.len(), 1);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct MockRegistry {
    address: SocketAddr,
    shared: Arc<Shared>,
    _serving: JoinSet<()>,
}

/// A builder of a [`MockRegistry`].
#[derive(Clone, Debug)]
pub struct MockRegistryBuilder {
    heartbeat_timeout: Duration,
}

impl MockRegistryBuilder {
    /// Sets how long an agent may be silent before it counts as offline. Default: 1 minute.
    #[must_use]
    pub fn heartbeat_timeout(mut self, timeout: Duration) -> Self {
        self.heartbeat_timeout = timeout;
        self
    }

    /// Starts the registry.
    ///
    /// # Panics
    /// If no port of the loopback address is free, or if called outside of a Tokio runtime.
    #[expect(clippy::expect_used, reason = "a test that cannot have its registry has failed")]
    pub async fn start(self) -> MockRegistry {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port on loopback");
        let address = listener.local_addr().expect("a bound listener has an address");
        let inner = Inner {
            state: MockState::new(self.heartbeat_timeout),
            faults: VecDeque::new(),
            delay: Duration::ZERO,
            outage: None,
            refusal: None,
            invalid: None,
            lag: None,
        };
        let shared = Arc::new(Shared {
            inner: Mutex::new(inner),
            request_log: watch::Sender::default(),
            ends: watch::Sender::default(),
        });
        let mut serving = JoinSet::new();
        serving.spawn(serve(listener, shared.clone()));
        MockRegistry { address, shared, _serving: serving }
    }
}

impl MockRegistry {
    /// Starts a registry with the default settings.
    ///
    /// # Panics
    /// If no port of the loopback address is free, or if called outside of a Tokio runtime.
    pub async fn start() -> Self {
        Self::builder().start().await
    }

    /// Returns a builder.
    #[must_use]
    pub fn builder() -> MockRegistryBuilder {
        MockRegistryBuilder { heartbeat_timeout: Duration::from_secs(60) }
    }

    /// Returns the registry's URL.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Creates a client of the registry that does not retry failed calls.
    ///
    /// # Panics
    /// If the HTTP client cannot be created.
    #[must_use]
    #[expect(clippy::expect_used, reason = "a test that cannot have its client has failed")]
    pub fn client(&self) -> RegistryClient {
        let builder = RegistryClient::builder(self.url()).retry(RetryPolicy::none());
        builder.build().expect("the URL of a listener is one")
    }

    /// Responds to the next requests with a status.
    ///
    /// The requests have no effect. 429 and 503 have a `Retry-After` of one second.
    pub fn fail_next(&self, count: usize, status: u16) {
        self.fault(count, InjectedFault::Status(status));
    }

    /// Closes the connections of the next requests without a response. The requests have no effect.
    pub fn drop_connections(&self, count: usize) {
        self.fault(count, InjectedFault::Drop);
    }

    /// Responds to the next requests with an HTML page and the status 200. The requests take effect.
    pub fn garbage_body(&self, count: usize) {
        self.fault(count, InjectedFault::Garbage);
    }

    /// Responds to the next requests with half of a body. The requests take effect.
    pub fn truncated_body(&self, count: usize) {
        self.fault(count, InjectedFault::Truncated);
    }

    /// Never responds to the next requests. The requests have no effect.
    pub fn hang(&self, count: usize) {
        self.fault(count, InjectedFault::Hang);
    }

    /// Closes the connections of the next requests without a response.
    ///
    /// The requests take effect after a delay, as if a proxy had held them back.
    pub fn deliver_late(&self, count: usize, delay: Duration) {
        self.fault(count, InjectedFault::Late(delay));
    }

    /// Delays every response from now on. [`Duration::ZERO`] ends the delay.
    pub fn delay(&self, delay: Duration) {
        self.lock().delay = delay;
    }

    /// Closes the open event streams, and for this long the connection of every request.
    pub fn outage(&self, duration: Duration) {
        self.lock().outage = Some(deadline_after(Instant::now(), duration));
        self.cut_event_streams();
    }

    /// Closes the open event streams. A watch reconnects and receives the changes that it missed.
    pub fn cut_event_streams(&self) {
        self.shared.ends.send_replace(StreamEnd::Cut);
    }

    /// Ends the open event streams as a server does for a slow reader: with the events that were not read yet, and `overrun`.
    pub fn overrun_event_streams(&self) {
        self.shared.ends.send_replace(StreamEnd::Overrun);
    }

    /// Ends the open event streams with `draining`, like a server that is about to stop.
    pub fn drain_event_streams(&self) {
        self.shared.ends.send_replace(StreamEnd::Draining);
    }

    /// Closes the open event streams, and responds to every request for one with a status from now on.
    ///
    /// A registry does so if the token has expired (401), and a proxy if it does not know the path (404).
    /// [`MockRegistry::heal`] ends the fault.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// use registry_sdk::WatchEvent;
    /// use registry_sdk::testing::MockRegistry;
    ///
    /// let registry = MockRegistry::start().await;
    /// registry.refuse_event_streams(401);
    /// let mut watch = registry.client().watch();
    /// let Some(WatchEvent::Interrupted(error)) = watch.next().await else { panic!() };
    /// assert!(error.is_refused());
    /// registry.heal();
    /// assert!(matches!(watch.next().await, Some(WatchEvent::Listed(_))));
    /// # }
    /// ```
    pub fn refuse_event_streams(&self, status: u16) {
        self.lock().refusal = Some(status);
        self.cut_event_streams();
    }

    /// Responds to every registration with 422 and this field from now on, like a registry that was upgraded to stricter rules.
    ///
    /// Heartbeats and other requests are not affected. [`MockRegistry::heal`] ends the fault.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// use registry_sdk::Registration;
    /// use registry_sdk::testing::MockRegistry;
    ///
    /// let registry = MockRegistry::start().await;
    /// registry.refuse_registrations("base_url", "must be reachable from outside");
    /// let registration = Registration::new("a", "Agent", "http://agent:8000");
    /// let error = registry.client().register(&registration).await.unwrap_err();
    /// assert_eq!(error.fields()[0].field, "base_url");
    /// # }
    /// ```
    pub fn refuse_registrations(&self, field: &str, message: &str) {
        self.lock().invalid = Some(FieldError::new(field, message));
    }

    /// Responds to reads with the state at the time of this call, for this long, like a replica that lags behind.
    ///
    /// Writes take effect, and event streams report them. [`MockRegistry::heal`] ends the fault.
    pub fn lag(&self, duration: Duration) {
        let mut inner = self.lock();
        inner.lag = Some((deadline_after(Instant::now(), duration), inner.state.clone()));
    }

    /// Drops all past changes, so that watches get a `reset`.
    pub fn forget_events(&self) {
        self.lock().state.log().forget();
    }

    /// Ends all faults: the counted ones, the delay, the outage, the lag and the refusals.
    pub fn heal(&self) {
        let mut inner = self.lock();
        inner.faults.clear();
        (inner.delay, inner.outage, inner.lag) = (Duration::ZERO, None, None);
        (inner.refusal, inner.invalid) = (None, None);
    }

    /// Forgets all agents and changes, like a registry that lost its database: heartbeats get 404, and watches get a `reset`.
    pub fn forget_agents(&self) {
        self.lock().state.forget();
    }

    /// Copies all agents and changes, to be restored later.
    #[must_use]
    pub fn backup(&self) -> Backup {
        self.lock().state.backup()
    }

    /// Restores a backup, as an operator does after losing the database, or as happens when a database fails over to a standby
    /// that lacks changes. A new history begins: it repeats the revisions of the lost changes, but not their ids, and watches
    /// get a `reset`.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), registry_sdk::Error> {
    /// use registry_sdk::testing::MockRegistry;
    /// use registry_sdk::{Registration, WatchEvent};
    ///
    /// let registry = MockRegistry::start().await;
    /// let backup = registry.backup();
    /// registry.client().register(&Registration::new("a", "Agent", "http://agent:8000")).await?;
    /// let mut watch = registry.client().watch();
    /// assert!(matches!(watch.next().await, Some(WatchEvent::Listed(agents)) if agents.len() == 1));
    /// registry.restore(&backup);
    /// assert!(matches!(watch.next().await, Some(WatchEvent::Listed(agents)) if agents.is_empty()));
    /// # Ok(())
    /// # }
    /// ```
    pub fn restore(&self, backup: &Backup) {
        self.lock().state.restore(backup);
    }

    /// Returns the record of an agent, as a client would get it.
    #[must_use]
    pub fn agent(&self, agent_id: &str) -> Option<AgentRecord> {
        self.lock().state.get(agent_id).ok()
    }

    /// Returns all requests that have arrived so far.
    #[must_use]
    pub fn request_log(&self) -> RequestLog {
        self.shared.request_log.borrow().clone()
    }

    /// Returns the number of an agent's heartbeats that have arrived, whether or not they were accepted.
    #[must_use]
    pub fn heartbeats(&self, agent_id: &str) -> usize {
        self.shared.request_log.borrow().heartbeats(agent_id)
    }

    /// Waits until the requests that have arrived meet a condition. Waits forever if they never do, so use a timeout if
    /// that can happen.
    pub async fn wait_until(&self, holds: impl FnMut(&RequestLog) -> bool) {
        // `self` holds the sender, so this cannot fail.
        let _ = self.shared.request_log.subscribe().wait_for(holds).await;
    }

    fn fault(&self, count: usize, fault: InjectedFault) {
        self.lock().faults.extend(std::iter::repeat_n(fault, count));
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.shared.lock()
    }
}

async fn serve(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    while let Ok((connection, _)) = listener.accept().await {
        // The kernel would delay small parts of a stream, and does not know of a paused clock.
        let _ = connection.set_nodelay(true);
        let shared = shared.clone();
        connections.spawn(async move {
            let service = service_fn(|request| respond(shared.clone(), request));
            // The client handles connection errors, which are often intended.
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(connection), service)
                .await;
        });
    }
}

/// Answers a request, or injects a fault. An error closes the connection.
async fn respond(shared: Arc<Shared>, request: Request<Incoming>) -> io::Result<Response<Body>> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
    let (method, path) = (parts.method.as_str(), parts.uri.path());
    let last_event_id = parts.headers.get("last-event-id").and_then(|value| value.to_str().ok());
    let last_event_id = last_event_id.filter(|id| !id.is_empty());
    let query = parts.uri.query().unwrap_or_default();
    let (outcome, delay) = shared.decide(&MockRequest { method, path, query, last_event_id, body: &body });
    shared.record(method, path, &body, outcome.as_ref().ok().map(|answer| answer.status), false);
    match outcome {
        Ok(answer) => {
            sleep(delay).await;
            Ok(response(answer, &shared))
        }
        Err(InjectedFault::Hang) => std::future::pending().await,
        Err(InjectedFault::Late(delay)) => {
            let (method, path, query) = (method.to_owned(), path.to_owned(), query.to_owned());
            tokio::spawn(async move {
                sleep(delay).await;
                let (method, path, query) = (method.as_str(), path.as_str(), query.as_str());
                let request = MockRequest { method, path, query, last_event_id: None, body: &body };
                let status = answer(&mut shared.lock().state, &request).status;
                shared.record(method, path, &body, Some(status), true);
            });
            Err(io::Error::other("cut off on purpose"))
        }
        Err(_) => Err(io::Error::other("cut off on purpose")),
    }
}

type Body = BoxBody<Bytes, io::Error>;

fn response(answer: MockResponse, shared: &Arc<Shared>) -> Response<Body> {
    let kind = match (answer.status, answer.follow) {
        (..400, Some(_)) => "text/event-stream",
        (..400, None) if answer.card_tag.is_some() => CARD_MEDIA_TYPE,
        (..400, None) => "application/json",
        _ => "application/problem+json",
    };
    let mut builder = Response::builder().status(answer.status).header(CONTENT_TYPE, kind);
    if let Some(digest) = answer.card_tag {
        builder = builder.header(ETAG, format!("\"{digest}\""));
    }
    if let Some(next) = answer.next {
        builder = builder.header(LINK, format!("<?{next}>; rel=\"next\""));
    }
    if matches!(answer.status, 429 | 503) {
        builder = builder.header(RETRY_AFTER, 1);
    }
    let whole = |bytes| Full::new(Bytes::from(bytes)).map_err(io::Error::other).boxed();
    let body = match answer.follow {
        None => whole(answer.body),
        Some(after) => {
            let begin = stream::once(future::ready(Ok(Frame::data(Bytes::from(answer.body)))));
            BodyExt::boxed(StreamBody::new(begin.chain(follow(shared.clone(), after))))
        }
    };
    // Only an invalid status could fail here.
    builder.body(body).unwrap_or_else(|_: hyper::http::Error| Response::new(whole(Vec::new())))
}
