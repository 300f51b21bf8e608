//! What this project's server and command line tool share with the SDK. It is not part of the SDK's API, and may change in
//! any version.

#[cfg(feature = "client")]
pub use crate::client::raw::RawPage;
pub use crate::contract::address::is_loopback;
pub use crate::contract::entity_tag::is_known_entity_tag;
pub use crate::contract::event::{DRAINING_EVENT, EventKind, OVERRUN_EVENT, RESET_EVENT};
pub use crate::contract::heartbeat::heartbeat_timeout;
pub use crate::contract::instances::Instances;
pub use crate::contract::maintenance::outlasts_registration;
pub use crate::contract::own_health::{HealthAnswer, MAX_HEALTH_REDIRECTS, health_url};
pub use crate::contract::problem::{UNKNOWN_PATH_DETAIL, invalid_fields_detail};
pub use crate::contract::request_body::RequestBody;
pub use crate::contract::stats::count_agent;
pub use crate::contract::trace_context::{TRACEPARENT_HEADER, trace_id};
pub use crate::contract::validate::is_valid_agent_id;
pub use crate::query::events_query::EventsQuery;
pub use crate::query::filter::FilterParts;
pub use crate::query::from_query_string::FromQueryString;
pub use crate::query::parameters::InvalidParameter;
pub use crate::query::prepared::PreparedSearch;
pub use crate::search::{Hit, Query, Rank, SearchIndex};
