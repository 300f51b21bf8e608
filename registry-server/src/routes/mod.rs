//! The whole API in one short router. A handler reads the request, calls the registry, answers.

mod agents;
mod auth;
mod capabilities;
mod dashboard;
mod events;
mod extract;
mod health;
mod layers;
mod metrics;
mod problem;

use std::sync::Arc;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::{Method, Uri};
use axum::middleware::from_fn_with_state;
use axum::routing::{get, post, put};
use registry_sdk::contract::limits;

use crate::registry::Registry;
pub(crate) use auth::Gate;
use problem::ApiError;

pub(crate) fn router(registry: Arc<Registry>, gate: Arc<Gate>) -> Router {
    let routes = Router::new()
        .route("/", get(dashboard::page))
        .route("/dashboard.js", get(dashboard::script))
        .route("/dashboard.css", get(dashboard::style))
        .route("/register", post(agents::register))
        .route("/agents", get(agents::list))
        .route("/agents/{id}", get(agents::show).delete(agents::remove))
        .route("/agents/{id}/heartbeat", post(agents::heartbeat))
        .route("/agents/{id}/status", put(agents::set_status))
        .route("/capabilities/search", get(capabilities::search))
        .route("/health", get(health::server))
        .route("/health/{id}", get(health::agent))
        .route("/stats", get(health::stats))
        .route("/metrics", get(metrics::scrape))
        .route("/events", get(events::watch))
        .fallback(unknown_path)
        .method_not_allowed_fallback(wrong_method)
        .layer(DefaultBodyLimit::max(limits::BODY_BYTES))
        .layer(from_fn_with_state(gate, auth::check));
    layers::around(routes, &registry).with_state(registry)
}

async fn unknown_path(uri: Uri) -> ApiError {
    ApiError::not_found(format!("there is nothing at {}", uri.path()))
}

async fn wrong_method(method: Method, uri: Uri) -> ApiError {
    ApiError::method_not_allowed(format!("{method} is not for {}", uri.path()))
}
