//! The dashboard in a real browser: Chromium, driven through chromedriver.
//!
//! If chromedriver is not installed, these tests print a message and pass, unless `REQUIRE_BROWSER` is set.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stderr,
    reason = "a test fails by panicking"
)]

mod browser;
mod connection;
mod events;
mod odd_input;
#[path = "../path_proxy/mod.rs"]
mod path_proxy;
mod searching;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;
use registry_sdk::RegistryClient;
use registry_sdk::contract::{AgentStatus, Capability, Heartbeat, MaintenanceRequest, Registration};
use registry_server::{Config, NewToken, Server};
use test_support::start_server;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use browser::{Page, browser};
use path_proxy::PathProxy;

async fn start(change: impl FnOnce(&mut Config)) -> (Server, RegistryClient) {
    let server = start_server(change).await;
    let client = RegistryClient::new(server.url()).unwrap();
    (server, client)
}

fn agent(id: &str, capability: &str) -> Registration {
    Registration::new(id, format!("Agent {id}"), format!("http://{id}:8000"))
        .capability(Capability::new(capability))
}

/// Writes a tokens file, and returns its two tokens.
fn tokens_file(folder: &Path) -> (PathBuf, [String; 2]) {
    let file = folder.join("tokens.toml");
    let [one, other] = [NewToken::generate().unwrap(), NewToken::generate().unwrap()];
    let entry = |name: &str, sha256: &str| {
        format!("[[token]]\nname = \"{name}\"\nsha256 = \"{sha256}\"\nscope = \"admin\"\n")
    };
    std::fs::write(&file, entry("one", &one.sha256) + &entry("other", &other.sha256)).unwrap();
    (file, [one.token, other.token])
}

/// The ids in the table, in order.
const IDS: &str = "[...document.querySelectorAll('#rows tr')].map(row => row.cells[0].textContent).join()";

