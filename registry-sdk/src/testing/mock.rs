//! The mock registry's server, and its faults.

use std::collections::VecDeque;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::{StreamExt, future, stream};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::header::{CONTENT_TYPE, LINK, RETRY_AFTER};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::answer::{Answer, Asked, answer};
use super::book::{Backup, Book, Received, Seen};
use crate::client::RegistryClient;
use crate::contract::AgentRecord;
use crate::retry::RetryPolicy;

/// A body that no registry would send.
const GARBAGE: &str = "<!doctype html><title>Sign in</title><p>This is not the registry.</p>";

/// How often it is looked for missed deadlines while somebody watches.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// A registry for tests: it behaves as the contract says, keeps its agents in memory, and misbehaves when told
/// to. When it is dropped, it is gone.
///
/// Faults that are counted are used up by requests in the order in which they were asked for.
#[derive(Debug)]
pub struct MockRegistry {
    address: SocketAddr,
    shared: Arc<Shared>,
    _serving: JoinSet<()>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// What has arrived, for whoever waits for it.
    seen: watch::Sender<Seen>,
    /// Counts how often all event streams were cut off.
    cuts: watch::Sender<u64>,
}

#[derive(Debug)]
struct State {
    book: Book,
    /// What befalls the next requests.
    faults: VecDeque<Harm>,
    delay: Duration,
    /// Until when every request is cut off.
    outage: Option<Instant>,
}

/// What befalls one request.
#[derive(Clone, Copy, Debug)]
enum Harm {
    /// It is answered with this status, and nothing is done.
    Status(u16),
    /// It is cut off without an answer, and nothing is done.
    Drop,
    /// It is done, and the answer is garbage.
    Garbage,
    /// It is done, and the answer's body ends in the middle.
    Truncated,
    /// It is never answered.
    Hang,
    /// It is cut off, and done so much later: something in between had held it back.
    Late(Duration),
}

impl MockRegistry {
    /// Starts a registry with a heartbeat timeout of a minute.
    ///
    /// # Panics
    /// Where no port of the loopback address can be had, or outside of a Tokio runtime.
    pub async fn start() -> Self {
        Self::with_heartbeat_timeout(Duration::from_secs(60)).await
    }

    /// Starts a registry with a heartbeat timeout of one's own.
    ///
    /// # Panics
    /// As [`MockRegistry::start`].
    #[expect(clippy::expect_used, reason = "a test that cannot have its registry has failed")]
    pub async fn with_heartbeat_timeout(timeout: Duration) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port on loopback");
        let address = listener.local_addr().expect("a bound listener has an address");
        let state =
            State { book: Book::new(timeout), faults: VecDeque::new(), delay: Duration::ZERO, outage: None };
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            seen: watch::Sender::default(),
            cuts: watch::Sender::default(),
        });
        let mut serving = JoinSet::new();
        serving.spawn(serve(listener, shared.clone()));
        Self { address, shared, _serving: serving }
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
        self.harm(count, Harm::Status(status));
    }

    /// Cuts off the next requests without an answer, and without doing what they ask.
    pub fn drop_connections(&self, count: usize) {
        self.harm(count, Harm::Drop);
    }

    /// Does what the next requests ask, and answers with a page of HTML and the status 200.
    pub fn garbage_body(&self, count: usize) {
        self.harm(count, Harm::Garbage);
    }

    /// Does what the next requests ask, and answers with half of a body.
    pub fn truncated_body(&self, count: usize) {
        self.harm(count, Harm::Truncated);
    }

    /// Never answers the next requests.
    pub fn hang(&self, count: usize) {
        self.harm(count, Harm::Hang);
    }

    /// Cuts off the next requests without an answer, and does what they ask after a delay, as a proxy may that had held
    /// them back.
    pub fn deliver_late(&self, count: usize, delay: Duration) {
        self.harm(count, Harm::Late(delay));
    }

    /// Waits before every answer from now on. [`Duration::ZERO`] ends it.
    pub fn delay(&self, delay: Duration) {
        self.state().delay = delay;
    }

    /// Cuts off every request from now on and for so long, and the event streams that are open.
    pub fn outage(&self, duration: Duration) {
        self.state().outage = Some(Instant::now() + duration);
        self.cut_event_streams();
    }

    /// Cuts off the event streams that are open. Who comes back finds what it missed.
    pub fn cut_event_streams(&self) {
        self.shared.cuts.send_modify(|cuts| *cuts += 1);
    }

    /// Keeps no past changes: watchers are told to read all anew.
    pub fn forget_events(&self) {
        self.state().book.log().forget();
    }

    /// Ends all faults: those that are counted, the delay and the outage.
    pub fn heal(&self) {
        let mut state = self.state();
        state.faults.clear();
        (state.delay, state.outage) = (Duration::ZERO, None);
    }

    /// Forgets all agents, as a registry that lost its database: their heartbeats are answered 404.
    pub fn forget_agents(&self) {
        self.state().book.forget();
    }

    /// Copies all agents, to be restored later.
    #[must_use]
    pub fn backup(&self) -> Backup {
        self.state().book.backup()
    }

    /// Replaces all agents by those of a backup, as an operator may who lost the database.
    pub fn restore(&self, backup: &Backup) {
        self.state().book.restore(backup);
    }

    /// The record of an agent, as a client would get it.
    #[must_use]
    pub fn agent(&self, agent_id: &str) -> Option<AgentRecord> {
        self.state().book.get(agent_id).ok()
    }

    /// All that has arrived so far.
    #[must_use]
    pub fn seen(&self) -> Seen {
        self.shared.seen.borrow().clone()
    }

    /// How many heartbeats of an agent have arrived, well answered or not.
    #[must_use]
    pub fn heartbeats(&self, agent_id: &str) -> usize {
        self.shared.seen.borrow().heartbeats(agent_id)
    }

    /// Waits until what has arrived is as it should be. Never ends where it does not come to that: put a
    /// time-out around it where that may be.
    pub async fn wait_until(&self, holds: impl FnMut(&Seen) -> bool) {
        // The sender is here, so it cannot be gone.
        let _ = self.shared.seen.subscribe().wait_for(holds).await;
    }

    fn harm(&self, count: usize, harm: Harm) {
        self.state().faults.extend(std::iter::repeat_n(harm, count));
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.lock()
    }
}

