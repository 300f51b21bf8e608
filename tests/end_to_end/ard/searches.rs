//! ARD searches and facets.

use registry_sdk::SearchQuery;
use registry_sdk::contract::{AgentStatus, MaintenanceRequest};
use serde_json::{Value, json};

use super::{answer, get, ids, post, register_three, search, start};
use crate::support::{Database, agent, client, on_both_databases};

on_both_databases!(
    results_are_ordered_by_score_and_have_a_source,
    filters_match_fields_of_entries,
    pages_of_a_search_are_complete,
    unhealthy_agents_are_not_found,
    every_federation_mode_only_searches_this_registry,
    facets_count_the_results_of_a_search,
    searches_are_counted_in_the_metrics,
);

async fn results_are_ordered_by_score_and_have_a_source(database: Database) {
    let server = start(&database).await;
    register_three(&server).await;
    let text = "What is the weather forecast for Oslo?";
    let found = answer(search(&server, text, &json!({}))).await;
    assert_eq!(ids(&found["results"]), ["forecaster", "Traveller_2.0"]);
    assert!(found.get("pageToken").is_none(), "{found}");
    let matches = client(&server).search_capabilities(SearchQuery::sentence(text)).await.unwrap();
    for (result, found) in found["results"].as_array().unwrap().iter().zip(matches) {
        let score = result["score"].as_u64().unwrap();
        #[expect(clippy::cast_precision_loss, reason = "up to 100")]
        let difference = score as f64 - found.score.unwrap() * 100.0;
        assert!(difference.abs() <= 0.5 && score <= 100, "{result}");
        assert_eq!(result["source"], format!("{}/ard/", server.url()));
        assert_eq!(result["type"], "application/json");
    }
    server.shutdown().await;
}

async fn filters_match_fields_of_entries(database: Database) {
    let server = start(&database).await;
    register_three(&server).await;
    let both = &["Traveller_2.0", "forecaster"][..];
    for (filter, expected) in [
        (json!({}), both),
        (json!({"type": ["application/json"]}), both),
        (json!({"type": "application/mcp-server-card+json"}), &[]),
        (json!({"type": ["application/mcp-server-card+json", "application/json"]}), both),
        (json!({"publisher": "agents.example"}), both),
        (json!({"publisher": ["other.example"]}), &[]),
        // Any capability of the agent may match the filter, not only the one that matches the text.
        (json!({"capabilities": ["snow_report"]}), &["forecaster"]),
        (json!({"capabilities": ["snow_report", "book_trip"]}), both),
        (json!({"tags": ["maps", "travel"]}), both),
        (json!({"tags": ["Maps"]}), &[]),
        (json!({"tags": ["weather"], "capabilities": ["book_trip"]}), &[]),
        (json!({"displayName": "Traveller"}), &["Traveller_2.0"]),
        (json!({"identifier": "urn:air:agents.example:agent:forecaster"}), &["forecaster"]),
        (json!({"metadata.team": ["climate", "platform"]}), &["forecaster"]),
        (json!({"metadata.cores": 8}), &["forecaster"]),
        (json!({"metadata.cores": "8.0"}), &["forecaster"]),
        (json!({"metadata.beta": true, "tags": "travel"}), &["Traveller_2.0"]),
        (json!({"metadata.zone.region": "eu"}), &["forecaster"]),
        (json!({"metadata.missing": "eu"}), &[]),
    ] {
        let mut found = ids(&answer(search(&server, "weather", &filter)).await["results"]);
        found.sort_unstable();
        assert_eq!(found, expected, "{filter}");
    }
    // A context only defines prefixes.
    let query = json!({"@context": {"okf": "https://okf.example/ns#"}, "text": "weather", "filter": {"tags": "maps"}});
    let found = answer(post(&server, "/ard/search", &json!({"query": query}))).await;
    assert_eq!(ids(&found["results"]), ["forecaster"]);
    server.shutdown().await;
}

async fn pages_of_a_search_are_complete(database: Database) {
    let server = start(&database).await;
    for number in 0..25 {
        let word = if number % 2 == 0 { "even_work" } else { "odd_work" };
        let registration = agent(&format!("a{number:02}"), word).metadata("half", number % 2);
        client(&server).register(&registration).await.unwrap();
    }
    let default = answer(post(&server, "/ard/search", &json!({"query": {"text": "work"}}))).await;
    assert_eq!(default["results"].as_array().unwrap().len(), 10);
    let (mut found, mut token) = (Vec::new(), Value::Null);
    loop {
        let mut request = json!({"query": {"text": "work", "filter": {"metadata.half": 1}}, "pageSize": 5});
        if token.is_string() {
            request["pageToken"] = token;
        }
        let page = answer(post(&server, "/ard/search", &request)).await;
        found.extend(ids(&page["results"]));
        token = page["pageToken"].clone();
        if token.is_null() {
            break;
        }
    }
    let odd = (0..25).filter(|number| number % 2 == 1).map(|number| format!("a{number:02}"));
    assert_eq!(found, odd.collect::<Vec<_>>());
    server.shutdown().await;
}

