//! Every limit of a registration, on both sides of its boundary.
#![cfg(feature = "__internal")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::net::IpAddr;
use std::time::Duration;

use proptest::option;
use proptest::prelude::{ProptestConfig, prop_oneof, proptest};
use registry_sdk::contract::{Capability, Registration, ValidationError};
use registry_sdk::internal::{RequestBody, health_url};
use serde_json::{Value, json};
use url::{Host, Url};

fn plain() -> Registration {
    Registration::new("feature-dev", "Feature Development Agent", "http://feature-dev:8002")
}

/// Returns the fields for which a registration is refused.
fn refused(registration: &Registration) -> Vec<String> {
    match registration.validate() {
        Ok(()) => Vec::new(),
        Err(ValidationError(errors)) => errors.into_iter().map(|error| error.field).collect(),
    }
}

/// The same for a body from the wire.
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

/// Returns what is wrong with a `base_url`, or `None` if it is valid.
fn objection(url: &str) -> Option<String> {
    let ValidationError(errors) = Registration::new("a", "A", url).validate().err()?;
    assert!(errors.iter().all(|error| error.field == "base_url"), "{url:?}: {errors:?}");
    errors.into_iter().map(|error| error.message).next()
}

#[test]
fn base_url_is_absolute_http_without_user_info_up_to_256_characters() {
    let of_length = |length: usize| format!("http://a/{}", "p".repeat(length - 9));
    for good in ["http://a", "HTTPS://a.example:8443/path", "http://a/", "http://a:1/b//c/", &of_length(256)]
    {
        assert_eq!(objection(good), None, "{good}");
    }
    for bad in [
        "",
        "a",
        "/path",
        "//a/path",
        "ftp://a",
        "javascript:alert(1)",
        "http:a",
        "http:/a",
        "http://",
        "http:///a",
        "http://:8002",
        "http:// a",
        " http://a",
        "http://a\t",
        "http://user@a",
        "http://user:secret@a",
        "http://:secret@a",
        "http://@a",
        "http://a:99999",
        "http://a:$PORT",
        &of_length(257),
    ] {
        assert!(objection(bad).is_some(), "{bad:?}");
    }
}

