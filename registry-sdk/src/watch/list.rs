//! Lists: reading all pages while the stream goes on, and what is true of both together.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::time::{Instant, sleep_until};

use crate::client::{Aged, RegistryClient};
use crate::contract::AgentRecord;
use crate::contract::event::EventKind;
use crate::error::Error;
use crate::query::{ListQuery, Page};

/// Number of agents of a page. The largest take 128 MiB.
const PAGE: usize = 500;

/// Once a change is this old, every server shows it, and every stream has told it. The contract gives them a second; a server that is just losing its
/// database takes a few to notice.
const LONGEST_LAG: Duration = Duration::from_secs(5);

/// A change that a stream told.
#[derive(Clone, Debug)]
pub(super) struct Change {
    pub(super) kind: EventKind,
    pub(super) agent: Arc<AgentRecord>,
}

/// Reads the list, again and again until it is certain to have everything that happened before the stream began.
///
/// The server that is asked for the list may lag behind the one that sends the stream, and then neither of them has what lies
/// between. So a list counts as the truth only if it was begun [`LONGEST_LAG`] after the stream. A list that is read at once, so
/// that nobody waits, is therefore read a second time. Its revisions cannot tell that it lacks nothing: a removal leaves none, each
/// page may come from another server, and a server that still shows another history has revisions as great.
pub(super) struct List {
    /// When the stream had begun, or skipped an event: the list has to have everything until then.
    required_at: Instant,
    /// The last change of each agent that the stream told since the list was begun, and when it did.
    changes: HashMap<String, (Instant, Change)>,
    /// The greatest revision of the changes.
    heard: Option<u64>,
    /// When the last one came, or a stream that may have more.
    heard_at: Instant,
    pass: Pass,
    request: Option<BoxFuture<'static, Result<Aged<Page>, Error>>>,
    /// Whether a page could not be read, or was an old one.
    pub(super) is_failing: bool,
}

/// One reading of all pages.
struct Pass {
    due: Instant,
    agents: Vec<Arc<AgentRecord>>,
    /// Where the next page begins. `None` for the first.
    cursor: Option<String>,
    /// The oldest page's.
    age: Duration,
    /// The greatest that an agent has.
    revision: Option<u64>,
    /// When the last page was there.
    read_at: Option<Instant>,
}

/// What comes next of a list.
pub(super) enum Progress {
    Page(Result<Aged<Page>, Error>),
    /// All pages are there, and the stream has told what they have.
    CaughtUp,
}

impl Pass {
    fn due_at(due: Instant) -> Self {
        Self { due, agents: Vec::new(), cursor: None, age: Duration::ZERO, revision: None, read_at: None }
    }
}

impl List {
    /// A list that has to have everything until now.
    pub(super) fn begin() -> Self {
        let now = Instant::now();
        Self {
            required_at: now,
            changes: HashMap::new(),
            heard: None,
            heard_at: now,
            pass: Pass::due_at(now),
            request: None,
            is_failing: false,
        }
    }

    /// Adds a change that the stream told.
    pub(super) fn add(&mut self, change: Change) {
        let now = Instant::now();
        (self.heard, self.heard_at) = (self.heard.max(change.agent.revision), now);
        match self.changes.get_mut(&change.agent.agent_id) {
            Some(last) => *last = (now, change),
            None => drop(self.changes.insert(change.agent.agent_id.clone(), (now, change))),
        }
    }

    /// Notes that another stream was opened.
    pub(super) fn stream_opened(&mut self) {
        self.heard_at = Instant::now();
    }

    /// Notes that the stream had a change that could not be read.
    pub(super) fn skipped_event(&mut self) {
        self.required_at = Instant::now();
    }

    /// Waits for the next page, and before the first one until it is due; after the last one until the stream has caught up with the
    /// list. Cancel safe.
    pub(super) async fn next(&mut self, client: &RegistryClient) -> Progress {
        if let Some(read_at) = self.pass.read_at {
            if !self.is_caught_up() {
                sleep_until(self.heard_at.max(read_at) + LONGEST_LAG).await;
            }
            return Progress::CaughtUp;
        }
        let request = self.request.get_or_insert_with(|| {
            let query = ListQuery { cursor: self.pass.cursor.clone(), ..ListQuery::all().limit(PAGE) };
            let (client, due) = (client.clone(), self.pass.due);
            async move {
                sleep_until(due).await;
                client.list_with_age(query).await
            }
            .boxed()
        });
        let page = request.await;
        self.request = None;
        Progress::Page(page)
    }

    /// Whether the stream has told a change that is as late as any of the list.
    fn is_caught_up(&self) -> bool {
        self.heard >= self.pass.revision
    }

    /// Whether a page is on its way.
    pub(super) fn is_reading(&self) -> bool {
        self.request.is_some() && self.pass.due <= Instant::now()
    }