async fn unhealthy_agents_are_not_found(database: Database) {
    let server = start(&database).await;
    let registry = client(&server);
    for id in ["active", "busy", "offline", "maintained", "removed"] {
        registry.register(&agent(id, "work")).await.unwrap();
    }
    registry.update_status("busy", AgentStatus::Busy).await.unwrap();
    registry.update_status("offline", AgentStatus::Offline).await.unwrap();
    registry.set_maintenance("maintained", &MaintenanceRequest::new("disk")).await.unwrap();
    registry.deregister("removed").await.unwrap();
    let found = answer(search(&server, "work", &json!({}))).await;
    assert_eq!(ids(&found["results"]), ["active", "busy"]);
    for query in [json!({"text": "work"}), json!({})] {
        let request = json!({"query": query, "resultType": {"facets": [{"field": "displayName"}]}});
        let facets = answer(post(&server, "/ard/explore", &request)).await;
        let buckets = &facets["facets"]["displayName"]["buckets"];
        let expected = json!([{"value": "Agent active", "count": 1}, {"value": "Agent busy", "count": 1}]);
        assert_eq!(buckets, &expected, "{query}");
    }
    // They are still registered.
    let listed = answer(get(&server, "/ard/agents")).await;
    assert_eq!(ids(&listed["items"]), ["active", "busy", "maintained", "offline"]);
    registry.heartbeat("offline").await.unwrap();
    registry.end_maintenance("maintained").await.unwrap();
    let found = answer(search(&server, "work", &json!({}))).await;
    assert_eq!(ids(&found["results"]), ["active", "busy", "maintained", "offline"]);
    server.shutdown().await;
}

async fn every_federation_mode_only_searches_this_registry(database: Database) {
    let server = start(&database).await;
    register_three(&server).await;
    let expected = answer(search(&server, "weather", &json!({}))).await;
    for mode in ["auto", "referrals", "none"] {
        let request = json!({"query": {"text": "weather"}, "federation": mode});
        assert_eq!(answer(post(&server, "/ard/search", &request)).await, expected, "{mode}");
    }
    server.shutdown().await;
}

async fn facets_count_the_results_of_a_search(database: Database) {
    let server = start(&database).await;
    register_three(&server).await;
    let bucket = |value: &str, count: u64| json!({"value": value, "count": count});
    let explore = async |query: Option<Value>, facets: Value| {
        let mut request = json!({"resultType": {"facets": facets}});
        if let Some(query) = query {
            request["query"] = query;
        }
        let explored = answer(post(&server, "/ard/explore", &request)).await;
        assert_eq!(explored["resultType"], "facets");
        explored["facets"].clone()
    };
    let all = explore(
        None,
        json!([{"field": "type"}, {"field": "publisher"}, {"field": "tags", "limit": 2}, {"field": "metadata.team"},
            {"field": "metadata.cores"}, {"field": "metadata.lists"}]),
    );
    let expected = json!({
        "type": {"buckets": [bucket("application/json", 3)]},
        "publisher": {"buckets": [bucket("agents.example", 3)]},
        // Two capabilities of one agent have the first tag: the agent counts once.
        "tags": {"buckets": [bucket("maps", 1), bucket("security", 1)], "otherCount": 2},
        "metadata.team": {"buckets": [bucket("climate", 1), bucket("platform", 1), bucket("travel", 1)]},
        "metadata.cores": {"buckets": [bucket("8", 1)]},
        "metadata.lists": {"buckets": []},
    });
    assert_eq!(all.await, expected);
    let found = explore(
        Some(json!({"text": "weather"})),
        json!([{"field": "type", "minCount": 2}, {"field": "capabilities", "minCount": 2}]),
    );
    let expected =
        json!({"type": {"buckets": [bucket("application/json", 2)]}, "capabilities": {"buckets": []}});
    assert_eq!(found.await, expected);
    let filtered = explore(Some(json!({"filter": {"tags": "weather"}})), json!([{"field": "capabilities"}]));
    let expected =
        json!({"capabilities": {"buckets": [bucket("snow_report", 1), bucket("weather_forecast", 1)]}});
    assert_eq!(filtered.await, expected);
    server.shutdown().await;
}

async fn searches_are_counted_in_the_metrics(database: Database) {
    let server = start(&database).await;
    answer(search(&server, "weather in Oslo", &json!({}))).await;
    let metrics = get(&server, "/metrics").send().await.unwrap().text().await.unwrap();
    let line = "agent_registry_discovery_requests_total{capability=\"(sentence)\"} 1";
    assert!(metrics.contains(line), "{metrics}");
    server.shutdown().await;
}
