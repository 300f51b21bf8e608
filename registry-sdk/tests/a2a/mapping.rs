//! The registration that is made from a card.

use std::collections::HashSet;

use proptest::prelude::{any, prop_assert, proptest};
use registry_sdk::a2a::{CardError, read_card, registration_of};
use registry_sdk::contract::limits;
use registry_sdk::{Capability, Registration};
use serde_json::{Value, json};

/// A card whose white space and order of fields have to be kept.
const VERSION_1: &str = r#"{
  "name": "Route Planner",   "version": "1.2.0",
  "description": "Plans routes",
  "supportedInterfaces": [
    {"url": "https://routes.example/a2a/v1", "protocolBinding": "JSONRPC", "protocolVersion": "1.0", "tenant": "t"},
    {"url": "https://routes.example/a2a/json", "protocolBinding": "HTTP+JSON", "protocolVersion": "1.0"}
  ],
  "capabilities": {"streaming": true}, "x-unknown": [[{}]],
  "defaultInputModes": ["text/plain"], "defaultOutputModes": ["image/png"],
  "skills": [
    {"id": "plan-route", "name": "Plans a route", "description": "Finds the fastest route between two places.",
     "tags": ["maps", "traffic"], "examples": ["How do I get from Oslo to Bergen?"], "inputModes": ["text/plain"]},
    {"id": "draw-map", "name": "Draws a map", "description": "Draws a map.", "tags": ["maps"]}
  ],
  "signatures": [{"protected": "eyJ", "signature": "QFd"}]
}"#;

fn registration(card: &Value) -> Registration {
    registration_of(&card.to_string().parse().unwrap()).unwrap()
}

fn error(card: &Value) -> CardError {
    registration_of(&card.to_string().parse().unwrap()).unwrap_err()
}

/// A card with an interface and these skills.
fn with_skills(skills: &Value) -> Value {
    json!({"name": "Agent", "url": "http://a.example", "skills": skills})
}

fn with_name(name: &str) -> Value {
    json!({"name": name, "url": "http://recipes.example:8000/a2a"})
}

#[test]
fn card_of_version_1_becomes_a_registration_and_is_kept_unchanged() {
    let registration = registration_of(&VERSION_1.parse().unwrap()).unwrap();
    let expected = Registration::new("route-planner", "Route Planner", "https://routes.example/a2a/v1")
        .capability(
            Capability::new("plan-route")
                .title("Plans a route")
                .description("Finds the fastest route between two places.")
                .tag("maps")
                .tag("traffic")
                .example("How do I get from Oslo to Bergen?"),
        )
        .capability(Capability::new("draw-map").title("Draws a map").description("Draws a map.").tag("maps"))
        .card(VERSION_1.parse().unwrap());
    assert_eq!(registration, expected);
    registration.validate().unwrap();
}

#[test]
fn url_of_a_card_of_version_0_3_becomes_the_base_url() {
    let card = json!({
        "protocolVersion": "0.3.0", "name": "Old Agent", "version": "1", "description": "",
        "url": "http://old.example/rpc", "preferredTransport": "JSONRPC",
        "additionalInterfaces": [{"url": "http://old.example/rest", "transport": "HTTP+JSON"}],
        "capabilities": {}, "defaultInputModes": [], "defaultOutputModes": [],
        "skills": [{"id": "work", "name": "Works", "description": "", "tags": []}],
    });
    let registration = registration(&card);
    assert_eq!(registration.base_url, "http://old.example/rpc");
    assert_eq!(registration.capabilities, [Capability::new("work").title("Works")]);
    registration.validate().unwrap();
}

#[test]
fn url_of_the_first_http_interface_becomes_the_base_url() {
    let interface = |binding: &str, url: &str| json!({"protocolBinding": binding, "url": url});
    let url = |interfaces: Value| {
        registration(&json!({"name": "A", "supportedInterfaces": interfaces, "url": null})).base_url
    };
    let (grpc, http) = (interface("GRPC", "https://a/grpc"), interface("HTTP+JSON", "https://a/json"));
    let socket = interface("https://a/websockets", "wss://a/socket");
    assert_eq!(url(json!([socket, grpc, http, interface("JSONRPC", "https://a/rpc")])), "https://a/json");
    assert_eq!(url(json!([grpc, socket])), "https://a/grpc", "gRPC is better than no interface");
    assert_eq!(url(json!([{"protocolBinding": "JSONRPC"}, {"url": " http://a/plain "}])), "http://a/plain");
    // A card for clients of both versions.
    let both = json!({"name": "A", "supportedInterfaces": [http], "url": "https://a/old"});
    assert_eq!(registration(&both).base_url, "https://a/json");
    let additional = json!({"name": "A", "url": "a:50051", "preferredTransport": "GRPC",
        "additionalInterfaces": [{"transport": "GRPC", "url": "https://a/grpc"}, {"transport": "HTTP+JSON", "url": "https://a/json"}]});
    assert_eq!(registration(&additional).base_url, "https://a/json");
}

