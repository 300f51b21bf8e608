//! `GET /events`: the registry's changes as server-sent events
//! (<https://html.spec.whatwg.org/multipage/server-sent-events.html>).

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{RawQuery, State};
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::http::{HeaderMap, HeaderName};
use axum::response::{IntoResponse, Response};
use futures_util::{Stream, stream};
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::timeout;
use utoipa::IntoParams;

use super::auth::Caller;
use super::describe::{Always, BadParameter, Busy};
use super::problem::ApiError;
use crate::registry::{Cursor, Error, LogRead, Registry, StreamStart};
use crate::store::Position;
use registry_sdk::internal::{DRAINING_EVENT, EventsQuery, FromQueryString, OVERRUN_EVENT, RESET_EVENT};

/// Maximum time without data, since proxies and clients take a longer silence for a lost connection.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "describes a parameter that is parsed as an `EventsQuery`")]
struct LastParam {
    /// Start with up to this many past events, as far as the server still keeps them. Ignored with
    /// `Last-Event-ID`.
    #[param(minimum = 0, maximum = 1000, default = 0)]
    last: Option<usize>,
}

/// Streams every change from now on, or after the event in `Last-Event-ID`, as server-sent events.
///
/// Past events come first: those after `Last-Event-ID`, or the `last` ones. Then an id without an event marks
/// the point from which on everything is new.
///
/// `registered`, `status_changed` and `deregistered` contain the agent's record after the change, and have an
/// opaque id. `reset` means that changes were missed and everything has to be read again. `overrun` is sent
/// once, before a slow reader is disconnected. `draining` is the last event of a server that is about to
/// stop: reconnect at once, to another server if possible.
#[utoipa::path(
    get, path = "/events", tag = "discovery",
    params(LastParam, ("Last-Event-ID" = Option<String>, Header, pattern = "^([0-9]{1,18}(-[0-9a-f]{16})?)?$", description = "Id of the last event that the client received; an empty id counts as none")),
    responses(
        (status = 200, description = "The stream, which does not end.", body = String, content_type = "text/event-stream",
            example = "id: 7-3f0c59d1a2b46e87\nevent: registered\ndata: {\"agent_id\": \"feature-dev\", …}\n\n"),
        BadParameter, Busy, Always,
    ),
)]
pub(super) async fn watch_events(
    State(registry): State<Arc<Registry>>,
    caller: Caller,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let EventsQuery { last, .. } = EventsQuery::from_query_string(&query.unwrap_or_default())?;
    let start = last_event_id(&headers)?.map_or(StreamStart::Last(last), StreamStart::After);
    let permit = registry.admission().event_streams().take().ok_or(Error::TooManyStreams)?;
    let changed = registry.subscribe();
    let (cursor, head) = registry.cursor(start).await;
    let watcher = Watcher { registry, caller, _permit: permit, cursor, changed, next: Next::Begin { head } };
    let headers = [
        (CONTENT_TYPE, "text/event-stream"),
        (CACHE_CONTROL, "no-store"),
        // Keeps nginx from buffering the stream.
        (HeaderName::from_static("x-accel-buffering"), "no"),
    ];
    Ok((headers, Body::from_stream(watcher.stream())).into_response())
}

fn last_event_id(headers: &HeaderMap) -> Result<Option<Position>, ApiError> {
    // Some clients send an empty id if they have not received an event yet.
    let Some(id) = headers.get("last-event-id").filter(|id| !id.is_empty()) else { return Ok(None) };
    let id = id.to_str().ok().and_then(|text| text.parse().ok());
    id.map(Some).ok_or_else(|| ApiError::bad_request("Last-Event-ID has to be the id of an event"))
}

/// An event stream of one client.
struct Watcher {
    registry: Arc<Registry>,
    caller: Caller,
    _permit: OwnedSemaphorePermit,
    cursor: Cursor,
    changed: watch::Receiver<()>,
    next: Next,
}

enum Next {
    /// Send the events up to a position, and then an id without an event.
    Begin {
        head: Position,
    },
    GoOn,
    End,
}

impl Watcher {
    fn stream(self) -> impl Stream<Item = Result<Vec<u8>, std::convert::Infallible>> {
        stream::unfold(self, |mut watcher| async move { Some((Ok(watcher.next().await?), watcher)) })
    }

    async fn next(&mut self) -> Option<Vec<u8>> {
        match self.next {
            Next::Begin { head } => Some(self.begin(head)),
            Next::GoOn => self.go_on().await,
            Next::End => None,
        }
    }

    fn begin(&mut self, head: Position) -> Vec<u8> {
        let (mut frames, is_up_to_date) = match self.registry.read_events(&mut self.cursor) {
            LogRead::UpToDate => (Vec::new(), true),
            LogRead::Frames(frames) => (frames, self.cursor.position().revision >= head.revision),
            LogRead::Lagged(head) | LogRead::Reset(head) => {
                self.next = Next::GoOn;
                return reset(head);
            }
        };
        if is_up_to_date {
            self.next = Next::GoOn;
            // Without data, this is not an event, but clients remember the id and resume from it.
            frames.extend(format!("id: {}\n\n", self.cursor.position()).into_bytes());
        }
        frames
    }

    async fn go_on(&mut self) -> Option<Vec<u8>> {
        loop {
            match self.registry.read_events(&mut self.cursor) {
                LogRead::Frames(frames) => return Some(frames),
                LogRead::Reset(head) => return Some(reset(head)),
                LogRead::Lagged(head) => {
                    self.next = Next::End;
                    // Without an id, so that a reconnecting client resumes after the last event that it read.
                    let revision = head.revision;
                    let last = format!("event: {OVERRUN_EVENT}\ndata: {{\"revision\": {revision}}}\n\n");
                    return Some(last.into_bytes());
                }
                LogRead::UpToDate => {}
            }
            tokio::select! {
                woken = timeout(KEEP_ALIVE, self.changed.changed()) => if woken.is_err() {
                    return Some(b": keep-alive\n\n".to_vec());
                },
                () = self.registry.drain().begun() => {
                    self.next = Next::End;
                    return Some(format!("event: {DRAINING_EVENT}\ndata: {{}}\n\n").into_bytes());
                }
                () = self.caller.credentials_expired() => return None,
            }
        }
    }
}

/// Returns the event for missed changes up to a position, after which everything has to be read again.
fn reset(head: Position) -> Vec<u8> {
    let revision = head.revision;
    format!("id: {head}\nevent: {RESET_EVENT}\ndata: {{\"revision\": {revision}}}\n\n").into_bytes()
}
