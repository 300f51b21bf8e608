// The page: which part of it is shown, and when it is shown anew.

import { agentInAddress, openAgent, readAgent, renderAgentEvents, tickAgent } from "./agent.js";
import { connection, isLive, isLoaded, keepUpToDate, listSeconds, refresh } from "./copy.js";
import { listenToOverview, renderOverview } from "./overview.js";
import { $, setText } from "./parts.js";
import { registryUrl } from "./registry.js";

// At most every 200 ms, however many changes come.
let isDue = false;
function changed() {
  if (isDue) return;
  isDue = true;
  setTimeout(() => {
    isDue = false;
    render();
  }, 200);
}

function render() {
  const id = agentInAddress();
  renderConnection();
  $("overview").hidden = id !== null || !isLoaded;
  $("agent").hidden = id === null;
  document.title = id === null ? "Agent registry" : `${id} · Agent registry`;
  if (id === null) {
    if (isLoaded) renderOverview();
  } else {
    openAgent();
    renderAgentEvents();
  }
}

function renderConnection() {
  setText($("connection"), connection());
  $("connection").classList.toggle("lost", isLoaded && !isLive());
}

function listen() {
  listenToOverview();
  for (const button of document.querySelectorAll("[data-copy]")) {
    // Browsers have no clipboard at plain HTTP from another host.
    button.hidden = navigator.clipboard === undefined;
    button.addEventListener("click", async () => {
      await navigator.clipboard.writeText($(button.dataset.copy).textContent);
      button.textContent = "Copied";
      setTimeout(() => (button.textContent = "Copy"), 2000);
    });
  }
  addEventListener("hashchange", () => {
    render();
    readAgent();
    if (agentInAddress() !== null) $("agent-title").focus();
  });
}

function samples() {
  const registration = `{
    "agent_id": "my-agent",
    "agent_name": "My first agent",
    "base_url": "http://localhost:8000",
    "capabilities": [{"name": "code_generation", "tags": ["python"]}]
  }`;
  $("sample-curl").textContent =
    `curl ${registryUrl}/register \\\n  -H 'Content-Type: application/json' \\\n  -d '${registration}'`;
  $("sample-rust").textContent = `let client = RegistryClient::new("${registryUrl}")?;
let registration = Registration::new("my-agent", "My first agent", "http://localhost:8000")
    .capability(Capability::new("code_generation").tag("python"));
let agent = Agent::new(client, registration);
agent.register_with_retry().await?;
agent.start_heartbeat(Duration::from_secs(30))?;`;
}

/// Does something again and again, so much time after it has ended.
async function repeat(action, milliseconds) {
  for (;;) {
    await action().catch(() => {});
    await new Promise((done) => setTimeout(done, milliseconds()));
  }
}

const isOverviewSeen = () => !document.hidden && agentInAddress() === null;

samples();
listen();
render();
keepUpToDate(changed);
setInterval(() => {
  renderConnection();
  tickAgent();
}, 1000);
setInterval(() => {
  if (isOverviewSeen()) changed();
}, 5000);
repeat(readAgent, () => 2000);
// Heartbeats are not events, so the list is fetched again from time to time, less often if that is slow.
repeat(async () => {
  if (isOverviewSeen()) await refresh();
}, () => Math.max(15000, 50000 * listSeconds));
