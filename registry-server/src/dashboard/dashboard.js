// The page. Everything that comes from an agent is set as text, never as markup.

import { agents, connection, events, isLive, isLoaded, keepUpToDate, now, refresh } from "./copy.js";
import { readJson, registryUrl } from "./registry.js";

const PAGE = 100;
const EVENTS_SHOWN = 30;

// `found` has the ids that the registry found, if it was asked; the best match comes first if there is a `q`. `failure` says why
// what is typed was not searched.
const view = {
  sort: "agent_id", descending: false, page: 0, status: "", q: "", hasEveryWord: true, found: null, failure: null,
};

const $ = (id) => document.getElementById(id);

function element(name, text, properties = {}) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  Object.assign(made, properties);
  return made;
}

// ---- Rendering, at most every 200 ms however many changes come

let isDue = false;
function changed() {
  if (isDue) return;
  isDue = true;
  setTimeout(() => {
    isDue = false;
    render();
  }, 200);
}

let wasLive = false;
function renderConnection() {
  // Only what is new, since a screen reader reads it out.
  if ($("connection").textContent !== connection()) $("connection").textContent = connection();
  $("connection").classList.toggle("lost", isLoaded && !isLive());
  if (isLive() && !wasLive && view.failure !== null) search();
  wasLive = isLive();
}

function render() {
  const id = shownAgent();
  renderConnection();
  $("overview").hidden = id !== null || !isLoaded;
  $("agent").hidden = id === null;
  document.title = id === null ? "Agent registry" : `${id} · Agent registry`;
  if (id === null) renderOverview();
  else renderAgentEvents(id);
}

function renderOverview() {
  const counts = { all: agents.size, active: 0, busy: 0, offline: 0, unhealthy: 0, maintenance: 0, capabilities: 0 };
  for (const agent of agents.values()) {
    counts[agent.status] += 1;
    counts.capabilities += agent.capabilities.length;
    if (state(agent) === "unhealthy") counts.unhealthy += 1;
    if (agent.maintenance !== undefined) counts.maintenance += 1;
  }
  $("counts").replaceChildren(
    ...Object.entries(counts).map(([name, count]) => {
      const pair = element("div");
      pair.append(element("dt", name === "all" ? "agents" : name), element("dd", count.toLocaleString("en")));
      return pair;
    }),
  );
  $("empty").hidden = agents.size > 0;
  $("agents").hidden = agents.size === 0;
  renderRows();
  renderEvents($("events"), events.slice(0, EVENTS_SHOWN), true);
  $("no-events").hidden = events.length > 0;
}

/// The agents that the filters leave, in order.
function chosen() {
  const wanted = (agent) =>
    ["", agent.status, state(agent)].includes(view.status) ||
    (view.status === "maintenance" && agent.maintenance !== undefined);
  const known = view.found === null ? [...agents.values()] : view.found.map((id) => agents.get(id));
  const found = known.filter((agent) => agent !== undefined && wanted(agent));
  if (view.q !== "") return found;
  const key = (agent) => agent[view.sort] ?? "";
  const sign = view.descending ? -1 : 1;
  found.sort((a, b) => {
    const [one, other] = [key(a), key(b)];
    const order = one < other ? -1 : one > other ? 1 : 0;
    return order === 0 ? (a.agent_id < b.agent_id ? -1 : 1) : order * sign;
  });
  return found;
}

function renderRows() {
  const found = chosen();
  const pages = Math.max(1, Math.ceil(found.length / PAGE));
  view.page = Math.min(view.page, pages - 1);
  const from = view.page * PAGE;
  $("rows").replaceChildren(...found.slice(from, from + PAGE).map(row));
  const how = view.hasEveryWord ? " with every word" : ": none has every word";
  const of = view.q === "" ? "" : `${how} of “${view.q}”, the best match first`;
  $("shown").textContent = view.failure ?? `${found.length.toLocaleString("en")} agents${of}`;
  $("pages").hidden = pages === 1;
  $("page").textContent = `page ${view.page + 1} of ${pages}`;
  $("previous").disabled = view.page === 0;
  $("next").disabled = view.page === pages - 1;
  for (const head of document.querySelectorAll("th")) {
    const sorts = head.querySelector("button")?.dataset.sort === view.sort && view.q === "";
    if (sorts) head.setAttribute("aria-sort", view.descending ? "descending" : "ascending");
    else head.removeAttribute("aria-sort");
  }
}

function row(agent) {
  // The roles are said because a phone shows each row as a card, and a browser takes that for no table.
  const made = element("tr", undefined, { role: "row" });
  const cell = (label, content, className = "") => {
    const one = element("td", undefined, { className, role: "cell" });
    one.dataset.label = label;
    one.append(content);
    made.append(one);
    return one;
  };
  cell("Id", agentLink(agent.agent_id));
  cell("Name", agent.agent_name);
  const status = cell("Status", statusOf(agent));
  if (agent.maintenance !== undefined) status.append(element("span", agent.maintenance.reason, { className: "reason" }));
  cell("Last heard", `${seconds(age(agent))} ago`, "number");
  cell("Load", load(agent), "number");
  const names = agent.capabilities.map((capability) => capability.name);
  cell("Can do", names.slice(0, 6).join(", ") + (names.length > 6 ? `, and ${names.length - 6} more` : ""));
  return made;
}

