// The page's copy of the registry, and how old it is.

import { MAX_SILENCE, clockAhead, isSignInNeeded, pause, readJson } from "./registry.js";
import { follow } from "./stream.js";

const EVENTS_KEPT = 200;
// Other events say something of the stream, or are of a later version.
const KINDS = ["registered", "status_changed", "deregistered"];

export const agents = new Map();
// The latest first.
export const events = [];
export let isLoaded = false;
// How long it took to read the last list.
export let listSeconds = 0;

// When the copy was last known to be up to date. 0 before it was ever read.
let knownAt = 0;
let stream = { isConnected: false, heardAt: 0 };
// "incomplete" until a list is read while the stream is connected, then "reading", and "complete" after that: only events are missing.
let phase = "incomplete";
let catchUps = 0;
// The last list that was asked for, and what happened since, until it is there.
let lists = 0;
let sinceAsked = null;
let changed;
// How often a change may have altered what searches find.
export let findableChanges = 0;

/// Keeps the copy up to date. Calls `whenChanged` after each change.
export function keepUpToDate(whenChanged) {
  changed = whenChanged;
  follow(receive, () => events);
}

/// Whether all that happens is shown.
export function isLive() {
  return phase === "complete" && stream.isConnected && Date.now() - stream.heardAt < MAX_SILENCE;
}

/// What there is to say of the connection.
export function connection() {
  const shown = isLoaded ? `, showing the state of ${new Date(knownAt).toLocaleTimeString("en-GB")}` : "";
  if (isSignInNeeded()) return `a token is needed${shown}`;
  if (isLive()) return "live";
  if (isLoaded) return `connection lost${shown}`;
  return stream.failure === undefined ? "connecting …" : `${stream.failure}, trying again …`;
}

/// The time that is shown, by the registry's clock. It stands still while the connection is lost.
export function now() {
  return (isLive() ? Date.now() : knownAt) + clockAhead;
}

/// Reads what is told by no event, such as heartbeats.
export async function refresh() {
  if (phase === "complete") await list();
}

/// Reads all agents anew. A list that was asked for later wins.
async function list() {
  const number = ++lists;
  const asked = Date.now();
  sinceAsked = [];
  const known = await readJson("agents").catch((error) => {
    if (number === lists) sinceAsked = null;
    throw error;
  });
  if (number !== lists) return;
  listSeconds = (Date.now() - asked) / 1000;
  agents.clear();
  for (const agent of known) agents.set(agent.agent_id, agent);
  for (const event of sinceAsked) takeOver(event);
  sinceAsked = null;
  knownAt = Math.max(knownAt, asked);
  isLoaded = true;
  if (phase !== "complete") findableChanges += 1;
  changed();
}

function receive(message) {
  stream = message;
  if (message.event === "reset" || (message.isConnected && phase === "incomplete")) catchUp();
  if (KINDS.includes(message.event)) apply(message);
  if (message.recent !== undefined) addEarlier(message.recent);
  if (phase === "complete") knownAt = Math.max(knownAt, message.heardAt);
  changed();
}

/// Reads the list until that succeeds, or begins anew.
async function catchUp() {
  const number = ++catchUps;
  phase = "reading";
  for (let failures = 0; number === catchUps && !isSignInNeeded(); failures += 1) {
    try {
      await list();
      if (number === catchUps) phase = "complete";
      return changed();
    } catch {
      await pause(failures);
    }
  }
}

function takeOver({ kind, agent }) {
  const known = agents.get(agent.agent_id);
  if (known && known.revision >= agent.revision) return;
  if (kind === "deregistered") agents.delete(agent.agent_id);
  else agents.set(agent.agent_id, agent);
  // Searches leave out agents in maintenance.
  if (kind === "registered" || known?.maintenance?.reason !== agent.maintenance?.reason) findableChanges += 1;
}

function apply({ id, event: kind, data, at, isPast }) {
  const agent = JSON.parse(data);
  const event = { id, kind, agent, at: at ?? timeOf(kind, agent) };
  // The list has all that happened before the stream.
  if (!isPast) {
    sinceAsked?.push(event);
    takeOver(event);
  }
  if (events.some((known) => known.id === id)) return;
  events.unshift(event);
  events.length = Math.min(events.length, EVENTS_KEPT);
}

/// Adds events that another tab knows, which are older than all that this one has read itself.
function addEarlier(earlier) {
  const known = new Set(events.map((event) => event.id));
  events.push(...earlier.filter((event) => !known.has(event.id)));
  events.length = Math.min(events.length, EVENTS_KEPT);
}

/// When an event happened that was read later. Only a registration says: it counts as a heartbeat.
function timeOf(kind, agent) {
  const time = kind === "registered" ? Date.parse(agent.last_heartbeat) : NaN;
  return Number.isNaN(time) ? null : time;
}
