//! A registry below a path of a proxy that strips it: all links and redirects work.

use std::time::Duration;

use registry_sdk::contract::{AgentStatus, HealthStatus};
use registry_sdk::{Agent, ListQuery, SearchQuery, WatchEvent};
use reqwest::Client;
use reqwest::header::LINK;
use serde_json::Value;
use url::Url;

use crate::path_proxy::PathProxy;
use crate::support::{Database, agent, client, client_builder, on_both_databases, on_every_registry};

on_every_registry!(sdk_works_with_and_without_a_trailing_slash, links_point_to_the_next_page,);

mod server {
    super::on_both_databases!(api_page_finds_its_description_and_the_server);
    use super::api_page_finds_its_description_and_the_server;
}

async fn sdk_works_with_and_without_a_trailing_slash(database: Database) {
    let server = database.start().await;
    let proxy = PathProxy::start(server.url()).await;
    for url in [proxy.url(), format!("{}/", proxy.url())] {
        let client = client_builder(&url).build().unwrap();
        let mut watch = client.watch();
        assert!(matches!(watch.next().await, Some(WatchEvent::Listed(agents)) if agents.is_empty()));
        for id in ["a", "b", "c"] {
            client.register(&agent(id, "work")).await.unwrap();
            let event = watch.next().await;
            assert!(
                matches!(&event, Some(WatchEvent::Registered(agent)) if agent.agent_id == id),
                "{event:?}"
            );
        }
        client.heartbeat("a").await.unwrap();
        let first = client.list_agents(ListQuery::all().limit(2)).await.unwrap();
        let second =
            client.list_agents(ListQuery::all().limit(2).after(first.next_cursor.unwrap())).await.unwrap();
        assert_eq!((first.agents.len(), second.agents.len(), second.next_cursor), (2, 1, None));
        let found = client.search_all(SearchQuery::new("work").limit(1)).await.unwrap();
        assert_eq!(found.len(), 3);
        assert_eq!(client.check_health("a").await.unwrap().status, HealthStatus::Healthy);
        client.update_status("a", AgentStatus::Busy).await.unwrap();
        assert_eq!(client.get_agent("a").await.unwrap().status, AgentStatus::Busy);
        assert_eq!(client.get_stats().await.unwrap().total_agents, 3);
        client.get_server_health().await.unwrap();

        let running = Agent::new(client.clone(), agent("d", "work"));
        running.register().await.unwrap();
        running.start_heartbeat(Duration::from_secs(30)).unwrap();
        running.shutdown().await;
        assert_eq!(client.get_agent("d").await.unwrap().status, AgentStatus::Offline);
        for id in ["a", "b", "c", "d"] {
            client.deregister(id).await.unwrap();
        }
    }
    assert_eq!(proxy.strays(), Vec::<String>::new());
    server.shutdown().await;
}

/// A client that resolves each link against the URL of its request (RFC 3986, RFC 8288).
async fn links_point_to_the_next_page(database: Database) {
    let server = database.start().await;
    let direct = client(&server);
    for number in 0..5 {
        direct.register(&agent(&format!("a{number}"), "work")).await.unwrap();
    }
    let proxy = PathProxy::start(server.url()).await;
    for first in ["agents?limit=2&capability=work", "capabilities/search?q=work&limit=2&cursor=*"] {
        let mut url = Url::parse(&format!("{}/{first}", proxy.url())).unwrap();
        let mut ids = Vec::new();
        loop {
            let response = reqwest::get(url.clone()).await.unwrap().error_for_status().unwrap();
            let link = response.headers().get(LINK).map(|link| link.to_str().unwrap().to_owned());
            let page: Vec<Value> = response.json().await.unwrap();
            ids.extend(page.iter().map(|one| one["agent_id"].as_str().unwrap().to_owned()));
            let Some(link) = link else { break };
            let target =
                link.strip_prefix('<').and_then(|link| link.strip_suffix(">; rel=\"next\"")).unwrap();
            url = url.join(target).unwrap();
        }
        assert_eq!(ids, ["a0", "a1", "a2", "a3", "a4"], "{first}");
    }
    assert_eq!(proxy.strays(), Vec::<String>::new());
    server.shutdown().await;
}

async fn api_page_finds_its_description_and_the_server(database: Database) {
    let server = database.start().await;
    let proxy = PathProxy::start(server.url()).await;
    let http = Client::new();
    let get = async |url: Url| http.get(url).send().await.unwrap().error_for_status().unwrap();
    // The client follows the redirect.
    let page = get(format!("{}/docs", proxy.url()).parse().unwrap()).await.url().clone();
    assert_eq!(page.as_str(), format!("{}/docs/", proxy.url()));
    let settings = get(page.join("swagger-initializer.js").unwrap()).await.text().await.unwrap();
    let (_, after) = settings.split_once("\"url\": \"").unwrap();
    let description_url = page.join(after.split('"').next().unwrap()).unwrap();
    let description: Value = get(description_url.clone()).await.json().await.unwrap();
    let servers = description["servers"].as_array().unwrap();
    assert_eq!(servers.len(), 1, "{servers:?}");
    let base = description_url.join(servers[0]["url"].as_str().unwrap()).unwrap();
    assert_eq!(base.as_str(), format!("{}/", proxy.url()));

    let missing = http.get(page.join("nothing.js").unwrap()).send().await.unwrap();
    assert_eq!(missing.status(), 404);
    assert_eq!(proxy.strays(), Vec::<String>::new());
    server.shutdown().await;
}
