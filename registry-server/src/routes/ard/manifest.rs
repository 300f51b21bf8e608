//! `GET /.well-known/ard.json`: the manifest, which says where the registry can be searched.

use axum::Json;
use axum::http::HeaderName;
use axum::http::header::CACHE_CONTROL;
use serde_json::{Value, json};

use super::site::Site;

/// Returns the manifest.
///
/// Its only entry is the registry itself: agents are found by searching, and not every caller may see them.
pub(super) async fn get_manifest(site: Site) -> ([(HeaderName, &'static str); 1], Json<Value>) {
    let publisher = &site.publisher;
    let manifest = json!({
        // Required by earlier versions of ARD.
        "specVersion": "1.0",
        "entries": [{
            "identifier": format!("urn:air:{publisher}:registry:agents"),
            "displayName": format!("Agent registry of {publisher}"),
            "type": "application/ai-registry+json",
            "url": site.ard_url(),
            "description": "Finds healthy agents by their capabilities.",
            "representativeQueries": [
                format!("Which agents of {publisher} are available?"),
                "Which agent can do this task?",
            ],
        }],
    });
    ([(CACHE_CONTROL, "max-age=300")], Json(manifest))
}
