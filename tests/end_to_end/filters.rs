//! Filters of lists and searches, and the pages of searches.

use std::collections::HashSet;

use futures_util::{StreamExt, stream};
use registry_sdk::contract::{AgentStatus, Capability, CapabilityMatch, Problem, Registration, limits};
use registry_sdk::discovery::{Orchestrator, TaskQuery};
use registry_sdk::{ListQuery, RegistryClient, SearchQuery};
use reqwest::StatusCode;
use serde_json::json;
use url::Url;

use crate::support::{Database, agent, client, on_every_registry};

on_every_registry!(
    invalid_filter_is_rejected_by_name,
    unknown_parameters_are_ignored,
    filters_apply_before_the_limit,
    filtered_list_has_pages,
    long_filtered_list_is_complete,
    pages_of_a_search_are_complete,
    pages_of_a_search_are_stable_while_agents_change,
    links_to_the_next_page_have_the_whole_query,
    tag_of_one_of_many_agents_is_found,
);

fn ids(found: &[CapabilityMatch]) -> Vec<&str> {
    found.iter().map(|one| one.agent_id.as_str()).collect()
}

/// Registers agents, a few at a time.
async fn register_all(client: &RegistryClient, all: impl IntoIterator<Item = Registration>) {
    let registering = all.into_iter().map(|registration| async move { client.register(&registration).await });
    stream::iter(registering)
        .buffer_unordered(32)
        .for_each(|registered| async { drop(registered.unwrap()) })
        .await;
}

async fn invalid_filter_is_rejected_by_name(database: Database) {
    let server = database.start().await;
    let long = "x".repeat(129);
    let many_tags = "tag=a&".repeat(33);
    let many_values = (0..33).map(|number| format!("metadata.k{number}=1&")).collect::<String>();
    for (query, name) in [
        ("status=asleep", "status"),
        ("status=", "status"),
        ("status=active&status=busy", "status"),
        ("healthy=", "healthy"),
        ("healthy=yes", "healthy"),
        ("healthy=true&healthy=true", "healthy"),
        ("capability=", "capability"),
        (&*format!("capability={long}"), "capability"),
        ("capability=a&capability=b", "capability"),
        ("tag=", "tag"),
        ("tag=a&tag=", "tag"),
        (&*format!("tag={}", &long[..65]), "tag"),
        (&*many_tags, "tag"),
        ("metadata=eu", "metadata"),
        ("metadata.=eu", "metadata"),
        (&*many_values, "metadata"),
        ("limit=", "limit"),
        ("limit=1&limit=1", "limit"),
        ("cursor=%00", "cursor"),
    ] {
        for path in ["/agents?", "/capabilities/search?q=work&"] {
            let response = reqwest::get(format!("{}{path}{query}", server.url())).await.unwrap();
            assert_eq!(response.status(), StatusCode::BAD_REQUEST, "{path}{query}");
            let problem: Problem = response.json().await.unwrap();
            assert!(problem.detail.contains(name), "{path}{query}: {problem:?}");
        }
    }
    for cursor in ["", "**", "a", "1.", ".a", "g.a", "3ff0000000000000.-", "%2B1.a", "fffffffffffffffff.a"] {
        let url = format!("{}/capabilities/search?q=work&cursor={cursor}", server.url());
        assert_eq!(reqwest::get(url).await.unwrap().status(), StatusCode::BAD_REQUEST, "{cursor}");
    }
    for (query, name) in [
        ("match=", "match"),
        ("match=any", "match"),
        ("match=Best", "match"),
        ("match=all&match=best", "match"),
        ("min_score=", "min_score"),
        ("min_score=-0.1", "min_score"),
        ("min_score=1.01", "min_score"),
        ("min_score=NaN", "min_score"),
        ("min_score=0&min_score=0", "min_score"),
        ("description_only=no", "description_only"),
        ("description_only=true&description_only=true", "description_only"),
    ] {
        let url = format!("{}/capabilities/search?q=work&{query}", server.url());
        let response = reqwest::get(url).await.unwrap();
        assert_eq!(response.status(), StatusCode::BAD_REQUEST, "{query}");
        let problem: Problem = response.json().await.unwrap();
        assert!(problem.detail.starts_with(name), "{query}: {problem:?}");
        // Lists do not have the parameters for matching words.
        if !query.contains('&') {
            let listed = reqwest::get(format!("{}/agents?{query}", server.url())).await.unwrap();
            assert_eq!(listed.status(), StatusCode::OK, "{query}");
        }
    }
    for q in ["", "q=&", "q=%20&", "q=-&capability=a&"] {
        let url = format!("{}/capabilities/search?{q}healthy=true", server.url());
        let problem: Problem = reqwest::get(url).await.unwrap().json().await.unwrap();
        assert!(problem.status == 400 && problem.detail.starts_with("q "), "{q}: {problem:?}");
    }
    server.shutdown().await;
}

