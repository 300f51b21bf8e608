//! Registries that answer requests for cards differently: behind a proxy, or of a version without cards.

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, Method, Uri};
use axum::response::Response;
use registry_sdk::{Orchestrator, RegistryClient};
use tokio::net::TcpListener;

use crate::fakes::{Binding, Scene, reply_text};

/// Changes the response to a request for a card.
type Change = fn(Response) -> Response;

/// Puts a proxy that changes the responses to requests for cards in front of the registry. Returns an orchestrator that uses it.
async fn orchestrator_through_proxy(scene: &mut Scene, change: Change) -> Orchestrator {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let app = Router::new().fallback(forward).with_state((scene.registry.url(), change));
    scene.spawn(async move { axum::serve(listener, app).await.unwrap() });
    Orchestrator::new(RegistryClient::new(url).unwrap())
}

async fn forward(
    State((registry, change)): State<(String, Change)>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let request = client.request(method, format!("{}{uri}", registry.trim_end_matches('/')));
    let answer = request.headers(headers).body(body).send().await.unwrap();
    let mut response = Response::new(Body::empty());
    *response.status_mut() = answer.status();
    *response.headers_mut() = answer.headers().clone();
    *response.body_mut() = Body::from(answer.bytes().await.unwrap());
    if uri.path().ends_with("/card") { change(response) } else { response }
}

/// Proxies that compress responses make entity tags weak.
#[tokio::test(start_paused = true)]
async fn card_with_a_weak_entity_tag_is_read_once() {
    let mut scene = Scene::new().await;
    scene.agent("a", 0, Binding::JsonRpc).await;
    let orchestrator = orchestrator_through_proxy(&mut scene, |mut response| {
        let weak = format!("W/{}", response.headers()["etag"].to_str().unwrap());
        response.headers_mut().insert("etag", weak.parse().unwrap());
        response
    });
    let orchestrator = orchestrator.await;
    for _ in 0..3 {
        assert_eq!(reply_text(orchestrator.delegate("work")).await.as_deref(), Ok("a"));
    }
    assert_eq!(scene.cards_read(), 1);
}

#[tokio::test(start_paused = true)]
async fn error_says_that_the_registry_does_not_keep_cards() {
    let mut scene = Scene::new().await;
    scene.agent("a", 0, Binding::JsonRpc).await;
    let orchestrator = orchestrator_through_proxy(&mut scene, |_| {
        let builder = Response::builder().status(404).header("content-type", "text/plain");
        builder.body(Body::from("404 page not found")).unwrap()
    });
    let error = reply_text(orchestrator.await.delegate("work")).await.unwrap_err();
    assert!(error.contains("a: the registry does not keep A2A agent cards"), "{error}");
}
