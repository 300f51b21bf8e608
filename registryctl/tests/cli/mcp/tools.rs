//! Results of the tools on a real registry.

use std::collections::BTreeSet;

use registry_sdk::RegistryClient;
use registry_sdk::contract::{AgentStatus, Capability, Heartbeat, MaintenanceRequest, Registration};
use serde_json::{Value, json};
use test_support::start_server;

use super::support::{Session, agent, register};

fn ids(answer: &Value) -> Vec<&str> {
    answer["agents"].as_array().unwrap().iter().map(|agent| agent["agent_id"].as_str().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn sentence_finds_agents() {
    let registry = start_server(|_| {}).await;
    let url = registry.url();
    let capability = Capability::new("release_notes")
        .title("Translator")
        .description("x".repeat(1_000))
        .tag("german")
        .cost_estimate("~100 tokens")
        .example("Translate our release notes");
    let translator = Registration::new("translator", "Translator", "http://translator:8000")
        .capability(capability)
        .metadata("zone", json!({"region": "eu"}));
    register(&url, &translator).await;
    register(&url, &agent("reviewer", "code_review").status(AgentStatus::Busy)).await;
    let client = RegistryClient::new(&url).unwrap();
    let mut beat = Heartbeat::default();
    (beat.load, beat.active_tasks) = (Some(0.333), Some(2));
    client.heartbeat_with("translator", &beat).await.unwrap();

    let mut session = Session::start(&url, &[]);
    let found = session.result("search_agents", &json!({"query": "Who can translate our release notes?"}));
    let first = &found["agents"][0];
    assert_eq!(ids(&found), ["translator"]);
    let expected = json!({
        "agent_id": "translator", "name": "Translator", "capability": "release_notes", "title": "Translator",
        "description": format!("{}…", "x".repeat(200)), "tags": ["german"], "cost_estimate": "~100 tokens",
        "status": "active", "healthy": true, "load": 0.33, "active_tasks": 2, "score": first["score"],
    });
    assert_eq!(first, &expected);
    assert!(first["score"].as_f64().unwrap() > 0.0);
    assert_eq!(found.get("note"), None);

    for (filters, expected) in [
        (json!({"capability": "code_review"}), &["reviewer"][..]),
        (json!({"query": "code review", "status": "busy"}), &["reviewer"]),
        (json!({"query": "code review", "status": "active"}), &[]),
        (json!({"query": "code review", "healthy": false}), &[]),
        (json!({"query": "translate", "tags": ["german"], "healthy": null}), &["translator"]),
        (json!({"query": "translate", "tags": ["french"]}), &[]),
        (json!({"query": "translate", "metadata": {"zone.region": "eu"}}), &["translator"]),
        (json!({"query": "translate", "metadata": {"zone.region": "us"}}), &[]),
        (json!({"query": "translate", "min_score": 1}), &[]),
        (json!({"query": "brew coffee"}), &[]),
    ] {
        let found = session.result("search_agents", &filters);
        assert_eq!(ids(&found), expected, "{filters}");
        assert_eq!(found.get("note").is_some(), expected.is_empty(), "{found}");
    }
    registry.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn truncated_search_says_that_there_are_more_agents() {
    let registry = start_server(|_| {}).await;
    for number in 0..25 {
        register(&registry.url(), &agent(&format!("agent-{number:02}"), "code_review")).await;
    }
    let mut session = Session::start(&registry.url(), &[]);
    for (limit, count) in [(Value::Null, 5), (json!(7), 7), (json!(20), 20)] {
        let found = session.result("search_agents", &json!({"query": "review", "limit": limit}));
        assert_eq!(ids(&found).len(), count);
        let note = found["note"].as_str().unwrap();
        assert!(note.contains("More agents"), "{note}");
        assert_eq!(note.contains("`limit`"), count < 20, "{note}");
    }
    // The pages have every agent exactly once.
    let mut all = BTreeSet::new();
    let mut arguments = json!({"limit": 10, "healthy": true});
    for count in [10, 10, 5] {
        let page = session.result("list_agents", &arguments);
        assert_eq!(ids(&page).len(), count);
        all.extend(ids(&page).into_iter().map(str::to_owned));
        arguments["cursor"] = page["next_cursor"].clone();
    }
    assert_eq!((all.len(), &arguments["cursor"]), (25, &Value::Null));
    assert_eq!(ids(&session.result("list_agents", &json!({}))).len(), 20);
    registry.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn details_of_an_agent_are_shown() {
    let registry = start_server(|_| {}).await;
    let url = registry.url();
    let a = agent("a", "code_review").metadata("team", "platform");
    register(&url, &a).await;
    let mut session = Session::start(&url, &[]);
    let shown = session.result("get_agent", &json!({"agent_id": "a"}));
    assert_eq!(shown["name"], "Agent a");
    assert_eq!(shown["base_url"], a.base_url);
    assert_eq!(shown["capabilities"], json!([{"name": "code_review"}]));
    assert_eq!(shown["metadata"], json!({"team": "platform"}));
    assert_eq!((&shown["status"], &shown["healthy"]), (&json!("active"), &json!(true)));
    assert!(shown["last_heartbeat"].is_string() && shown.get("omitted").is_none(), "{shown}");

    let health = session.result("check_health", &json!({"agent_id": "a"}));
    assert_eq!((&health["healthy"], &health["status"]), (&json!(true), &json!("active")));
    assert_eq!(health.get("reason"), None);
    let client = RegistryClient::new(&url).unwrap();
    client.set_maintenance("a", &MaintenanceRequest::new("disk upgrade")).await.unwrap();
    let health = session.result("check_health", &json!({"agent_id": "a"}));
    assert_eq!((&health["healthy"], &health["reason"]), (&json!(false), &json!("maintenance")));
    let shown = session.result("get_agent", &json!({"agent_id": "a"}));
    assert_eq!(shown["maintenance"]["reason"], "disk upgrade");
    assert_eq!(session.result("list_agents", &json!({}))["agents"][0]["maintenance"], "disk upgrade");

    for tool in ["get_agent", "check_health"] {
        for id in ["nobody", "../stats", "a b", "%2e"] {
            let reason = session.failure(tool, &json!({"agent_id": id}));
            assert!(reason.contains(id) && reason.contains("search_agents"), "{tool}: {reason}");
        }
    }
    registry.shutdown().await;
}

/// Every word takes up space in a model's context, and some clients truncate long results at an arbitrary position.
#[tokio::test(flavor = "multi_thread")]
async fn results_are_bounded_in_size() {
    let registry = start_server(|_| {}).await;
    let url = registry.url();
    for number in 0..20 {
        let id = format!("{number:02}{}", "x".repeat(62));
        let mut registration = Registration::new(id, "語".repeat(128), "http://agent:8000")
            .metadata("notes", "n".repeat(15_000));
        for number in 0..40 {
            let mut capability = Capability::new(format!("code review {number:02}{}", "語".repeat(100)))
                .title("t".repeat(128))
                .description("語".repeat(1_024))
                .cost_estimate("c".repeat(128));
            for tag in 0..8 {
                capability = capability.tag(format!("{tag}{}", "t".repeat(60)));
            }
            registration = registration.capability(capability);
        }
        register(&url, &registration).await;
    }
    let mut session = Session::start(&url, &[]);
    let id = format!("00{}", "x".repeat(62));
    for (tool, arguments, kilobytes) in [
        ("search_agents", json!({"query": "code review"}), 16),
        ("search_agents", json!({"query": "code review", "limit": 20}), 64),
        ("list_agents", json!({}), 96),
        ("get_agent", json!({"agent_id": id}), 16),
        ("check_health", json!({"agent_id": id}), 1),
    ] {
        let length = session.result(tool, &arguments).to_string().len();
        assert!(length <= kilobytes * 1_024, "{tool} {arguments}: {length} bytes");
    }
    let shown = session.result("get_agent", &json!({"agent_id": id}));
    assert!(!shown["capabilities"].as_array().unwrap().is_empty());
    let omitted = shown["omitted"].to_string();
    assert!(omitted.contains("of 40 capabilities") && omitted.contains("notes"), "{omitted}");
    registry.shutdown().await;
}
