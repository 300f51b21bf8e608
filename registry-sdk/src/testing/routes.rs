//! The routes of the mock registry: the contract's operations and errors.

use serde::Serialize;

use super::log::Cursor;
use super::state::{MockState, Refusal};
use crate::contract::problem::invalid_fields_detail;
use crate::contract::request_body::RequestBody;
use crate::contract::{
    HealthStatus, Heartbeat, MaintenanceRequest, Owner, Problem, Registration, ServerHealth, StatusUpdate,
    ValidationError,
};
use crate::query::ListQuery;
use crate::query::events_query::EventsQuery;
use crate::query::from_query_string::FromQueryString;
use crate::query::parameters::InvalidParameter;
use crate::query::prepared::PreparedSearch;

/// A complete response.
#[derive(Debug, Default)]
pub(super) struct MockResponse {
    pub(super) status: u16,
    pub(super) body: Vec<u8>,
    /// The query of the next page, for a `Link` header.
    pub(super) next: Option<String>,
    /// The `ETag` of a card.
    pub(super) card_tag: Option<String>,
    /// The position after which changes follow the body, without end.
    pub(super) follow: Option<Cursor>,
}

impl MockResponse {
    fn ok(body: &impl Serialize) -> Self {
        // Serializing the contract's types cannot fail.
        Self { status: 200, body: serde_json::to_vec(body).unwrap_or_default(), ..Self::default() }
    }

    pub(super) fn problem(status: u16, detail: impl Into<String>) -> Self {
        Self { status, ..Self::ok(&Problem::new(status, title(status), detail)) }
    }

    fn conflict(detail: impl Into<String>, owner: Owner) -> Self {
        let mut problem = Problem::new(409, title(409), detail);
        problem.owner = Some(owner);
        Self { status: 409, ..Self::ok(&problem) }
    }

    pub(super) fn invalid(ValidationError(errors): ValidationError) -> Self {
        let mut problem = Problem::new(422, title(422), invalid_fields_detail(errors.len()));
        problem.errors = errors;
        Self { status: 422, ..Self::ok(&problem) }
    }
}

fn title(status: u16) -> String {
    let known = reqwest::StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason());
    known.unwrap_or("Error").to_owned()
}

impl From<Refusal> for MockResponse {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Unknown => Self::problem(404, "no such agent is registered"),
            Refusal::Superseded(owner) => {
                let instance = owner.instance_id.as_deref().unwrap_or_default();
                let detail = format!(
                    "the agent is owned by another process (instance {instance} at {}): if this is a different agent, \
                     give it its own id",
                    owner.base_url
                );
                Self::conflict(detail, owner)
            }
            Refusal::ShutDown(owner) => Self::conflict("this instance of the agent was shut down", owner),
        }
    }
}

impl From<InvalidParameter> for MockResponse {
    fn from(invalid: InvalidParameter) -> Self {
        Self::problem(400, invalid.to_string())
    }
}

/// A request.
#[derive(Clone, Copy, Debug)]
pub(super) struct MockRequest<'a> {
    pub(super) method: &'a str,
    pub(super) path: &'a str,
    pub(super) query: &'a str,
    pub(super) last_event_id: Option<&'a str>,
    pub(super) body: &'a [u8],
}

/// Answers a request, as the contract says.
pub(super) fn answer(state: &mut MockState, request: &MockRequest<'_>) -> MockResponse {
    let MockRequest { method, path, query, last_event_id, body } = *request;
    let outcome = match (method, path.split('/').skip(1).collect::<Vec<_>>().as_slice()) {
        ("POST", ["register"]) => register(state, body),
        ("GET", ["agents"]) => list(state, query),
        ("GET", ["agents", id]) => {
            state.get(id).map(|record| MockResponse::ok(&record)).map_err(MockResponse::from)
        }
        ("DELETE", ["agents", id]) => {
            let removed = state.remove(id).map_err(MockResponse::from);
            removed.map(|()| MockResponse { status: 204, ..MockResponse::default() })
        }
        ("GET", ["agents", id, "card"]) => card(state, id),
        ("POST", ["agents", id, "heartbeat"]) => heartbeat(state, id, body),
        ("PUT", ["agents", id, "status"]) => set_status(state, id, body),
        ("PUT", ["agents", id, "maintenance"]) => set_maintenance(state, id, body),
        ("DELETE", ["agents", id, "maintenance"]) => {
            state.end_maintenance(id).map(|record| MockResponse::ok(&record)).map_err(MockResponse::from)
        }
        ("GET", ["capabilities", "search"]) => search(state, query),
        ("GET", ["health", id]) => {
            state.health(id).map(|health| MockResponse::ok(&health)).map_err(MockResponse::from)
        }
        ("GET", ["health"]) => {
            let version = env!("CARGO_PKG_VERSION");
            Ok(MockResponse::ok(&ServerHealth::new(
                HealthStatus::Healthy,
                version,
                "mock",
                std::time::Duration::ZERO,
            )))
        }
        ("GET", ["events"]) => events(state, query, last_event_id),
        ("GET", ["stats"]) => Ok(MockResponse::ok(&state.stats())),
        _ => Err(MockResponse::problem(404, format!("there is nothing at {path}"))),
    };
    outcome.unwrap_or_else(|refused| refused)
}

