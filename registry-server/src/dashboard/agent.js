// The page of one agent.

import { agents, events, isLive, now } from "./copy.js";
import { renderEvents } from "./events.js";
import { $, arrange, dateAndTime, element, fill, link, load, said, saidInParagraph, seconds, setText, statusOf } from "./parts.js";
import { readJson } from "./registry.js";

// The agent's last record, and its health if that is known. null if there is no such agent.
let shown = null;
// The id of that agent.
let shownId = null;

/// The id of the agent that is to be shown; null for the overview.
export function agentInAddress() {
  const match = /^#\/agents\/([^/]+)$/.exec(location.hash);
  try {
    return match === null ? null : decodeURIComponent(match[1]);
  } catch {
    return null;
  }
}

/// Shows what is already known of the agent, before it is fetched.
export function openAgent() {
  const id = agentInAddress();
  if (id === null || id === shownId) return;
  const agent = agents.get(id);
  shownId = id;
  shown = agent === undefined ? null : { agent };
  if (shown === null) setText($("agent-title"), id);
  renderAgent();
}

/// Fetches the agent and shows it. If that fails, the page keeps what it shows.
export async function readAgent() {
  const id = agentInAddress();
  if (id === null) return;
  const path = encodeURIComponent(id);
  let read = null;
  try {
    const agent = await readJson(`agents/${path}`);
    const health = await readJson(`health/${path}`);
    // From the registry's own measure, whatever this host's clock says.
    read = { agent, health, heardAt: performance.now() - health.seconds_since_heartbeat * 1000 };
  } catch (error) {
    if (error.status !== 404) return;
  }
  if (agentInAddress() !== id) return;
  [shownId, shown] = [id, read];
  if (read === null) setText($("agent-title"), `No agent is registered as ${id}`);
  renderAgent();
}

function renderAgent() {
  for (const part of $("agent").querySelectorAll(".known")) part.hidden = shown === null;
  if (shown !== null) {
    const { agent } = shown;
    fill($("agent-title"), [agent.agent_name, agent.agent_id], () => [said(agent.agent_name), ` (${agent.agent_id})`]);
    fill($("capabilities"), agent.capabilities, () =>
      agent.capabilities.length === 0 ? element("li", "Nothing: it registered no capability.") : agent.capabilities.map(capability),
    );
    setText($("metadata"), json(agent.metadata));
    renderFacts();
  }
  renderAgentEvents();
}

export function renderAgentEvents() {
  const ofAgent = events.filter((event) => event.agent.agent_id === agentInAddress());
  renderEvents($("agent-events"), ofAgent, false);
  $("no-agent-events").hidden = ofAgent.length > 0;
}

/// A value as JSON. Characters that would turn what follows around are escaped.
function json(value) {
  const escaped = (character) => `\\u${character.charCodeAt(0).toString(16).padStart(4, "0")}`;
  return JSON.stringify(value, null, 2).replace(/[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]/g, escaped);
}

function capability({ name, title, description, tags, cost_estimate: cost, examples }) {
  const item = element("li");
  item.append(said(name, "strong"));
  if (title) item.append(" ", said(title));
  if (description) item.append(saidInParagraph(description));
  const more = [...(tags ?? []), cost ?? ""].filter((text) => text !== "");
  if (more.length > 0) {
    const line = element("p", undefined, { className: "quiet" });
    line.append(...more.flatMap((text, index) => (index === 0 ? [said(text)] : [" · ", said(text)])));
    item.append(line);
  }
  for (const example of examples ?? []) item.append(saidInParagraph(`“${example}”`));
  return item;
}

// ---- Facts, some of which change with every second

const factRows = new Map();

/// Shows how time goes by, as long as the registry is heard.
export function tickAgent() {
  if (isLive() && shown !== null && agentInAddress() !== null) renderFacts();
}

function renderFacts() {
  const { agent, health, heardAt } = shown;
  const facts = [["Status", [statusOf(agent)], [agent.status, agent.healthy, agent.maintenance]]];
  const add = (name, value, ...more) => {
    if (value) facts.push([name, [value, ...more], [typeof value === "string" ? value : value.textContent, ...more]]);
  };
  if (health?.reason !== "maintenance") add("Why", health?.reason?.replace("_", " "));
  if (agent.maintenance) add("Maintenance", said(agent.maintenance.reason), `, ${maintenanceTimes(agent.maintenance)}`);
  if (health) {
    const silent = Math.max(0, (performance.now() - heardAt) / 1000);
    const left = health.heartbeat_timeout_seconds - silent;
    add("Last heartbeat", `${seconds(silent)} ago`);
    add("Deadline", left > 0 ? `in ${seconds(left)}` : `missed ${seconds(-left)} ago`);
  }
  add("Heartbeats", agent.heartbeat_interval_seconds ? `every ${seconds(agent.heartbeat_interval_seconds)}` : "");
  add("Load", load(agent));
  add("Last probe", ...probe(agent, health));
  if (agent.changed_by) add("Last change by", said(agent.changed_by));
  add("Works at", link(agent.base_url));
  add("Registered", agent.registered_at ? dateAndTime(agent.registered_at) : "");
  add("Instance", agent.instance_id);
  arrange($("facts"), facts.flatMap(([name, value, cause]) => {
    if (!factRows.has(name)) factRows.set(name, [element("dt", name), element("dd")]);
    fill(factRows.get(name)[1], cause, () => value);
    return factRows.get(name);
  }));
}

/// Since and until when an agent is out.
function maintenanceTimes({ since, until, instance_id: instance }) {
  const end = instance === undefined ? "it is ended" : "its process has ended";
  return `since ${dateAndTime(since)}, until ${until ? dateAndTime(until) : end}`;
}

/// What the registry heard when it asked the agent itself.
function probe(agent, health) {
  if (agent.probe === "off") return ["none: the agent does not want to be probed"];
  const probe = health?.probe;
  if (!probe) return [""];
  const age = Math.max(0, (now() - Date.parse(probe.checked_at)) / 1000);
  const outcome = `${probe.ok ? "passed" : "failed"} ${seconds(age)} ago, after ${Math.round(probe.latency_seconds * 1000)} ms`;
  return probe.detail ? [`${outcome}: ${probe.detail}`] : [outcome];
}
