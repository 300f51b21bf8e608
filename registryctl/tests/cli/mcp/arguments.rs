//! Invalid arguments get an error that names them.

use serde_json::json;
use test_support::start_server;

use super::support::Session;

#[tokio::test(flavor = "multi_thread")]
async fn invalid_argument_is_named() {
    let registry = start_server(|_| {}).await;
    let mut session = Session::start(&registry.url(), &["--allow-delegation"]);
    let task = |more: serde_json::Value| {
        let mut task = json!({"task": "review code", "path": "/execute", "body": {}});
        task.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        task
    };
    for (tool, arguments, expected) in [
        ("search_agents", json!({}), "missing argument `query`"),
        ("search_agents", json!({"query": "  "}), "`query` is empty"),
        ("search_agents", json!({"query": 7}), "`query` must be a string, not 7"),
        (
            "search_agents",
            json!({"query": "x", "limit": 0}),
            "`limit` must be a whole number from 1 to 20, not 0",
        ),
        ("search_agents", json!({"query": "x", "limit": 21}), "from 1 to 20, not 21"),
        ("search_agents", json!({"query": "x", "limit": 1.5}), "from 1 to 20, not 1.5"),
        ("search_agents", json!({"query": "x", "limit": "many"}), "from 1 to 20, not \"many\""),
        ("search_agents", json!({"query": "x", "min_score": 2}), "`min_score` must be a number from 0 to 1"),
        ("search_agents", json!({"query": "x", "healthy": "yes"}), "`healthy` must be true or false"),
        ("search_agents", json!({"query": "x", "status": "asleep"}), "`status`: \"asleep\" is not a status"),
        ("search_agents", json!({"query": "x", "tags": "rust"}), "`tags` must be an array of strings"),
        ("search_agents", json!({"query": "x", "tags": [1]}), "`tags` must be an array of strings"),
        ("search_agents", json!({"query": "x", "metadata": {"a": []}}), "`metadata` must be an object"),
        (
            "search_agents",
            json!({"query": "x", "tag": "rust"}),
            "unknown argument `tag`; this tool takes `query`,",
        ),
        ("search_agents", json!({"query": "x", "tags": ["x".repeat(65)]}), "tag"),
        ("list_agents", json!({"limit": 51}), "`limit` must be a whole number from 1 to 50"),
        ("list_agents", json!({"cursor": "!"}), "cursor"),
        ("get_agent", json!({}), "missing argument `agent_id`"),
        ("check_health", json!({"agent_id": null}), "missing argument `agent_id`"),
        (
            "check_health",
            json!({"agent_id": "a", "id": "a"}),
            "unknown argument `id`; this tool takes `agent_id`",
        ),
        ("delegate_task", json!({"path": "/execute", "body": {}}), "either `task` or `capability`"),
        ("delegate_task", task(json!({"capability": "x"})), "either `task` or `capability`"),
        ("delegate_task", json!({"task": "x", "body": {}}), "missing argument `path`"),
        ("delegate_task", json!({"task": "x", "path": "/execute"}), "missing argument `body`"),
        ("delegate_task", task(json!({"path": "execute"})), "`path` must begin with /"),
        ("delegate_task", task(json!({"path": "/a/../admin"})), "`path` must begin with /"),
        ("delegate_task", task(json!({"path": "/a/%2E%2e/admin"})), "`path` must begin with /"),
        ("delegate_task", task(json!({"path": "/a\\b"})), "`path` must begin with /"),
        ("delegate_task", task(json!({"path": "/a#b"})), "`path` must begin with /"),
        (
            "delegate_task",
            task(json!({"deadline_seconds": 0})),
            "`deadline_seconds` must be a number from 1 to 600",
        ),
        ("delegate_task", task(json!({"deadline_seconds": 601})), "from 1 to 600, not 601"),
        ("delegate_task", task(json!({"at_most_once": 1})), "`at_most_once` must be true or false"),
        ("delegate_task", task(json!({"attempts": 9})), "unknown argument `attempts`"),
    ] {
        let reason = session.failure(tool, &arguments);
        assert!(reason.contains(expected), "{tool} {arguments}: {reason}");
    }
    registry.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_argument_in_the_schemas_is_accepted() {
    let registry = start_server(|_| {}).await;
    let mut session = Session::start(&registry.url(), &["--allow-delegation"]);
    for tool in session.tools() {
        let name = tool["name"].as_str().unwrap();
        let given: Vec<&String> = tool["inputSchema"]["properties"].as_object().unwrap().keys().collect();
        for argument in given {
            // An argument that the tool does not know would get an error.
            let answer = session.call(name, &json!({argument: null}))["result"].to_string();
            assert!(!answer.contains("unknown argument"), "{name}: {answer}");
        }
        let unknown = session.call(
            name,
            &json!({"agent_id": "a", "query": "x", "task": "x", "path": "/", "body": 1, "unknown": 1}),
        );
        assert!(unknown["result"]["isError"] == true, "{unknown}");
    }
    registry.shutdown().await;
}
