//! `GET /metrics`: Prometheus' text format
//! (<https://prometheus.io/docs/instrumenting/exposition_formats/#text-based-format>).

use std::sync::Arc;

use axum::extract::State;
use axum::http::HeaderName;
use axum::http::header::CONTENT_TYPE;

use super::describe::{Always, Busy};
use super::problem::ApiError;
use crate::registry::Registry;

/// Returns the metrics in Prometheus' text format.
#[utoipa::path(
    get, path = "/metrics", tag = "server",
    responses((status = 200, description = "The metrics.", body = String, content_type = "text/plain",
        example = "agent_registry_agents_total{status=\"active\"} 2"), Busy, Always),
)]
pub(super) async fn get_metrics(
    State(registry): State<Arc<Registry>>,
) -> Result<([(HeaderName, &'static str); 1], String), ApiError> {
    let text = registry.metrics_text().await?;
    Ok(([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text))
}
