//! An A2A agent to copy: it serves its agent card, registers it, and takes messages over the binding HTTP+JSON.
//!
//! Start a registry (`cargo run -p registry-server`), then `cargo run --example a2a_agent`, and read its card:
//! `curl http://127.0.0.1:8009/agents/recipes/card`. Any A2A client can send it a message at the URL in the card.
//!
//! To use this file as the `src/main.rs` of your own crate, add to its `Cargo.toml`:
//!
//! ```toml
//! [dependencies]
//! axum = "0.8"
//! registry-sdk = { version = "0.1", features = ["a2a", "axum"] }
//! serde_json = "1"
//! tokio = { version = "1", features = ["full"] }
//! ```
#![allow(clippy::print_stdout, reason = "it tells what it does")]

use axum::response::IntoResponse;
use axum::routing::post;
use axum::{Json, Router};
use registry_sdk::a2a::{CardDetails, CardEndpoint, Interface};
use registry_sdk::{Agent, Capability, HealthEndpoint, Registration, RegistryClient, shutdown_signal};
use serde_json::{Value, json};
use tokio::net::TcpListener;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let setting = |name: &str, default: &str| std::env::var(name).unwrap_or_else(|_| default.to_owned());
    let registry_url = setting("REGISTRY_URL", "http://127.0.0.1:8009");
    let listener = TcpListener::bind(setting("AGENT_LISTEN", "127.0.0.1:0")).await?;
    let base_url = setting("AGENT_URL", &format!("http://{}", listener.local_addr()?));

    let registration = Registration::new("recipes", "Recipe Agent", &base_url).capability(
        Capability::new("find_recipe")
            .title("Recipe finder")
            .description("Finds a recipe for what is in the kitchen")
            .tag("cooking")
            .example("What can I cook with leeks?"),
    );
    // Clients append the paths of the protocol to this URL, such as `/message:send`.
    let interface = Interface::http_json(format!("{base_url}/a2a"));
    let card = CardDetails::new("Knows what to cook", env!("CARGO_PKG_VERSION"), interface)
        .provider("Example", "https://example.org")
        .card_of(&registration)?;
    let agent = Agent::new(RegistryClient::new(registry_url)?, registration.card(card));

    let app = Router::new()
        .route("/a2a/message:send", post(send_message))
        .merge(HealthEndpoint::new(&agent).router())
        .merge(CardEndpoint::new(&agent).router());
    println!("recipes works at {base_url}");
    agent.run_until(axum::serve(listener, app).with_graceful_shutdown(shutdown_signal())).await?;
    Ok(())
}

/// Answers a message with a message, so that there is no task for clients to poll.
async fn send_message(Json(request): Json<Value>) -> impl IntoResponse {
    let message = &request["message"];
    let parts = message["parts"].as_array().into_iter().flatten();
    let question: Vec<&str> = parts.filter_map(|part| part["text"].as_str()).collect();
    let answer = json!({
        "messageId": format!("answer-to-{}", message["messageId"].as_str().unwrap_or_default()),
        "contextId": message["contextId"],
        "role": "ROLE_AGENT",
        "parts": [{"text": format!("Leek soup, since you asked: {}", question.join(" "))}],
    });
    ([("content-type", "application/a2a+json")], json!({"message": answer}).to_string())
}
