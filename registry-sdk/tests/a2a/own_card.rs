//! The card that is made from an agent's registration: its contents, and the endpoint that serves it.

use registry_sdk::a2a::{CARD_PATH, CardDetails, CardEndpoint, CardError, Interface, registration_of};
use registry_sdk::contract::CARD_MEDIA_TYPE;
use registry_sdk::testing::MockRegistry;
use registry_sdk::{Agent, Capability, Registration};
use reqwest::Response;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

fn registration() -> Registration {
    Registration::new("recipes", "Recipe Agent", "http://recipes:8000/a2a").capability(
        Capability::new("find_recipe")
            .title("Finds recipes")
            .description("Finds recipes for what is there.")
            .tag("cooking")
            .example("What can I cook with leeks?"),
    )
}

fn details() -> CardDetails {
    CardDetails::new("Knows what to cook", "1.2.0", Interface::json_rpc("http://recipes:8000/a2a"))
}

#[test]
fn card_contains_the_registration_and_the_details() {
    let registration = registration().capability(Capability::new("convert_units"));
    let details = details()
        .interface(Interface::new("GRPC", "https://recipes:8001").protocol_version("0.3"))
        .interface(Interface::http_json("http://recipes:8000/rest"))
        .provider("Example", "https://example.org")
        .input_modes(["text/plain", "image/png"])
        .output_modes(["application/json"])
        .streaming(true)
        .field("documentationUrl", "https://example.org/docs");
    let card: Value = serde_json::from_str(details.card_of(&registration).unwrap().as_str()).unwrap();
    let expected = json!({
        "name": "Recipe Agent",
        "description": "Knows what to cook",
        "version": "1.2.0",
        "supportedInterfaces": [
            {"url": "http://recipes:8000/a2a", "protocolBinding": "JSONRPC", "protocolVersion": "1.0"},
            {"url": "https://recipes:8001", "protocolBinding": "GRPC", "protocolVersion": "0.3"},
            {"url": "http://recipes:8000/rest", "protocolBinding": "HTTP+JSON", "protocolVersion": "1.0"},
        ],
        "provider": {"organization": "Example", "url": "https://example.org"},
        "capabilities": {"streaming": true, "pushNotifications": false},
        "defaultInputModes": ["text/plain", "image/png"],
        "defaultOutputModes": ["application/json"],
        "documentationUrl": "https://example.org/docs",
        "skills": [
            {
                "id": "find_recipe", "name": "Finds recipes", "description": "Finds recipes for what is there.",
                "tags": ["cooking"], "examples": ["What can I cook with leeks?"],
            },
            // A card has to have these fields for each skill, so the name fills them in.
            {"id": "convert_units", "name": "convert_units", "description": "convert_units", "tags": ["convert_units"]},
        ],
    });
    assert_eq!(card, expected);
}

#[test]
fn registration_can_be_made_from_its_card_again() {
    let card = details().card_of(&registration()).unwrap();
    let mut back = registration_of(&card).unwrap();
    back.agent_id = "recipes".to_owned();
    assert_eq!(back, registration().card(card));
}

#[test]
fn card_that_no_client_could_use_is_an_error() {
    let long = (0..128).map(|number| Capability::new(format!("c{number}")).description("x".repeat(1_000)));
    let mut long_registration = registration();
    long_registration.capabilities = long.collect();
    for (card, expected) in [
        (
            CardDetails::new("", "1", Interface::json_rpc("/a2a")).card_of(&registration()),
            "interface JSONRPC is not absolute: \"/a2a\"",
        ),
        (details().input_modes([""; 0]).card_of(&registration()), "needs an input mode"),
        (details().card_of(&long_registration), "up to 65536 bytes"),
    ] {
        let Err(CardError::Invalid(reason)) = card else { panic!("{card:?}") };
        assert!(reason.contains(expected), "{reason}");
    }
}

/// Serves an agent's card. Returns the card's URL, and the task that serves it.
async fn serve(agent: &Agent) -> (String, JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}{CARD_PATH}", listener.local_addr().unwrap());
    let router = CardEndpoint::new(agent).router();
    let mut serving = JoinSet::new();
    serving.spawn(async move { axum::serve(listener, router).await.unwrap() });
    (url, serving)
}

/// Requests a card, unless its `ETag` is the known one.
async fn get_if_none_match(url: &str, known: &str) -> Response {
    reqwest::Client::new().get(url).header("if-none-match", known).send().await.unwrap()
}

#[tokio::test]
async fn agent_serves_the_card_that_it_registers() {
    let registry = MockRegistry::start().await;
    let card = details().card_of(&registration()).unwrap();
    let agent = Agent::new(registry.client(), registration().card(card.clone()));
    agent.register().await.unwrap();
    let (url, _serving) = serve(&agent).await;
    let first = reqwest::get(&url).await.unwrap();
    assert_eq!(first.headers()["content-type"], CARD_MEDIA_TYPE);
    assert_eq!(first.headers()["cache-control"], "max-age=60");
    let tag = first.headers()["etag"].to_str().unwrap().to_owned();
    assert_eq!(first.text().await.unwrap(), card.as_str());
    assert_eq!(registry.client().get_card("recipes").await.unwrap(), card);

    for known in [tag.clone(), format!("W/{tag}"), format!("\"other\", {tag}"), "*".to_owned()] {
        let again = get_if_none_match(&url, &known).await;
        assert_eq!((again.status().as_u16(), &again.headers()["etag"]), (304, &tag.parse().unwrap()));
        assert_eq!(again.text().await.unwrap(), "");
    }
    assert_eq!(get_if_none_match(&url, "\"other\"").await.status().as_u16(), 200);
}

#[tokio::test]
async fn changed_card_is_registered_and_served_and_a_removed_one_is_not_found() {
    let registry = MockRegistry::start().await;
    let card = details().card_of(&registration()).unwrap();
    let agent = Agent::new(registry.client(), registration().card(card));
    let (url, _serving) = serve(&agent).await;
    let tag = reqwest::get(&url).await.unwrap().headers()["etag"].to_str().unwrap().to_owned();

    let changed = details().streaming(true).card_of(&registration()).unwrap();
    agent.update_card(Some(changed.clone())).await.unwrap();
    assert_eq!(get_if_none_match(&url, &tag).await.text().await.unwrap(), changed.as_str());
    assert_eq!(registry.client().get_card("recipes").await.unwrap(), changed);

    agent.update_card(Some("[]".parse().unwrap())).await.unwrap_err();
    assert_eq!(
        get_if_none_match(&url, &tag).await.text().await.unwrap(),
        changed.as_str(),
        "an invalid card changes nothing"
    );

    agent.update_card(None).await.unwrap();
    assert_eq!(get_if_none_match(&url, &tag).await.status().as_u16(), 404);
    assert!(registry.client().get_card("recipes").await.unwrap_err().is_not_found());
}
