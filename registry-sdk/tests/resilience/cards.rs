//! Fetching agent cards from servers that respond well, badly, or not at all.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use registry_sdk::RegistryClient;
use registry_sdk::a2a::{CardError, FetchedCard, fetch_card};
use registry_sdk::contract::limits;
use tokio::time::Instant;

use crate::support::{Reply, Server, without_listener};

const CARD: &str = r#"{"name": "Agent",  "url": "http://agent.example/a2a", "skills": []}"#;
const WELL_KNOWN: &str = "GET /.well-known/agent-card.json";

fn client() -> RegistryClient {
    RegistryClient::builder("http://127.0.0.1:1").token("secret").build().unwrap()
}

async fn fetch(url: &str) -> Result<FetchedCard, CardError> {
    fetch_card(&client(), url).await
}

/// Fetches a card from a server that gives this response to everything. Returns the error.
async fn failure(reply: Reply) -> String {
    let server = Server::start(move |_, _| reply.clone()).await;
    failure_of(&format!("{}/card", server.url())).await
}

async fn failure_of(url: &str) -> String {
    match fetch(url).await {
        Err(CardError::NotFetched { detail, .. }) => detail,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn card_of_an_agent_is_at_the_well_known_path_and_other_urls_are_those_of_cards() {
    let server = Server::start(|_, _| Reply::Answer(200, "content-type: text/plain\r\n", CARD)).await;
    for (path, asked) in [
        ("", WELL_KNOWN),
        ("/", WELL_KNOWN),
        ("/#top", WELL_KNOWN),
        ("/cards/a.json", "GET /cards/a.json"),
        ("/?agent=a", "GET /?agent=a"),
        ("/agents/", "GET /agents/"),
    ] {
        let fetched = fetch(&format!("{}{path}", server.url())).await.unwrap();
        assert_eq!(fetched.card.as_str(), CARD, "byte for byte");
        let last = server.arrived().pop().unwrap();
        assert_eq!(last.what, asked);
        assert_eq!(fetched.url.as_str().strip_prefix(&server.url()), asked.strip_prefix("GET "));
        assert_eq!((last.header("a2a-version"), last.header("authorization")), (Some("1.0"), None));
    }
}

#[tokio::test(start_paused = true)]
async fn older_agents_serve_their_card_at_another_path() {
    let server = Server::start(|what, _| match what {
        "GET /.well-known/agent.json" => Reply::Answer(200, "", CARD),
        _ => Reply::Answer(404, "", ""),
    })
    .await;
    assert_eq!(fetch(&server.url()).await.unwrap().card.as_str(), CARD);
    failure_of(&format!("{}/card", server.url())).await;
    assert_eq!(server.arrived().len(), 3, "only in place of the well-known path");

    let none = Server::start(|_, _| Reply::Answer(404, "", "")).await;
    let error = fetch(&none.url()).await.unwrap_err().to_string();
    assert_eq!(
        error,
        format!(
            "no A2A agent card from {}/.well-known/agent-card.json: the response is 404 Not Found",
            none.url()
        )
    );
}

#[tokio::test(start_paused = true)]
async fn redirects_are_followed_within_one_origin() {
    for status in [301, 302, 303, 307, 308] {
        let server = Server::start(move |what, _| match what {
            "GET /moved" => Reply::Answer(200, "", CARD),
            _ => Reply::Answer(status, "location: /moved\r\n", ""),
        })
        .await;
        let fetched = fetch(&server.url()).await.unwrap();
        assert_eq!((fetched.card.as_str(), fetched.url.path()), (CARD, "/moved"), "{status}");
    }
    let elsewhere = Server::start(|_, _| Reply::Answer(200, "", CARD)).await;
    let detail = failure(Reply::with(302, &[("location", &elsewhere.url())], "")).await;
    assert!(detail.contains(&elsewhere.url()) && detail.contains("another origin"), "{detail}");
    assert_eq!(elsewhere.arrived().len(), 0);
    let circle = failure(Reply::Answer(302, "location: /card\r\n", "")).await;
    assert!(circle.contains("one redirect too many"), "{circle}");
    let nowhere = failure(Reply::Answer(302, "", "")).await;
    assert_eq!(nowhere, "the response is 302 Found");
}

#[tokio::test(start_paused = true)]
async fn responses_that_are_not_a_card_are_described() {
    for (reply, said) in [
        (Reply::Answer(200, "content-type: text/html\r\n", "<!doctype html>"), "an HTML page"),
        (Reply::Answer(200, "content-type: text/html; charset=utf-8\r\n", "Welcome"), "an HTML page"),
        (Reply::Answer(200, "", "<html></html>"), "it is HTML or XML"),
        (Reply::Answer(200, "", ""), "it is empty"),
        (Reply::Answer(200, "", "[]"), "it is not a JSON object"),
        (Reply::Answer(200, "", "{\"name\": "), "it is not JSON"),
        (Reply::Answer(204, "", ""), "it is empty"),
        (Reply::Answer(401, "", ""), "the response is 401 Unauthorized"),
        (Reply::Answer(500, "", CARD), "the response is 500 Internal Server Error"),
        (Reply::Truncated, "broke off"),
        (Reply::Raw("SSH-2.0-OpenSSH_9.2\r\n"), "error sending request"),
        (Reply::Close, "error sending request"),
    ] {
        let what = format!("{reply:?}");
        let detail = failure(reply).await;
        assert!(detail.contains(said), "{what}: {detail}");
    }
    // The head alone does not decide.
    let (_socket, url) = without_listener();
    assert!(failure_of(&url).await.contains("error sending request"));
}

#[tokio::test(start_paused = true)]
async fn endless_responses_are_cut_off() {
    let begun = Instant::now();
    assert_eq!(failure(Reply::Hang).await, "no response within 10s");
    let drips = failure(Reply::Endless(200, 1, Duration::from_secs(1))).await;
    assert_eq!(drips, "the response did not end within 10s");
    let slow = Reply::Answer(302, "location: /card\r\n", "");
    let late = Server::start(move |_, before| if before == 0 { slow.clone() } else { Reply::Hang }).await;
    assert_eq!(failure_of(&late.url()).await, "no response within 10s", "all requests together");
    assert!(begun.elapsed() < Duration::from_secs(31), "{:?}", begun.elapsed());

    let server = Server::start(|_, _| Reply::Endless(200, 16 * 1_024, Duration::ZERO)).await;
    let detail = failure_of(&server.url()).await;
    assert!(detail.contains("up to 65536 bytes, the response is longer"), "{detail}");
    assert!(server.endless_bytes() < 64 * limits::CARD_BYTES, "{}", server.endless_bytes());
}

#[tokio::test(start_paused = true)]
async fn urls_that_cannot_be_fetched_are_refused() {
    for url in ["", "agent.example", "ftp://agent.example", "/card.json", "file:///etc/passwd", "http://"] {
        assert!(failure_of(url).await.contains("an http or https URL is needed"), "{url}");
    }
    let error = fetch("http://user:pass@agent.example").await.unwrap_err().to_string();
    assert!(error.contains("must not have a user name") && !error.contains("pass@"), "{error}");
}

/// Returns the health path of an agent whose interface has the first path, and whose card was found at the second.
async fn health_path(interface: &str, card: &str) -> Option<String> {
    let text = Arc::new(OnceLock::<&str>::new());
    let shared = Arc::clone(&text);
    let server = Server::start(move |_, _| Reply::Answer(200, "", shared.get().unwrap())).await;
    let url = format!(r#"{{"name": "A", "url": "{}{interface}"}}"#, server.url());
    text.set(url.leak()).unwrap();
    let registration = fetch(&format!("{}{card}", server.url())).await.unwrap().registration().unwrap();
    registration.validate().unwrap();
    registration.health_path
}

#[tokio::test(start_paused = true)]
async fn agent_counts_as_healthy_as_long_as_it_serves_its_card_below_its_url() {
    for (interface, card, expected) in [
        ("", "", Some("/.well-known/agent-card.json")),
        ("/", "/cards/a", Some("/cards/a")),
        ("/a2a/", "/a2a/card", Some("/card")),
        ("/a2a", "", None),
        ("/a2a", "/a2a-card", None),
        ("/", "/card?of=a", None),
        ("/", "//card", None),
    ] {
        assert_eq!(health_path(interface, card).await.as_deref(), expected, "{interface} {card}");
    }
    let server = Server::start(|_, _| Reply::Answer(200, "", CARD)).await;
    let elsewhere = fetch(&server.url()).await.unwrap().registration().unwrap();
    assert_eq!((&*elsewhere.base_url, elsewhere.health_path), ("http://agent.example/a2a", None));
}