#[test]
fn base_url_has_to_be_an_address_that_callers_can_connect_to() {
    let label = "x".repeat(63);
    for good in [
        "http://127.0.0.1",
        "http://[::1]:8002",
        "http://localhost:65535",
        "http://2130706433:1",
        "http://10.1.2.3",
        "http://[2001:db8::7]",
        "http://[::ffff:10.1.2.3]",
        "http://feature_dev-1:8002",
        "http://agent.default.svc.cluster.local.:8002",
        "http://bücher.example",
        "http://xn--bcher-kva.example",
        &format!("http://{label}.{label}"),
    ] {
        assert_eq!(objection(good), None, "{good}");
    }
    // One of each kind, and words that name the fix.
    let (name, listen, group) = ("is not a host name or address", "an address to listen on", "one receiver");
    // Punycode makes it longer.
    let long_name = format!("http://{}example", "ü.".repeat(40));
    let kinds: [(&str, &[&str]); 10] = [
        (
            listen,
            &[
                "http://0.0.0.0:8002",
                "http://0.0.0.0",
                "http://0.1.2.3:8002",
                "http://0:8002",
                "http://0x0",
                "http://00.0x0.0",
                "http://1",
                "http://０.０.０.０",
                "http://[::]:8002",
                "http://[0:0:0:0:0:0:0:0]",
                "http://[::ffff:0.0.0.0]",
                "http://[::ffff:0:0]:1",
                "http://[::0.0.0.2]",
            ],
        ),
        (
            group,
            &[
                "http://224.0.0.1",
                "http://239.255.255.255",
                "http://255.255.255.255:80",
                "http://[ff02::1]:1",
                "http://[::ffff:224.0.0.1]",
            ],
        ),
        ("needs a zone", &["http://[fe80::1]:8002", "http://[febf::1]"]),
        ("port 0", &["http://a:0", "http://a:000/x"]),
        (
            "must have no query and no fragment",
            &["http://a:1/?x=1#y", "http://a?", "http://a/#", "http://a#part"],
        ),
        ("must have no backslash", &["http://a:1\\path", "http:\\\\a", "http://\\a"]),
        (
            "placeholder that was not filled in",
            &["http://*:80", "http://{host}:8002", "http://$HOST", "http://${HOST}:1", "http://<host>:8002"],
        ),
        (
            name,
            &[
                "http://a,b",
                "http://a..b",
                "http://.a",
                "http://a..",
                "http://.",
                "http://%61gent",
                "http://a%20b",
                "http://999.1.1.1",
                "http://[::1",
                "http://[::1%25eth0]",
                "http://＊",
                &format!("http://{label}x"),
                &long_name,
            ],
        ),
        ("scheme twice", &["http://http://a:8002", "https://HTTP://a", "http://https://a"]),
        ("http or https", &["http:/x", "http:x", "agent:8002", "ws://agent"]),
    ];
    for (words, urls) in kinds {
        for url in urls {
            let said = objection(url).unwrap_or_default();
            assert!(said.contains(words) && said.contains("http://agent:8002"), "{url:?}: {said:?}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(5_000))]

    /// Pieces of which URLs of all kinds consist, valid and invalid ones.
    #[test]
    fn what_passes_can_be_dialled_and_its_health_url_lies_below_it(
        scheme in prop_oneof![4 => "(http|https|HTTP)://", 1 => "(http|ftp)?(:/|:|//|:///)"],
        host in "([a-z0-9_.-]{1,9}|[a-z0-9_.*$%\\\\@{}\\[\\]:-]{0,12}|(0x)?[0-9a-f.]{1,15}|\\[[0-9a-f:.]{0,20}\\]|\\PC{1,6})",
        port in "(:[0-9]{0,6})?",
        path in "(/[a-z%.2eE/~;@?#-]{0,12})?",
        health_path in option::of("/[a-z%.2eE/~;:@-]{0,12}"),
    ) {
        let base_url = format!("{scheme}{host}{port}{path}");
        let mut registration = Registration::new("a", "A", &*base_url);
        registration.health_path = health_path;
        if registration.validate().is_ok() {
            let url = Url::parse(&base_url).unwrap();
            assert!(url.port_or_known_default() != Some(0), "{base_url}");
            let address = match url.host().unwrap() {
                Host::Ipv4(address) => Some(IpAddr::from(address)),
                Host::Ipv6(address) => Some(IpAddr::from(address).to_canonical()),
                Host::Domain(_) => None,
            };
            assert!(address.is_none_or(|to| !to.is_unspecified() && !to.is_multicast()), "{base_url}");
            let health = health_url(&base_url, registration.health_path.as_deref()).unwrap();
            assert_eq!(health.origin(), url.origin(), "{base_url}");
            let below = format!("{}/", url.path().trim_end_matches('/'));
            assert!(health.path().starts_with(&below), "{base_url}: {health}");
            assert!(health.path().len() > below.len() || registration.health_path.as_deref() == Some("/"));
            assert_eq!((health.query(), health.fragment()), (None, None), "{base_url}");
        }
    }
}

#[test]
fn health_path_has_1_to_256_characters_and_stays_below_the_base_url() {
    let with = |path: &str| refused(&plain().health_path(path));
    for good in [
        "/",
        "/healthz",
        "/health/",
        "/a/b.c/..d",
        "/gesund/ä",
        "/a%20b",
        "/v1//health",
        &format!("/{}", letters(255)),
    ] {
        assert!(with(good).is_empty(), "{good}");
        assert!(health_url("http://agent:8002/v1", Some(good)).unwrap().path().starts_with("/v1/"), "{good}");
    }
    for bad in [
        "",
        "healthz",
        "//other",
        "/a?b",
        "/a#b",
        "/a\\b",
        "/a b",
        "/a\n",
        "/a\0",
        "/..",
        "/a/../b",
        "/a/..",
        "/./a",
        "/%2e%2e/a",
        "/a/.%2E",
        "http://other/health",
        &format!("/{}", letters(256)),
    ] {
        let fields = with(bad);
        assert!(
            !fields.is_empty() && fields.iter().all(|field| field == "health_path"),
            "{bad:?}: {fields:?}"
        );
    }
}

#[test]
fn probe_is_on_or_off() {
    let body = |probe: Value| json!({"agent_id": "a", "agent_name": "A", "base_url": "http://a", "capabilities": [], "probe": probe});
    for good in [json!("on"), json!("off"), Value::Null] {
        assert!(refused_json(&body(good.clone())).is_empty(), "{good}");
    }
    for bad in [json!("of"), json!("OFF"), json!(""), json!(false), json!(["off"])] {
        assert_eq!(refused_json(&body(bad.clone())), ["probe"], "{bad}");
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
fn texts_of_a_capability_have_length_limits() {
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
fn instance_id_has_the_limits_of_an_agent_id() {
    let with = |id: &str| refused(&plain().instance_id(id));
    assert!(with(&"x".repeat(64)).is_empty());
    for bad in ["", "-", "a b", &"x".repeat(65)] {
        assert_eq!(with(bad), ["instance_id"], "{bad:?}");
    }
}

#[test]
fn all_invalid_fields_are_reported_at_once() {
    let body = json!({
        "agent_id": 7, "base_url": "nowhere", "status": "asleep", "metadata": [],
        "heartbeat_interval_seconds": -1, "health_path": 7, "probe": "maybe",
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
            "health_path",
            "heartbeat_interval_seconds",
            "metadata",
            "probe",
            "status",
        ]
    );
    let missing = refused_json(&json!({}));
    assert_eq!(missing, ["agent_id", "agent_name", "base_url", "capabilities"]);
}

#[test]
fn null_and_unknown_fields_count_as_missing() {
    let body = json!({
        "agent_id": "a", "agent_name": "A", "base_url": "http://a", "invented_later": {"x": 1},
        "status": null, "metadata": null, "heartbeat_interval_seconds": null,
        "health_path": null, "probe": null,
        "capabilities": [{"name": "c", "description": null, "cost_estimate": null, "tags": null,
            "title": null, "examples": null, "more": 1}],
    });
    let read = Registration::from_json(body.to_string().as_bytes()).unwrap().unwrap();
    assert_eq!(read, Registration::new("a", "A", "http://a").capability(Capability::new("c")));
}

#[test]
fn body_that_is_not_a_json_object_is_a_separate_error() {
    let values_without_names = r#"["a", "A", "http://a", []]"#;
    for body in ["", "{", "null", "[]", values_without_names, "\"text\"", "{\"agent_id\": \"a\", }"] {
        assert!(Registration::from_json(body.as_bytes()).is_err(), "{body}");
    }
}

#[test]
fn json_that_is_nested_too_deeply_is_refused() {
    let deep = format!("{{\"metadata\": {{\"a\": {}1{}}}}}", "[".repeat(100_000), "]".repeat(100_000));
    let ValidationError(errors) = Registration::from_json(deep.as_bytes()).unwrap().unwrap_err();
    assert!(errors.iter().any(|error| error.field == "metadata"));
}