async fn serve(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    while let Ok((connection, _)) = listener.accept().await {
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
    let query = parts.uri.query().unwrap_or_default();
    let (outcome, delay) = shared.decide(&Asked { method, path, query, last_event_id, body: &body });
    shared.record(method, path, &body, outcome.as_ref().ok().map(|answer| answer.status), false);
    match outcome {
        Ok(answer) => {
            sleep(delay).await;
            Ok(response(answer, &shared))
        }
        Err(Harm::Hang) => std::future::pending().await,
        Err(Harm::Late(delay)) => {
            let (method, path, query) = (method.to_owned(), path.to_owned(), query.to_owned());
            tokio::spawn(async move {
                sleep(delay).await;
                let (method, path, query) = (method.as_str(), path.as_str(), query.as_str());
                let asked = Asked { method, path, query, last_event_id: None, body: &body };
                let status = answer(&mut shared.lock().book, &asked).status;
                shared.record(method, path, &body, Some(status), true);
            });
            Err(io::Error::other("cut off on purpose"))
        }
        Err(_) => Err(io::Error::other("cut off on purpose")),
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What becomes of a request, and how long the answer takes.
    fn decide(&self, asked: &Asked<'_>) -> (Result<Answer, Harm>, Duration) {
        let mut state = self.lock();
        let delay = state.delay;
        if state.outage.is_some_and(|until| Instant::now() < until) {
            return (Err(Harm::Drop), delay);
        }
        let outcome = match state.faults.pop_front() {
            Some(Harm::Status(status)) => Ok(Answer::problem(status, "failed on purpose")),
            Some(harm @ (Harm::Drop | Harm::Hang | Harm::Late(_))) => Err(harm),
            Some(Harm::Garbage) => {
                let answer = answer(&mut state.book, asked);
                Ok(Answer { status: 200, body: GARBAGE.into(), follow: None, ..answer })
            }
            Some(Harm::Truncated) => {
                let mut answer = answer(&mut state.book, asked);
                answer.follow = None;
                answer.body.truncate(answer.body.len() / 2);
                Ok(answer)
            }
            None => Ok(answer(&mut state.book, asked)),
        };
        (outcome, delay)
    }

    fn record(&self, method: &str, path: &str, body: &[u8], status: Option<u16>, is_late: bool) {
        let received = Received {
            method: method.to_owned(),
            path: path.to_owned(),
            body: String::from_utf8_lossy(body).into_owned(),
            at: Instant::now(),
            status,
            is_late,
        };
        self.seen.send_modify(|seen| seen.0.push(received));
    }
}

type Body = BoxBody<Bytes, io::Error>;

fn response(answer: Answer, shared: &Arc<Shared>) -> Response<Body> {
    let kind = match (answer.status, answer.follow) {
        (..400, Some(_)) => "text/event-stream",
        (..400, None) => "application/json",
        _ => "application/problem+json",
    };
    let mut builder = Response::builder().status(answer.status).header(CONTENT_TYPE, kind);
    if let Some(next) = answer.next {
        builder = builder.header(LINK, format!("<{next}>; rel=\"next\""));
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

/// The changes after one, as they come, until the streams are cut off.
fn follow(
    shared: Arc<Shared>,
    after: u64,
) -> impl futures_util::Stream<Item = io::Result<Frame<Bytes>>> + Send + Sync {
    let (seen, cuts) = (shared.seen.subscribe(), shared.cuts.subscribe());
    stream::unfold((shared, after, seen, cuts), |(shared, after, mut seen, mut cuts)| async move {
        loop {
            let (news, last) = shared.lock().book.log().after(after);
            if !news.is_empty() {
                return Some((Ok(Frame::data(Bytes::from(news))), (shared, last, seen, cuts)));
            }
            tokio::select! {
                // Only requests change anything, or time does.
                _ = seen.changed() => {}
                () = sleep(LOOK_EVERY) => {}
                _ = cuts.changed() => {
                    return Some((Err(io::Error::other("cut off on purpose")), (shared, last, seen, cuts)));
                }
            }
        }
    })
}
