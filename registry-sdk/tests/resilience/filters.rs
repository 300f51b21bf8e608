//! Filters and pages: registries that do not know them, pages that change, and delegation with filters.

use registry_sdk::contract::{AgentStatus, Capability, Registration};
use registry_sdk::discovery::{Directory, Orchestrator, SelectError, SkipReason, TaskQuery};
use registry_sdk::testing::MockRegistry;
use registry_sdk::{Error, ListQuery, RegistryClient, SearchQuery};

use crate::support::{Reply, Server};

/// A registry that ignores all filters and pages.
async fn older_registry() -> Server {
    let matches = r#"[
        {"agent_id":"right","status":"active","capability":"work","tags":["rust","fast"],"healthy":true},
        {"agent_id":"untagged","status":"active","capability":"work","tags":["rust"],"healthy":true},
        {"agent_id":"other","status":"active","capability":"work_too","tags":["rust","fast"],"healthy":true},
        {"agent_id":"busy","status":"busy","capability":"work","tags":["rust","fast"],"healthy":true},
        {"agent_id":"ill","status":"active","capability":"work","tags":["rust","fast"],"healthy":false},
        {"agent_id":"unsaid","status":"active","capability":"work","tags":["fast","rust"]}]"#;
    let agents = r#"[
        {"agent_id":"bare","status":"active"},
        {"agent_id":"right","status":"active","capabilities":[{"name":"work","tags":["rust"]}],"metadata":{"n":1}},
        {"agent_id":"untagged","status":"active","capabilities":[{"name":"work"},{"name":"a","tags":["rust"]}],
         "metadata":{"n":1}},
        {"agent_id":"wrong","status":"active","capabilities":[{"name":"work","tags":["rust"]}],"metadata":{"n":2}},
        {"agent_id":"busy","status":"busy","capabilities":[{"name":"work","tags":["rust"]}],"metadata":{"n":1}}]"#;
    Server::start(move |what, _| {
        Reply::Answer(200, "", if what.starts_with("GET /agents") { agents } else { matches })
    })
    .await
}

fn ids<T>(items: &[T], id: impl Fn(&T) -> &String) -> Vec<&str> {
    items.iter().map(|item| id(item).as_str()).collect()
}

#[tokio::test]
async fn results_that_do_not_pass_a_filter_are_dropped_if_the_registry_ignores_it() {
    let server = older_registry().await;
    let client = RegistryClient::new(server.url()).unwrap();
    let query = SearchQuery::new("work").status(AgentStatus::Active).healthy(true).capability("work");
    let query = query.tag("rust").tag("fast").metadata("n", 1);
    let found = client.search_capabilities(query.clone()).await.unwrap();
    assert_eq!(ids(&found, |one| &one.agent_id), ["right", "unsaid"]);
    let sent = "q=work&status=active&healthy=true&capability=work&tag=rust&tag=fast&metadata.n=1";
    assert_eq!(server.arrived().last().unwrap().what, format!("GET /capabilities/search?{sent}"));
    let found = client.search_all(query).await.unwrap();
    assert_eq!(ids(&found, |one| &one.agent_id), ["right", "unsaid"]);

    let query = ListQuery::all().status(AgentStatus::Active).capability("work").tag("rust").metadata("n", 1);
    let listed = client.list_agents(query).await.unwrap().agents;
    assert_eq!(ids(&listed, |one| &one.agent_id), ["right"]);
    let everyone = client.list_agents(ListQuery::all()).await.unwrap().agents;
    assert_eq!(everyone.len(), 5);
}

#[tokio::test]
async fn registry_without_sentences_is_searched_anyway() {
    let server = Server::start(|_, _| {
        Reply::Answer(
            200,
            "",
            r#"[{"agent_id":"planner","status":"active","capability":"planning","description":"Never deploys"},
                {"agent_id":"low","status":"active","capability":"deployment","score":0.05},
                {"agent_id":"odd","status":"active","capability":"redeploy","description":"Deploys again"},
                {"agent_id":"right","status":"active","capability":"deployment","score":0.5}]"#,
        )
    })
    .await;
    let client = RegistryClient::new(server.url()).unwrap();
    let query = SearchQuery::sentence("deploy it").min_score(0.1).description_only(false);
    let found = client.search_capabilities(query).await.unwrap();
    assert_eq!(ids(&found, |one| &one.agent_id), ["odd", "right"]);
    let sent = "q=deploy+it&match=best&min_score=0.1&description_only=false";
    assert_eq!(server.arrived().last().unwrap().what, format!("GET /capabilities/search?{sent}"));
}

#[tokio::test]
async fn agent_on_two_pages_is_returned_once() {
    let server = Server::start(|what, _| {
        let next = "link: </capabilities/search?q=work&limit=2&cursor=2>; rel=\"next\"\r\n";
        let (first, second) = (
            r#"[{"agent_id":"a","status":"active","capability":"work"},{"agent_id":"b","status":"active","capability":"work"}]"#,
            r#"[{"agent_id":"b","status":"active","capability":"work"},{"agent_id":"c","status":"active","capability":"work"}]"#,
        );
        if what.contains("cursor=*") { Reply::Answer(200, next, first) } else { Reply::Answer(200, "", second) }
    })
    .await;
    let client = RegistryClient::new(server.url()).unwrap();
    let found = client.search_all(SearchQuery::new("work").limit(2)).await.unwrap();
    assert_eq!(ids(&found, |one| &one.agent_id), ["a", "b", "c"]);
    let sent: Vec<_> = server.arrived().into_iter().map(|one| one.what).collect();
    let expected =
        ["*", "2"].map(|cursor| format!("GET /capabilities/search?q=work&limit=2&cursor={cursor}"));
    assert_eq!(sent, expected);
}