fn events(
    state: &mut MockState,
    query: &str,
    last_event_id: Option<&str>,
) -> Result<MockResponse, MockResponse> {
    let EventsQuery { last } = EventsQuery::from_query_string(query)?;
    let log = state.log();
    let cursor = log.begin(last_event_id, last);
    let cursor =
        cursor.ok_or_else(|| MockResponse::problem(400, "Last-Event-ID has to be the id of an event"))?;
    let is_reset = log.has_lost(cursor);
    let (mut body, cursor) = log.after(cursor);
    if !is_reset {
        body.extend(log.greeting());
    }
    Ok(MockResponse { status: 200, body, follow: Some(cursor), ..MockResponse::default() })
}

fn register(state: &mut MockState, body: &[u8]) -> Result<MockResponse, MockResponse> {
    let read = Registration::from_json(body).map_err(|error| malformed(&error))?;
    Ok(MockResponse::ok(&state.register(read.map_err(MockResponse::invalid)?)?))
}

fn card(state: &mut MockState, id: &str) -> Result<MockResponse, MockResponse> {
    let none = || MockResponse::problem(404, format!("agent {id:?} has registered no A2A agent card"));
    let (card, digest) = state.card(id)?.ok_or_else(none)?;
    Ok(MockResponse {
        status: 200,
        body: card.as_str().into(),
        card_tag: Some(digest),
        ..MockResponse::default()
    })
}

fn heartbeat(state: &mut MockState, id: &str, body: &[u8]) -> Result<MockResponse, MockResponse> {
    let beat =
        Heartbeat::from_json(body).map_err(|error| malformed(&error))?.map_err(MockResponse::invalid)?;
    Ok(MockResponse::ok(&state.heartbeat(id, &beat)?))
}

fn set_status(state: &mut MockState, id: &str, body: &[u8]) -> Result<MockResponse, MockResponse> {
    let update =
        StatusUpdate::from_json(body).map_err(|error| malformed(&error))?.map_err(MockResponse::invalid)?;
    Ok(MockResponse::ok(&state.set_status(id, &update)?))
}

fn set_maintenance(state: &mut MockState, id: &str, body: &[u8]) -> Result<MockResponse, MockResponse> {
    let request = MaintenanceRequest::from_json(body).map_err(|error| malformed(&error))?;
    Ok(MockResponse::ok(&state.set_maintenance(id, &request.map_err(MockResponse::invalid)?)?))
}

fn malformed(error: &serde_json::Error) -> MockResponse {
    MockResponse::problem(400, format!("the body has to be a JSON object: {error}"))
}

fn list(state: &mut MockState, query: &str) -> Result<MockResponse, MockResponse> {
    let mut query = ListQuery::from_query_string(query)?;
    let (agents, next) = state.list(&query);
    let mut answer = MockResponse::ok(&agents);
    if next.is_some() {
        query.cursor = next;
        answer.next = Some(query.to_query_string());
    }
    Ok(answer)
}

fn search(state: &mut MockState, query: &str) -> Result<MockResponse, MockResponse> {
    let search = PreparedSearch::from_query_string(query)?;
    let (found, next) = state.search(&search);
    let mut answer = MockResponse::ok(&found);
    answer.next = next.map(|cursor| search.query().clone().after(cursor).to_query_string());
    Ok(answer)
}
