//! The connection status on the page, and the stream that its tabs share.

use registry_sdk::testing::{Fault, FaultProxy};

use crate::browser::{ANOTHER_HOST, LONG, Page, browser};
use crate::{IDS, agent, start, tokens_file};

const CONNECTION: &str = "document.getElementById('connection').textContent";

/// Two more than a browser keeps connections to a host.
const TABS: usize = 8;

/// The event stream and all requests hang, as if the server's process were suspended or the network dropped packets.
#[tokio::test(flavor = "multi_thread")]
async fn hanging_server_is_not_shown_as_live() {
    let Some(browser) = browser().await else { return };
    let (server, client) = start(|_| {}).await;
    client.register(&agent("a", "work")).await.unwrap();
    let proxy = FaultProxy::start(server.local_addr().to_string()).await;
    let page = Page::open(&browser, &format!("http://{}/", proxy.address())).await;
    page.until(&format!("{CONNECTION} === 'live' && {IDS} === 'a'")).await;

    proxy.set(Fault::Hang);
    // Measured in the page: on a busy machine its timers are late as well.
    page.run(
        "window.hungAt = new Date().toLocaleTimeString('en-GB');
         window.seconds = 0;
         const counting = setInterval(() => window.seconds += 1, 1000);
         new MutationObserver(() => clearInterval(counting))
             .observe(document.getElementById('connection'), { childList: true });",
    )
    .await;
    page.type_into("search", "anything").await;
    page.until(&format!("{CONNECTION}.startsWith('connection lost, showing the state of ')")).await;
    page.until(&format!("{CONNECTION}.slice(-8) <= window.hungAt && /:\\d\\d:\\d\\d$/.test({CONNECTION})"))
        .await;
    page.until("window.seconds <= 20").await;
    page.until("document.getElementById('shown').textContent.startsWith('not searched: ')").await;
    // The known agents are still shown, and their times do not advance.
    page.until(&format!("{IDS} === 'a'")).await;

    client.register(&agent("b", "anything")).await.unwrap();
    proxy.set(Fault::None);
    // The failed search is repeated.
    page.until(&format!("{CONNECTION} === 'live' && {IDS} === 'b'")).await;
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn eight_tabs_are_live_on_one_stream() {
    let Some(browser) = browser().await else { return };
    let (server, client) = start(|_| {}).await;
    let page = Page::open(&browser, &server.url()).await;
    let mut tabs = vec![page.tab().await];
    for _ in 1..TABS {
        tabs.push(page.open_tab(&server.url()).await);
    }
    let all_show = async |tabs: &[_], ids: &str| {
        for tab in tabs {
            page.switch_to(tab).await;
            page.until(&format!("{CONNECTION} === 'live' && {IDS} === '{ids}'")).await;
        }
    };
    client.register(&agent("a", "work")).await.unwrap();
    all_show(&tabs, "a").await;
    until_streams_are(&server.url(), "", 1).await;

    // The first tab has the stream. It is closed, and then each tab that takes over.
    let mut ids = "a".to_owned();
    for next in ["b", "c", "d"] {
        page.switch_to(&tabs[0]).await;
        page.close_tab().await;
        tabs.remove(0);
        client.register(&agent(next, "work")).await.unwrap();
        ids = format!("{ids},{next}");
        all_show(&tabs, &ids).await;
    }
    until_streams_are(&server.url(), "", 1).await;
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn stream_is_only_shared_by_tabs_with_the_same_token() {
    let Some(browser) = browser().await else { return };
    let folder = tempfile::tempdir().unwrap();
    let (file, [one, other]) = tokens_file(folder.path());
    let (server, _) = start(|config| config.tokens_file = Some(file)).await;
    let client = registry_sdk::RegistryClient::builder(server.url()).token(&one).build().unwrap();
    client.register(&agent("a", "work")).await.unwrap();
    let page = Page::open(&browser, &server.url()).await;
    page.sign_in(&one).await;
    page.until(&format!("{CONNECTION} === 'live' && {IDS} === 'a'")).await;

    page.open_tab(&server.url()).await;
    page.until("document.getElementById('sign-in').checkVisibility()").await;
    client.register(&agent("b", "work")).await.unwrap();
    page.sign_in(&one).await;
    page.until(&format!("{CONNECTION} === 'live' && {IDS} === 'a,b'")).await;
    until_streams_are(&server.url(), &one, 1).await;

    page.open_tab(&server.url()).await;
    page.until("document.getElementById('sign-in').checkVisibility()").await;
    assert_eq!(page.text("rows").await, "");
    page.sign_in(&other).await;
    page.until(&format!("{CONNECTION} === 'live' && {IDS} === 'a,b'")).await;
    until_streams_are(&server.url(), &one, 2).await;
    server.shutdown().await;
}

/// Browsers do not offer the Web Locks API on plain HTTP from another host.
#[tokio::test(flavor = "multi_thread")]
async fn tabs_without_web_locks_have_streams_of_their_own() {
    let Some(browser) = browser().await else { return };
    let (server, client) = start(|config| config.allowed_hosts = vec![ANOTHER_HOST.to_owned()]).await;
    let url = format!("http://{ANOTHER_HOST}:{}/", server.local_addr().port());
    let page = Page::open(&browser, &url).await;
    let first = page.tab().await;
    page.open_tab(&url).await;
    page.until("navigator.locks === undefined").await;
    client.register(&agent("a", "work")).await.unwrap();
    page.until(&format!("{CONNECTION} === 'live' && {IDS} === 'a'")).await;
    page.switch_to(&first).await;
    page.until(&format!("{CONNECTION} === 'live' && {IDS} === 'a'")).await;
    until_streams_are(&server.url(), "", 2).await;
    server.shutdown().await;
}

/// Waits until the server has this number of event streams.
async fn until_streams_are(url: &str, token: &str, count: usize) {
    let line = format!("\nagent_registry_watchers {count}\n");
    let asked = reqwest::Client::new().get(format!("{url}/metrics")).bearer_auth(token);
    let waiting = async {
        loop {
            let text = asked.try_clone().unwrap().send().await.unwrap().text().await.unwrap();
            if text.contains(&line) {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(LONG, waiting).await.unwrap_or_else(|_| panic!("never had {count} event streams"));
}
