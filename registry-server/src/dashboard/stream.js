// One event stream for all tabs of a browser, which keeps no more than six connections to a host over HTTP/1.1.
//
// The tab that holds a lock reads the stream, and sends what it reads to the others over a channel. When that tab is closed,
// another gets the lock and resumes the stream.

import { clockAhead, isSignInNeeded, pause, read, registryUrl, token } from "./registry.js";

// Id of the last event. Each tab keeps it, since each may have to resume the stream.
let lastId = null;
// What the reading tab said last: whether it is connected and why not, and when it last heard the registry.
let state = { isConnected: false, heardAt: 0 };
let isReader = false;
let channel = null;
let receive;
let recentEvents;

// Number of past events to request, and to pass on to another tab.
const LAST_EVENTS = 50;

/// Follows the stream until the token is refused. `receiver` gets `{ isConnected, heardAt }` with every sign of life and every loss,
/// and with it the `event`, its `id` and its `data` if there is one, or `failure`, the reason of a loss.
///
/// An event that happened while this tab was connected has `at`, the time by the registry's clock. One from before the first connection `isPast`.
/// `recent()` returns what other tabs get as `recent` when they are opened: events, the latest first.
export async function follow(receiver, recent) {
  receive = receiver;
  recentEvents = recent;
  // Browsers have locks only where the connection is secure, or to this host. Elsewhere each tab reads a stream of its own.
  if (navigator.locks === undefined) return readStream();
  const [lockName, channelName] = await names();
  channel = new BroadcastChannel(channelName);
  channel.onmessage = ({ data }) => {
    if (data.isQuestion) {
      if (isReader) tellRecent();
    } else {
      take(data);
    }
  };
  channel.postMessage({ isQuestion: true });
  await navigator.locks.request(lockName, async () => {
    isReader = true;
    // A tab may have asked when no tab was reading.
    if (lastId !== null) tellRecent();
    await readStream();
    isReader = false;
  });
}

/// Names of the lock and of the channel. Only tabs with the same token know them, so that none sees what its own token would not
/// show. Other programs at this origin can read the names of locks, and learn nothing of the channel's from them.
async function names() {
  const digest = await crypto.subtle.digest("SHA-256", new TextEncoder().encode(`${registryUrl}\n${token()}`));
  const hex = Array.from(new Uint8Array(digest), (byte) => byte.toString(16).padStart(2, "0")).join("");
  return [`stream of ${registryUrl} ${hex.slice(0, 32)}`, `events of ${registryUrl} ${hex.slice(32)}`];
}

/// Reads the stream, and resumes it whenever the connection is lost.
async function readStream() {
  for (let failures = 0; ; failures += 1) {
    let failure = "the registry ended the connection";
    try {
      let text = "";
      const isResumed = lastId !== null;
      // What happened before the stream was opened comes first.
      let isEarlier = true;
      for await (const piece of read(`events?last=${LAST_EVENTS}`, isResumed ? { "Last-Event-ID": lastId } : {})) {
        if (!state.isConnected) {
          failures = 0;
          // From here on every change comes, but nothing is known of those before.
          tell({ isConnected: true, event: isResumed ? undefined : "reset" });
        }
        const blocks = (text + piece).split("\n\n");
        text = blocks.pop();
        for (const block of blocks) {
          const message = fields(block);
          // An id alone, or a comment.
          if (message.data === undefined) isEarlier = false;
          const times = isEarlier ? { isPast: !isResumed } : { at: Date.now() + clockAhead };
          tell({ ...message, ...times, isConnected: true });
        }
      }
    } catch (error) {
      failure = error.message;
    }
    if (isSignInNeeded()) return;
    tell({ isConnected: false, failure });
    await pause(failures);
  }
}

/// The fields of one block of the stream. A comment has none.
function fields(block) {
  const found = {};
  for (const line of block.split("\n")) {
    const colon = line.indexOf(": ");
    if (colon > 0) found[line.slice(0, colon)] = line.slice(colon + 2);
  }
  return found;
}

function tellRecent() {
  channel.postMessage({ ...state, recent: recentEvents().slice(0, LAST_EVENTS) });
}

function tell(message) {
  const heardAt = message.isConnected ? Date.now() : state.heardAt;
  take({ ...message, heardAt });
  channel?.postMessage({ ...message, heardAt });
}

function take(message) {
  lastId = message.id ?? lastId;
  const { isConnected, heardAt, failure } = message;
  state = { isConnected, heardAt, failure, id: lastId ?? undefined };
  receive(message);
}
