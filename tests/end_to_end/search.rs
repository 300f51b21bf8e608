//! Searches for agents by capability.

use registry_sdk::contract::{AgentStatus, Capability, Problem, Registration, limits};
use registry_sdk::{RegistryClient, SearchQuery};
use reqwest::StatusCode;

use crate::support::{Database, agent, client, on_every_registry};

on_every_registry!(
    every_term_must_be_a_prefix_of_a_term_of_the_capability,
    best_match_comes_first,
    each_agent_has_one_match_for_its_best_capability,
    status_and_limit_narrow_a_search,
    dead_agents_do_not_crowd_out_a_living_one,
    invalid_healthy_parameter_is_rejected_by_name,
    match_has_everything_needed_for_a_selection,
    removed_capabilities_and_agents_are_not_found,
    search_equals_a_scan_of_all_agents,
);

async fn ids(client: &RegistryClient, query: impl Into<SearchQuery>) -> Vec<String> {
    client.search_capabilities(query).await.unwrap().into_iter().map(|found| found.agent_id).collect()
}

fn with(agent_id: &str, capability: Capability) -> Registration {
    Registration::new(agent_id, agent_id, "http://agent:8000").capability(capability)
}

async fn every_term_must_be_a_prefix_of_a_term_of_the_capability(database: Database) {
    let server = database.start().await;
    let client = client(&server);
    let scanning = Capability::new("security_scanning").description("Finds holes").tag("SAST");
    client.register(&with("scanner", scanning)).await.unwrap();
    client.register(&with("camel", Capability::new("securityAudit"))).await.unwrap();
    for (query, expected) in [
        ("security", &["camel", "scanner"][..]),
        ("security scan", &["scanner"]),
        ("SCAN Security", &["scanner"]),
        ("security_scanning", &["scanner"]),
        ("sec holes sast", &["scanner"]),
        ("audit", &["camel"]),
        ("ecurity", &[]),
        ("security xyz", &[]),
        ("securityaudit", &["camel"]),
        ("scanner audits", &[]),
        ("security scanner", &["scanner"]),
    ] {
        let mut found = ids(&client, query).await;
        found.sort();
        assert_eq!(found, expected, "{query}");
    }
    server.shutdown().await;
}

async fn best_match_comes_first(database: Database) {
    let server = database.start().await;
    let client = client(&server);
    // Registered from worst to best, so that the order of registration cannot explain the result.
    let plain = Capability::new;
    client.register(&with("h-offline", plain("python")).status(AgentStatus::Offline)).await.unwrap();
    client.register(&with("g-description", plain("x").description("knows python"))).await.unwrap();
    client.register(&with("f-tag", plain("y").tag("python"))).await.unwrap();
    client.register(&with("e-name", plain("python_code"))).await.unwrap();
    client.register(&with("d-busy", plain("python")).status(AgentStatus::Busy)).await.unwrap();
    client.register(&with("c-older", plain("python"))).await.unwrap();
    client.register(&with("b-newer", plain("python"))).await.unwrap();
    let newer = client.get_agent("b-newer").await.unwrap().last_heartbeat;
    while client.heartbeat("b-newer").await.unwrap().last_heartbeat == newer {}

    let found = client.search_capabilities("python").await.unwrap();
    let order: Vec<_> = found.iter().map(|found| found.agent_id.as_str()).collect();
    assert_eq!(
        order,
        ["b-newer", "c-older", "d-busy", "h-offline", "e-name", "f-tag", "g-description"],
        "the whole name, then status, then the latest heartbeat; then name, tag, description"
    );
    let scores: Vec<_> = found.iter().map(|found| found.score.unwrap()).collect();
    assert!(scores.is_sorted_by(|a, b| a >= b) && scores.iter().all(|score| *score > 0.0), "{scores:?}");
    server.shutdown().await;
}

async fn each_agent_has_one_match_for_its_best_capability(database: Database) {
    let server = database.start().await;
    let client = client(&server);
    let many = with("many", Capability::new("first").tag("code"))
        .capability(Capability::new("code"))
        .capability(Capability::new("code_review"));
    client.register(&many).await.unwrap();
    let found = client.search_capabilities("code").await.unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!((found[0].capability.as_str(), found[0].score), ("code", Some(1.0)));
    server.shutdown().await;
}

async fn status_and_limit_narrow_a_search(database: Database) {
    let server = database.start().await;
    let client = client(&server);
    for number in 0..120 {
        let status = if number % 2 == 0 { AgentStatus::Active } else { AgentStatus::Busy };
        client.register(&agent(&format!("a{number:03}"), "work").status(status)).await.unwrap();
    }
    assert_eq!(ids(&client, "work").await.len(), 100);
    assert_eq!(ids(&client, SearchQuery::new("work").limit(1_000)).await.len(), 120);
    assert_eq!(ids(&client, SearchQuery::new("work").limit(3)).await.len(), 3);
    let busy = client.search_capabilities(SearchQuery::new("work").status(AgentStatus::Busy)).await.unwrap();
    assert_eq!(busy.len(), 60);
    assert!(busy.iter().all(|found| found.status == AgentStatus::Busy));
    server.shutdown().await;
}

