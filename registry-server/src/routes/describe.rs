//! `GET /openapi.json` and `GET /docs`: the API description, generated from the handlers.

use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::Path;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::get;
use registry_sdk::contract::{AgentStatus, Heartbeat, Problem, limits};
use utoipa::openapi::schema::{Array, ArrayBuilder, Ref};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::{IntoParams, IntoResponses, Modify, OpenApi};
use utoipa_swagger_ui::Config;

use super::json::json;
use super::problem::ApiError;

/// Errors of every operation that requires a token.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "describes responses that are created elsewhere")]
pub(super) enum Always {
    /// The server requires a token, but the request has none, or an unknown or expired one.
    #[response(status = 401, content_type = "application/problem+json",
        headers(("WWW-Authenticate" = String, description = "`Bearer`")))]
    Unauthorized(Problem),
    /// The server requires no token, listens on a loopback address, and does not serve the host of the
    /// request.
    #[response(status = 421, content_type = "application/problem+json")]
    Misdirected(Problem),
    /// The client exceeds its rate limit, or its address sent too many unknown or expired tokens.
    #[response(status = 429, content_type = "application/problem+json",
        headers(("Retry-After" = u32, description = "Seconds to wait before the next attempt.")))]
    TooMany(Problem),
    /// The server has a bug. See its log for details.
    #[response(status = 500, content_type = "application/problem+json")]
    Internal(Problem),
}

/// Errors of every operation that changes an agent.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "describes responses that are created elsewhere")]
pub(super) enum Refused {
    /// The token may not change this agent; or the server requires no token, and the request comes from a web
    /// page of another site.
    #[response(status = 403, content_type = "application/problem+json")]
    Forbidden(Problem),
    /// The database does not respond, the server has too many requests or connections, or it is shutting
    /// down.
    #[response(status = 503, content_type = "application/problem+json",
        headers(("Retry-After" = u32, description = "Seconds to wait before the next attempt.")))]
    Unavailable(Problem),
}

/// Errors of every operation with a body.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "describes responses that are created elsewhere")]
pub(super) enum BadBody {
    /// The body is not a JSON object.
    #[response(status = 400, content_type = "application/problem+json")]
    Malformed(Problem),
    /// The body did not arrive within 10 seconds.
    #[response(status = 408, content_type = "application/problem+json")]
    TooSlow(Problem),
    /// The body is longer than 256 KiB.
    #[response(status = 413, content_type = "application/problem+json")]
    TooLarge(Problem),
    /// The body is not declared as JSON, or has a `Content-Encoding`.
    #[response(status = 415, content_type = "application/problem+json")]
    NotJson(Problem),
    /// Fields are missing, have the wrong type or exceed their limits. `errors` lists all of them.
    #[response(status = 422, content_type = "application/problem+json")]
    Invalid(Problem),
}

/// No such agent is registered.
#[derive(IntoResponses)]
#[response(
    status = 404,
    description = "No such agent is registered.",
    content_type = "application/problem+json"
)]
#[expect(dead_code, reason = "describes a response that is created elsewhere")]
pub(super) struct Unknown(Problem);

/// The calling process may not act for the agent.
#[derive(IntoResponses)]
#[response(
    status = 409,
    description = "Another process owns the agent's id, or this process was shut down. `owner` names the owner.",
    content_type = "application/problem+json"
)]
#[expect(dead_code, reason = "describes a response that is created elsewhere")]
pub(super) struct Superseded(Problem);

/// The server has no capacity for another read.
#[derive(IntoResponses)]
#[response(
    status = 503,
    description = "The server has too many connections, or too many requests of this kind.",
    content_type = "application/problem+json",
    headers(("Retry-After" = u32, description = "Seconds to wait before the next attempt."))
)]
#[expect(dead_code, reason = "describes a response that is created elsewhere")]
pub(super) struct Busy(Problem);

/// A parameter is invalid.
#[derive(IntoResponses)]
#[response(
    status = 400,
    description = "A parameter is missing or invalid.",
    content_type = "application/problem+json"
)]
#[expect(dead_code, reason = "describes a response that is created elsewhere")]
pub(super) struct BadParameter(Problem);

