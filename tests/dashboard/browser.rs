//! A browser, and operations on its page.

use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use fantoccini::wd::WindowHandle;
use fantoccini::{Client, ClientBuilder, Locator};
use serde_json::json;
pub(crate) use test_support::LONG;

/// A name of this host that a browser does not treat as local.
pub(crate) const ANOTHER_HOST: &str = "registry.example";

/// A browser. It is ended when this is dropped.
pub(crate) struct Browser {
    client: Client,
    _driver: Driver,
    /// Temporary files of the browser.
    _folder: tempfile::TempDir,
}

struct Driver(Child);

impl Drop for Driver {
    fn drop(&mut self) {
        // The browser is in the same process group, and would keep running otherwise.
        let _ = Command::new("kill").args(["-s", "KILL", "--", &format!("-{}", self.0.id())]).status();
        let _ = self.0.wait();
    }
}

/// Starts a browser. Returns `None` if none is installed and none is required.
pub(crate) async fn browser() -> Option<Browser> {
    browser_with(json!({})).await
}

/// Starts a browser with the screen of a small phone.
pub(crate) async fn phone() -> Option<Browser> {
    browser_with(json!({ "deviceMetrics": { "width": 360, "height": 740, "pixelRatio": 2 } })).await
}

async fn browser_with(emulation: serde_json::Value) -> Option<Browser> {
    let folder = tempfile::tempdir().unwrap();
    let started = Command::new("chromedriver")
        .env("TMPDIR", folder.path())
        .arg("--port=0")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn();
    let mut driver = match started {
        Ok(child) => Driver(child),
        Err(error) if std::env::var_os("REQUIRE_BROWSER").is_none() => {
            eprintln!("not tested in a browser: chromedriver cannot be started ({error})");
            return None;
        }
        Err(error) => panic!("chromedriver cannot be started: {error}"),
    };
    let mut lines = BufReader::new(driver.0.stdout.take().unwrap()).lines().map_while(Result::ok);
    let port = lines
        .find_map(|line| {
            line.split_once("started successfully on port ")?.1.trim_end_matches('.').parse::<u16>().ok()
        })
        .expect("chromedriver prints its port");
    // The rest of the output is read, so that chromedriver never blocks on a full pipe.
    std::thread::spawn(move || lines.for_each(drop));
    // Root in a container has no sandbox, and little shared memory.
    let args = [
        "--headless=new",
        "--no-sandbox",
        "--disable-dev-shm-usage",
        "--window-size=1200,900",
        &format!("--host-resolver-rules=MAP {ANOTHER_HOST} 127.0.0.1"),
    ];
    let mut options = json!({ "args": args });
    if emulation != json!({}) {
        options["mobileEmulation"] = emulation;
    }
    let capabilities = json!({"goog:chromeOptions": options}).as_object().unwrap().clone();
    let connecting = async {
        loop {
            let mut builder = ClientBuilder::new(hyper_util::client::legacy::connect::HttpConnector::new());
            builder.capabilities(capabilities.clone());
            match builder.connect(&format!("http://127.0.0.1:{port}")).await {
                Ok(client) => return client,
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    };
    let client = tokio::time::timeout(LONG, connecting).await.expect("a browser starts");
    Some(Browser { client, _driver: driver, _folder: folder })
}

/// A page in a browser.
pub(crate) struct Page<'a>(&'a Browser);

impl<'a> Page<'a> {
    pub(crate) async fn open(browser: &'a Browser, url: &str) -> Self {
        browser.client.goto(url).await.unwrap();
        Self(browser)
    }

    pub(crate) async fn go(&self, url: &str) {
        self.0.client.goto(url).await.unwrap();
    }

    /// Returns the current tab.
    pub(crate) async fn tab(&self) -> WindowHandle {
        self.0.client.window().await.unwrap()
    }

    /// Opens another tab, which becomes the current one.
    pub(crate) async fn open_tab(&self, url: &str) -> WindowHandle {
        let tab = self.0.client.new_window(true).await.unwrap().handle;
        self.switch_to(&tab).await;
        self.go(url).await;
        tab
    }

    pub(crate) async fn switch_to(&self, tab: &WindowHandle) {
        self.0.client.switch_to_window(tab.clone()).await.unwrap();
    }

    /// Closes the current tab. The caller has to switch to another one.
    pub(crate) async fn close_tab(&self) {
        self.0.client.close_window().await.unwrap();
    }

    /// Waits until an expression holds in the page.
    pub(crate) async fn until(&self, expression: &str) {
        let script = format!("return Boolean({expression})");
        let waiting = async {
            while self.0.client.execute(&script, Vec::new()).await.ok() != Some(json!(true)) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        if tokio::time::timeout(LONG, waiting).await.is_err() {
            let shown = self.0.client.execute("return document.body.innerText", Vec::new()).await;
            panic!("never came true: {expression}\n{shown:?}");
        }
    }

    /// Waits until everything that the page has loaded is from one origin.
    pub(crate) async fn until_all_is_from(&self, origin: &str) {
        let resources = "performance.getEntriesByType('resource')";
        self.until(&format!("{resources}.every(one => one.name.startsWith('{origin}/'))")).await;
    }

    pub(crate) async fn run(&self, script: &str) {
        self.0.client.execute(script, Vec::new()).await.unwrap();
    }

    pub(crate) async fn text(&self, id: &str) -> String {
        self.0.client.find(Locator::Id(id)).await.unwrap().text().await.unwrap()
    }

    pub(crate) async fn click(&self, id: &str) {
        self.0.client.find(Locator::Id(id)).await.unwrap().click().await.unwrap();
    }

    pub(crate) async fn type_into(&self, id: &str, text: &str) {
        self.0.client.find(Locator::Id(id)).await.unwrap().send_keys(text).await.unwrap();
    }

    pub(crate) async fn sign_in(&self, token: &str) {
        self.until("document.getElementById('sign-in').checkVisibility()").await;
        self.type_into("token", token).await;
        self.run("document.querySelector('#sign-in button').click()").await;
    }

    pub(crate) async fn choose(&self, id: &str, label: &str) {
        self.0.client.find(Locator::Id(id)).await.unwrap().select_by_label(label).await.unwrap();
    }
}
