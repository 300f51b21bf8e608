//! The list of events: events from before the page was opened, and the names of tokens.

use registry_sdk::RegistryClient;
use registry_sdk::contract::AgentStatus;
use registry_server::Server;

use crate::browser::{ANOTHER_HOST, Page, browser};
use crate::{IDS, agent, start};

/// The events in the list, without their times.
const EVENTS: &str = "[...document.querySelectorAll('#events li')].map(item =>
    [...item.children].slice(1).map(part => part.textContent).join(' ')).join()";

/// The times of the events: `true` for a time of day.
const TIMES: &str = "[...document.querySelectorAll('#events li')].map(item =>
    /^\\d\\d:\\d\\d:\\d\\d$/.test(item.firstChild.textContent) ||
    (item.firstChild.textContent === 'earlier' ? false : item.firstChild.textContent)).join()";

const PAST: &str = "deregistered a,status changed b busy,registered b active,registered a active";

async fn with_a_past(change: impl FnOnce(&mut registry_server::Config)) -> (Server, RegistryClient) {
    let (server, client) = start(change).await;
    for id in ["a", "b"] {
        client.register(&agent(id, "work")).await.unwrap();
    }
    client.update_status("b", AgentStatus::Busy).await.unwrap();
    client.deregister("a").await.unwrap();
    (server, client)
}

#[tokio::test(flavor = "multi_thread")]
async fn events_from_before_the_page_was_opened_are_shown() {
    let Some(browser) = browser().await else { return };
    let (server, client) = with_a_past(|_| {}).await;
    let page = Page::open(&browser, &server.url()).await;
    page.until(&format!("{EVENTS} === '{PAST}'")).await;
    // Only registrations have a time.
    page.until(&format!("{TIMES} === 'false,false,true,true'")).await;
    let registered_at = client.get_agent("b").await.unwrap().registered_at.unwrap();
    page.until(&format!("document.querySelector('#events time').dateTime === '{registered_at}'")).await;
    // Removed agents do not reappear, and later changes are kept.
    page.until(&format!("{IDS} === 'b' && document.querySelector('#rows .status').textContent === 'busy'"))
        .await;
    page.until("!document.getElementById('no-events').checkVisibility()").await;

    client.update_status("b", AgentStatus::Active).await.unwrap();
    page.until(&format!("{EVENTS} === 'status changed b active,{PAST}'")).await;
    page.until(&format!("{TIMES} === 'true,false,false,true,true'")).await;
    page.go(&format!("{}/#/agents/b", server.url())).await;
    page.until("document.querySelectorAll('#agent-events li').length === 3").await;
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn second_tab_gets_past_events_and_their_times_from_the_first() {
    let Some(browser) = browser().await else { return };
    let (server, client) = with_a_past(|_| {}).await;
    let page = Page::open(&browser, &server.url()).await;
    let first = page.tab().await;
    page.until(&format!("{EVENTS} === '{PAST}'")).await;
    client.update_status("b", AgentStatus::Active).await.unwrap();
    page.until(&format!("{TIMES} === 'true,false,false,true,true'")).await;

    page.open_tab(&server.url()).await;
    page.until(&format!("{EVENTS} === 'status changed b active,{PAST}'")).await;
    page.until(&format!("{TIMES} === 'true,false,false,true,true'")).await;
    client.register(&agent("c", "work")).await.unwrap();
    let all = format!("registered c active,status changed b active,{PAST}");
    page.until(&format!("{EVENTS} === '{all}' && {IDS} === 'b,c'")).await;
    // A third tab asks all others, after one of them took over from the first tab.
    let second = page.tab().await;
    page.open_tab(&server.url()).await;
    page.until(&format!("{EVENTS} === '{all}'")).await;
    page.switch_to(&first).await;
    page.until(&format!("{EVENTS} === '{all}'")).await;
    page.close_tab().await;
    page.switch_to(&second).await;
    client.register(&agent("d", "work")).await.unwrap();
    page.until(&format!("{EVENTS} === 'registered d active,{all}'")).await;
    server.shutdown().await;
}

/// Browsers do not offer the Web Locks API on plain HTTP from another host.
#[tokio::test(flavor = "multi_thread")]
async fn tab_without_web_locks_shows_past_events() {
    let Some(browser) = browser().await else { return };
    let (server, _) = with_a_past(|config| config.allowed_hosts = vec![ANOTHER_HOST.to_owned()]).await;
    let url = format!("http://{ANOTHER_HOST}:{}/", server.local_addr().port());
    let page = Page::open(&browser, &url).await;
    page.until(&format!("{EVENTS} === '{PAST}'")).await;
    page.open_tab(&url).await;
    page.until(&format!("{EVENTS} === '{PAST}'")).await;
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn events_missed_while_disconnected_have_no_time() {
    let Some(browser) = browser().await else { return };
    let (server, client) = with_a_past(|_| {}).await;
    let proxy = registry_sdk::testing::FaultProxy::start(server.local_addr().to_string()).await;
    let page = Page::open(&browser, &format!("http://{}/", proxy.address())).await;
    page.until(&format!("{EVENTS} === '{PAST}'")).await;
    proxy.set(registry_sdk::testing::Fault::Refuse);
    page.until("document.getElementById('connection').textContent.startsWith('connection lost')").await;
    client.update_status("b", AgentStatus::Active).await.unwrap();
    proxy.set(registry_sdk::testing::Fault::None);
    page.until(&format!("{EVENTS} === 'status changed b active,{PAST}'")).await;
    page.until(&format!("{TIMES} === 'false,false,false,true,true'")).await;
    page.until("document.querySelector('#rows .status').textContent === 'active'").await;
    server.shutdown().await;
}

/// A script sends the events to the page.
#[tokio::test(flavor = "multi_thread")]
async fn token_names_are_shown_as_text() {
    let Some(browser) = browser().await else { return };
    let (server, client) = start(|_| {}).await;
    let page = Page::open(&browser, &server.url()).await;
    page.run(
        "const parse = JSON.parse;
         JSON.parse = (text) => {
             const read = parse(text);
             if (read?.agent_id === 'a') read.changed_by = '<b>deploy</b>';
             return read;
         };",
    )
    .await;
    for id in ["a", "b"] {
        client.register(&agent(id, "work")).await.unwrap();
    }
    page.until(&format!("{EVENTS} === 'registered b active,registered a active by <b>deploy</b>'")).await;
    page.run("location.hash = '#/agents/a'").await;
    page.until(&format!("{} === '<b>deploy</b>'", crate::fact("Last change by"))).await;
    page.run("location.hash = '#/agents/b'").await;
    page.until("document.getElementById('facts').textContent.includes('http://b:8000')").await;
    page.until("!document.getElementById('facts').textContent.includes('Last change by')").await;
    server.shutdown().await;
}
