//! `GET /`: one page for people, and its two files. It asks the API like anybody else, and nothing of the outside.

use axum::http::HeaderName;
use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
};

type File = ([(HeaderName, &'static str); 5], &'static str);

/// Where the files are. They have nothing to hide, so no token is asked for them.
pub(super) const PATHS: [&str; 3] = ["/", "/dashboard.js", "/dashboard.css"];

/// Only what the server itself sends is loaded and run, whatever an agent calls itself. The hash is that of the script inside
/// of the page.
const POLICY: &str = "default-src 'none'; script-src 'self' 'sha256-Y0XQXim+tYaQcAlmS1dYZNrXaA35dbh2JJjuetb29NM='; \
                      style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; \
                      frame-ancestors 'none'";

fn file(kind: &'static str, content: &'static str) -> File {
    let headers = [
        (CONTENT_TYPE, kind),
        (CONTENT_SECURITY_POLICY, POLICY),
        (CACHE_CONTROL, "no-cache"),
        (REFERRER_POLICY, "no-referrer"),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    (headers, content)
}

pub(super) async fn page() -> File {
    file("text/html; charset=utf-8", include_str!("../dashboard/index.html"))
}

pub(super) async fn script() -> File {
    file("text/javascript; charset=utf-8", include_str!("../dashboard/dashboard.js"))
}

pub(super) async fn style() -> File {
    file("text/css; charset=utf-8", include_str!("../dashboard/dashboard.css"))
}
