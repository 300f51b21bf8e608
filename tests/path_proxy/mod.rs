//! A reverse proxy that serves a registry below a path, as nginx does with `location /registry/ { proxy_pass http://…/; }`.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// The path. Like most proxies, this one also forwards a request for the path without a trailing slash.
const PATH: &str = "/registry";

/// A running proxy. It is stopped when this is dropped.
pub(crate) struct PathProxy {
    address: SocketAddr,
    state: Proxy,
    serving: JoinHandle<()>,
}

#[derive(Clone)]
struct Proxy {
    client: Client<HttpConnector, Body>,
    /// URL of the registry, without a trailing slash.
    registry_url: String,
    /// Targets of requests outside the path.
    strays: Arc<Mutex<Vec<String>>>,
}

impl PathProxy {
    pub(crate) async fn start(registry_url: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        // A registry may close an idle connection at any time.
        let client = Client::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build_http();
        let state = Proxy { client, registry_url, strays: Arc::default() };
        let router = Router::new().fallback(forward).with_state(state.clone());
        let serving = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { address, state, serving }
    }

    /// Returns the URL of the registry below the path, without a trailing slash.
    pub(crate) fn url(&self) -> String {
        format!("http://{}{PATH}", self.address)
    }

    /// Returns the targets of requests outside the path.
    pub(crate) fn strays(&self) -> Vec<String> {
        self.state.strays.lock().unwrap().clone()
    }
}

impl Drop for PathProxy {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn forward(State(proxy): State<Proxy>, mut request: Request) -> Response {
    let target = request.uri().to_string();
    let Some(rest) = target.strip_prefix(PATH).filter(|rest| matches!(rest.get(..1), None | Some("/" | "?")))
    else {
        proxy.strays.lock().unwrap().push(target);
        return StatusCode::NOT_FOUND.into_response();
    };
    let slash = if rest.starts_with('/') { "" } else { "/" };
    *request.uri_mut() = Uri::try_from(format!("{}{slash}{rest}", proxy.registry_url)).unwrap();
    match proxy.client.request(request).await {
        Ok(response) => response.map(Body::new),
        Err(_) => StatusCode::BAD_GATEWAY.into_response(),
    }
}
