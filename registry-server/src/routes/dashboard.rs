//! `GET /`: the dashboard page and its files. The page uses the public API, and loads nothing from other
//! hosts.

use axum::Router;
use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
};
use axum::routing::get;

const HTML: &str = "text/html; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const STYLE: &str = "text/css; charset=utf-8";

/// Path, type and content of each file.
const FILES: [(&str, &str, &str); 11] = [
    ("/", HTML, include_str!("../dashboard/index.html")),
    ("/dashboard.js", SCRIPT, include_str!("../dashboard/dashboard.js")),
    ("/agent.js", SCRIPT, include_str!("../dashboard/agent.js")),
    ("/events.js", SCRIPT, include_str!("../dashboard/events.js")),
    ("/overview.js", SCRIPT, include_str!("../dashboard/overview.js")),
    ("/parts.js", SCRIPT, include_str!("../dashboard/parts.js")),
    ("/search.js", SCRIPT, include_str!("../dashboard/search.js")),
    ("/copy.js", SCRIPT, include_str!("../dashboard/copy.js")),
    ("/stream.js", SCRIPT, include_str!("../dashboard/stream.js")),
    ("/registry.js", SCRIPT, include_str!("../dashboard/registry.js")),
    ("/dashboard.css", STYLE, include_str!("../dashboard/dashboard.css")),
];

/// Content security policy: only content from this server is loaded and run, whatever agents call themselves.
///
/// The hash is that of the inline script in the page.
const POLICY: &str = "default-src 'none'; script-src 'self' 'sha256-Y0XQXim+tYaQcAlmS1dYZNrXaA35dbh2JJjuetb29NM='; \
                      style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; \
                      frame-ancestors 'none'";

/// Whether a path is one of the files, which need no token since they contain nothing confidential.
pub(super) fn has(path: &str) -> bool {
    FILES.iter().any(|(known, ..)| *known == path)
}

/// Returns the routes of all files.
pub(super) fn routes<S: Clone + Send + Sync + 'static>() -> Router<S> {
    FILES.into_iter().fold(Router::new(), |router, (path, kind, content)| {
        let headers = [
            (CONTENT_TYPE, kind),
            (CONTENT_SECURITY_POLICY, POLICY),
            (CACHE_CONTROL, "no-cache"),
            (REFERRER_POLICY, "no-referrer"),
            (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        ];
        router.route(path, get(async move || (headers, content)))
    })
}