function renderEvents(listElement, some, withLink) {
  listElement.replaceChildren(
    ...some.map((event) => {
      const item = element("li");
      item.append(element("time", event.at.toLocaleTimeString("en-GB"), { dateTime: event.at.toISOString() }));
      item.append(element("span", event.kind.replace("_", " ")));
      const { agent_id: id } = event.agent;
      const isGone = event.kind === "deregistered";
      if (withLink) item.append(isGone ? element("span", id) : agentLink(id));
      if (!isGone) item.append(statusOf(event.agent));
      return item;
    }),
  );
}

// ---- One agent

let shownRecord = null;

function shownAgent() {
  const match = /^#\/agents\/([^/]+)$/.exec(location.hash);
  return match === null ? null : decodeURIComponent(match[1]);
}

async function renderAgent() {
  const id = shownAgent();
  if (id === null) return;
  let agent, health;
  try {
    const path = encodeURIComponent(id);
    agent = await readJson(`agents/${path}`);
    health = await readJson(`health/${path}`);
  } catch (error) {
    if (error.status !== 404) return;
  }
  if (shownAgent() !== id) return;
  if (agent === undefined) {
    $("agent-title").textContent = `No agent is registered as ${id}`;
    for (const part of ["facts", "capabilities", "metadata"]) $(part).replaceChildren();
    shownRecord = null;
    return;
  }
  // From the registry's own measure, whatever this host's clock says.
  shownRecord = { agent, health, heardAt: performance.now() - health.seconds_since_heartbeat * 1000 };
  $("agent-title").textContent = `${agent.agent_name} (${agent.agent_id})`;
  $("capabilities").replaceChildren(
    ...agent.capabilities.map((capability) => {
      const item = element("li");
      item.append(element("strong", capability.name));
      if (capability.title) item.append(` ${capability.title}`);
      if (capability.description) item.append(element("p", capability.description));
      const more = [...capability.tags, capability.cost_estimate ?? ""].filter((text) => text !== "");
      if (more.length > 0) item.append(element("p", more.join(" · "), { className: "tags" }));
      for (const example of capability.examples ?? []) item.append(element("p", `“${example}”`));
      return item;
    }),
  );
  if (agent.capabilities.length === 0) $("capabilities").replaceChildren(element("li", "nothing that it tells"));
  $("metadata").textContent = JSON.stringify(agent.metadata, null, 2);
  renderFacts();
  renderAgentEvents(id);
}

/// What changes with every second.
function tick() {
  renderConnection();
  if (isLive()) renderFacts();
}

function renderFacts() {
  if (shownRecord === null || shownAgent() === null) return;
  const { agent, health, heardAt } = shownRecord;
  const silent = Math.max(0, (performance.now() - heardAt) / 1000);
  const left = health.heartbeat_timeout_seconds - silent;
  const facts = [
    ["Status", statusOf(agent)],
    ["Why", health.reason?.replace("_", " ")],
    ["Maintenance", maintenance(agent)],
    ["Last heartbeat", `${seconds(silent)} ago`],
    ["Deadline", left > 0 ? `in ${seconds(left)}` : `missed ${seconds(-left)} ago`],
    ["Heartbeats", agent.heartbeat_interval_seconds ? `every ${seconds(agent.heartbeat_interval_seconds)}` : null],
    ["Load", load(agent)],
    ["Last probe", probe(agent, health)],
    ["Works at", link(agent.base_url)],
    ["Registered", agent.registered_at],
    ["Instance", agent.instance_id],
  ];
  $("facts").replaceChildren(
    ...facts.filter(([, value]) => value !== null && value !== undefined && value !== "").flatMap(([name, value]) => {
      const fact = element("dd");
      fact.append(value);
      return [element("dt", name), fact];
    }),
  );
}

function renderAgentEvents(id) {
  renderEvents($("agent-events"), events.filter((event) => event.agent.agent_id === id).slice(0, EVENTS_SHOWN), false);
}

// ---- Small parts

function state(agent) {
  if (agent.maintenance !== undefined && agent.status !== "offline") return "maintenance";
  return agent.healthy === false && agent.status !== "offline" ? "unhealthy" : agent.status;
}

function statusOf(agent) {
  const made = element("span", state(agent), { className: `status ${state(agent)}` });
  if (agent.maintenance !== undefined) made.title = maintenance(agent);
  return made;
}

/// Why and until when an agent is out.
function maintenance({ maintenance }) {
  if (maintenance === undefined) return null;
  const end = maintenance.instance_id === undefined ? "it is ended" : "its process has ended";
  return `${maintenance.reason}, since ${maintenance.since}, until ${maintenance.until ?? end}`;
}