/// They may come from a client of a later version.
async fn unknown_parameters_are_ignored(database: Database) {
    let server = database.start().await;
    client(&server).register(&agent("a", "work")).await.unwrap();
    for path in ["/agents?q=nothing&", "/capabilities/search?q=work&"] {
        let url = format!("{}{path}tags=x&Status=busy&metadatax=1&metadata%20=1&=&&%ff", server.url());
        let found: Vec<serde_json::Value> = reqwest::get(url).await.unwrap().json().await.unwrap();
        assert_eq!(found.len(), 1, "{path}");
    }
    server.shutdown().await;
}

/// More than a page of agents match better, but are filtered out.
async fn filters_apply_before_the_limit(database: Database) {
    let server = database.start().await;
    let client = client(&server);
    let others = (0..limits::DEFAULT_MATCHES).map(|number| agent(&format!("other{number:03}"), "work"));
    register_all(&client, others).await;
    let wanted = Registration::new("wanted", "Wanted", "http://wanted:8000")
        .capability(Capability::new("hard_work").tag("rust").tag("fast"))
        .metadata("zone", json!({"region": "eu"}))
        .status(AgentStatus::Busy);
    client.register(&wanted).await.unwrap();
    assert!(!ids(&client.search_capabilities("work").await.unwrap()).contains(&"wanted"));
    let work = || SearchQuery::new("work").limit(1);
    for query in [
        work().status(AgentStatus::Busy),
        work().capability("hard_work"),
        work().tag("rust"),
        work().tag("fast").tag("rust"),
        work().metadata("zone.region", "eu"),
        work().healthy(true).status(AgentStatus::Busy).tag("fast").metadata("zone.region", "eu"),
        SearchQuery::exact("hard_work").limit(1),
    ] {
        let found = client.search_capabilities(query.clone()).await.unwrap();
        assert_eq!(ids(&found), ["wanted"], "{query:?}");
        let mut list = ListQuery::all().limit(1);
        list.filter = query.filter;
        let page = client.list_agents(list.clone()).await.unwrap();
        assert_eq!((page.agents.len(), page.next_cursor), (1, None), "{list:?}");
        assert_eq!(page.agents[0].agent_id, "wanted", "{list:?}");
    }
    assert_eq!(client.search_capabilities(work().tag("rust").healthy(false)).await.unwrap(), []);
    server.shutdown().await;
}

