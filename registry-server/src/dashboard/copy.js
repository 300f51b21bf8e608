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

/// Keeps the copy up to date. Calls `whenChanged` after each change.
export function keepUpToDate(whenChanged) {
  changed = whenChanged;
  follow(receive);
}

/// Whether all that happens is shown.
export function isLive() {
  return phase === "complete" && stream.isConnected && Date.now() - stream.heardAt < MAX_SILENCE;
}

/// What there is to say of the connection.
export function connection() {
  if (isSignInNeeded()) return "a token is asked for";
  if (isLive()) return "live";
  if (isLoaded) return `connection lost, showing the state of ${new Date(knownAt).toLocaleTimeString("en-GB")}`;
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
  agents.clear();
  for (const agent of known) agents.set(agent.agent_id, agent);
  for (const event of sinceAsked) takeOver(event);
  sinceAsked = null;
  knownAt = Math.max(knownAt, asked);
  isLoaded = true;
  changed();
}

function receive(message) {
  stream = message;
  if (message.event === "reset" || (message.isConnected && phase === "incomplete")) catchUp();
  if (KINDS.includes(message.event)) apply(message.event, JSON.parse(message.data));
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
  if (known && known.revision >= agent.revision) return false;
  if (kind === "deregistered") agents.delete(agent.agent_id);
  else agents.set(agent.agent_id, agent);
  return true;
}

function apply(kind, agent) {
  const event = { kind, agent, at: new Date() };
  sinceAsked?.push(event);
  if (!takeOver(event)) return;
  events.unshift(event);
  events.length = Math.min(events.length, EVENTS_KEPT);
}
