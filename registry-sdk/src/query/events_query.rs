//! Which events to stream.

use url::form_urlencoded;

use super::parameters::{InvalidParameter, invalid, set};
use crate::contract::limits;

/// Which events a `GET /events` without a `Last-Event-ID` begins with.
///
/// ```
/// use registry_sdk::EventsQuery;
/// assert_eq!(EventsQuery::from_query_string("last=50")?.last, 50);
/// let error = EventsQuery::from_query_string("last=all").unwrap_err();
/// assert_eq!(error.to_string(), "last has to be 0 to 1000, is \"all\"");
/// # Ok::<(), registry_sdk::InvalidParameter>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct EventsQuery {
    /// Maximum number of past events, up to 1,000. Default: 0.
    pub last: usize,
}

impl EventsQuery {
    /// Reads the query of a `GET /events`, as a registry does. Unknown parameters are ignored.
    ///
    /// # Errors
    /// If a parameter is invalid.
    pub fn from_query_string(query: &str) -> Result<Self, InvalidParameter> {
        let mut last = None;
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            if name == "last" {
                set("last", &mut last, read_last(&value)?)?;
            }
        }
        Ok(Self { last: last.unwrap_or_default() })
    }
}

fn read_last(value: &str) -> Result<usize, InvalidParameter> {
    let most = limits::LAST_EVENTS;
    let last = value.parse().ok().filter(|last| (0..=most).contains(last));
    last.ok_or_else(|| invalid(format!("last has to be 0 to {most}, is {value:?}")))
}
