// What people search for, and what the registry finds: every word first, and the best matches if no agent has every word.

import { findableChanges, isLive } from "./copy.js";
import { $ } from "./parts.js";
import { readJson } from "./registry.js";

// Maximum number of matches in a response.
const LIMIT = 1000;
const BOXES = ["search", "capability", "tags", "metadata-filter"];

/// The search that is shown. `found` has the registry's results by agent id, in its order: matches if `q` has words, and otherwise
/// agents that pass the filters. It is null without words and filters. `failure` says why the input was not searched for.
export const result = { q: "", found: null, hasEveryWord: true, failure: null };

let searches = 0;
let searchedAt = 0;
let searchedChanges = 0;

/// Whether an agent is among what was found.
export function isFound(agent) {
  return result.found === null || result.found.has(agent.agent_id);
}

/// Searches for what is typed. Returns whether that is what is shown now: a later search may have been answered before.
export async function search() {
  const number = ++searches;
  [searchedAt, searchedChanges] = [Date.now(), findableChanges];
  const next = await answer($("search").value.trim()).catch((error) => ({ failure: `not searched: ${error.message}` }));
  if (number !== searches) return false;
  Object.assign(result, { failure: null }, next);
  return true;
}

/// Whether the registry may find something else by now.
export function isOutdated() {
  const isAsked = result.found !== null || result.failure !== null;
  const hasChanged = searchedChanges !== findableChanges || result.failure !== null;
  return isAsked && hasChanged && isLive() && Date.now() - searchedAt > 2000;
}

async function answer(words) {
  const query = filters();
  const by = (list) => new Map(list.map((one) => [one.agent_id, one]));
  if (words === "") {
    const found = query.size > 0 ? by(await readJson(`agents?${query}`)) : null;
    return { q: "", found, hasEveryWord: true };
  }
  if (!/[\p{L}\p{N}]/u.test(words)) throw new Error("type at least one letter or digit");
  query.append("q", words);
  query.append("limit", LIMIT);
  const all = by(await readJson(`capabilities/search?${query}`));
  if (all.size > 0) return { q: words, found: all, hasEveryWord: true };
  return { q: words, found: by(await readJson(`capabilities/search?match=best&${query}`)), hasEveryWord: false };
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
    if (equals < 1) throw new Error("a metadata filter is KEY=VALUE");
    query.append(`metadata.${pair.slice(0, equals)}`, pair.slice(equals + 1));
  }
  return query;
}

/// Describes the search, given the number of agents shown.
export function summary(count) {
  const { q, found, hasEveryWord, failure } = result;
  if (failure !== null) return failure;
  const agents = `${count.toLocaleString("en")} ${count === 1 ? "agent" : "agents"}`;
  if (q === "") return found === null ? agents : `${agents} found`;
  if (found.size === 0) return `No agent is found for “${q}”.`;
  const only = found.size === LIMIT ? `; only the best ${LIMIT.toLocaleString("en")} matches are looked at` : "";
  if (hasEveryWord) return `${agents} with every word of “${q}”, the best match first${only}`;
  return `No agent has every word of “${q}”. The best matches: ${agents}${only}`;
}

/// Calls a function after each change of what is typed.
export function whenTyped(changed) {
  let typed;
  for (const id of BOXES) {
    $(id).addEventListener("input", () => {
      clearTimeout(typed);
      typed = setTimeout(changed, 150);
    });
  }
  $("filters").addEventListener("submit", (event) => event.preventDefault());
}