/// Returns an expression for a fact on an agent's page.
fn fact(name: &str) -> String {
    format!(
        "[...document.querySelectorAll('#facts dt')].find(dt => dt.textContent === '{name}').nextSibling.textContent"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_are_shown_as_they_happen() {
    let Some(browser) = browser().await else { return };
    let (server, client) = start(|_| {}).await;
    let page = Page::open(&browser, &server.url()).await;
    page.until("document.getElementById('sample-curl').checkVisibility()").await;
    assert!(page.text("sample-curl").await.contains(&format!("curl {}/register", server.url())));

    client.register(&agent("a", "code_generation")).await.unwrap();
    page.until(&format!("{IDS} === 'a'")).await;
    page.until("!document.getElementById('empty').checkVisibility()").await;
    client.register(&agent("b", "review").status(AgentStatus::Busy)).await.unwrap();
    client.update_status("a", AgentStatus::Offline).await.unwrap();
    page.until("document.querySelector('#rows tr:first-child .status').textContent === 'offline'").await;
    page.until("document.getElementById('counts').innerText.replace(/\\s+/g, ' ').includes('agents 2 active 0 busy 1 offline 1')").await;
    client.deregister("a").await.unwrap();
    page.until(&format!("{IDS} === 'b'")).await;
    page.until("document.getElementById('events').textContent.includes('deregistered')").await;
    // The page loads nothing from other origins.
    page.until_all_is_from(&server.url()).await;
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn page_survives_a_restart_of_the_server() {
    let Some(browser) = browser().await else { return };
    let folder = tempfile::tempdir().unwrap();
    let on_file = |listen: SocketAddr| {
        let database_url = format!("sqlite://{}", folder.path().join("registry.db").display());
        start(move |config| (config.listen, config.database_url) = (listen.into(), database_url))
    };
    let (server, client) = on_file(([127, 0, 0, 1], 0).into()).await;
    let address = server.local_addr();
    let page = Page::open(&browser, &server.url()).await;
    client.register(&agent("a", "work")).await.unwrap();
    page.until(&format!("{IDS} === 'a'")).await;
    // The last event announces the shutdown.
    server.shutdown().await;
    let (server, client) = on_file(address).await;
    client.register(&agent("b", "work")).await.unwrap();
    page.until(&format!("{IDS} === 'a,b'")).await;
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn agents_are_searched_filtered_sorted_and_paged() {
    let Some(browser) = browser().await else { return };
    let (server, client) = start(|_| {}).await;
    for number in 0..120 {
        let capability = if number % 40 == 7 { "security_scanning" } else { "work" };
        let mut registration = agent(&format!("a{number:03}"), capability).metadata("even", number % 2 == 0);
        registration.capabilities[0].tags = vec![format!("t{}", number % 60)];
        if number == 47 {
            registration = registration.status(AgentStatus::Busy);
        }
        client.register(&registration).await.unwrap();
    }
    let page = Page::open(&browser, &server.url()).await;
    page.until("document.getElementById('shown').textContent === '120 agents'").await;
    page.until("document.querySelectorAll('#rows tr').length === 100").await;
    page.click("next").await;
    page.until("document.querySelectorAll('#rows tr').length === 20").await;
    page.until("document.getElementById('page').textContent === 'page 2 of 2'").await;

    // The registry's own search ranks active agents before busy ones.
    page.type_into("search", "security scan").await;
    page.until(&format!("{IDS} === 'a087,a007,a047'")).await;
    page.until("document.getElementById('shown').textContent.includes('with every word')").await;
    // A sentence: no agent has all of its words.
    page.type_into("search", "Who scans for security holes?").await;
    page.until("document.getElementById('shown').textContent.startsWith('No agent has every word')").await;
    page.until(&format!("{IDS} === 'a087,a007,a047'")).await;
    page.choose("status", "busy").await;
    page.until(&format!("{IDS} === 'a047'")).await;
    page.choose("status", "any").await;
    // Filters apply to searches and to the list.
    page.type_into("tags", "t27").await;
    page.until(&format!("{IDS} === 'a087'")).await;
    page.run("document.querySelector('[data-sort=agent_id]').click()").await;
    page.until(&format!("['a027,a087', 'a087,a027'].includes({IDS})")).await;
    page.type_into("capability", "work").await;
    page.until(&format!("{IDS} === 'a027'")).await;
    page.type_into("metadata-filter", "even=true").await;
    page.until(&format!("{IDS} === ''")).await;
    page.run(
        "for (const id of ['tags', 'capability', 'metadata-filter']) {
             document.getElementById(id).value = '';
             document.getElementById(id).dispatchEvent(new Event('input'));
         }",
    )
    .await;
    page.until("document.getElementById('shown').textContent === '120 agents'").await;
    page.run("document.querySelector('[data-sort=agent_id]').click(); document.querySelector('[data-sort=agent_id]').click()").await;
    page.until(&format!("{IDS}.startsWith('a000,') || {IDS}.startsWith('a119,')")).await;
    page.until("document.querySelectorAll('th[aria-sort]').length === 1").await;
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn agent_in_maintenance_is_shown_with_the_reason() {
    let Some(browser) = browser().await else { return };
    let (server, client) = start(|_| {}).await;
    client.register(&agent("a", "work")).await.unwrap();
    client.register(&agent("b", "work")).await.unwrap();
    let page = Page::open(&browser, &server.url()).await;
    page.until(&format!("{IDS} === 'a,b'")).await;
    client.set_maintenance("a", &MaintenanceRequest::new("<b>disk</b> upgrade")).await.unwrap();
    let badge = "document.querySelector('#rows tr:first-child .status')";
    page.until(&format!("{badge}.textContent === 'maintenance'")).await;
    page.until("document.getElementById('counts').innerText.replace(/\\s+/g, ' ').includes('maintenance 1')")
        .await;
    page.until(
        "document.querySelector('#rows tr:first-child .detail').textContent === '<b>disk</b> upgrade'",
    )
    .await;
    page.choose("status", "maintenance").await;
    page.until(&format!("{IDS} === 'a'")).await;
    page.choose("status", "active").await;
    page.until(&format!("{IDS} === 'a,b'")).await;

    page.go(&format!("{}/#/agents/a", server.url())).await;
    page.until("document.getElementById('facts').textContent.includes('upgrade, since 2')").await;
    page.until("document.querySelectorAll('main b').length === 0").await;
    let until = MaintenanceRequest::new("upgrade").duration(Duration::from_secs(7_200));
    client.set_maintenance("a", &until).await.unwrap();
    page.until(&format!("/^upgrade, since 2.*, until 2/.test({})", fact("Maintenance"))).await;
    page.go(&server.url()).await;
    page.until(
        "/^upgrade, until .*\\d\\d:\\d\\d$/.test(document.querySelector('#rows tr:first-child .detail').textContent)",
    )
    .await;
    client.end_maintenance("a").await.unwrap();
    page.until(&format!("{badge}.textContent === 'active' && document.querySelector('.detail') === null"))
        .await;
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn probe_results_are_shown() {
    let Some(browser) = browser().await else { return };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let agents = Router::new()
        .route("/health", get(async || "well"))
        .route("/ill", get(async || StatusCode::INTERNAL_SERVER_ERROR));
    let mut serving = JoinSet::new();
    serving.spawn(async move { axum::serve(listener, agents).await.unwrap() });
    let (server, client) = start(|config| {
        config.probe_interval = Some(Duration::from_millis(100));
        config.probe_timeout = Duration::from_secs(60);
        config.probe_allow = vec!["127.0.0.1/32".parse().unwrap()];
    })
    .await;
    client.register(&Registration::new("well", "Agent", &url)).await.unwrap();
    client.register(&Registration::new("ill", "Agent", &url).health_path("/ill")).await.unwrap();
    client.register(&Registration::new("unasked", "Agent", &url).no_probe()).await.unwrap();
    let page = Page::open(&browser, &format!("{}/#/agents/well", server.url())).await;
    let probe = fact("Last probe");
    page.until(&format!("/^passed \\d+ s ago, after \\d+ ms$/.test({probe})")).await;
    page.go(&format!("{}/#/agents/ill", server.url())).await;
    page.until(&format!("/^failed \\d+ s ago, after \\d+ ms: .*500/.test({probe})")).await;
    page.until(&format!("{} === 'probe failed'", fact("Why"))).await;
    page.go(&format!("{}/#/agents/unasked", server.url())).await;
    page.until(&format!("{probe}.startsWith('none')")).await;
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn times_on_an_agents_page_advance() {
    let Some(browser) = browser().await else { return };
    let (server, client) = start(|_| {}).await;
    let described = Capability::new("code_generation").description("Writes features").tag("python");
    let registration =
        Registration::new("a", "Agent", "http://a:8000").capability(described).metadata("team", "platform");
    client.register(&registration).await.unwrap();
    let page = Page::open(&browser, &format!("{}/#/agents/a", server.url())).await;
    page.until("document.getElementById('agent-title').textContent === 'Agent (a)'").await;
    for part in ["Writes features", "python", "\"team\": \"platform\""] {
        assert!(page.text("agent").await.contains(part), "{part}");
    }
    page.until(&format!("{}.startsWith('in ')", fact("Deadline"))).await;
    let silence = format!("parseInt({})", fact("Last heartbeat"));
    page.until(&format!("{silence} >= 2")).await;
    client.heartbeat_with("a", &Heartbeat::default().load(0.5).active_tasks(2)).await.unwrap();
    // The time grows until the page receives the heartbeat.
    page.until(&format!("{silence} < window.silence || (window.silence = {silence}, false)")).await;
    page.until("document.getElementById('facts').textContent.includes('50 %, 2 tasks')").await;
    client.deregister("a").await.unwrap();
    page.until("document.getElementById('agent-title').textContent.startsWith('No agent is registered')")
        .await;
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn text_of_agents_is_never_markup() {
    let Some(browser) = browser().await else { return };
    let (server, client) = start(|_| {}).await;
    let evil = "<img src=x onerror=\"window.harmed = 1\"><script>window.harmed = 1</script>";
    let registration = Registration::new("evil", evil, "http://evil:8000")
        .capability(Capability::new(evil).description(evil).tag("<b>tag</b>"))
        .metadata("<i>key</i>", evil);
    client.register(&registration).await.unwrap();
    let page = Page::open(&browser, &server.url()).await;
    page.until(&format!("{IDS} === 'evil'")).await;
    page.until("document.querySelector('#rows td:nth-child(2)').textContent.startsWith('<img')").await;
    page.go(&format!("{}/#/agents/evil", server.url())).await;
    page.until("document.getElementById('agent-title').textContent.startsWith('<img')").await;
    page.until("document.querySelectorAll('main img, main script, main b, main i').length === 0").await;
    page.until("window.harmed === undefined").await;
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn page_asks_for_a_token_if_one_is_required() {
    let Some(browser) = browser().await else { return };
    let folder = tempfile::tempdir().unwrap();
    let (file, [token, _]) = tokens_file(folder.path());
    let (server, _) = start(|config| config.tokens_file = Some(file)).await;
    let page = Page::open(&browser, &server.url()).await;
    page.sign_in(&token).await;
    page.until("document.getElementById('empty').checkVisibility()").await;
    page.until("!document.getElementById('sign-in').checkVisibility()").await;
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn api_page_loads_nothing_from_other_origins() {
    let Some(browser) = browser().await else { return };
    let (server, _) = start(|_| {}).await;
    let page = Page::open(&browser, &format!("{}/docs/", server.url())).await;
    page.until("document.body.innerText.includes('/capabilities/search')").await;
    page.until_all_is_from(&server.url()).await;
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_work_below_a_path() {
    let Some(browser) = browser().await else { return };
    let (server, client) = start(|_| {}).await;
    let proxy = PathProxy::start(server.url()).await;
    let url = proxy.url();
    let page = Page::open(&browser, &format!("{url}/")).await;
    page.until("document.getElementById('sample-curl').checkVisibility()").await;
    assert!(page.text("sample-curl").await.contains(&format!("curl {url}/register")));
    assert!(page.text("sample-rust").await.contains(&format!("RegistryClient::new(\"{url}\")")));
    client.register(&agent("a", "code_generation")).await.unwrap();
    client.register(&agent("b", "review")).await.unwrap();
    page.until(&format!("{IDS} === 'a,b'")).await;
    page.type_into("search", "review").await;
    page.until(&format!("{IDS} === 'b'")).await;
    page.run("document.querySelector('#rows a').click()").await;
    page.until("document.getElementById('agent-title').textContent === 'Agent b (b)'").await;
    page.until("document.getElementById('facts').textContent.includes('http://b:8000')").await;
    page.until_all_is_from(&url).await;

    // The API page, and a request from it.
    page.go(&format!("{url}/docs#/discovery/get_stats")).await;
    page.until("document.body.innerText.includes('/capabilities/search')").await;
    for button in [".opblock.is-open .try-out__btn", ".opblock.is-open .execute"] {
        page.until(&format!("document.querySelector('{button}')")).await;
        page.run(&format!("document.querySelector('{button}').click()")).await;
    }
    let asked = "document.querySelector('.opblock.is-open .request-url pre')?.innerText.trim()";
    page.until(&format!("{asked} === '{url}/stats'")).await;
    page.until("document.querySelector('.live-responses-table')?.innerText.includes('\"total_agents\": 2')")
        .await;
    page.until_all_is_from(&url).await;
    assert_eq!(proxy.strays(), Vec::<String>::new());
    server.shutdown().await;
}

/// Most proxies forward such a request, and relative URLs would point to the wrong folder.
#[tokio::test(flavor = "multi_thread")]
async fn path_without_a_trailing_slash_redirects_to_the_page() {
    let Some(browser) = browser().await else { return };
    let (server, client) = start(|_| {}).await;
    client.register(&agent("a", "review")).await.unwrap();
    let proxy = PathProxy::start(server.url()).await;
    let page = Page::open(&browser, &format!("{}#/agents/a", proxy.url())).await;
    page.until("document.getElementById('agent-title')?.textContent === 'Agent a (a)'").await;
    page.until(&format!("location.href === '{}/#/agents/a'", proxy.url())).await;
    page.until_all_is_from(&proxy.url()).await;
    server.shutdown().await;
}
