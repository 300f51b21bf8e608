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

/// Maximum time without data: proxies and clients take a longer silence for a lost connection.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "it describes a parameter, which is read as an `EventsQuery`")]
struct LastParam {
    /// Begin with up to this number of past events, as many as the server still keeps. Ignored with a `Last-Event-ID`.
    #[param(minimum = 0, maximum = 1000, default = 0)]
    last: Option<usize>,
}

/// Streams every change from now on, or after the event in `Last-Event-ID`, as server-sent events.
///
/// What happened before the stream was opened comes first: the events after `Last-Event-ID`, or the `last` ones. Then an id
/// without an event says that everything from there on is new.
///
/// `registered`, `status_changed` and `deregistered` have the agent's record, as it was after the change, as their data,
/// and an opaque id. `reset` says that changes were missed and everything has to be read anew;
/// `overrun` is sent once, before a slow reader is disconnected. `draining` is the last event of a server that is about to
/// stop: connect again at once, to another server if there is one.
#[utoipa::path(
    get, path = "/events", tag = "discovery",
    params(LastParam, ("Last-Event-ID" = Option<String>, Header, pattern = "^([0-9]{1,18}(-[0-9a-f]{16})?)?$", description = "Id of the last event that was seen; an empty one counts as none")),
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
        // Tells nginx not to hold back what has been sent.
        (HeaderName::from_static("x-accel-buffering"), "no"),
    ];
    Ok((headers, Body::from_stream(watcher.stream())).into_response())
}

fn last_event_id(headers: &HeaderMap) -> Result<Option<Position>, ApiError> {
    // Some clients send an empty one if they have seen no event.
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
    /// Send what happened up to a position, and an id alone.
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
            // Without data it is no event, but it tells where to go on after a lost connection.
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
                    // Without an id: a client that reconnects resumes after the last event that it read.
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

/// Says that changes up to a position were missed, and that all has to be read anew.
fn reset(head: Position) -> Vec<u8> {
    let revision = head.revision;
    format!("id: {head}\nevent: {RESET_EVENT}\ndata: {{\"revision\": {revision}}}\n\n").into_bytes()
}
