//! Every limit of a registration, on both sides of its boundary.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use registry_sdk::contract::{Capability, Registration, ValidationError};
use serde_json::{Value, json};

fn plain() -> Registration {
    Registration::new("feature-dev", "Feature Development Agent", "http://feature-dev:8002")
}

/// The fields that a registration is refused for.
fn refused(registration: &Registration) -> Vec<String> {
    match registration.validate() {
        Ok(()) => Vec::new(),
        Err(ValidationError(errors)) => errors.into_iter().map(|error| error.field).collect(),
    }
}

/// The same for a body as it came over the wire.
fn refused_json(body: &Value) -> Vec<String> {
    match Registration::from_json(body.to_string().as_bytes()).unwrap() {
        Ok(_) => Vec::new(),
        Err(ValidationError(errors)) => errors.into_iter().map(|error| error.field).collect(),
    }
}

fn letters(count: usize) -> String {
    "ä".repeat(count)
}

#[test]
fn agent_id_has_1_to_64_of_its_alphabet() {
    let with = |id: &str| refused(&Registration::new(id, "A", "http://a"));
    for good in ["a", "7", "a.b_c-D", &"x".repeat(64)] {
        assert!(with(good).is_empty(), "{good}");
    }
    for bad in ["", ".a", "_a", "-a", "a b", "a/b", "ä", "a\n", "a\0", &"x".repeat(65)] {
        assert_eq!(with(bad), ["agent_id"], "{bad:?}");
    }
}

#[test]
fn agent_name_has_1_to_128_characters() {
    let with = |name: String| refused(&Registration::new("a", name, "http://a"));
    assert!(with(letters(1)).is_empty());
    assert!(with(letters(128)).is_empty());
    assert_eq!(with(String::new()), ["agent_name"]);
    assert_eq!(with(letters(129)), ["agent_name"]);
    assert_eq!(with("a\0b".to_owned()), ["agent_name"]);
}

#[test]
fn base_url_is_absolute_http_without_user_info_up_to_256_characters() {
    let with = |url: &str| refused(&Registration::new("a", "A", url));
    let of_length = |length: usize| format!("http://a/{}", "p".repeat(length - 9));
    for good in [
        "http://a",
        "HTTPS://a.example:8443/path?query#part",
        "http://[::1]:8002",
        "http://127.0.0.1",
        &of_length(256),
    ] {
        assert!(with(good).is_empty(), "{good}");
    }
    for bad in [
        "",
        "a",
        "/path",
        "//a/path",
        "ftp://a",
        "javascript:alert(1)",
        "http:a",
        "http://",
        "http:// a",
        " http://a",
        "http://a\t",
        "http://user@a",
        "http://user:secret@a",
        "http://:secret@a",
        "http://a:99999",
        &of_length(257),
    ] {
        let fields = with(bad);
        assert!(!fields.is_empty() && fields.iter().all(|field| field == "base_url"), "{bad:?}: {fields:?}");
    }
}

#[test]
fn up_to_128_capabilities_with_distinct_names() {
    let with = |count: usize| {
        let names = (0..count).map(|number| format!("c{number}"));
        refused(&names.map(Capability::new).fold(plain(), Registration::capability))
    };
    assert!(with(0).is_empty());
    assert!(with(128).is_empty());
    assert_eq!(with(129), ["capabilities"]);
    let twice = plain().capability(Capability::new("same")).capability(Capability::new("same"));
    assert_eq!(refused(&twice), ["capabilities[1].name"]);
}

#[test]
fn the_texts_of_a_capability_have_their_lengths() {
    let with = |capability: Capability| refused(&plain().capability(capability));
    let named = |name: String| with(Capability::new(name));
    assert!(named(letters(1)).is_empty());
    assert!(named(letters(128)).is_empty());
    assert_eq!(named(String::new()), ["capabilities[0].name"]);
    assert_eq!(named(letters(129)), ["capabilities[0].name"]);

    let described = |length| with(Capability::new("c").description(letters(length)));
    assert!(described(0).is_empty());
    assert!(described(1_024).is_empty());
    assert_eq!(described(1_025), ["capabilities[0].description"]);

    let costs = |length| with(Capability::new("c").cost_estimate(letters(length)));
    assert!(costs(0).is_empty());
    assert!(costs(128).is_empty());
    assert_eq!(costs(129), ["capabilities[0].cost_estimate"]);

    let titled = |length| with(Capability::new("c").title(letters(length)));
    assert!(titled(1).is_empty());
    assert!(titled(128).is_empty());
    assert_eq!(titled(0), ["capabilities[0].title"]);
    assert_eq!(titled(129), ["capabilities[0].title"]);
}

#[test]
fn up_to_32_tags_of_1_to_64_characters() {
    let with = |tags: Vec<String>| {
        let tagged = tags.into_iter().fold(Capability::new("c"), Capability::tag);
        refused(&plain().capability(tagged))
    };
    assert!(with((0..32).map(|number| number.to_string()).collect()).is_empty());
    assert_eq!(with((0..33).map(|number| number.to_string()).collect()), ["capabilities[0].tags"]);
    assert!(with(vec![letters(64)]).is_empty());
    assert_eq!(with(vec!["ok".to_owned(), letters(65)]), ["capabilities[0].tags[1]"]);
    assert_eq!(with(vec![String::new()]), ["capabilities[0].tags[0]"]);
}