async fn filtered_list_has_pages(database: Database) {
    let server = database.start().await;
    let client = client(&server);
    let all = (0..60).map(|number| {
        let mut registration = agent(&format!("a{number:02}"), "work").metadata("third", number % 3 == 0);
        registration.capabilities[0] = registration.capabilities[0].clone().tag(format!("t{}", number % 2));
        registration
    });
    register_all(&client, all).await;
    let query = ListQuery::all().tag("t0").metadata("third", true).capability("work").healthy(true);
    let expected: Vec<_> = (0..60).step_by(6).map(|number| format!("a{number:02}")).collect();
    for size in [1, 3, 10, 11] {
        let (mut gathered, mut page) = (Vec::new(), query.clone().limit(size));
        while gathered.len() <= expected.len() {
            let listed = client.list_agents(page.clone()).await.unwrap();
            gathered.extend(listed.agents.into_iter().map(|agent| agent.agent_id));
            let Some(next) = listed.next_cursor else { break };
            page = page.after(next);
        }
        assert_eq!(gathered, expected, "pages of {size}");
    }
    server.shutdown().await;
}

/// A list that is longer than one piece of a response. Some agents are filtered out, and some change while the list is sent.
async fn long_filtered_list_is_complete(database: Database) {
    let server = database.start().await;
    let client = client(&server);
    let of = |number: usize, is_wanted: bool| {
        let long = Capability::new("work").description("x".repeat(1_000));
        let long = if is_wanted { long.tag("wanted") } else { long };
        Registration::new(format!("a{number:04}"), "A", "http://a")
            .capability(long)
            .metadata("wanted", is_wanted)
    };
    register_all(&client, (0..1_200).map(|number| of(number, number % 4 == 0))).await;
    let expected: Vec<_> = (0..1_200).step_by(4).map(|number| format!("a{number:04}")).collect();
    for query in [ListQuery::all().tag("wanted"), ListQuery::all().metadata("wanted", true)] {
        for query in [query.clone(), query.limit(limits::PAGE)] {
            let listed = client.list_agents(query.clone()).await.unwrap();
            let found: Vec<_> = listed.agents.into_iter().map(|agent| agent.agent_id).collect();
            assert_eq!(found, expected, "{query:?}");
        }
    }
    server.shutdown().await;
}

/// Registers agents that match `work` with three different scores.
async fn register_ranked(client: &RegistryClient, count: usize) {
    let all = (0..count).map(|number| {
        let capability = match number % 3 {
            0 => Capability::new("work"),
            1 => Capability::new("work_in_part"),
            _ => Capability::new("other").tag("work"),
        };
        Registration::new(format!("a{number:03}"), "A", "http://a").capability(capability)
    });
    register_all(client, all).await;
}

async fn pages_of_a_search_are_complete(database: Database) {
    let server = database.start().await;
    let client = client(&server);
    register_ranked(&client, 210).await;
    let mut expected = client.search_capabilities(SearchQuery::new("work").limit(1_000)).await.unwrap();
    assert_eq!(expected.len(), 210);
    expected.sort_by(|one, other| {
        other.score.partial_cmp(&one.score).unwrap().then_with(|| one.agent_id.cmp(&other.agent_id))
    });
    for size in [1, 7, 70, 209, 210, 211, 1_000] {
        let mut query = SearchQuery::new("work").limit(size);
        let mut gathered = Vec::new();
        loop {
            let page = client.search_page(query.clone()).await.unwrap();
            assert!(page.matches.len() <= size && !page.matches.is_empty());
            gathered.extend(page.matches);
            let Some(next) = page.next_cursor else { break };
            query = query.after(next);
        }
        assert_eq!(gathered, expected, "pages of {size}");
    }
    assert_eq!(client.search_all("work").await.unwrap(), expected);
    let page = client.search_page("work").await.unwrap();
    assert_eq!(page.matches, expected[..limits::DEFAULT_MATCHES]);
    // Registries without cursors have no next page.
    let response =
        reqwest::get(format!("{}/capabilities/search?q=work&limit=1", server.url())).await.unwrap();
    assert!(response.headers().get("link").is_none());
    let nothing = client.search_page("nothing").await.unwrap();
    assert_eq!((nothing.matches.len(), nothing.next_cursor), (0, None));
    server.shutdown().await;
}

