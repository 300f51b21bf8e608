// The list of events.

import { agentLink, arrange, element, said, statusOf, timeOfDay } from "./parts.js";

// The items of each list, by event. An event never changes.
const itemsOf = new WeakMap();

/// Shows events in a list. `withLink` adds links to their agents.
export function renderEvents(list, events, withLink) {
  const known = itemsOf.get(list) ?? new Map();
  const items = new Map(events.map((event) => [event, known.get(event) ?? item(event, withLink)]));
  itemsOf.set(list, items);
  arrange(list, [...items.values()]);
}

function item({ kind, agent, at }, withLink) {
  const made = element("li");
  made.append(when(at), element("span", kind.replace("_", " ")));
  const isGone = kind === "deregistered";
  if (withLink) made.append(isGone ? element("span", agent.agent_id) : agentLink(agent.agent_id));
  if (!isGone) made.append(statusOf(agent));
  if (agent.changed_by) {
    const by = element("span", "by ", { className: "quiet" });
    by.append(said(agent.changed_by));
    made.append(by);
  }
  return made;
}

/// An event from before the page was connected has no time, unless it says one.
function when(at) {
  if (at === null) return element("span", "earlier", { className: "time" });
  return element("time", timeOfDay(at), { className: "time", dateTime: new Date(at).toISOString() });
}
