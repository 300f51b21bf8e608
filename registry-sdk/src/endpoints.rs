//! The endpoints of a registry, and the choice between them.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use url::{ParseError, Url};

use crate::error::Error;

/// Minimum and maximum time for which a failed endpoint is avoided while another one is available. Doubles with each failure.
const MIN_COOL_DOWN: Duration = Duration::from_secs(30);
const MAX_COOL_DOWN: Duration = Duration::from_secs(300);

/// Total waiting time after which cancelled attempts count against their endpoint. Callers that race requests, or need only the
/// first response, cancel the others earlier.
const MAX_CANCELLED_WAIT: Duration = Duration::from_millis(500);

/// The endpoints of a registry, in order of preference. Clones share their states.
#[derive(Clone)]
pub(crate) struct Endpoints {
    urls: Arc<[Url]>,
    states: Arc<Mutex<Vec<State>>>,
}

/// The state of an endpoint.
#[derive(Clone, Copy, Debug, Default)]
struct State {
    /// When the endpoint last failed. `None` if it has responded since.
    failed_at: Option<Instant>,
    /// Number of failures in a row, not counting those while the endpoint was avoided.
    failures: u32,
    /// When the endpoint last responded.
    answered_at: Option<Instant>,
    /// How long cancelled attempts have waited since then, and until when that was counted.
    cancelled_wait: Duration,
    counted_until: Option<Instant>,
    /// Number of attempts in flight.
    in_flight: usize,
}

impl State {
    fn is_up(&self) -> bool {
        self.failed_at.is_none()
    }

    fn has_cooled_down(&self) -> bool {
        let doublings = self.failures.saturating_sub(1).min(10);
        let cool_down = MIN_COOL_DOWN.saturating_mul(1 << doublings).min(MAX_COOL_DOWN);
        self.failed_at.is_some_and(|at| at.elapsed() >= cool_down)
    }

    fn fail(&mut self) {
        if self.is_up() || self.has_cooled_down() {
            self.failures = self.failures.saturating_add(1);
        }
        (self.failed_at, self.cancelled_wait) = (Some(Instant::now()), Duration::ZERO);
    }

    fn has_answered_since(&self, moment: Instant) -> bool {
        self.answered_at.is_some_and(|at| at >= moment)
    }

    /// Returns whether one call may try the endpoint again although another one is available.
    fn may_be_tried(&self) -> bool {
        self.in_flight == 0 && self.has_cooled_down()
    }
}

/// An attempt at an endpoint. If it is dropped without an outcome, it was cancelled, which may count as a failure, too.
pub(crate) struct Attempt<'a> {
    endpoints: &'a Endpoints,
    index: usize,
    began: Instant,
    /// Whether the response is arriving.
    has_head: AtomicBool,
    is_recorded: bool,
}

impl Endpoints {
    /// Parses one URL, or several separated by commas.
    pub(crate) fn parse(text: &str, has_tls: bool) -> Result<Self, Error> {
        // A password may contain a comma.
        let may_be_secret = text.contains('@');
        let parsed = text.split(',').map(|url| {
            let url = url.trim();
            parse(url, has_tls).map_err(|why| invalid(url, may_be_secret, &why))
        });
        let urls = parsed.collect::<Result<Arc<[_]>, _>>()?;
        let states = Arc::new(Mutex::new(vec![State::default(); urls.len()]));
        Ok(Self { urls, states })
    }

    pub(crate) fn urls(&self) -> &[Url] {
        &self.urls
    }

