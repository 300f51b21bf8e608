//! Hostile input: no input makes the contract's code panic, or passes the checks although it is invalid.
//!
//! Each test runs briefly on random input, and for longer with `cargo bolero` or `BOLERO_RANDOM_ITERATIONS`.
#![cfg(feature = "__internal")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use registry_sdk::contract::{
    AgentRecord, Capability, CapabilityMatch, Heartbeat, Problem, Registration, StatusUpdate,
};
use registry_sdk::internal::{Query, RequestBody, SearchIndex, is_valid_agent_id};
use serde_json::{Map, Value, json};

/// Pieces of which inputs consist, so that many of them are nearly valid.
const PIECES: [&str; 50] = [
    "{",
    "}",
    "[",
    "]",
    ":",
    ",",
    "\"",
    "\\",
    "\\u0000",
    "\\ud800",
    "null",
    "true",
    "0",
    "-1",
    "1e999",
    "0.1",
    " ",
    "\n",
    "\"agent_id\":",
    "\"agent_name\":",
    "\"base_url\":",
    "\"capabilities\":",
    "\"name\":",
    "\"description\":",
    "\"cost_estimate\":",
    "\"tags\":",
    "\"title\":",
    "\"examples\":",
    "\"metadata\":",
    "\"status\":",
    "\"heartbeat_interval_seconds\":",
    "\"instance_id\":",
    "\"load\":",
    "\"active_tasks\":",
    "\"a\"",
    "\"a-b.c_d\"",
    "\"http://a\"",
    "\"https://[::1]:8000/x\"",
    "\"http://u:p@a\"",
    "\"busy\"",
    "\"active\"",
    "{\"name\":\"work\",\"tags\":[\"fast\"]}",
    "[]",
    "{}",
    "{\"agent_id\":\"a\",\"agent_name\":\"A\",\"base_url\":\"http://a\",\"capabilities\":[",
    "]}",
    "codeGen",
    "é",
    "\u{0}",
    "🦀",
];

/// Raw bytes, or the numbers of pieces.
fn text_of(input: &[u8]) -> Vec<u8> {
    match input.split_first() {
        Some((first, rest)) if first % 4 != 0 => {
            rest.iter().flat_map(|byte| PIECES[usize::from(*byte) % PIECES.len()].bytes()).collect()
        }
        _ => input.to_vec(),
    }
}

#[test]
fn registrations() {
    bolero::check!().for_each(|input: &[u8]| {
        let Ok(Ok(registration)) = Registration::from_json(&text_of(input)) else { return };
        registration.validate().unwrap();
        assert!(is_valid_agent_id(&registration.agent_id));
        let again = serde_json::to_vec(&registration).unwrap();
        assert_eq!(Registration::from_json(&again).unwrap().unwrap(), registration);
    });
}

/// An id, a name, an address, capabilities with tags, metadata, and what to corrupt where.
type Nearly = (String, String, u8, Vec<(String, Vec<String>)>, Vec<(String, String)>, Option<(u16, u8)>);

#[test]
fn nearly_good_registrations() {
    const ADDRESSES: [&str; 8] = [
        "http://a",
        "https://a.b:1/c/",
        "http://[::1]",
        "http://a:99999",
        "ftp://a",
        "http://a@b",
        "http://é",
        "//a",
    ];
    bolero::check!().with_type::<Nearly>().for_each(|(id, name, address, capabilities, metadata, spoilt)| {
        // One more letter makes most of them valid.
        let capabilities: Vec<_> =
            capabilities.iter().map(|(name, tags)| json!({"name": format!("{name}x"), "tags": tags})).collect();
        let metadata: Map<String, Value> =
            metadata.iter().map(|(key, value)| (key.clone(), value.as_str().into())).collect();
        let id: String = id.chars().filter(char::is_ascii_alphanumeric).collect();
        let mut text = json!({
            "agent_id": format!("a{id}"), "agent_name": format!("{name}x"), "base_url": ADDRESSES[usize::from(*address) % 8],
            "capabilities": capabilities, "metadata": metadata,
        })
        .to_string()
        .into_bytes();
        if let Some((place, byte)) = spoilt {
            let place = usize::from(*place) % text.len();
            text[place] = *byte;
        }
        let Ok(Ok(registration)) = Registration::from_json(&text) else { return };
        registration.validate().unwrap();
        let again = serde_json::to_vec(&registration).unwrap();
        assert_eq!(Registration::from_json(&again).unwrap().unwrap(), registration);
    });
}

#[test]
fn heartbeats_and_statuses() {
    bolero::check!().for_each(|input: &[u8]| {
        let text = text_of(input);
        if let Ok(Ok(beat)) = Heartbeat::from_json(&text) {
            assert!(beat.load.is_none_or(f64::is_finite));
        }
        let _ = StatusUpdate::from_json(&text);
    });
}

#[test]
fn answers() {
    bolero::check!().for_each(|input: &[u8]| {
        let text = text_of(input);
        let _ = serde_json::from_slice::<Vec<AgentRecord>>(&text);
        let _ = serde_json::from_slice::<Vec<CapabilityMatch>>(&text);
        let _ = serde_json::from_slice::<Problem>(&text);
    });
}

#[test]
fn searches() {
    bolero::check!().for_each(|input: &[u8]| {
        let text = String::from_utf8_lossy(&text_of(input)).into_owned();
        let mut index = SearchIndex::default();
        let slot = index.insert(&[Capability::new(&*text).description(&*text).example(&*text)]);
        for query in [Query::all(&text), Query::best(&text)] {
            let found = index.search(&query, |_, _| true);
            assert_eq!(found.len(), usize::from(!query.is_empty()), "{text:?} finds itself");
            assert!(
                found.iter().all(|hit| hit.slot == slot && hit.score > 0.0 && hit.score <= 1.0),
                "{found:?}"
            );
        }
        index.remove(slot);
        assert_eq!(index.counts(), (0, 0));
        assert!(index.search(&Query::all(&text), |_, _| true).is_empty());
    });
}
