// All agents: counts, the table with its pages, and what happened last.

import { agents, events, now } from "./copy.js";
import { renderEvents } from "./events.js";
import { $, agentLink, arrange, element, fill, load, said, seconds, setText, state, statusOf, timeOfDay } from "./parts.js";
import { isFound, isOutdated, result, search, summary, whenTyped } from "./search.js";

const PAGE = 100;
const EVENTS_SHOWN = 50;
const CAPABILITIES_SHOWN = 6;

const view = { sort: "agent_id", descending: false, page: 0, status: "" };

export function renderOverview() {
  renderCounts();
  $("empty").hidden = agents.size > 0;
  $("agents").hidden = agents.size === 0;
  renderAgents();
  renderEvents($("events"), events.slice(0, EVENTS_SHOWN), true);
  $("no-events").hidden = events.length > 0;
  if (isOutdated()) searchAgain();
}

function renderCounts() {
  const counts = { agents: agents.size, active: 0, busy: 0, offline: 0, unhealthy: 0, maintenance: 0, capabilities: 0 };
  for (const agent of agents.values()) {
    counts[agent.status] += 1;
    counts.capabilities += agent.capabilities.length;
    if (state(agent) === "unhealthy") counts.unhealthy += 1;
    if (agent.maintenance !== undefined) counts.maintenance += 1;
  }
  fill($("counts"), counts, () =>
    Object.entries(counts).map(([name, count]) => {
      const pair = element("div");
      pair.append(element("dt", name), element("dd", count.toLocaleString("en")));
      return pair;
    }),
  );
}

/// The agents that the search and the filters leave, in order.
function chosen() {
  const passes = (agent) =>
    ["", agent.status, state(agent)].includes(view.status) ||
    (view.status === "maintenance" && agent.maintenance !== undefined);
  if (result.q !== "") {
    return [...result.found.keys()].map((id) => agents.get(id)).filter((agent) => agent !== undefined && passes(agent));
  }
  const found = [...agents.values()].filter((agent) => isFound(agent) && passes(agent));
  const key = (agent) => agent[view.sort] ?? "";
  const sign = view.descending ? -1 : 1;
  return found.sort((a, b) => {
    const [one, other] = [key(a), key(b)];
    const order = one < other ? -1 : one > other ? 1 : 0;
    return order === 0 ? (a.agent_id < b.agent_id ? -1 : 1) : order * sign;
  });
}

function renderAgents() {
  const found = chosen();
  const pages = Math.max(1, Math.ceil(found.length / PAGE));
  view.page = Math.min(view.page, pages - 1);
  const from = view.page * PAGE;
  renderRows(found.slice(from, from + PAGE));
  setText($("shown"), summary(found.length));
  $("none").hidden = found.length > 0;
  setText($("none"), reasonForNone());
  $("pages").hidden = pages === 1;
  setText($("page"), `page ${view.page + 1} of ${pages}`);
  $("previous").disabled = view.page === 0;
  $("next").disabled = view.page === pages - 1;
  for (const head of document.querySelectorAll("th")) {
    const sorts = head.querySelector("button")?.dataset.sort === view.sort && result.q === "";
    if (sorts) head.setAttribute("aria-sort", view.descending ? "descending" : "ascending");
    else head.removeAttribute("aria-sort");
  }
}

function reasonForNone() {
  if (result.q !== "" && view.status === "maintenance") return "Searches leave out agents in maintenance.";
  if (view.status !== "" && (result.found === null || result.found.size > 0)) return `No such agent is ${view.status} now.`;
  return "No agent passes the search and the filters.";
}

// ---- Rows

let rows = new Map();

function renderRows(shown) {
  const known = rows;
  rows = new Map(shown.map((agent) => [agent.agent_id, known.get(agent.agent_id) ?? newRow(agent.agent_id)]));
  for (const agent of shown) fillRow(rows.get(agent.agent_id).cells, agent);
  arrange($("rows"), [...rows.values()]);
}

function newRow(id) {
  // The roles are said because a phone shows each row as a card, and a browser takes that for no table.
  const made = element("tr", undefined, { role: "row" });
  for (const label of ["Id", "Name", "Status", "Last heard", "Load", "Can do"]) {
    const cell = element("td", undefined, { role: "cell" });
    cell.dataset.label = label;
    made.append(cell);
  }
  made.cells[0].append(agentLink(id));
  return made;
}

function fillRow([, name, status, heard, work, capabilities], agent) {
  fill(name, agent.agent_name, () => said(agent.agent_name));
  fill(status, [state(agent), agent.maintenance], () => [statusOf(agent), ...maintenance(agent)]);
  const age = Math.max(0, (now() - Date.parse(agent.last_heartbeat)) / 1000);
  setText(heard, `${seconds(age)} ago`);
  setText(work, load(agent));
  const match = result.q === "" ? undefined : result.found.get(agent.agent_id);
  fill(capabilities, match ?? agent.capabilities, () => (match ? foundCapability(match) : someCapabilities(agent.capabilities)));
}

function maintenance({ maintenance }) {
  if (maintenance === undefined) return [];
  const reason = element("span", undefined, { className: "detail" });
  reason.append(said(maintenance.reason), maintenance.until ? `, until ${timeOfDay(maintenance.until, "short")}` : "");
  return [reason];
}

function someCapabilities(capabilities) {
  const names = capabilities.slice(0, CAPABILITIES_SHOWN).map((capability) => said(capability.name));
  const parts = names.flatMap((name, index) => (index === 0 ? [name] : [", ", name]));
  const more = capabilities.length - names.length;
  return more > 0 ? [...parts, `, and ${more} more`] : parts;
}

function foundCapability({ capability, title, description, score }) {
  const found = element("div");
  found.append(said(capability, "strong"));
  if (typeof score === "number") found.append(element("span", ` ${score.toFixed(2)}`, { className: "quiet number", title: "score" }));
  for (const text of [title, description]) {
    if (!text) continue;
    const detail = element("span", undefined, { className: "detail" });
    detail.append(said(text));
    found.append(detail);
  }
  return found;
}

// ---- What people do

/// Shows what a search finds now, on the page that is shown.
async function searchAgain() {
  if (await search()) renderAgents();
}

async function searchFromFirstPage() {
  if (!(await search())) return;
  view.page = 0;
  renderAgents();
}

export function listenToOverview() {
  whenTyped(searchFromFirstPage);
  $("status").addEventListener("change", () => {
    Object.assign(view, { status: $("status").value, page: 0 });
    renderAgents();
  });
  for (const button of document.querySelectorAll("[data-sort]")) {
    button.addEventListener("click", () => {
      const { sort } = button.dataset;
      Object.assign(view, { descending: view.sort === sort && !view.descending, sort });
      // Matches have an order of their own.
      $("search").value = "";
      searchFromFirstPage();
    });
  }
  for (const [id, step] of [["previous", -1], ["next", 1]]) {
    $(id).addEventListener("click", () => {
      view.page += step;
      renderAgents();
    });
  }
}
