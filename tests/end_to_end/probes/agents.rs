//! Agents that answer probes in every way.

use std::convert::Infallible;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Path;
use axum::http::StatusCode;
use axum::http::header::LOCATION;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use futures_util::stream;
use registry_sdk::RegistryClient;
use registry_sdk::contract::{Capability, Registration};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

/// Agents of several kinds on one server: each answers below a path named after its kind.
pub(super) struct Agents {
    pub(super) port: u16,
    /// Kinds of the agents probed so far.
    pub(super) probed: Arc<Mutex<Vec<String>>>,
    /// HTTP status of the agents without a special kind; 0 for healthy ones.
    pub(super) ill: Arc<AtomicUsize>,
    _serving: JoinSet<()>,
}

impl Agents {
    pub(super) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (probed, ill) = (Arc::<Mutex<Vec<String>>>::default(), Arc::<AtomicUsize>::default());
        let counts = (probed.clone(), ill.clone());
        let health = move |Path(kind): Path<String>| {
            let (probed, ill) = counts.clone();
            async move {
                probed.lock().unwrap().push(kind.clone());
                answer(&kind, ill.load(Ordering::SeqCst)).await
            }
        };
        let app =
            Router::new().route("/{kind}/health", get(health.clone())).route("/{kind}/elsewhere/", get(well));
        let mut serving = JoinSet::new();
        serving.spawn(async move { axum::serve(listener, app).await.unwrap() });
        Self { port, probed, ill, _serving: serving }
    }

    pub(super) async fn register(&self, client: &RegistryClient, kind: &str) {
        self.register_at(client, kind, &format!("http://127.0.0.1:{}/{kind}", self.port)).await;
    }

    pub(super) async fn register_at(&self, client: &RegistryClient, id: &str, base_url: &str) {
        let registration = Registration::new(id, id, base_url).capability(Capability::new("work"));
        client.register(&registration).await.unwrap();
    }

    /// Returns the number of probes.
    pub(super) fn probes(&self) -> usize {
        self.probed.lock().unwrap().len()
    }

    /// Returns how often agents of a kind were probed.
    pub(super) fn probes_of(&self, kind: &str) -> usize {
        self.probed.lock().unwrap().iter().filter(|probed| *probed == kind).count()
    }
}

async fn well() -> &'static str {
    r#"{"status":"healthy"}"#
}

async fn answer(kind: &str, ill: usize) -> Response {
    match kind {
        "endless" => {
            let endless = stream::repeat_with(|| Ok::<_, Infallible>(vec![b'x'; 1_024]));
            Body::from_stream(endless).into_response()
        }
        "long" => vec![b'x'; 65 * 1_024].into_response(),
        "trickle" => {
            let trickle = stream::unfold((), |()| async {
                tokio::time::sleep(Duration::from_millis(20)).await;
                Some((Ok::<_, Infallible>("x"), ()))
            });
            Body::from_stream(trickle).into_response()
        }
        "silent" => std::future::pending().await,
        "redirect" => {
            (StatusCode::FOUND, [(LOCATION, "http://169.254.169.254/latest/meta-data/")]).into_response()
        }
        // The same host, but another port.
        "redirect-port" => (StatusCode::FOUND, [(LOCATION, "http://127.0.0.1:1/health")]).into_response(),
        "circle" => (StatusCode::FOUND, [(LOCATION, "/circle/health")]).into_response(),
        "nowhere" => StatusCode::TEMPORARY_REDIRECT.into_response(),
        "301" | "302" | "303" | "307" | "308" => {
            let status = StatusCode::from_bytes(kind.as_bytes()).unwrap();
            (status, [(LOCATION, "elsewhere/")]).into_response()
        }
        "401" | "403" | "404" | "405" | "501" => {
            StatusCode::from_bytes(kind.as_bytes()).unwrap().into_response()
        }
        "failing" => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
        "in-words" => r#"{"status":"unhealthy"}"#.into_response(),
        _ if ill > 0 => StatusCode::from_u16(ill.try_into().unwrap()).unwrap().into_response(),
        _ => well().await.into_response(),
    }
}