#[test]
fn card_without_an_http_interface_is_rejected_and_the_error_lists_its_interfaces() {
    let card = json!({"name": "Binary", "supportedInterfaces": [
        {"protocolBinding": "GRPC", "url": "grpc.example:443"}, {"protocolBinding": "MQTT", "url": "mqtt://a"}]});
    let message = error(&card).to_string();
    assert_eq!(
        message,
        "the A2A agent card of \"Binary\" has no interface with an http or https URL: GRPC at \"grpc.example:443\", MQTT at \"mqtt://a\""
    );
    let odd = error(&json!({"name": "A", "url": ["http://a"]}));
    assert!(matches!(odd, CardError::NoHttpInterface { .. }), "{odd:?}");
    // A document of another kind, such as a package.json.
    let other = error(&json!({"name": "some-package", "version": "1.0.0"}));
    assert!(matches!(other, CardError::NoHttpInterface { .. }), "{other:?}");
    assert!(other.to_string().contains("no interface at all"), "{other}");
}

#[test]
fn documents_that_are_not_cards_are_rejected() {
    for (document, expected) in [
        ("[]", "a JSON object"),
        ("\"text\"", "a JSON object"),
        ("{}", "no `name`"),
        (r#"{"name": " "}"#, "no `name`"),
        (r#"{"name": null}"#, "no `name`"),
        (r#"{"name": 7}"#, "its `name` is invalid: invalid type: integer `7`, expected a string"),
        (
            r#"{"name": "A", "url": "http://a", "skills": {}}"#,
            "its `skills` is invalid: invalid type: map, expected a sequence",
        ),
        (r#"{"name": "A", "url": "http://a", "skills": ["work"]}"#, "expected struct"),
    ] {
        let error = registration_of(&document.parse().unwrap()).unwrap_err();
        let CardError::Invalid(reason) = &error else { panic!("{document}: {error:?}") };
        assert!(reason.contains(expected), "{document}: {reason}");
    }
}

#[test]
fn lists_may_be_empty_or_null() {
    let card = json!({"name": "A", "supportedInterfaces": null, "additionalInterfaces": [], "url": "http://a",
        "skills": [{"id": "work", "name": null, "description": null, "tags": null, "examples": []}]});
    assert_eq!(registration(&card).capabilities, [Capability::new("work")]);
    assert_eq!(registration(&json!({"name": "A", "url": "http://a", "skills": null})).capabilities, []);
    assert_eq!(registration(&with_skills(&json!([]))).capabilities, []);
}

/// JavaScript writes half of a character like that if it cuts a text there. The card is kept as it is.
#[test]
fn half_of_a_character_is_replaced_in_the_registration() {
    let card = r#"{"name": "A", "url": "http://a", "skills": [{"id": "work", "description": "cut \ud83d"}]}"#;
    let registration = registration_of(&card.parse().unwrap()).unwrap();
    assert_eq!(registration.capabilities, [Capability::new("work").description("cut \u{fffd}")]);
    assert_eq!(registration.card.unwrap().as_str(), card);
}

#[test]
fn texts_and_lists_that_are_too_long_are_truncated() {
    let long = |characters: usize| "ü🦀".repeat(characters);
    let skill = json!({"id": long(100), "name": long(100), "description": long(1_000),
        "tags": vec![long(50); 40], "examples": vec![long(200); 20]});
    let card = json!({"name": long(100), "url": "http://a.example", "skills": vec![skill; 140]});
    let mut registration = registration(&card);
    // The card itself is over its limit as well, which the mapping does not check.
    assert!(registration.validate().is_err());
    registration.card = None;
    registration.validate().unwrap();
    assert_eq!(registration.agent_name, long(64));
    assert_eq!(registration.capabilities.len(), limits::CAPABILITIES);
    let Capability { name, title, description, tags, examples, .. } = &registration.capabilities[0];
    assert_eq!((name, title.as_ref(), description), (&long(64), Some(&long(64)), &long(512)));
    assert_eq!((tags, examples), (&vec![long(32); 32], &vec![long(128); 16]));
    assert_eq!(registration.capabilities[127].name.chars().count(), limits::CAPABILITY_NAME);
    assert!(registration.capabilities[127].name.ends_with("🦀-128"));
}

#[test]
fn skills_with_the_same_name_get_distinct_names() {
    let skills =
        json!([{"id": "a"}, {"id": "a"}, {"id": "a-2"}, {"id": " a "}, {"name": "a"}, {}, {"id": ""}]);
    let names =
        registration(&with_skills(&skills)).capabilities.into_iter().map(|capability| capability.name);
    assert_eq!(names.collect::<Vec<_>>(), ["a", "a-2", "a-2-2", "a-3", "a-4", "skill", "skill-2"]);
}

#[test]
fn empty_texts_and_nul_characters_are_left_out() {
    let skills = json!([{"id": "a\u{0}b", "name": "", "tags": ["", " ", "x\u{0}"], "examples": ["", "e"]}]);
    let registration = registration(&with_skills(&skills));
    registration.validate().unwrap();
    assert_eq!(registration.capabilities, [Capability::new("ab").tag("x").example("e")]);
}

#[test]
fn agent_id_is_made_from_the_name_or_else_from_the_host() {
    for (name, id) in [
        ("Recipe Agent", "recipe-agent"),
        ("  --Recipe  Agent!! ", "recipe-agent"),
        ("v1.2_beta", "v1.2_beta"),
        ("Köche & Café", "koche-cafe"),
        ("Agent 料理", "agent"),
        ("料理", "recipes.example"),
        ("...", "recipes.example"),
        (&"x-".repeat(64), &format!("{}x", "x-".repeat(31))),
    ] {
        assert_eq!(registration(&with_name(name)).agent_id, id, "{name}");
    }
    let odd = json!({"name": "料理", "url": "http://[::]/"});
    let odd = registration(&odd);
    assert_eq!(odd.agent_id, "agent");
    assert!(odd.validate().is_err(), "no client can connect to this address");
}

#[test]
fn card_is_read_without_surrounding_white_space_and_other_documents_are_rejected() {
    let card = read_card(b"\xef\xbb\xbf \r\n{\"name\":  \"A\"}\n").unwrap();
    assert_eq!(card.as_str(), "{\"name\":  \"A\"}");
    let of_size = |bytes: usize| format!("{{\"a\":\"{}\"}}", "x".repeat(bytes - 8)).into_bytes();
    assert!(read_card(&of_size(limits::CARD_BYTES)).is_ok());
    for (document, expected) in [
        (of_size(limits::CARD_BYTES + 1), "up to 65536 bytes"),
        (b" \n".to_vec(), "it is empty"),
        (b"<!doctype html><html>".to_vec(), "it is HTML or XML"),
        (b"[]".to_vec(), "it is not a JSON object"),
        (b"name: A".to_vec(), "it is not a JSON object"),
        (b"{\"name\": \"A\"".to_vec(), "it is not JSON: EOF while parsing"),
        (b"{\"name\": \"A\"} {}".to_vec(), "it is not JSON: trailing characters"),
        (b"{\"name\": \"\xff\"}".to_vec(), "it is not UTF-8"),
    ] {
        let message = read_card(&document).unwrap_err().to_string();
        assert!(message.contains(expected), "{message}");
    }
}

proptest! {
    #[test]
    fn registration_made_from_any_card_is_valid(name in any::<String>(), texts in proptest::collection::vec(any::<String>(), 0..6)) {
        let skills: Vec<_> = texts.iter().map(|text| {
            json!({"id": text, "name": texts[0], "description": text, "tags": texts, "examples": texts})
        }).collect();
        let card = json!({"name": name, "url": "http://a.example", "skills": skills}).to_string().parse().unwrap();
        match registration_of(&card) {
            Ok(registration) => {
                prop_assert!(registration.validate().is_ok(), "{:?}", registration.validate());
                let names: HashSet<_> = registration.capabilities.iter().map(|capability| &capability.name).collect();
                prop_assert!(names.len() == texts.len());
            }
            Err(error) => prop_assert!(name.replace('\0', "").trim().is_empty(), "{error}"),
        }
    }
}
