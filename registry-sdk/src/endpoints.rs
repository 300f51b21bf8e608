//! The URLs of a registry, and which of them to use.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use url::Url;

use crate::error::Error;

/// How long an endpoint that failed is left alone while another one answers.
const COOL_DOWN: Duration = Duration::from_secs(30);

/// Cancelled attempts count against their endpoint once they have waited so long in all: callers that race several requests, or
/// need only the first answer, cancel the others soon.
const MAX_CANCELLED_WAIT: Duration = Duration::from_millis(500);

/// The endpoints of a registry, in order of preference. Clones share their states.
#[derive(Clone)]
pub(crate) struct Endpoints {
    urls: Arc<[Url]>,
    states: Arc<Mutex<Vec<State>>>,
}

/// What is known of one endpoint.
#[derive(Clone, Copy, Debug, Default)]
struct State {
    /// When it last failed. `None` if it has answered since.
    failed_at: Option<Instant>,
    /// When it last answered.
    answered_at: Option<Instant>,
    /// How long cancelled attempts have waited since then.
    cancelled_wait: Duration,
    /// Number of attempts under way.
    in_flight: usize,
}

impl State {
    fn is_up(&self) -> bool {
        self.failed_at.is_none()
    }

    /// Whether one call may try it again, although another endpoint is up.
    fn may_be_tried(&self) -> bool {
        self.in_flight == 0 && self.failed_at.is_some_and(|at| at.elapsed() >= COOL_DOWN)
    }
}

/// One attempt at one endpoint. Unless its outcome is recorded, it was cancelled, which may count as a failure, too.
pub(crate) struct Attempt<'a> {
    endpoints: &'a Endpoints,
    index: usize,
    began: Instant,
    is_recorded: bool,
}

impl Endpoints {
    /// Parses one URL, or several separated by commas.
    pub(crate) fn parse(text: &str) -> Result<Self, Error> {
        let urls = text.split(',').map(|url| parse(url.trim())).collect::<Result<Arc<[_]>, _>>()?;
        let states = Arc::new(Mutex::new(vec![State::default(); urls.len()]));
        Ok(Self { urls, states })
    }

    pub(crate) fn urls(&self) -> &[Url] {
        &self.urls
    }

    /// Begins an attempt, at another endpoint than `avoid` if there is one.
    ///
    /// The first endpoint that is up is used. One that failed is tried again after a while, by one call at a time. If all have
    /// failed, calls spread over them.
    pub(crate) fn begin(&self, avoid: Option<usize>) -> Attempt<'_> {
        let mut states = self.states();
        let candidates = (0..states.len()).filter(|index| states.len() == 1 || Some(*index) != avoid);
        let preferred =
            candidates.clone().find(|index| states[*index].is_up() || states[*index].may_be_tried());
        let fallback = || candidates.min_by_key(|index| (states[*index].in_flight, states[*index].failed_at));
        let index = preferred.or_else(fallback).unwrap_or_default();
        states[index].in_flight += 1;
        Attempt { endpoints: self, index, began: Instant::now(), is_recorded: false }
    }

    /// Whether an endpoint other than this one is up.
    pub(crate) fn has_other(&self, index: usize) -> bool {
        self.states().iter().enumerate().any(|(other, state)| other != index && state.is_up())
    }

    fn states(&self) -> MutexGuard<'_, Vec<State>> {
        self.states.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Attempt<'_> {
    pub(crate) fn index(&self) -> usize {
        self.index
    }

    /// Records whether the endpoint answered as a registry does, or failed.
    pub(crate) fn record(mut self, is_failure: bool) {
        self.is_recorded = true;
        let state = &mut self.endpoints.states()[self.index];
        if is_failure {
            state.failed_at = Some(Instant::now());
        } else {
            (state.failed_at, state.answered_at) = (None, Some(Instant::now()));
        }
        state.cancelled_wait = Duration::ZERO;
    }
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        let state = &mut self.endpoints.states()[self.index];
        state.in_flight -= 1;
        let has_answered_since = state.answered_at.is_some_and(|at| at >= self.began);
        if self.is_recorded || has_answered_since {
            return;
        }
        state.cancelled_wait += self.began.elapsed();
        if state.cancelled_wait >= MAX_CANCELLED_WAIT {
            (state.failed_at, state.cancelled_wait) = (Some(Instant::now()), Duration::ZERO);
        }
    }
}

/// A URL as errors and logs show it: a query may carry a key.
pub(crate) fn shown(url: &Url) -> String {
    let mut url = url.clone();
    url.set_query(None);
    url.to_string()
}

impl fmt::Debug for Endpoints {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.urls.iter().map(shown)).finish()
    }
}

fn parse(text: &str) -> Result<Url, Error> {
    let url = Url::parse(text).map_err(|error| invalid(text, &error.to_string()))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(invalid(text, "it has to begin with http:// or https://"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(invalid(
            text,
            "it must not carry a user name or a password, which would end up in logs; use `token` or `token_provider`",
        ));
    }
    if cfg!(not(feature = "tls")) && url.scheme() == "https" {
        return Err(invalid(text, "https needs the feature `tls` of registry-sdk"));
    }
    Ok(url)
}

/// Names the URL, unless it may carry a password.
fn invalid(text: &str, why: &str) -> Error {
    let shown = match text.rsplit_once('@') {
        Some((_, host)) if !host.contains('%') => format!("…@{host}"),
        None if !text.contains('%') => text.to_owned(),
        _ => "…".to_owned(),
    };
    Error::Config(format!("{shown:?} cannot be a registry's URL: {why}"))
}
