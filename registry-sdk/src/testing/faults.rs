//! The faults of the mock registry.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::request_log::{ReceivedRequest, RequestLog};
use super::routes::{MockRequest, MockResponse, answer};
use super::state::MockState;
use crate::contract::{FieldError, ValidationError};

/// A body that no registry would send.
const GARBAGE: &str = "<!doctype html><title>Sign in</title><p>This is not the registry.</p>";

/// State that the registry's tasks share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) inner: Mutex<Inner>,
    /// The requests that have arrived. Wakes the tasks that wait for one.
    pub(super) request_log: watch::Sender<RequestLog>,
    /// How all open event streams were last ended.
    pub(super) ends: watch::Sender<StreamEnd>,
}

#[derive(Debug)]
pub(super) struct Inner {
    pub(super) state: MockState,
    /// The faults of the next requests.
    pub(super) faults: VecDeque<InjectedFault>,
    pub(super) delay: Duration,
    /// Until when every request is cut off.
    pub(super) outage: Option<Instant>,
    /// The status that requests for event streams get.
    pub(super) refusal: Option<u16>,
    /// The error that every registration gets.
    pub(super) invalid: Option<FieldError>,
    /// The state that reads show, and until when.
    pub(super) lag: Option<(Instant, MockState)>,
}

/// A fault of one request.
#[derive(Clone, Copy, Debug)]
pub(super) enum InjectedFault {
    /// The response has this status, and the request has no effect.
    Status(u16),
    /// The connection is closed without a response, and the request has no effect.
    Drop,
    /// The request takes effect, and the response is garbage.
    Garbage,
    /// The request takes effect, and the response's body ends in the middle.
    Truncated,
    /// The request gets no response.
    Hang,
    /// The connection is closed, and the request takes effect after this delay, as if something had held it back.
    Late(Duration),
}

/// How event streams are ended.
#[derive(Clone, Copy, Debug, Default)]
pub(super) enum StreamEnd {
    #[default]
    Cut,
    /// As for slow readers.
    Overrun,
    /// As by a server that is about to stop.
    Draining,
}

impl Shared {
    pub(super) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the response to a request, and its delay.
    pub(super) fn decide(
        &self,
        request: &MockRequest<'_>,
    ) -> (Result<MockResponse, InjectedFault>, Duration) {
        let mut inner = self.lock();
        let delay = inner.delay;
        if inner.outage.is_some_and(|until| Instant::now() < until) {
            return (Err(InjectedFault::Drop), delay);
        }
        let is_stream = request.path == "/events";
        if let Some(status) = inner.refusal.filter(|_| is_stream) {
            return (Ok(MockResponse::problem(status, "refused on purpose")), delay);
        }
        if let Some(error) = inner.invalid.clone().filter(|_| request.path == "/register") {
            return (Ok(MockResponse::invalid(ValidationError(vec![error]))), delay);
        }
        let lag = inner.lag.as_mut().filter(|(until, _)| Instant::now() < *until);
        if let Some((_, state)) = lag.filter(|_| request.method == "GET" && !is_stream) {
            return (Ok(answer(state, request)), delay);
        }
        let outcome = match inner.faults.pop_front() {
            Some(InjectedFault::Status(status)) => Ok(MockResponse::problem(status, "failed on purpose")),
            Some(fault @ (InjectedFault::Drop | InjectedFault::Hang | InjectedFault::Late(_))) => Err(fault),
            Some(InjectedFault::Garbage) => {
                let answer = answer(&mut inner.state, request);
                Ok(MockResponse { status: 200, body: GARBAGE.into(), follow: None, ..answer })
            }
            Some(InjectedFault::Truncated) => {
                let mut answer = answer(&mut inner.state, request);
                answer.follow = None;
                answer.body.truncate(answer.body.len() / 2);
                Ok(answer)
            }
            None => Ok(answer(&mut inner.state, request)),
        };
        (outcome, delay)
    }

    pub(super) fn record(&self, method: &str, path: &str, body: &[u8], status: Option<u16>, is_late: bool) {
        let received = ReceivedRequest {
            method: method.to_owned(),
            path: path.to_owned(),
            body: String::from_utf8_lossy(body).into_owned(),
            at: Instant::now(),
            status,
            is_late,
        };
        self.request_log.send_modify(|seen| seen.0.push(received));
    }
}
