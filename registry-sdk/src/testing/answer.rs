//! What the mock registry answers to a request: the contract's operations and errors.

use std::borrow::Cow;

use serde::Serialize;
use url::form_urlencoded;

use super::book::{Book, Refusal};
use crate::contract::{
    AgentStatus, HealthStatus, Heartbeat, Invalid, Owner, Problem, Registration, ServerHealth, StatusUpdate,
    is_agent_id, limits, terms,
};

/// A whole answer.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) body: Vec<u8>,
    /// The target of a `Link` header to the next page.
    pub(super) next: Option<String>,
    /// The changes after this one follow the body, without end.
    pub(super) follow: Option<u64>,
}

impl Answer {
    fn ok(body: &impl Serialize) -> Self {
        // The contract's types always serialize.
        Self { status: 200, body: serde_json::to_vec(body).unwrap_or_default(), next: None, follow: None }
    }

    pub(super) fn problem(status: u16, detail: impl Into<String>) -> Self {
        Self { status, ..Self::ok(&Problem::new(status, title(status), detail)) }
    }

    fn conflict(detail: impl Into<String>, owner: Owner) -> Self {
        let mut problem = Problem::new(409, title(409), detail);
        problem.owner = Some(owner);
        Self { status: 409, ..Self::ok(&problem) }
    }

    fn invalid(Invalid(errors): Invalid) -> Self {
        let mut problem = Problem::new(422, title(422), "fields are not as they have to be");
        problem.errors = errors;
        Self { status: 422, ..Self::ok(&problem) }
    }
}

fn title(status: u16) -> String {
    let known = reqwest::StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason());
    known.unwrap_or("Error").to_owned()
}

impl From<Refusal> for Answer {
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

/// A request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked<'a> {
    pub(super) method: &'a str,
    pub(super) path: &'a str,
    pub(super) query: &'a str,
    pub(super) last_event_id: Option<&'a str>,
    pub(super) body: &'a [u8],
}

/// Answers a request, as the contract says.
pub(super) fn answer(book: &mut Book, asked: &Asked<'_>) -> Answer {
    let Asked { method, path, query, last_event_id, body } = *asked;
    let outcome = match (method, path.split('/').skip(1).collect::<Vec<_>>().as_slice()) {
        ("POST", ["register"]) => register(book, body),
        ("GET", ["agents"]) => list(book, &Query::new(query)),
        ("GET", ["agents", id]) => book.get(id).map(|record| Answer::ok(&record)).map_err(Answer::from),
        ("DELETE", ["agents", id]) => {
            let removed = book.remove(id).map_err(Answer::from);
            removed.map(|()| Answer { status: 204, body: Vec::new(), next: None, follow: None })
        }
        ("POST", ["agents", id, "heartbeat"]) => heartbeat(book, id, body),
        ("PUT", ["agents", id, "status"]) => set_status(book, id, body),
        ("GET", ["capabilities", "search"]) => search(book, &Query::new(query)),
        ("GET", ["health", id]) => book.health(id).map(|health| Answer::ok(&health)).map_err(Answer::from),
        ("GET", ["health"]) => {
            let version = env!("CARGO_PKG_VERSION");
            Ok(Answer::ok(&ServerHealth::new(
                HealthStatus::Healthy,
                version,
                "mock",
                std::time::Duration::ZERO,
            )))
        }
        ("GET", ["events"]) => events(book, last_event_id),
        ("GET", ["stats"]) => Ok(Answer::ok(&book.stats())),
        _ => Err(Answer::problem(404, format!("there is nothing at {path}"))),
    };
    outcome.unwrap_or_else(|refused| refused)
}

fn events(book: &mut Book, last_event_id: Option<&str>) -> Result<Answer, Answer> {
    let after = last_event_id.map(str::parse).transpose();
    let after = after.map_err(|_| Answer::problem(400, "Last-Event-ID has to be the id of an event"))?;
    let head = book.log().revision();
    let body = format!("id: {}\n\n", after.unwrap_or(head)).into_bytes();
    Ok(Answer { status: 200, body, next: None, follow: Some(after.unwrap_or(head)) })
}

fn register(book: &mut Book, body: &[u8]) -> Result<Answer, Answer> {
    let read = Registration::from_json(body).map_err(|error| malformed(&error))?;
    Ok(Answer::ok(&book.register(read.map_err(Answer::invalid)?)?))
}

fn heartbeat(book: &mut Book, id: &str, body: &[u8]) -> Result<Answer, Answer> {
    let beat = Heartbeat::from_json(body).map_err(|error| malformed(&error))?.map_err(Answer::invalid)?;
    Ok(Answer::ok(&book.beat(id, &beat)?))
}

fn set_status(book: &mut Book, id: &str, body: &[u8]) -> Result<Answer, Answer> {
    let update =
        StatusUpdate::from_json(body).map_err(|error| malformed(&error))?.map_err(Answer::invalid)?;
    Ok(Answer::ok(&book.set_status(id, &update)?))
}

fn malformed(error: &serde_json::Error) -> Answer {
    Answer::problem(400, format!("the body has to be a JSON object: {error}"))
}

fn list(book: &mut Book, query: &Query<'_>) -> Result<Answer, Answer> {
    let (status, limit) = (query.status()?, query.limit()?);
    let after = query.get("cursor");
    if after.is_some_and(|cursor| !is_agent_id(cursor)) {
        return Err(Answer::problem(400, "cursor has to be one that a Link header gave"));
    }
    let mut agents = book.list(status);
    agents.retain(|agent| after.is_none_or(|after| agent.agent_id.as_str() > after));
    let more = limit.is_some_and(|limit| agents.len() > limit);
    agents.truncate(limit.unwrap_or(usize::MAX));
    let mut answer = Answer::ok(&agents);
    if let (true, Some(limit), Some(last)) = (more, limit, agents.last()) {
        let status = status.map_or_else(String::new, |status| format!("status={status}&"));
        answer.next = Some(format!("/agents?{status}limit={limit}&cursor={}", last.agent_id));
    }
    Ok(answer)
}

fn search(book: &mut Book, query: &Query<'_>) -> Result<Answer, Answer> {
    let q = query.get("q").unwrap_or_default();
    if terms(q).next().is_none() {
        return Err(Answer::problem(400, "q has to have at least one letter or digit to search for"));
    }
    let mut found = book.search(q, query.status()?);
    found.truncate(query.limit()?.unwrap_or(limits::DEFAULT_MATCHES));
    Ok(Answer::ok(&found))
}

/// The parameters of a query.
struct Query<'a>(Vec<(Cow<'a, str>, Cow<'a, str>)>);

impl<'a> Query<'a> {
    fn new(query: &'a str) -> Self {
        Self(form_urlencoded::parse(query.as_bytes()).collect())
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(key, _)| key == name).map(|(_, value)| &**value)
    }

    fn status(&self) -> Result<Option<AgentStatus>, Answer> {
        let read = self.get("status").map(str::parse).transpose();
        read.map_err(|error: crate::contract::UnknownStatus| Answer::problem(400, error.to_string()))
    }

    fn limit(&self) -> Result<Option<usize>, Answer> {
        let Some(text) = self.get("limit") else { return Ok(None) };
        match text.parse() {
            Ok(limit @ 1..=limits::PAGE) => Ok(Some(limit)),
            _ => Err(Answer::problem(400, format!("limit has to be 1 to {}", limits::PAGE))),
        }
    }
}