    /// Begins an attempt of a call that has already tried some endpoints. Uses another endpoint if possible.
    ///
    /// The first available endpoint is used. A failed one is tried again after a while, by one call at a time, which has time
    /// left for another endpoint. If all have failed, calls are spread over them.
    pub(crate) fn begin(&self, tried: &[usize]) -> Attempt<'_> {
        let mut states = self.states();
        let untried = |index: &usize| !tried.contains(index);
        let all = 0..states.len();
        let may_begin =
            |index: &usize| states[*index].is_up() || tried.is_empty() && states[*index].may_be_tried();
        let least_loaded = |index: &usize| (states[*index].in_flight, states[*index].failed_at);
        let index = all.clone().filter(untried).find(may_begin);
        let index = index.or_else(|| all.clone().filter(untried).min_by_key(least_loaded));
        let index = index.or_else(|| all.min_by_key(least_loaded)).unwrap_or_default();
        states[index].in_flight += 1;
        Attempt {
            endpoints: self,
            index,
            began: Instant::now(),
            has_head: AtomicBool::new(false),
            is_recorded: false,
        }
    }

    /// Returns whether there is an endpoint that was not tried, and whether such an endpoint is available.
    pub(crate) fn untried(&self, tried: &[usize]) -> (bool, bool) {
        let states = self.states();
        let mut left = states.iter().enumerate().filter(|(index, _)| !tried.contains(index)).peekable();
        (left.peek().is_some(), left.any(|(_, state)| state.is_up()))
    }

    /// Records that the endpoint failed after its response had begun.
    pub(crate) fn record_failure(&self, index: usize) {
        self.states()[index].fail();
    }

    fn states(&self) -> MutexGuard<'_, Vec<State>> {
        self.states.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Attempt<'_> {
    pub(crate) fn index(&self) -> usize {
        self.index
    }

    /// Records that the response is arriving, so that cancelling the attempt does not count against the endpoint.
    pub(crate) fn head_arrived(&self) {
        self.has_head.store(true, Ordering::Relaxed);
    }

    /// Records nothing, because a later outcome counts.
    pub(crate) fn undecided(mut self) {
        self.is_recorded = true;
    }

    /// Records a response of a registry.
    pub(crate) fn succeeded(mut self) {
        self.is_recorded = true;
        let state = &mut self.endpoints.states()[self.index];
        (state.failed_at, state.failures) = (None, 0);
        (state.answered_at, state.cancelled_wait) = (Some(Instant::now()), Duration::ZERO);
    }

    /// Records a failure of the endpoint. A timeout does not count if the endpoint has responded to other requests meanwhile.
    pub(crate) fn failed(mut self, is_timeout: bool) {
        self.is_recorded = true;
        let state = &mut self.endpoints.states()[self.index];
        if !(is_timeout && state.has_answered_since(self.began)) {
            state.fail();
        }
    }
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        let state = &mut self.endpoints.states()[self.index];
        state.in_flight -= 1;
        if self.is_recorded || self.has_head.load(Ordering::Relaxed) || state.has_answered_since(self.began) {
            return;
        }
        // The time of simultaneous attempts counts once.
        let now = Instant::now();
        let from = state.counted_until.map_or(self.began, |until| until.max(self.began));
        state.cancelled_wait += now.saturating_duration_since(from);
        state.counted_until = Some(now);
        if state.cancelled_wait >= MAX_CANCELLED_WAIT {
            state.fail();
        }
    }
}

/// Formats a URL for errors and logs, without its query, which may contain a key.
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

fn parse(text: &str, has_tls: bool) -> Result<Url, String> {
    if text.is_empty() {
        return Err("it is empty; separate several URLs by single commas".to_owned());
    }
    let url = Url::parse(text).map_err(|error| match error {
        ParseError::RelativeUrlWithoutBase => "it must begin with http:// or https://".to_owned(),
        error => error.to_string(),
    })?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err("it must begin with http:// or https://".to_owned());
    }
    if !url.username().is_empty() || url.password().is_some() {
        let why = "it must not carry a user name or a password, which would end up in logs; use `token` or `token_provider`";
        return Err(why.to_owned());
    }
    if !has_tls && url.scheme() == "https" {
        return Err("https needs the feature `tls` of registry-sdk".to_owned());
    }
    Ok(url)
}

/// Returns an error that names the URL, unless it may contain a password or a key.
fn invalid(text: &str, may_be_secret: bool, why: &str) -> Error {
    let text = text.split('?').next().unwrap_or_default();
    let shown = match text.rsplit_once('@') {
        Some((_, host)) if !host.contains('%') => format!("…@{host}"),
        None if !may_be_secret && !text.contains('%') => text.to_owned(),
        _ => "…".to_owned(),
    };
    Error::Config(format!("{shown:?} is not a valid registry URL: {why}"))
}
