//! Agentic Resource Discovery: the registered agents as entries of ARD.

mod access;
mod entries;
mod errors;
mod searches;
mod urls;

use registry_sdk::contract::{Capability, Registration};
use registry_server::Config;
use reqwest::{Client, RequestBuilder};
use serde_json::{Value, json};
use url::Url;

use crate::support::{Database, Registry, client};

const PUBLISHER: &str = "agents.example";

async fn start(database: &Database) -> Registry {
    start_with(database, |_| {}).await
}

async fn start_with(database: &Database, change: impl FnOnce(&mut Config)) -> Registry {
    let start = database.start_with(|config| {
        config.ard_publisher = Some(PUBLISHER.to_owned());
        change(config);
    });
    start.await
}

/// Returns a request for a path of the server.
fn get(server: &Registry, path: &str) -> RequestBuilder {
    Client::new().get(format!("{}{path}", server.url()))
}

/// Returns a request with a query parameter.
fn get_with(server: &Registry, path: &str, name: &str, value: &str) -> RequestBuilder {
    let url = Url::parse_with_params(&format!("{}{path}", server.url()), [(name, value)]).unwrap();
    Client::new().get(url)
}

fn post(server: &Registry, path: &str, body: &Value) -> RequestBuilder {
    Client::new().post(format!("{}{path}", server.url())).json(body)
}

/// Sends a request that must succeed, and returns the body.
async fn answer(request: RequestBuilder) -> Value {
    let response = request.send().await.unwrap();
    let (status, body) = (response.status(), response.text().await.unwrap());
    assert_eq!(status, 200, "{body}");
    serde_json::from_str(&body).unwrap()
}

fn search(server: &Registry, text: &str, filter: &Value) -> RequestBuilder {
    post(server, "/ard/search", &json!({"query": {"text": text, "filter": filter}, "pageSize": 100}))
}

fn identifier(agent_id: &str) -> String {
    format!("urn:air:{PUBLISHER}:agent:{agent_id}")
}

/// Returns the ids of the agents in a list of entries.
fn ids(entries: &Value) -> Vec<String> {
    let agent_id = |entry: &Value| {
        let identifier = entry["identifier"].as_str().unwrap();
        identifier.strip_prefix("urn:air:agents.example:agent:").unwrap().to_owned()
    };
    entries.as_array().unwrap().iter().map(agent_id).collect()
}

/// Registers three agents with different capabilities.
async fn register_three(server: &Registry) {
    let agents = [
        Registration::new("forecaster", "Weather forecaster", "http://forecaster:8000")
            .capability(
                Capability::new("weather_forecast")
                    .description("Forecasts the weather of a city.")
                    .tag("weather")
                    .tag("maps")
                    .example("Will it rain in Oslo tomorrow?")
                    .example("How windy is Chicago now?"),
            )
            .capability(
                Capability::new("snow_report")
                    .title("Snow report")
                    .tag("weather")
                    .example("How much snow is in the Alps?"),
            )
            .metadata("team", "climate")
            .metadata("cores", 8)
            .metadata("zone", json!({"region": "eu"}))
            .metadata("lists", json!(["a", "b"])),
        Registration::new("Traveller_2.0", "Traveller", "http://traveller:8000")
            .capability(Capability::new("book_trip").description("Books a trip by its weather").tag("travel"))
            .metadata("team", "travel")
            .metadata("beta", true),
        Registration::new("scanner", "Scanner", "http://scanner:8000")
            .capability(Capability::new("code_scan").description("Looks for holes in code").tag("security"))
            .metadata("team", "platform"),
    ];
    for agent in agents {
        client(server).register(&agent).await.unwrap();
    }
}
