// Small parts of the page. Everything that comes from an agent is set as text, never as markup.

export const $ = (id) => document.getElementById(id);

export function element(name, text, properties = {}) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  Object.assign(made, properties);
  return made;
}

/// What an agent or an operator wrote, in whatever direction it runs.
export function said(text, name = "bdi") {
  return element(name, text, { dir: "auto" });
}

/// The same as a paragraph, which begins at the left in any case.
export function saidInParagraph(text) {
  const made = element("p");
  made.append(said(text));
  return made;
}

// ---- Only what changes is made anew: focus and selections stay, and screen readers do not repeat the rest.

export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

const shownIn = new WeakMap();

/// Fills an element with what `build` returns, if that depends on something else than before.
export function fill(node, cause, build) {
  const text = JSON.stringify(cause);
  if (shownIn.get(node) === text) return;
  shownIn.set(node, text);
  node.replaceChildren(...[build()].flat());
}

/// Gives an element these children, in this order.
export function arrange(parent, children) {
  const wanted = new Set(children);
  for (const child of [...parent.children]) if (!wanted.has(child)) child.remove();
  const { activeElement } = document;
  children.forEach((child, index) => {
    if (parent.children[index] !== child) parent.insertBefore(child, parent.children[index] ?? null);
  });
  // An element that is moved loses the focus.
  if (activeElement !== document.activeElement && parent.contains(activeElement)) activeElement.focus({ preventScroll: true });
}

// ---- Agents

export function state(agent) {
  if (agent.maintenance !== undefined && agent.status !== "offline") return "maintenance";
  return agent.healthy === false && agent.status !== "offline" ? "unhealthy" : agent.status;
}

export function statusOf(agent) {
  return element("span", state(agent), { className: `status ${state(agent)}` });
}

export function load(agent) {
  const part = typeof agent.load === "number" ? `${Math.round(agent.load * 100)} %` : "";
  const count = agent.active_tasks;
  const tasks = typeof count === "number" ? `${count.toLocaleString("en")} ${count === 1 ? "task" : "tasks"}` : "";
  return [part, tasks].filter((text) => text !== "").join(", ");
}

export function agentLink(id) {
  return element("a", id, { href: `#/agents/${encodeURIComponent(id)}` });
}

/// A link if that is what it is, and otherwise only the text.
export function link(text) {
  if (!/^https?:\/\//i.test(text)) return text;
  return element("a", text, { href: text, rel: "noreferrer" });
}

// ---- Times

export function seconds(count) {
  if (count < 120) return `${Math.round(count)} s`;
  if (count < 7200) return `${Math.round(count / 60)} min`;
  if (count < 172800) return `${Math.round(count / 3600)} h`;
  return `${Math.round(count / 86400)} days`;
}

/// A time of day, with the date if that is not today.
export function timeOfDay(time, style = "medium") {
  const date = new Date(time);
  const isToday = date.toDateString() === new Date().toDateString();
  return isToday
    ? date.toLocaleTimeString("en-GB", { timeStyle: style })
    : date.toLocaleString("en-GB", { dateStyle: "medium", timeStyle: style });
}

/// A date and a time, with the time zone: `2026-11-24 09:30:00 UTC`.
export function dateAndTime(time) {
  const parts = { year: "numeric", month: "2-digit", day: "2-digit", hour: "2-digit", minute: "2-digit", second: "2-digit" };
  return new Date(time).toLocaleString("sv-SE", { ...parts, timeZoneName: "short" });
}