/// A full page of dead agents, each of which matches better than the living one.
async fn dead_agents_do_not_crowd_out_a_living_one(database: Database) {
    let server = database.start().await;
    let client = client(&server);
    for number in 0..limits::DEFAULT_MATCHES {
        let dead = agent(&format!("dead{number:03}"), "work").status(AgentStatus::Offline);
        client.register(&dead).await.unwrap();
    }
    client.register(&agent("living", "hard_work").status(AgentStatus::Busy)).await.unwrap();
    let work = || SearchQuery::new("work");
    assert!(!ids(&client, work()).await.contains(&"living".to_owned()), "the dead ones match better");

    assert_eq!(ids(&client, work().healthy(true)).await, ["living"]);
    assert_eq!(ids(&client, work().healthy(true).limit(1)).await, ["living"]);
    assert_eq!(ids(&client, work().healthy(true).status(AgentStatus::Busy)).await, ["living"]);
    assert!(ids(&client, work().healthy(true).status(AgentStatus::Offline)).await.is_empty());
    let dead = client.search_capabilities(work().healthy(false).limit(limits::PAGE)).await.unwrap();
    assert_eq!(dead.len(), limits::DEFAULT_MATCHES);
    assert!(dead.iter().all(|found| found.healthy == Some(false)));
    assert!(ids(&client, SearchQuery::new("hard").healthy(false)).await.is_empty());
    server.shutdown().await;
}

async fn invalid_healthy_parameter_is_rejected_by_name(database: Database) {
    let server = database.start().await;
    for word in ["", "yes", "True", "1", "null", "true%20"] {
        let url = format!("{}/capabilities/search?q=work&healthy={word}", server.url());
        let response = reqwest::get(url).await.unwrap();
        assert_eq!(response.status(), StatusCode::BAD_REQUEST, "{word:?}");
        let problem: Problem = response.json().await.unwrap();
        assert!(problem.detail.contains("healthy"), "{word:?}: {problem:?}");
    }
    server.shutdown().await;
}

async fn match_has_everything_needed_for_a_selection(database: Database) {
    let server = database.start().await;
    let client = client(&server);
    let capability =
        Capability::new("code").description("Writes it").cost_estimate("~100 tokens").tag("a").tag("b");
    let capability = capability.title("Coder").example("Write a parser").example("Fix it");
    let record = client.register(&with("dev", capability.clone())).await.unwrap();
    let found = client.search_capabilities("code").await.unwrap().remove(0);
    assert_eq!((found.agent_name, found.base_url), (record.agent_name, record.base_url));
    assert_eq!((found.status, found.healthy), (AgentStatus::Active, Some(true)));
    assert_eq!(found.last_heartbeat, record.last_heartbeat);
    assert_eq!((found.capability, found.description), (capability.name, capability.description));
    assert_eq!((found.cost_estimate, found.tags), (capability.cost_estimate, capability.tags));
    assert_eq!((found.title, found.examples), (capability.title, capability.examples));
    server.shutdown().await;
}

async fn removed_capabilities_and_agents_are_not_found(database: Database) {
    let server = database.start().await;
    let client = client(&server);
    client.register(&agent("a", "alpha")).await.unwrap();
    client.register(&agent("b", "alpha")).await.unwrap();
    client.register(&agent("a", "beta")).await.unwrap();
    client.deregister("b").await.unwrap();
    assert!(ids(&client, "alpha").await.is_empty());
    assert_eq!(ids(&client, "beta").await, ["a"]);
    server.shutdown().await;
}

/// Compares searches among random agents with a simple implementation of the contract.
async fn search_equals_a_scan_of_all_agents(database: Database) {
    const WORDS: [&str; 8] = ["code", "coup", "co", "test", "security", "scan", "Über", "x1"];
    let server = database.start().await;
    let client = client(&server);
    let mut random = fastrand::Rng::with_seed(7);
    let mut words = |most: usize| {
        let count = random.usize(0..=most);
        (0..count).map(|_| WORDS[random.usize(0..WORDS.len())]).collect::<Vec<_>>()
    };
    let mut all = Vec::new();
    for number in 0..60 {
        let mut registration = Registration::new(format!("a{number}"), "A", "http://a");
        for place in 0..3 {
            let name = format!("{}_{place}", words(2).join("_"));
            let capability = Capability::new(name).description(words(3).join(" "));
            registration = registration.capability(words(2).into_iter().fold(capability, Capability::tag));
        }
        client.register(&registration).await.unwrap();
        // Every third agent changes its capabilities, so that the index has to remove some.
        if number % 3 == 0 {
            registration.capabilities.truncate(1);
            client.register(&registration).await.unwrap();
        }
        all.push(registration);
    }
    let terms = |text: &str| -> Vec<String> {
        let cut = text.split(|letter: char| !letter.is_alphanumeric()).filter(|term| !term.is_empty());
        cut.map(str::to_lowercase).collect()
    };
    let matches = |query: &[String], capability: &Capability| {
        let texts = [&capability.name, &capability.description].into_iter().chain(&capability.tags);
        let known: Vec<_> = texts.flat_map(|text| terms(text)).collect();
        query.iter().all(|wanted| known.iter().any(|term| term.starts_with(wanted.as_str())))
    };
    for query in
        ["c", "co", "code", "coup", "code test", "sec scan", "über", "x", "x1 co", "0", "code 2", "zzz"]
    {
        let wanted = terms(query);
        let mut expected: Vec<_> = all
            .iter()
            .filter(|agent| agent.capabilities.iter().any(|capability| matches(&wanted, capability)))
            .map(|agent| agent.agent_id.clone())
            .collect();
        expected.sort();
        let mut found = ids(&client, query).await;
        found.sort();
        assert_eq!(found, expected, "{query}");
    }
    server.shutdown().await;
}