/// What the registry heard when it asked the agent itself.
function probe(agent, { probe }) {
  if (agent.probe === "off") return "none: the agent does not want to be probed";
  if (!probe) return null;
  const age = Math.max(0, (now() - Date.parse(probe.checked_at)) / 1000);
  const outcome = `${probe.ok ? "passed" : "failed"} ${seconds(age)} ago, after ${Math.round(probe.latency_seconds * 1000)} ms`;
  return probe.detail ? `${outcome}: ${probe.detail}` : outcome;
}

function agentLink(id) {
  return element("a", id, { href: `#/agents/${encodeURIComponent(id)}` });
}

/// A link where that is what it is, and else only the text.
function link(text) {
  if (!/^https?:\/\//i.test(text)) return text;
  return element("a", text, { href: text, rel: "noreferrer" });
}

function age(agent) {
  return Math.max(0, (now() - Date.parse(agent.last_heartbeat)) / 1000);
}

function seconds(count) {
  if (count < 120) return `${Math.round(count)} s`;
  if (count < 7200) return `${Math.round(count / 60)} min`;
  if (count < 172800) return `${Math.round(count / 3600)} h`;
  return `${Math.round(count / 86400)} days`;
}

function load(agent) {
  const part = typeof agent.load === "number" ? `${Math.round(agent.load * 100)} %` : "";
  const tasks = typeof agent.active_tasks === "number" ? `${agent.active_tasks} tasks` : "";
  return [part, tasks].filter((text) => text !== "").join(", ");
}

// ---- What people do

let searches = 0;
async function search() {
  const number = ++searches;
  const words = $("search").value.trim();
  // The registry's own search; it wants a letter or a digit.
  const q = /[\p{L}\p{N}]/u.test(words) ? words : "";
  const query = filters();
  const ids = async (path) => (await readJson(path)).map((agent) => agent.agent_id);
  let found = null;
  let hasEveryWord = true;
  let failure = null;
  try {
    if (q !== "") {
      query.append("q", q);
      found = await ids(`capabilities/search?limit=1000&${query}`);
      hasEveryWord = found.length > 0;
      if (!hasEveryWord) found = await ids(`capabilities/search?match=best&limit=1000&${query}`);
    } else if (query.size > 0) {
      found = await ids(`agents?${query}`);
    }
  } catch (error) {
    failure = `not searched: ${error.message}`;
  }
  // A later one may have been answered before.
  if (number !== searches) return;
  if (failure === null) Object.assign(view, { q, found, hasEveryWord, page: 0 });
  view.failure = failure;
  renderRows();
}

/// The registry's filters, as far as they are typed.
function filters() {
  const parts = (id) => $(id).value.split(",").map((part) => part.trim()).filter((part) => part !== "");
  const query = new URLSearchParams();
  const name = $("capability").value.trim();
  if (name !== "") query.append("capability", name);
  for (const tag of parts("tags")) query.append("tag", tag);
  for (const pair of parts("metadata-filter")) {
    const equals = pair.indexOf("=");
    if (equals > 0) query.append(`metadata.${pair.slice(0, equals)}`, pair.slice(equals + 1));
  }
  return query;
}

function listen() {
  let typed;
  for (const id of ["search", "capability", "tags", "metadata-filter"]) {
    $(id).addEventListener("input", () => {
      clearTimeout(typed);
      typed = setTimeout(search, 150);
    });
  }
  $("filters").addEventListener("submit", (event) => event.preventDefault());
  $("status").addEventListener("change", () => {
    Object.assign(view, { status: $("status").value, page: 0 });
    renderRows();
  });
  for (const button of document.querySelectorAll("[data-sort]")) {
    button.addEventListener("click", () => {
      const { sort } = button.dataset;
      Object.assign(view, { descending: view.sort === sort && !view.descending, sort, page: 0, q: "" });
      $("search").value = "";
      search();
    });
  }
  for (const [id, step] of [["previous", -1], ["next", 1]]) {
    $(id).addEventListener("click", () => {
      view.page += step;
      renderRows();
    });
  }
  for (const button of document.querySelectorAll("[data-copy]")) {
    button.addEventListener("click", async () => {
      await navigator.clipboard.writeText($(button.dataset.copy).textContent);
      button.textContent = "Copied";
      setTimeout(() => (button.textContent = "Copy"), 2000);
    });
  }
  addEventListener("hashchange", () => {
    render();
    renderAgent();
    if (shownAgent() !== null) $("agent-title").focus();
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

samples();
listen();
render();
keepUpToDate(changed);
setInterval(tick, 1000);
repeat(renderAgent, () => 2000);
// Heartbeats are no events: what was last heard is read anew now and then, less often where that is much.
setInterval(() => {
  if (!document.hidden && shownAgent() === null) changed();
}, 5000);
repeat(async () => {
  if (!document.hidden && shownAgent() === null) await refresh();
}, () => (agents.size > 1000 ? 60000 : 15000));
