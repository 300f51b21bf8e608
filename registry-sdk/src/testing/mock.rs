//! The mock registry's server, and its faults.

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

/// A registry for tests: it behaves as the contract says, keeps its agents in memory, and misbehaves when told
/// to. When it is dropped, it is gone.
///
/// Faults that are counted are used up by requests in the order in which they were request for.
#[derive(Debug)]
pub struct MockRegistry {
    address: SocketAddr,
    shared: Arc<Shared>,
    _serving: JoinSet<()>,
}

/// Sets up a [`MockRegistry`].
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
    /// If no port of the loopback address is free, or outside of a Tokio runtime.
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
    /// Starts a registry with the default settings: [`MockRegistry::builder`].
    ///
    /// # Panics
    /// If no port of the loopback address is free, or outside of a Tokio runtime.
    pub async fn start() -> Self {
        Self::builder().start().await
    }

    /// Sets up a registry.
    #[must_use]
    pub fn builder() -> MockRegistryBuilder {
        MockRegistryBuilder { heartbeat_timeout: Duration::from_secs(60) }
    }

    /// Where it answers.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// A client for it that gives its errors at once, without trying again.
    ///
    /// # Panics
    /// Where the HTTP client cannot be set up.
    #[must_use]
    #[expect(clippy::expect_used, reason = "a test that cannot have its client has failed")]
    pub fn client(&self) -> RegistryClient {
        let builder = RegistryClient::builder(self.url()).retry(RetryPolicy::none());
        builder.build().expect("the URL of a listener is one")
    }

    /// Answers the next requests with a status, without doing what they ask. With 429 and 503 comes a
    /// `Retry-After` of a second.
    pub fn fail_next(&self, count: usize, status: u16) {
        self.fault(count, InjectedFault::Status(status));
    }

    /// Cuts off the next requests without an answer, and without doing what they ask.
    pub fn drop_connections(&self, count: usize) {
        self.fault(count, InjectedFault::Drop);
    }

    /// Does what the next requests ask, and answers with a page of HTML and the status 200.
    pub fn garbage_body(&self, count: usize) {
        self.fault(count, InjectedFault::Garbage);
    }

    /// Does what the next requests ask, and answers with half of a body.
    pub fn truncated_body(&self, count: usize) {
        self.fault(count, InjectedFault::Truncated);
    }

    /// Never answers the next requests.
    pub fn hang(&self, count: usize) {
        self.fault(count, InjectedFault::Hang);
    }

    /// Cuts off the next requests without an answer, and does what they ask after a delay, as a proxy may that had held
    /// them back.
    pub fn deliver_late(&self, count: usize, delay: Duration) {
        self.fault(count, InjectedFault::Late(delay));
    }

    /// Waits before every answer from now on. [`Duration::ZERO`] ends it.
    pub fn delay(&self, delay: Duration) {
        self.lock().delay = delay;
    }

    /// Cuts off every request from now on and for so long, and the event streams that are open.
    pub fn outage(&self, duration: Duration) {
        self.lock().outage = Some(deadline_after(Instant::now(), duration));
        self.cut_event_streams();
    }

    /// Cuts off the event streams that are open. A watch that comes back finds what it missed.
    pub fn cut_event_streams(&self) {
        self.shared.ends.send_replace(StreamEnd::Cut);
    }

    /// Ends the event streams that are open as if their readers were too slow: with what they have not read yet, and `overrun`.
    pub fn overrun_event_streams(&self) {
        self.shared.ends.send_replace(StreamEnd::Overrun);
    }

    /// Ends the event streams that are open with `draining`, like a server that is about to stop.
    pub fn drain_event_streams(&self) {
        self.shared.ends.send_replace(StreamEnd::Draining);
    }

    /// Answers every request for an event stream with a status from now on, and cuts off those that are open: a token has
    /// expired (401), or a proxy knows no such path (404). [`MockRegistry::heal`] ends it.
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

    /// Answers every registration with 422 and this field from now on, as a registry does that was upgraded and takes less than
    /// before. Heartbeats and all else go on. [`MockRegistry::heal`] ends it.
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

    /// Answers reads for so long as of now, as a replica that lags behind. Writes are made, and event streams report them.
    /// [`MockRegistry::heal`] ends it.
    pub fn lag(&self, duration: Duration) {
        let mut inner = self.lock();
        inner.lag = Some((deadline_after(Instant::now(), duration), inner.state.clone()));
    }

    /// Drops all past changes, so that watches get a `reset`.
    pub fn forget_events(&self) {
        self.lock().state.log().forget();
    }

    /// Ends all faults: those that are counted, the delay, the outage, the lag and the refusals.
    pub fn heal(&self) {
        let mut inner = self.lock();
        inner.faults.clear();
        (inner.delay, inner.outage, inner.lag) = (Duration::ZERO, None, None);
        (inner.refusal, inner.invalid) = (None, None);
    }

    /// Forgets all agents and changes, like a registry that lost its database: heartbeats are answered 404, and watches get a
    /// `reset`.
    pub fn forget_agents(&self) {
        self.lock().state.forget();
    }

    /// Copies all agents and changes, to be restored later.
    #[must_use]
    pub fn backup(&self) -> Backup {
        self.lock().state.backup()
    }

    /// Goes back to a backup, as an operator may who lost the database, or as a database does that fails over to a standby which
    /// lacked changes. A new history begins: its revisions are those of the lost changes once more, their ids are not, and watches
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

    /// The record of an agent, as a client would get it.
    #[must_use]
    pub fn agent(&self, agent_id: &str) -> Option<AgentRecord> {
        self.lock().state.get(agent_id).ok()
    }

    /// All that has arrived so far.
    #[must_use]
    pub fn request_log(&self) -> RequestLog {
        self.shared.request_log.borrow().clone()
    }

    /// How many heartbeats of an agent have arrived, well answered or not.
    #[must_use]
    pub fn heartbeats(&self, agent_id: &str) -> usize {
        self.shared.request_log.borrow().heartbeats(agent_id)
    }

    /// Waits until what has arrived is as it should be. Never ends where it does not come to that: put a
    /// time-out around it where that may be.
    pub async fn wait_until(&self, holds: impl FnMut(&RequestLog) -> bool) {
        // The sender is here, so it cannot be gone.
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
        // Small parts of a stream would wait for the kernel, which knows nothing of a paused clock.
        let _ = connection.set_nodelay(true);
        let shared = shared.clone();
        connections.spawn(async move {
            let service = service_fn(|request| respond(shared.clone(), request));
            // A connection that ends badly is the client's matter, and often the purpose.
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(connection), service)
                .await;
        });
    }
}

/// Answers one request, or harms it. An error closes the connection.
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
    // Only a status that is none could fail here.
    builder.body(body).unwrap_or_else(|_: hyper::http::Error| Response::new(whole(Vec::new())))
}