#[test]
fn up_to_16_examples_of_1_to_256_characters() {
    let with = |examples: Vec<String>| {
        let capability = examples.into_iter().fold(Capability::new("c"), Capability::example);
        refused(&plain().capability(capability))
    };
    assert!(with((0..16).map(|number| number.to_string()).collect()).is_empty());
    assert_eq!(with((0..17).map(|number| number.to_string()).collect()), ["capabilities[0].examples"]);
    assert!(with(vec![letters(256)]).is_empty());
    assert_eq!(with(vec!["ok".to_owned(), letters(257)]), ["capabilities[0].examples[1]"]);
    assert_eq!(with(vec![String::new()]), ["capabilities[0].examples[0]"]);
    assert_eq!(with(vec!["a\0".to_owned()]), ["capabilities[0].examples[0]"]);
}

#[test]
fn metadata_has_up_to_16_kib_of_json() {
    // {"k":"…"} has 8 bytes around the text.
    let with = |bytes: usize| refused(&plain().metadata("k", "x".repeat(bytes - 8)));
    assert!(with(16 * 1_024).is_empty());
    assert_eq!(with(16 * 1_024 + 1), ["metadata"]);
    for nul in [json!("a\0"), json!(["a\0"]), json!({"a\0": 1})] {
        assert_eq!(refused(&plain().metadata("k", nul)), ["metadata"]);
    }
    assert_eq!(refused(&plain().metadata("a\0", 1)), ["metadata"]);
    // The object itself is one level.
    let nested = |levels: usize| (1..levels).fold(Value::from(1), |inner, _| json!([inner]));
    assert!(refused(&plain().metadata("a", nested(64))).is_empty());
    assert_eq!(refused(&plain().metadata("a", nested(65))), ["metadata"]);
}

#[test]
fn heartbeat_interval_is_above_0_and_up_to_a_day() {
    let with = |interval| refused(&plain().heartbeat_interval(interval));
    assert!(with(Duration::from_nanos(1)).is_empty());
    assert!(with(Duration::from_secs(86_400)).is_empty());
    assert_eq!(with(Duration::ZERO), ["heartbeat_interval_seconds"]);
    assert_eq!(with(Duration::from_millis(86_400_001)), ["heartbeat_interval_seconds"]);
}

#[test]
fn instance_id_is_as_agent_id() {
    let with = |id: &str| refused(&plain().instance_id(id));
    assert!(with(&"x".repeat(64)).is_empty());
    for bad in ["", "-", "a b", &"x".repeat(65)] {
        assert_eq!(with(bad), ["instance_id"], "{bad:?}");
    }
}

#[test]
fn all_that_is_wrong_is_said_at_once() {
    let body = json!({
        "agent_id": 7, "base_url": "nowhere", "status": "asleep", "metadata": [],
        "heartbeat_interval_seconds": -1,
        "capabilities": [{"name": "ok"}, {"description": 5, "tags": "x"}, ["text"], {"name": ""},
            {"name": "b", "title": 1, "examples": "x"}],
    });
    let mut fields = refused_json(&body);
    fields.sort();
    assert_eq!(
        fields,
        [
            "agent_id",
            "agent_name",
            "base_url",
            "capabilities[1].description",
            "capabilities[1].name",
            "capabilities[1].tags",
            "capabilities[2]",
            "capabilities[3].name",
            "capabilities[4].examples",
            "capabilities[4].title",
            "heartbeat_interval_seconds",
            "metadata",
            "status",
        ]
    );
    let missing = refused_json(&json!({}));
    assert_eq!(missing, ["agent_id", "agent_name", "base_url", "capabilities"]);
}

#[test]
fn null_and_unknown_fields_are_taken_as_left_out() {
    let body = json!({
        "agent_id": "a", "agent_name": "A", "base_url": "http://a", "invented_later": {"x": 1},
        "status": null, "metadata": null, "heartbeat_interval_seconds": null,
        "capabilities": [{"name": "c", "description": null, "cost_estimate": null, "tags": null,
            "title": null, "examples": null, "more": 1}],
    });
    let read = Registration::from_json(body.to_string().as_bytes()).unwrap().unwrap();
    assert_eq!(read, Registration::new("a", "A", "http://a").capability(Capability::new("c")));
}

#[test]
fn what_is_no_json_object_is_an_error_of_its_own() {
    let values_without_names = r#"["a", "A", "http://a", []]"#;
    for body in ["", "{", "null", "[]", values_without_names, "\"text\"", "{\"agent_id\": \"a\", }"] {
        assert!(Registration::from_json(body.as_bytes()).is_err(), "{body}");
    }
}

#[test]
fn json_that_is_nested_too_deep_is_refused() {
    let deep = format!("{{\"metadata\": {{\"a\": {}1{}}}}}", "[".repeat(100_000), "]".repeat(100_000));
    let ValidationError(errors) = Registration::from_json(deep.as_bytes()).unwrap().unwrap_err();
    assert!(errors.iter().any(|error| error.field == "metadata"));
}