async fn pages_of_a_search_are_stable_while_agents_change(database: Database) {
    let server = database.start().await;
    let client = client(&server);
    register_ranked(&client, 60).await;
    let mut query = SearchQuery::new("work").limit(10);
    let mut gathered = Vec::new();
    let mut removed = HashSet::new();
    loop {
        let page = client.search_page(query.clone()).await.unwrap();
        let last = page.matches.last().unwrap().agent_id.clone();
        gathered.extend(page.matches.into_iter().map(|found| found.agent_id));
        let Some(next) = page.next_cursor else { break };
        query = query.after(next);
        // These changes move agents in a search without pages.
        for (number, status) in [(3, AgentStatus::Busy), (30, AgentStatus::Offline), (31, AgentStatus::Busy)]
        {
            client.update_status(&format!("a{number:03}"), status).await.unwrap();
        }
        client.heartbeat("a032").await.unwrap();
        // The agent that the cursor names.
        client.deregister(&last).await.unwrap();
        removed.insert(last);
    }
    assert_eq!(removed.len(), 5);
    let distinct: HashSet<_> = gathered.iter().cloned().collect();
    assert_eq!((gathered.len(), distinct.len()), (60, 60), "each once: {gathered:?}");
    server.shutdown().await;
}

async fn links_to_the_next_page_have_the_whole_query(database: Database) {
    let server = database.start().await;
    let client = client(&server);
    let odd = "é & \"50%\" #1+/?=;,>";
    for id in ["a", "b", "c"] {
        let capability = Capability::new(format!("work {odd}")).tag(odd).tag("x");
        let registration = Registration::new(id, id, "http://a").capability(capability).metadata(odd, odd);
        client.register(&registration).await.unwrap();
        client.register(&agent(&format!("{id}-other"), "work")).await.unwrap();
    }
    let query = SearchQuery::new(format!("work {odd}")).tag("x").tag(odd).metadata(odd, odd);
    let query = query.capability(format!("work {odd}")).healthy(true).status(AgentStatus::Active);
    assert_eq!(ids(&client.search_all(query.clone().limit(1)).await.unwrap()), ["a", "b", "c"]);
    let query = query.limit(1).to_query_string();
    let mut next =
        Some(Url::parse(&format!("{}/capabilities/search?{query}&cursor=*", server.url())).unwrap());
    let mut pages = Vec::new();
    while let Some(url) = next {
        let response = reqwest::get(url.clone()).await.unwrap();
        let link = response.headers().get("link").map(|link| link.to_str().unwrap().to_owned());
        pages.extend(response.json::<Vec<CapabilityMatch>>().await.unwrap());
        let target = |link: String| link.strip_prefix('<').unwrap().split_once('>').unwrap().0.to_owned();
        next = link.map(|link| url.join(&target(link)).unwrap());
    }
    assert_eq!(ids(&pages), ["a", "b", "c"]);
    let mut query = ListQuery::all().tag(odd).metadata(odd, odd).limit(1);
    for id in ["a", "b", "c"] {
        let page = client.list_agents(query.clone()).await.unwrap();
        assert_eq!(page.agents[0].agent_id, id);
        query.cursor = page.next_cursor;
    }
    assert_eq!(query.cursor, None);
    server.shutdown().await;
}

async fn tag_of_one_of_many_agents_is_found(database: Database) {
    let server = database.start().await;
    let client = client(&server);
    // Of equal matches, the one with the latest heartbeat comes first.
    let tagged = Registration::new("tagged", "Tagged", "http://tagged")
        .capability(Capability::new("work").tag("rust"));
    client.register(&tagged).await.unwrap();
    register_all(&client, (0..1_500).map(|number| agent(&format!("a{number:04}"), "work"))).await;
    let orchestrator = Orchestrator::new(client);
    let selected = orchestrator.select(&TaskQuery::new("work").tag("rust")).await.unwrap();
    assert_eq!(selected.agent.agent_id, "tagged");
    server.shutdown().await;
}
