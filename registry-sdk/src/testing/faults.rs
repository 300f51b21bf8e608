//! What befalls requests to the mock registry.

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

/// What the registry's tasks share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) inner: Mutex<Inner>,
    /// The requests that have arrived. Notifies those who wait for one.
    pub(super) request_log: watch::Sender<RequestLog>,
    /// How all event streams that were open were ended last.
    pub(super) ends: watch::Sender<StreamEnd>,
}

#[derive(Debug)]
pub(super) struct Inner {
    pub(super) state: MockState,
    /// What befalls the next requests.
    pub(super) faults: VecDeque<InjectedFault>,
    pub(super) delay: Duration,
    /// Until when every request is cut off.
    pub(super) outage: Option<Instant>,
    /// What event streams are answered in place of events.
    pub(super) refusal: Option<u16>,
    /// What is wrong with every registration.
    pub(super) invalid: Option<FieldError>,
    /// What reads show, and until when.
    pub(super) lag: Option<(Instant, MockState)>,
}

/// What befalls one request.
#[derive(Clone, Copy, Debug)]
pub(super) enum InjectedFault {
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

/// How event streams are ended.
#[derive(Clone, Copy, Debug, Default)]
pub(super) enum StreamEnd {
    #[default]
    Cut,
    /// As for readers that are too slow.
    Overrun,
    /// As by a server that is about to stop.
    Draining,
}

impl Shared {
    pub(super) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What becomes of a request, and how long the answer takes.
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
