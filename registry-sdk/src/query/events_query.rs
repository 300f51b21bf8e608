//! Queries of event streams.

use url::form_urlencoded;

use super::from_query_string::FromQueryString;
use super::parameters::{InvalidParameter, invalid, set};
use crate::contract::limits;

/// The events with which a `GET /events` without a `Last-Event-ID` begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct EventsQuery {
    /// Maximum number of past events, up to 1,000. Default: 0.
    pub last: usize,
}

/// The query of a `GET /events`.
impl FromQueryString for EventsQuery {
    fn from_query_string(query: &str) -> Result<Self, InvalidParameter> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn number_of_past_events_is_checked() {
        let read = |query| EventsQuery::from_query_string(query).map(|query| query.last);
        assert_eq!(read("last=50"), Ok(50));
        assert_eq!(read("other=1"), Ok(0));
        assert_eq!(read("last=all"), Err(invalid("last has to be 0 to 1000, is \"all\"")));
    }
}
