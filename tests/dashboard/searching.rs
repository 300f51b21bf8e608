//! Search results, and their updates.

use std::net::SocketAddr;

use registry_sdk::contract::{Capability, MaintenanceRequest, Registration};

use crate::browser::{Page, browser};
use crate::{IDS, agent, start};

const SHOWN: &str = "document.getElementById('shown').textContent";
const NONE: &str =
    "(document.getElementById('none').checkVisibility() && document.getElementById('none').textContent)";

fn set(id: &str, text: &str) -> String {
    format!(
        "document.getElementById('{id}').value = '{text}';
         document.getElementById('{id}').dispatchEvent(new Event('input'));"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn search_shows_matches_with_their_scores() {
    let Some(browser) = browser().await else { return };
    let (server, client) = start(|_| {}).await;
    let scan =
        Capability::new("security_scanning").description("Finds <b>holes</b> in code").title("Scanner");
    let scanner = Registration::new("scanner", "Agent", "http://s:8000")
        .capability(Capability::new("sleep"))
        .capability(scan);
    client.register(&scanner).await.unwrap();
    client.register(&agent("other", "translation")).await.unwrap();
    let page = Page::open(&browser, &server.url()).await;
    page.until(&format!("{IDS} === 'other,scanner'")).await;
    let found = "document.querySelector('#rows tr').cells[5].innerText";

    page.run(&set("search", "security scanning")).await;
    page.until(&format!(
        "{SHOWN} === '1 agent with every word of “security scanning”, the best match first'"
    ))
    .await;
    page.until(&format!(
        "{found}.replace(/\\s+/g, ' ') === 'security_scanning 1.00 Scanner Finds <b>holes</b> in code'"
    ))
    .await;

    page.run(&set("search", "who scans for holes?")).await;
    page.until(&format!(
        "{SHOWN} === 'No agent has every word of “who scans for holes?”. The best matches: 1 agent'"
    ))
    .await;
    page.until(&format!("/^security_scanning 0\\.\\d\\d/.test({found})")).await;

    page.run(&set("search", "xylophone")).await;
    page.until(&format!("{SHOWN} === 'No agent is found for “xylophone”.' && {IDS} === ''")).await;
    page.until(&format!("{NONE} === 'No agent passes the search and the filters.'")).await;

    // This is not a valid search, and the previous results stay.
    page.run(&set("search", "!?")).await;
    page.until(&format!("{SHOWN} === 'not searched: type at least one letter or digit'")).await;
    page.run(&set("search", "")).await;
    page.until(&format!("{SHOWN} === '2 agents' && {NONE} === false")).await;
    page.run(&set("metadata-filter", "region")).await;
    page.until(&format!("{SHOWN} === 'not searched: a metadata filter is KEY=VALUE'")).await;
    page.run(&set("metadata-filter", "region=eu")).await;
    page.until(&format!("{SHOWN} === '0 agents found' && {IDS} === ''")).await;
    page.run(&set("metadata-filter", "")).await;

    page.choose("status", "busy").await;
    page.until(&format!("{NONE} === 'No such agent is busy now.'")).await;
    page.choose("status", "maintenance").await;
    page.run(&set("search", "translation")).await;
    page.until(&format!("{NONE} === 'Searches leave out agents in maintenance.'")).await;
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn shown_search_is_updated_when_agents_register() {
    let Some(browser) = browser().await else { return };
    let (server, client) = start(|_| {}).await;
    client.register(&agent("a", "review")).await.unwrap();
    let page = Page::open(&browser, &server.url()).await;
    page.until(&format!("{IDS} === 'a'")).await;
    page.run(&set("search", "review")).await;
    page.until(&format!("{SHOWN}.includes('with every word')")).await;
    client.register(&agent("b", "review")).await.unwrap();
    client.register(&agent("c", "work")).await.unwrap();
    page.until(&format!("{IDS} === 'b,a'")).await;
    client.set_maintenance("b", &MaintenanceRequest::new("upgrade")).await.unwrap();
    page.until(&format!("{IDS} === 'a'")).await;
    client.end_maintenance("b").await.unwrap();
    page.until(&format!("{IDS}.length === 3")).await;
    client.deregister("b").await.unwrap();
    page.until(&format!("{IDS} === 'a'")).await;
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn shown_search_survives_a_restart_of_the_server() {
    let Some(browser) = browser().await else { return };
    let start_at = |listen: SocketAddr| start(move |config| config.listen = listen.into());
    let (server, client) = start_at(([127, 0, 0, 1], 0).into()).await;
    let address = server.local_addr();
    client.register(&agent("a", "review")).await.unwrap();
    let page = Page::open(&browser, &server.url()).await;
    page.until(&format!("{IDS} === 'a'")).await;
    page.run(&set("search", "review")).await;
    page.until(&format!("{SHOWN}.includes('with every word')")).await;
    server.shutdown().await;
    page.until("document.getElementById('connection').textContent.startsWith('connection lost')").await;
    // The new server has no agents.
    let (server, client) = start_at(address).await;
    for (id, capability) in [("b", "review"), ("c", "work")] {
        client.register(&agent(id, capability)).await.unwrap();
    }
    page.until(&format!("{IDS} === 'b' && {SHOWN}.startsWith('1 agent with every word')")).await;
    server.shutdown().await;
}
