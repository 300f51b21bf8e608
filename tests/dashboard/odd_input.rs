//! Unusual input from agents and people. The page stays usable with a keyboard and on a phone.

use registry_sdk::RegistryClient;
use registry_sdk::contract::{Capability, Heartbeat, MaintenanceRequest, Registration};

use crate::browser::{Page, browser, phone};
use crate::{IDS, agent, fact, start, tokens_file};

const WHY: &str = "document.getElementById('sign-in-why').textContent";

#[tokio::test(flavor = "multi_thread")]
async fn long_and_right_to_left_names_fit_on_a_phone() {
    let Some(browser) = phone().await else { return };
    let (server, client) = start(|_| {}).await;
    let wide = "\u{ff37}".repeat(128);
    let unbroken = "w".repeat(128);
    let reversed = "\u{202e}\u{5d0}\u{5d1}\u{5d2} evil";
    for (id, name) in [("wide", &*wide), (&"i".repeat(64), &*unbroken), ("reversed", reversed)] {
        let mut registration = Registration::new(id, name, format!("http://odd:8000/{}", "p".repeat(150)))
            .capability(Capability::new(name).description(name).tag("t".repeat(64)).title(name))
            .metadata("key", name);
        registration.capabilities[0].examples = vec![unbroken.clone()];
        client.register(&registration).await.unwrap();
        client.set_maintenance(id, &MaintenanceRequest::new(name)).await.unwrap();
        client.heartbeat_with(id, &Heartbeat::default().load(1.0).active_tasks(u32::MAX)).await.unwrap();
    }
    let fits = "document.documentElement.scrollWidth <= document.documentElement.clientWidth";
    let page = Page::open(&browser, &server.url()).await;
    page.until("document.querySelectorAll('#rows tr').length === 3 && document.querySelector('.detail')")
        .await;
    page.until("innerWidth === 360").await;
    page.until(fits).await;
    page.until("document.querySelectorAll('#events li').length === 6").await;
    page.until(fits).await;
    for id in ["wide", "reversed", &"i".repeat(64)] {
        page.go(&format!("{}/#/agents/{id}", server.url())).await;
        page.until(&format!("{}.startsWith('http')", fact("Works at"))).await;
        page.until(fits).await;
    }
    // The text direction of a name does not extend beyond the name.
    page.go(&format!("{}/#/agents/reversed", server.url())).await;
    page.until("document.querySelector('#agent-title > bdi')?.nextSibling.textContent === ' (reversed)'")
        .await;
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn focus_is_kept_while_the_page_changes() {
    let Some(browser) = browser().await else { return };
    let (server, client) = start(|_| {}).await;
    for id in ["b", "d"] {
        client.register(&agent(id, "work")).await.unwrap();
    }
    let page = Page::open(&browser, &server.url()).await;
    page.until(&format!("{IDS} === 'b,d'")).await;
    page.run("document.querySelectorAll('#rows a')[1].focus()").await;
    client.register(&agent("a", "work")).await.unwrap();
    client.deregister("b").await.unwrap();
    client.register(&agent("c", "work")).await.unwrap();
    page.until(&format!("{IDS} === 'a,c,d'")).await;
    page.until("document.activeElement.textContent === 'd'").await;

    page.go(&format!("{}/#/agents/d", server.url())).await;
    page.until(&format!("{}.startsWith('http')", fact("Works at"))).await;
    page.run("document.querySelector('#facts a').focus()").await;
    page.run("window.silence = document.getElementById('facts').textContent").await;
    page.until("window.silence !== document.getElementById('facts').textContent").await;
    page.until("document.activeElement.href?.startsWith('http://d:8000')").await;
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn page_of_an_agent_never_shows_the_previous_agent() {
    let Some(browser) = browser().await else { return };
    let (server, client) = start(|_| {}).await;
    for id in ["a", "b"] {
        client.register(&agent(id, "work")).await.unwrap();
    }
    let page = Page::open(&browser, &server.url()).await;
    page.until(&format!("{IDS} === 'a,b'")).await;
    page.run("location.hash = '#/agents/a'").await;
    page.until(&format!("{}.startsWith('in ')", fact("Deadline"))).await;
    server.shutdown().await;
    page.until("document.getElementById('connection').textContent.startsWith('connection lost')").await;
    // The page shows the agent's data from the list, and no heartbeats of the other agent.
    page.run("location.hash = '#/agents/b'").await;
    page.until("document.getElementById('agent-title').textContent === 'Agent b (b)'").await;
    page.until("document.getElementById('facts').textContent.includes('http://b:8000')").await;
    page.until("!document.getElementById('facts').textContent.includes('Deadline')").await;
    page.run("location.hash = '#/agents/c'").await;
    page.until("document.getElementById('agent-title').textContent === 'c'").await;
    page.until("!document.getElementById('facts').checkVisibility()").await;
    // An invalid id.
    page.run("location.hash = '#/agents/%'").await;
    page.until(&format!("{IDS} === 'a,b' && document.getElementById('overview').checkVisibility()")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_and_revoked_tokens_are_reported() {
    let Some(browser) = browser().await else { return };
    let folder = tempfile::tempdir().unwrap();
    let (file, [token, _]) = tokens_file(folder.path());
    let (server, _) = start(|config| config.tokens_file = Some(file)).await;
    let client = RegistryClient::builder(server.url()).token(&token).build().unwrap();
    client.register(&agent("a", "work")).await.unwrap();
    let page = Page::open(&browser, &server.url()).await;
    page.until(&format!("{WHY} === 'This registry asks for a token.'")).await;
    page.until("document.activeElement.id === 'token'").await;
    page.sign_in("wrong").await;
    page.until(&format!("{WHY}.startsWith('The registry refused the token')")).await;
    page.sign_in(&token).await;
    page.until(&format!("{IDS} === 'a' && !document.getElementById('sign-in').checkVisibility()")).await;

    // The server reloads the file a few seconds after a change.
    tokens_file(folder.path());
    page.until(&format!("{WHY}.startsWith('The registry refused the token')")).await;
    let connection = "document.getElementById('connection').textContent";
    page.until(&format!(
        "/^a token is needed, showing the state of \\d\\d:\\d\\d:\\d\\d$/.test({connection})"
    ))
    .await;
    server.shutdown().await;
}