#[tokio::test]
async fn endless_pages_are_an_error() {
    for body in ["[]", r#"[{"agent_id":"a","status":"active","capability":"work"}]"#] {
        let next = "link: </capabilities/search?q=work&cursor=2>; rel=\"next\"\r\n";
        let server = Server::start(move |_, _| Reply::Answer(200, next, body)).await;
        let client = RegistryClient::new(server.url()).unwrap();
        let error = client.search_all("work").await.unwrap_err();
        assert!(matches!(error, Error::InvalidResponse { .. }), "{error}");
        assert!(server.arrived().len() <= 2);
    }
}

/// Agents that can all do `work`, by tag and region.
async fn register(registry: &MockRegistry) {
    for (id, capability, region) in [
        ("rust-eu", Capability::new("work").tag("rust"), "eu"),
        ("rust-us", Capability::new("work").tag("rust"), "us"),
        ("python-eu", Capability::new("work").tag("python"), "eu"),
        ("hard", Capability::new("hard_work").tag("rust"), "eu"),
    ] {
        let registration = Registration::new(id, id, "http://agent:8000").capability(capability);
        registry.client().register(&registration.metadata("region", region)).await.unwrap();
    }
}

async fn selected(orchestrator: &Orchestrator, query: &TaskQuery) -> String {
    orchestrator.select(query).await.unwrap().agent.agent_id
}

#[tokio::test]
async fn task_goes_to_an_agent_that_passes_the_filters() {
    let registry = MockRegistry::start().await;
    register(&registry).await;
    let directory = Directory::follow(&registry.client());
    directory.ready().await.unwrap();
    for orchestrator in [
        Orchestrator::new(registry.client()),
        Orchestrator::builder(registry.client()).directory(directory).build(),
    ] {
        let rust = TaskQuery::new("work").tag("rust");
        assert_eq!(selected(&orchestrator, &rust.clone().metadata("region", "us")).await, "rust-us");
        assert_eq!(selected(&orchestrator, &TaskQuery::exact("hard_work")).await, "hard");
        let exact = TaskQuery::exact("work").tag("rust").exclude("rust-us").exclude("rust-eu");
        assert!(orchestrator.select(&exact).await.is_err(), "`hard_work` is no `work`");
        let fallback = TaskQuery::exact("nothing").fallback("work").metadata("region", "us");
        assert_eq!(selected(&orchestrator, &fallback).await, "rust-us");

        let error = orchestrator.select(&rust.metadata("region", "asia")).await.unwrap_err();
        let SelectError::NoAgent { mut skipped, .. } = error else { panic!("{error}") };
        skipped.sort_by(|one, other| one.agent_id.cmp(&other.agent_id));
        let reasons: Vec<_> = skipped.iter().map(|one| (one.agent_id.as_str(), &one.reason)).collect();
        let expected = [
            ("hard", &SkipReason::OtherMetadata),
            ("python-eu", &SkipReason::MissingTag),
            ("rust-eu", &SkipReason::OtherMetadata),
            ("rust-us", &SkipReason::OtherMetadata),
        ];
        assert_eq!(reasons, expected);
    }
}

#[tokio::test]
async fn description_alone_does_not_make_a_candidate() {
    let registry = MockRegistry::start().await;
    let registration = |id: &str, name: &str, description: &str| {
        let capability = Capability::new(name).description(description);
        Registration::new(id, id, "http://agent:8000").capability(capability)
    };
    let planner = registration("planner", "planning", "Plans releases, but never deploys");
    registry.client().register(&planner).await.unwrap();
    let directory = Directory::follow(&registry.client());
    directory.ready().await.unwrap();
    let orchestrators = [
        Orchestrator::new(registry.client()),
        Orchestrator::builder(registry.client()).directory(directory.clone()).build(),
    ];
    for orchestrator in &orchestrators {
        for query in [TaskQuery::new("deploy"), TaskQuery::describe("Deploy this branch to production")] {
            let error = orchestrator.select(&query).await.unwrap_err();
            let [skipped] = error.skipped() else { panic!("{error}") };
            assert_eq!((&*skipped.agent_id, &skipped.reason), ("planner", &SkipReason::DescriptionOnly));
            let found = selected(orchestrator, &query.description_only(true)).await;
            assert_eq!(found, "planner");
        }
    }
    let deployer = registration("deployer", "deployment", "Ships containers");
    registry.client().register(&deployer).await.unwrap();
    while directory.len() < 2 {
        tokio::task::yield_now().await;
    }
    for orchestrator in &orchestrators {
        for query in [
            TaskQuery::new("deploy"),
            TaskQuery::exact("deployment"),
            TaskQuery::describe("Deploy this branch to production"),
        ] {
            assert_eq!(selected(orchestrator, &query).await, "deployer");
        }
        let unrelated = TaskQuery::describe(
            "Translate the release notes, summarize them and find photographs of a deployment",
        );
        assert!(orchestrator.select(&unrelated.min_score(0.5)).await.is_err());
    }
}

/// The results of an earlier search are not used for a query with other filters.
#[tokio::test(start_paused = true)]
async fn outage_does_not_mix_up_filters() {
    let registry = MockRegistry::start().await;
    register(&registry).await;
    let orchestrator = Orchestrator::new(registry.client());
    assert_eq!(selected(&orchestrator, &TaskQuery::new("work").tag("python")).await, "python-eu");
    registry.fail_next(1_000, 503);
    for query in [
        TaskQuery::new("work"),
        TaskQuery::new("work").tag("rust"),
        TaskQuery::new("work").tag("python").metadata("region", "us"),
        TaskQuery::exact("work").tag("python"),
    ] {
        let error = orchestrator.select(&query).await.unwrap_err();
        assert!(matches!(error, SelectError::Registry(_)), "{error}");
    }
}