    /// Gives up what is on its way. It is requested again.
    pub(super) fn pause(&mut self) {
        self.request = None;
    }

    /// Takes over a page. Returns whether it was the last one.
    pub(super) fn take(&mut self, page: Result<Aged<Page>, Error>) -> Result<bool, Error> {
        let Aged { value: page, age } = page.inspect_err(|error| {
            self.is_failing = true;
            // The cursor may be what is refused.
            if !error.is_retryable() {
                self.restart();
            }
        })?;
        let pass = &mut self.pass;
        pass.age = pass.age.max(age);
        let is_last = page.next_cursor.is_none();
        if !is_last && (page.agents.is_empty() || page.next_cursor == pass.cursor) {
            self.is_failing = true;
            self.restart();
            let detail = "the pages of the list lead nowhere".to_owned();
            return Err(Error::InvalidResponse { status: 200, detail });
        }
        pass.cursor = page.next_cursor;
        pass.revision = pass.revision.max(page.agents.iter().filter_map(|agent| agent.revision).max());
        pass.agents.extend(page.agents.into_iter().map(Arc::new));
        pass.read_at = is_last.then(Instant::now);
        Ok(is_last)
    }

    /// Age of what was read: nothing, unless the registry answered from memory.
    pub(super) fn age(&self) -> Duration {
        self.pass.age
    }

    /// Whether what was read has everything that it has to have.
    pub(super) fn is_complete(&self) -> bool {
        self.pass.due >= self.required_at + LONGEST_LAG
    }

    /// Ends the reading, and returns what it found. The next one begins at once.
    pub(super) fn restart(&mut self) -> Vec<Arc<AgentRecord>> {
        self.request = None;
        std::mem::replace(&mut self.pass, Pass::due_at(Instant::now())).agents
    }

    /// Lets the next reading begin when every server has what it has to have. Not all watchers at the same moment: where a
    /// database failed over, they all began at once.
    pub(super) fn postpone(&mut self) {
        let due = self.required_at + LONGEST_LAG.mul_f64(1.0 + fastrand::f64() / 2.0);
        self.pass.due = due.max(Instant::now());
    }

    /// All agents, by what was read and what the stream told since: for each, the greater revision wins. A complete list knows better
    /// than what the stream told before it skipped an event, which may have removed that agent.
    pub(super) fn merge(&self, agents: Vec<Arc<AgentRecord>>, is_complete: bool) -> Vec<Arc<AgentRecord>> {
        let changes = self.changes.iter().filter(|(_, (at, _))| !is_complete || *at >= self.required_at);
        let mut changes: HashMap<&str, &Change> =
            changes.map(|(agent_id, (_, change))| (agent_id.as_str(), change)).collect();
        let mut merged = Vec::with_capacity(agents.len());
        for listed in agents {
            match changes.remove(listed.agent_id.as_str()) {
                Some(change) if change.agent.revision >= listed.revision => merged.extend(change.left()),
                _ => merged.push(listed),
            }
        }
        merged.extend(changes.into_values().filter_map(Change::left));
        merged.sort_unstable_by(|one, other| one.agent_id.cmp(&other.agent_id));
        merged
    }
}

impl Change {
    /// The agent, if it is there after the change.
    fn left(&self) -> Option<Arc<AgentRecord>> {
        (self.kind != EventKind::Deregistered).then(|| self.agent.clone())
    }
}

/// The revisions of all agents that were told. By them a list is compared, and a change is known that a list had before the stream.
pub(super) struct Told(HashMap<String, Option<u64>>);

impl Told {
    pub(super) fn of(agents: &[Arc<AgentRecord>]) -> Self {
        Self(agents.iter().map(|agent| (agent.agent_id.clone(), agent.revision)).collect())
    }

    /// Notes a change. Returns whether it is news: a list may have had it, or a later one of the same agent.
    pub(super) fn note(&mut self, Change { kind, agent }: &Change) -> bool {
        let is_removal = *kind == EventKind::Deregistered;
        let Some(known) = self.0.get_mut(&agent.agent_id) else {
            if !is_removal {
                self.0.insert(agent.agent_id.clone(), agent.revision);
            }
            return true;
        };
        let is_old = known
            .zip(agent.revision)
            .is_some_and(|(known, revision)| known > revision || known == revision && !is_removal);
        if is_old {
            return false;
        }
        if is_removal {
            self.0.remove(&agent.agent_id);
        } else {
            *known = agent.revision;
        }
        true
    }

    /// Whether the same agents were told, with the same revisions. Without revisions nobody knows.
    pub(super) fn has_same_agents(&self, other: &Self) -> bool {
        self.0 == other.0 && self.0.values().all(Option::is_some)
    }
}