/// The filters of lists and searches.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "describes parameters that the SDK parses")]
pub(super) struct FilterParams {
    /// Only agents with this status.
    status: Option<AgentStatus>,
    /// Only agents whose `healthy` has this value.
    healthy: Option<bool>,
    /// Only agents with a capability of exactly this name. A search then only matches this capability.
    #[param(min_length = 1, max_length = 128)]
    capability: Option<String>,
    /// Only agents with a capability that has all these tags. A search then only matches such capabilities.
    #[param(schema_with = tags)]
    tag: Option<Vec<String>>,
    /// Only agents whose metadata has this text, number or boolean at KEY, which is a path of keys separated
    /// by dots. Keys may contain dots themselves. May be given for several KEYs.
    #[param(rename = "metadata.KEY")]
    metadata: Option<String>,
}

/// Limits tags as in a registration.
fn tags() -> Array {
    ArrayBuilder::new().items(Ref::from_schema_name("Tag")).max_items(Some(limits::TAGS)).build()
}

/// The API description. The routes add themselves to it.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "Agent registry",
        description = "Agents register themselves with their capabilities; orchestrators find agents that can do a task.\n\n\
                       Times are RFC 3339 in UTC with milliseconds. Durations are numbers of seconds, in fields that \
                       end in `_seconds`. Unknown fields in requests are ignored, and later versions may add fields to \
                       responses. Errors are `application/problem+json` (RFC 9457).\n\n\
                       Requests that are not valid HTTP get a response without a body, and the connection is closed: \
                       400 if the request is malformed, 431 if its head has more than 64 fields or 32 KiB.\n\n\
                       While the database does not respond, reads are answered from memory. The header \
                       `Registry-Stale-Seconds` then has the number of seconds since the database last responded.",
        license(name = "MIT OR Apache-2.0", identifier = "MIT OR Apache-2.0")
    ),
    // The server that sends this description, as a relative URL: a proxy may serve both below a path.
    servers((url = ".")),
    tags(
        (name = "agents", description = "Registration, heartbeats, status and records"),
        (name = "discovery", description = "Search, health, counts and changes"),
        (name = "server", description = "The server itself"),
    ),
    // Derived responses, such as those above, do not add the schema of their body. Neither does an optional
    // body, which would otherwise be described as possibly `null`.
    components(schemas(Heartbeat, Problem)),
    modifiers(&Bearer),
    security((), ("token" = []))
)]
pub(super) struct Description;

/// The security scheme for tokens.
struct Bearer;

impl Modify for Bearer {
    fn modify(&self, openapi: &mut utoipa::openapi::OpenApi) {
        let scheme = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build();
        let components = openapi.components.get_or_insert_default();
        components.add_security_scheme("token", SecurityScheme::Http(scheme));
    }
}

/// Returns the routes of the page and the description. The page loads nothing from other hosts.
///
/// All references are relative, since a proxy may serve the page below a path.
pub(super) fn pages<S: Clone + Send + Sync + 'static>(description: &utoipa::openapi::OpenApi) -> Router<S> {
    // A description always serializes.
    let description = Bytes::from(serde_json::to_vec(description).unwrap_or_default());
    Router::new()
        .route("/openapi.json", get(move || async { json(description) }))
        .route("/docs", get(async || Redirect::to("docs/")))
        .route("/docs/", get(async || page_file("")))
        .route("/docs/{*name}", get(async |Path(name): Path<String>| page_file(&name)))
}

fn page_file(name: &str) -> Result<Response, ApiError> {
    let config = Config::from("../openapi.json").validator_url("none");
    let file = utoipa_swagger_ui::serve(name, Arc::new(config)).ok().flatten();
    let file = file.ok_or_else(|| ApiError::not_found(format!("there is nothing at /docs/{name}")))?;
    Ok(([(CONTENT_TYPE, file.content_type)], file.bytes).into_response())
}
