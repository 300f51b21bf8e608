//! The whole API in one short router. Handlers read the request, call the registry, and respond.

mod agents;
mod ard;
mod auth;
mod capabilities;
mod card;
mod client_address;
mod dashboard;
mod describe;
mod etag;
mod events;
mod extract;
#[cfg(test)]
mod fuzz;
mod health;
mod json;
mod list;
mod maintenance;
mod metrics;
mod middleware;
mod origins;
mod problem;
mod request_id;
mod request_log;
mod trace_parent;

use std::sync::Arc;

use axum::Router;
use axum::http::header::CONNECTION;
use axum::http::{Method, StatusCode, Uri};
use axum::middleware::{from_fn_with_state, map_response};
use axum::routing::{any, get};
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::registry::Registry;
pub(crate) use auth::Authenticator;
use middleware::Middleware;
pub(crate) use origins::Origins;
use problem::ApiError;
use registry_sdk::internal::UNKNOWN_PATH_DETAIL;

/// Returns the router. Without `origins`, requests from all web pages are accepted.
pub(crate) fn router(
    registry: Arc<Registry>,
    authenticator: Arc<Authenticator>,
    origins: Option<Origins>,
) -> Router {
    let (routes, description) = OpenApiRouter::with_openapi(describe::Description::openapi())
        .routes(routes!(agents::register))
        .routes(routes!(list::list_agents))
        .routes(routes!(agents::get_agent, agents::deregister))
        .routes(routes!(card::get_card))
        .routes(routes!(agents::heartbeat))
        .routes(routes!(agents::update_status))
        .routes(routes!(maintenance::set_maintenance, maintenance::end_maintenance))
        .routes(routes!(capabilities::search_capabilities))
        .routes(routes!(health::get_server_health))
        .routes(routes!(health::get_liveness))
        .routes(routes!(health::get_readiness))
        .routes(routes!(health::check_health))
        .routes(routes!(health::get_stats))
        .routes(routes!(metrics::get_metrics))
        .routes(routes!(events::watch_events))
        .split_for_parts();
    let has_ard = registry.config().ard_publisher.is_some();
    let middleware = Arc::new(Middleware::new(registry.clone(), authenticator, origins));
    let mut routes = routes
        .merge(dashboard::routes())
        .merge(describe::pages(&description))
        .fallback(unknown_path)
        .method_not_allowed_fallback(wrong_method)
        .layer(from_fn_with_state(middleware.clone(), middleware::handle));
    if has_ard {
        routes = routes.merge(ard_routes(middleware));
    }
    routes.with_state(registry)
}

/// Returns the ARD routes. Their error format wraps the middleware, whose errors are rewritten as well.
fn ard_routes(middleware: Arc<Middleware>) -> Router<Arc<Registry>> {
    ard::routes()
        .method_not_allowed_fallback(wrong_method)
        .route("/ard/{*rest}", any(unknown_path))
        .layer(from_fn_with_state(middleware, middleware::handle))
        .layer(map_response(ard::to_ard_error))
}

/// Returns the router for connections over the limit, which closes each connection after the first response.
pub(crate) fn rejecting_router() -> Router {
    let detail = "the server has reached its connection limit; try again";
    let reject =
        async move || ([(CONNECTION, "close")], ApiError::new(StatusCode::SERVICE_UNAVAILABLE, detail));
    // A busy server need not be restarted.
    let liveness = async || ([(CONNECTION, "close")], health::get_liveness().await);
    Router::new().route("/livez", get(liveness)).fallback(reject)
}

async fn unknown_path(uri: Uri) -> ApiError {
    ApiError::not_found(format!("{UNKNOWN_PATH_DETAIL}{}", uri.path()))
}

async fn wrong_method(method: Method, uri: Uri) -> ApiError {
    ApiError::method_not_allowed(format!("{method} is not allowed for {}", uri.path()))
}
