//! `GET /openapi.json` and `GET /docs`: what the API is, told by the handlers themselves.

use axum::Router;
use registry_sdk::contract::Problem;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::{IntoResponses, Modify, OpenApi};
use utoipa_swagger_ui::{Config, SwaggerUi};

/// What every operation may answer beside its own.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "it describes answers, which are made elsewhere")]
pub(super) enum Always {
    /// A token is asked for, and none was shown, or one that is unknown or has expired.
    #[response(status = 401, content_type = "application/problem+json")]
    Unauthorized(Problem),
    /// The client sends more requests than it may; `Retry-After` says when to try again. Only where rates are limited.
    #[response(status = 429, content_type = "application/problem+json")]
    TooMany(Problem),
    /// A defect of the server. Its log says more.
    #[response(status = 500, content_type = "application/problem+json")]
    Internal(Problem),
}

/// What every operation that changes something may answer beside its own.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "it describes answers, which are made elsewhere")]
pub(super) enum Refused {
    /// The token does not allow to change this agent.
    #[response(status = 403, content_type = "application/problem+json")]
    Forbidden(Problem),
    /// The database is away, or too many requests wait. Nothing was changed; `Retry-After` says when to try again.
    #[response(status = 503, content_type = "application/problem+json")]
    Unavailable(Problem),
}

/// What every operation with a body may answer beside its own.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "it describes answers, which are made elsewhere")]
pub(super) enum BadBody {
    /// The body is no JSON object.
    #[response(status = 400, content_type = "application/problem+json")]
    Malformed(Problem),
    /// The body did not come in time.
    #[response(status = 408, content_type = "application/problem+json")]
    TooSlow(Problem),
    /// The body is longer than 256 KiB.
    #[response(status = 413, content_type = "application/problem+json")]
    TooLarge(Problem),
    /// The body is not declared as JSON, or is encoded.
    #[response(status = 415, content_type = "application/problem+json")]
    NotJson(Problem),
    /// Fields are missing, of a wrong type or out of their limits: all of them are named.
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
#[expect(dead_code, reason = "it describes an answer, which is made elsewhere")]
pub(super) struct Unknown(Problem);

/// The process that asks may not speak for the agent.
#[derive(IntoResponses)]
#[response(
    status = 409,
    description = "Another process owns the agent's id, or this one was shut down. `owner` is the process that has the id.",
    content_type = "application/problem+json"
)]
#[expect(dead_code, reason = "it describes an answer, which is made elsewhere")]
pub(super) struct Superseded(Problem);

/// Too many requests of this kind are worked on.
#[derive(IntoResponses)]
#[response(
    status = 503,
    description = "Too many requests of this kind are worked on; `Retry-After` says when to try again.",
    content_type = "application/problem+json"
)]
#[expect(dead_code, reason = "it describes an answer, which is made elsewhere")]
pub(super) struct Busy(Problem);

/// The query cannot be read.
#[derive(IntoResponses)]
#[response(
    status = 400,
    description = "The query cannot be read.",
    content_type = "application/problem+json"
)]
#[expect(dead_code, reason = "it describes an answer, which is made elsewhere")]
pub(super) struct BadQuery(Problem);

/// The description, to which the routes add themselves.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "Agent registry",
        description = "Agents announce themselves and what they can do; orchestrators find one that can do a task.\n\n\
                       Times are RFC 3339 in UTC with milliseconds; durations are numbers of seconds, in fields that \
                       end in `_seconds`. Unknown fields are ignored. Errors are `application/problem+json` (RFC 9457).",
        license(name = "MIT OR Apache-2.0", identifier = "MIT OR Apache-2.0")
    ),
    // Answers that are derived, as those above, do not bring the schema of their body along.
    components(schemas(Problem)),
    modifiers(&Bearer),
    security((), ("token" = []))
)]
pub(super) struct Description;

/// The token, where one is asked for.
struct Bearer;

impl Modify for Bearer {
    fn modify(&self, openapi: &mut utoipa::openapi::OpenApi) {
        let scheme = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build();
        let components = openapi.components.get_or_insert_default();
        components.add_security_scheme("token", SecurityScheme::Http(scheme));
    }
}

/// The page and the description. The page is part of the program: it asks nothing of the outside.
pub(super) fn pages<S: Clone + Send + Sync + 'static>(description: utoipa::openapi::OpenApi) -> Router<S> {
    let config = Config::from("/openapi.json").validator_url("none");
    SwaggerUi::new("/docs").url("/openapi.json", description).config(config).into()
}
