//! Filters return the same agents from the server and the mock registry, through the client, a directory and the command line.

use registry_sdk::contract::{AgentStatus, Capability, Registration};
use registry_sdk::testing::MockRegistry;
use registry_sdk::{Directory, ListQuery, RegistryClient, SearchQuery};
use serde_json::{Value, json};
use test_support::{NEVER, start_server};

use crate::support::{self, Ended};

#[tokio::test(flavor = "multi_thread")]
async fn on_the_server() {
    let server = start_server(|_| {}).await;
    same_answers(&server.url()).await;
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn on_the_mock_registry() {
    let mock = MockRegistry::builder().heartbeat_timeout(NEVER).start().await;
    same_answers(&mock.url()).await;
}

fn agents() -> [Registration; 5] {
    let of = |id: &str| Registration::new(id, id, "http://agent:8000");
    [
        of("eu")
            .capability(Capability::new("code_review").tag("rust").tag("fast"))
            .capability(Capability::new("code_build").tag("rust").tag("slow"))
            .metadata("zone", json!({"region": "eu", "rack": 7}))
            .metadata("gpu", true),
        of("us")
            .capability(Capability::new("code_review").tag("python"))
            .metadata("zone", json!({"region": "us", "rack": "7"}))
            .metadata("app.io/tier", "gold")
            .status(AgentStatus::Busy),
        // The capability that matches `review` best has no tag.
        of("two")
            .capability(Capability::new("review"))
            .capability(Capability::new("code_review_all").tag("rust")),
        of("gone")
            .capability(Capability::new("code_review").tag("rust"))
            .metadata("gpu", "true")
            .status(AgentStatus::Offline),
        of("odd")
            .capability(Capability::new("🦀").tag("fast").description("Never deploys"))
            .metadata("zone", Value::Null),
    ]
}

/// Searches, the same as arguments of the command line, and the agents that each finds.
fn searches() -> Vec<(SearchQuery, &'static str, &'static [&'static str])> {
    let review = || SearchQuery::new("review");
    vec![
        (review(), "review", &["eu", "gone", "two", "us"]),
        (review().status(AgentStatus::Busy), "review --status busy", &["us"]),
        (review().healthy(true), "review --healthy", &["eu", "two", "us"]),
        (review().healthy(false), "review --unhealthy", &["gone"]),
        (review().tag("rust"), "review --tag rust", &["eu", "gone", "two"]),
        (review().tag("rust").tag("fast"), "review --tag rust --tag fast", &["eu"]),
        (review().tag("slow"), "review --tag slow", &[]),
        (review().tag("Rust"), "review --tag Rust", &[]),
        (review().capability("code_review"), "review --capability code_review", &["eu", "gone", "us"]),
        (review().capability("code"), "review --capability code", &[]),
        (review().metadata("zone.rack", 7), "review --metadata zone.rack=7", &["eu", "us"]),
        (review().metadata("gpu", true), "review --metadata gpu=true", &["eu", "gone"]),
        (review().metadata("app.io/tier", "gold"), "review --metadata app.io/tier=gold", &["us"]),
        (review().metadata("zone", "eu"), "review --metadata zone=eu", &[]),
        (
            review().metadata("zone.rack", 7).metadata("zone.region", "us").tag("python"),
            "review --metadata zone.rack=7 --metadata zone.region=us --tag python",
            &["us"],
        ),
        (SearchQuery::exact("code_review"), "--capability code_review", &["eu", "gone", "us"]),
        (
            SearchQuery::exact("code_review").tag("rust"),
            "--capability code_review --tag rust",
            &["eu", "gone"],
        ),
        (SearchQuery::exact("code"), "--capability code", &[]),
        (SearchQuery::exact("🦀"), "--capability 🦀", &["odd"]),
        (SearchQuery::exact("🦀").tag("slow"), "--capability 🦀 --tag slow", &[]),
        (SearchQuery::new("deploy"), "deploy", &["odd"]),
        (SearchQuery::new("deploy").description_only(false), "deploy --no-description-only", &[]),
        (review().min_score(0.95), "review --min-score 0.95", &["eu", "gone", "two", "us"]),
        (review().min_score(1.0), "review --min-score 1 --match all", &["two"]),
    ]
}

/// Searches by sentences, as above, but with the agents in order, best match first.
fn sentences() -> Vec<(SearchQuery, &'static str, &'static str)> {
    let text = "Who reviews Rust code?";
    let sentence = || SearchQuery::sentence(text);
    vec![
        // The capability of this agent has fewer other words than the one of `eu`.
        (sentence(), "--match best", "gone"),
        (sentence(), "", "gone"),
        (sentence().status(AgentStatus::Busy), "--match best --status busy", "us"),
        (sentence().tag("slow"), "--match best --tag slow", "eu"),
        (sentence().capability("review"), "--match best --capability review", "two"),
        (sentence().min_score(0.4).healthy(false), "--match best --min-score 0.4 --unhealthy", "gone"),
        (sentence().metadata("gpu", "true").limit(1), "--match best --metadata gpu=true --limit 1", "gone"),
    ]
}

/// Lists, as above.
fn lists() -> Vec<(ListQuery, &'static str, &'static [&'static str])> {
    let all = ListQuery::all;
    vec![
        (all(), "", &["eu", "gone", "odd", "two", "us"]),
        (all().status(AgentStatus::Active), "--status active", &["eu", "odd", "two"]),
        (all().healthy(false), "--unhealthy", &["gone"]),
        (all().healthy(true).tag("fast"), "--healthy --tag fast", &["eu", "odd"]),
        (all().tag("rust"), "--tag rust", &["eu", "gone", "two"]),
        (all().tag("fast").tag("slow"), "--tag fast --tag slow", &[]),
        (all().capability("code_build"), "--capability code_build", &["eu"]),
        (all().capability("code_build").tag("fast"), "--capability code_build --tag fast", &[]),
        (all().metadata("zone.region", "us"), "--metadata zone.region=us", &["us"]),
        (all().metadata("zone", "null"), "--metadata zone=null", &[]),
        (
            all().metadata("gpu", true).status(AgentStatus::Active),
            "--metadata gpu=true --status active",
            &["eu"],
        ),
    ]
}

async fn same_answers(url: &str) {
    let client = RegistryClient::new(url).unwrap();
    for registration in agents() {
        client.register(&registration).await.unwrap();
    }
    let directory = Directory::follow(&client);
    directory.ready().await.unwrap();
    for (query, arguments, expected) in searches() {
        let found = client.search_capabilities(query.clone()).await.unwrap();
        let mut ids: Vec<_> = found.iter().map(|one| one.agent_id.as_str()).collect();
        ids.sort_unstable();
        assert_eq!(ids, expected, "{query:?}");
        assert_eq!(directory.search(query.clone()), found, "{query:?}");
        assert_eq!(run(url, "search", &words(arguments)), json!(found), "{arguments}");
        let mut paged = client.search_all(query.clone().limit(1)).await.unwrap();
        paged.sort_by(|one, other| one.agent_id.cmp(&other.agent_id));
        let paged: Vec<_> = paged.iter().map(|one| one.agent_id.as_str()).collect();
        assert_eq!(paged, expected, "{query:?}");
    }
    for (query, arguments, expected) in sentences() {
        let found = client.search_capabilities(query.clone()).await.unwrap();
        assert_eq!(found.first().map(|one| one.agent_id.as_str()), Some(expected), "{query:?}");
        assert_eq!(directory.search(query.clone()), found, "{query:?}");
        let arguments: Vec<_> = [query.q.as_str()].into_iter().chain(arguments.split_whitespace()).collect();
        assert_eq!(run(url, "search", &arguments), json!(found), "{arguments:?}");
        if query.limit.is_none() {
            let mut paged = client.search_all(query.clone().limit(1)).await.unwrap();
            let mut found = found;
            for all in [&mut paged, &mut found] {
                all.sort_by(|one, other| one.agent_id.cmp(&other.agent_id));
            }
            assert_eq!(paged, found, "{query:?}");
        }
    }
    // Filters do not change scores.
    let sentence = SearchQuery::sentence("Who reviews Rust code?");
    let all = client.search_capabilities(sentence.clone()).await.unwrap();
    let busy = client.search_capabilities(sentence.status(AgentStatus::Busy)).await.unwrap();
    assert_eq!(all.iter().find(|one| one.agent_id == "us"), busy.first());
    for (query, arguments, expected) in lists() {
        let listed = client.list_agents(query.clone()).await.unwrap().agents;
        let ids: Vec<_> = listed.iter().map(|one| one.agent_id.as_str()).collect();
        assert_eq!(ids, expected, "{query:?}");
        let known: Vec<_> = directory.list(&query).iter().map(|one| one.agent_id.clone()).collect();
        assert_eq!(known, expected, "{query:?}");
        assert_eq!(run(url, "agents", &words(arguments)), json!(listed), "{arguments}");
    }
    // If a filter excludes the best capability of an agent, the search returns another one.
    let found = client.search_capabilities(SearchQuery::new("review").tag("rust")).await.unwrap();
    let two = found.iter().find(|one| one.agent_id == "two").unwrap();
    assert_eq!(two.capability, "code_review_all");
}

fn words(arguments: &str) -> Vec<&str> {
    arguments.split_whitespace().collect()
}

/// The JSON that a command prints.
fn run(url: &str, command: &str, arguments: &[&str]) -> Value {
    let Ended { code, said, reasons } = support::run(url, &[&[command], arguments].concat());
    assert!(matches!(code, Some(0 | 3)), "{arguments:?}: {reasons}");
    serde_json::from_str(&said).unwrap()
}
