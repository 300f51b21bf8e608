//! Agentic Resource Discovery (ARD) v0.91: the registered agents as entries that any ARD client can search.
//!
//! The specification is at <https://github.com/ards-project/ard-spec>. The routes only exist if a publisher
//! is configured.

mod entry;
mod error;
mod explore;
mod field;
mod filter_expression;
mod list;
mod manifest;
mod query;
mod retrieve;
mod search;
mod site;

use std::sync::Arc;

use axum::Router;
use axum::routing::{get, post};

use crate::registry::Registry;
pub(super) use error::to_ard_error;

/// Path of the manifest. Crawlers fetch it without a token.
pub(super) const MANIFEST_PATH: &str = "/.well-known/ard.json";

/// Returns the routes. Their errors are problems, to be rewritten by [`to_ard_error`].
pub(super) fn routes() -> Router<Arc<Registry>> {
    Router::new()
        .route("/ard/search", post(search::search))
        .route("/ard/explore", post(explore::explore))
        .route("/ard/agents", get(list::list_entries))
        .route("/ard/agents/{identifier}", get(retrieve::retrieve_entry))
        .route(MANIFEST_PATH, get(manifest::get_manifest))
}
