//! The URLs of a registry, and which of them to use.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use url::Url;

use crate::error::Error;

/// How long a registry that failed is left alone while another one answers.
const COOL_DOWN: Duration = Duration::from_secs(30);

/// The registry URLs, in the order in which they are preferred. Clones share what is known of them.
#[derive(Clone, Debug)]
pub(crate) struct Endpoints {
    urls: Arc<[Url]>,
    /// When each of them last failed, where it has not answered since.
    failed: Arc<Mutex<Vec<Option<Instant>>>>,
}

impl Endpoints {
    /// Reads one URL, or several with commas between.
    pub(crate) fn parse(text: &str) -> Result<Self, Error> {
        let urls = text.split(',').map(|url| parse(url.trim())).collect::<Result<Arc<[_]>, _>>()?;
        let failed = Arc::new(Mutex::new(vec![None; urls.len()]));
        Ok(Self { urls, failed })
    }

    /// The first that has not failed lately; where all have, the one whose failure is the longest ago.
    pub(crate) fn pick(&self) -> usize {
        let failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        let rested = failed.iter().position(|at| at.is_none_or(|at| at.elapsed() >= COOL_DOWN));
        rested.unwrap_or_else(|| (0..failed.len()).min_by_key(|index| failed[*index]).unwrap_or_default())
    }

    pub(crate) fn url(&self, index: usize) -> &Url {
        &self.urls[index]
    }

    pub(crate) fn count(&self) -> usize {
        self.urls.len()
    }

    /// Notes whether a registry answered.
    pub(crate) fn record(&self, index: usize, answered: bool) {
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        failed[index] = if answered { None } else { Some(Instant::now()) };
    }
}

fn parse(text: &str) -> Result<Url, Error> {
    let wrong = |why: &str| Error::Config(format!("{text:?} cannot be a registry's URL: {why}"));
    let url = Url::parse(text).map_err(|error| wrong(&error.to_string()))?;
    if matches!(url.scheme(), "http" | "https") {
        Ok(url)
    } else {
        Err(wrong("it has to begin with http:// or https://"))
    }
}
