//! Watching the registry's statistics, with alerts.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::{broadcast, watch};
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::client::RegistryClient;
use crate::contract::RegistryStats;
use crate::error::Error;
use crate::query::SearchQuery;

/// How many alerts a slow subscriber may fall behind before it loses the oldest.
const BACKLOG: usize = 256;

/// What is watched for.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Rule {
    /// More agents are offline than this share of those that are active.
    OfflineAbove(f64),
    /// The registry does not answer.
    Unreachable,
    /// An agent is not registered, or not healthy.
    AgentMissing(String),
    /// Fewer healthy agents than that can do something.
    TooFew {
        /// What they have to be able to do, in words that are searched for.
        capability: String,
        /// How many there have to be.
        at_least: usize,
    },
}

/// What a rule found, when that changed.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Alert {
    /// The rule.
    pub rule: Rule,
    /// When it began.
    pub began: SystemTime,
    /// When it was over; `None` where it has just begun.
    pub cleared: Option<SystemTime>,
    /// What was found, in words.
    pub detail: String,
    /// The registry's figures at that moment; `None` where it did not answer.
    pub figures: Option<RegistryStats>,
}

/// Asks a registry for its statistics every so often, and tells when a rule is broken and when it holds again.
///
/// It begins at once and wakes once an interval. It ends by [`StatsMonitor::stop`], or when it is dropped.
///
/// ```no_run
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), registry_sdk::Error> {
/// use std::time::Duration;
/// use registry_sdk::{RegistryClient, Rule, StatsMonitor};
///
/// let client = RegistryClient::new("http://127.0.0.1:8009")?;
/// let monitor = StatsMonitor::builder(client)
///     .every(Duration::from_secs(10))
///     .rule(Rule::TooFew { capability: "code_review".to_owned(), at_least: 2 })
///     .start();
/// let mut alerts = monitor.alerts();
/// while let Ok(alert) = alerts.recv().await {
///     println!("{}: {}", if alert.cleared.is_some() { "over" } else { "alert" }, alert.detail);
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct StatsMonitor {
    /// Tells the loop to end.
    stop: DropGuard,
    /// Tells when it has.
    task: JoinHandle<()>,
    alerts: broadcast::Sender<Alert>,
    figures: watch::Receiver<Option<RegistryStats>>,
}

type Callback = Arc<dyn Fn(&Alert) + Send + Sync>;

/// Sets up a [`StatsMonitor`].
pub struct StatsMonitorBuilder {
    client: RegistryClient,
    every: Duration,
    rules: Vec<Rule>,
    raise_after: u32,
    clear_after: u32,
    callback: Option<Callback>,
}

impl std::fmt::Debug for StatsMonitorBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StatsMonitorBuilder")
            .field("every", &self.every)
            .field("rules", &self.rules)
            .finish_non_exhaustive()
    }
}

impl StatsMonitorBuilder {
    /// How often to ask. Default: 30 s.
    #[must_use]
    pub fn every(mut self, interval: Duration) -> Self {
        self.every = interval.max(Duration::from_millis(1));
        self
    }

    /// Adds a rule to the default one, that offline agents are up to 30 % of the active ones.
    #[must_use]
    pub fn rule(mut self, rule: Rule) -> Self {
        self.rules.push(rule);
        self
    }

    /// Replaces all rules.
    #[must_use]
    pub fn rules(mut self, rules: impl IntoIterator<Item = Rule>) -> Self {
        self.rules = rules.into_iter().collect();
        self
    }

    /// How often in a row a rule has to be broken before there is an alert, and how often it has to hold
    /// before that is over, so that alerts do not flap. Default: 2 and 2.
    #[must_use]
    pub fn hysteresis(mut self, raise_after: u32, clear_after: u32) -> Self {
        (self.raise_after, self.clear_after) = (raise_after.max(1), clear_after.max(1));
        self
    }

    /// Calls a function for every alert, in the monitor's task: it must not block.
    #[must_use]
    pub fn on_alert(mut self, callback: impl Fn(&Alert) + Send + Sync + 'static) -> Self {
        self.callback = Some(Arc::new(callback));
        self
    }

    /// Starts it.
    ///
    /// # Panics
    /// Outside of a Tokio runtime.
    #[must_use]
    pub fn start(self) -> StatsMonitor {
        let stop = CancellationToken::new();
        let alerts = broadcast::Sender::new(BACKLOG);
        let (figures, latest) = watch::channel(None);
        let watching = Watching {
            client: self.client,
            rules: self.rules.into_iter().map(|rule| (rule, Standing::default())).collect(),
            raise_after: self.raise_after,
            clear_after: self.clear_after,
            callback: self.callback,
            alerts: alerts.clone(),
            figures,
        };
        let task = tokio::spawn(watching.run(self.every, stop.clone()));
        StatsMonitor { stop: stop.drop_guard(), task, alerts, figures: latest }
    }
}

impl StatsMonitor {
    /// A monitor of a registry, with the default rule.
    #[must_use]
    pub fn builder(client: RegistryClient) -> StatsMonitorBuilder {
        StatsMonitorBuilder {
            client,
            every: Duration::from_secs(30),
            rules: vec![Rule::OfflineAbove(0.3)],
            raise_after: 2,
            clear_after: 2,
            callback: None,
        }
    }

    /// The alerts from now on. Ends with the monitor.
    #[must_use]
    pub fn alerts(&self) -> broadcast::Receiver<Alert> {
        self.alerts.subscribe()
    }

    /// The latest figures; `None` until there are some, and while the registry does not answer.
    #[must_use]
    pub fn figures(&self) -> watch::Receiver<Option<RegistryStats>> {
        self.figures.clone()
    }

    /// Ends it; a round that is under way is dropped.
    pub async fn stop(self) {
        let Self { stop, task, alerts, .. } = self;
        drop((stop, alerts));
        // A callback that panicked has ended it as well.
        let _ = task.await;
    }
}

/// How a rule stands.
#[derive(Debug, Default)]
struct Standing {
    /// How often in a row it was found otherwise than it is told.
    otherwise: u32,
    /// Since when it is told to be broken.
    broken_since: Option<SystemTime>,
}

struct Watching {
    client: RegistryClient,
    rules: Vec<(Rule, Standing)>,
    raise_after: u32,
    clear_after: u32,
    callback: Option<Callback>,
    alerts: broadcast::Sender<Alert>,
    figures: watch::Sender<Option<RegistryStats>>,
}

/// What one round found of a rule: whether it is broken, in words; or nothing, where that could not be told.
type Finding = Option<Result<String, String>>;

impl Watching {
    async fn run(mut self, every: Duration, stop: CancellationToken) {
        let mut ticks = interval(every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let rounds = async {
            loop {
                ticks.tick().await;
                self.round().await;
            }
        };
        stop.run_until_cancelled(rounds).await;
    }

    async fn round(&mut self) {
        let stats = self.client.get_stats().await;
        let figures = stats.as_ref().ok().copied();
        self.figures.send_replace(figures);
        for place in 0..self.rules.len() {
            if let Some(finding) = self.look(&self.rules[place].0, &stats).await {
                self.judge(place, &finding, figures);
            }
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "a registry has fewer agents than that")]
    async fn look(&self, rule: &Rule, stats: &Result<RegistryStats, Error>) -> Finding {
        let found = match (rule, stats) {
            (Rule::Unreachable, Err(error)) => Err(error.to_string()),
            (Rule::Unreachable, Ok(_)) => Ok("the registry answers".to_owned()),
            (Rule::OfflineAbove(share), Ok(stats)) => {
                let (offline, active) = (stats.offline_agents, stats.active_agents);
                let said = format!("{offline} agents are offline, {active} are active");
                if offline as f64 > share * active as f64 { Err(said) } else { Ok(said) }
            }
            (Rule::OfflineAbove(_), Err(_)) => return None,
            (Rule::AgentMissing(agent_id), _) => match self.client.check_health(agent_id).await {
                Ok(health) if health.is_healthy() => Ok(format!("{agent_id} is healthy")),
                Ok(_) => Err(format!("{agent_id} is not healthy")),
                Err(error) if error.is_not_found() => Err(format!("{agent_id} is not registered")),
                Err(_) => return None,
            },
            (Rule::TooFew { capability, at_least }, _) => {
                let found = self.client.search_capabilities(SearchQuery::new(capability)).await.ok()?;
                let healthy = found.iter().filter(|agent| agent.healthy.unwrap_or(true)).count();
                let said = format!("{healthy} healthy agents can do {capability:?}, of {at_least} wanted");
                if healthy < *at_least { Err(said) } else { Ok(said) }
            }
        };
        Some(found)
    }

    fn judge(&mut self, place: usize, finding: &Result<String, String>, figures: Option<RegistryStats>) {
        let (raise_after, clear_after) = (self.raise_after, self.clear_after);
        let Some((rule, standing)) = self.rules.get_mut(place) else { return };
        let told_broken = standing.broken_since.is_some();
        if finding.is_err() == told_broken {
            standing.otherwise = 0;
            return;
        }
        standing.otherwise += 1;
        if standing.otherwise < if told_broken { clear_after } else { raise_after } {
            return;
        }
        standing.otherwise = 0;
        let now = SystemTime::now();
        let began = standing.broken_since.unwrap_or(now);
        standing.broken_since = if told_broken { None } else { Some(now) };
        let (Ok(detail) | Err(detail)) = finding;
        let alert = Alert {
            rule: rule.clone(),
            began,
            cleared: told_broken.then_some(now),
            detail: detail.clone(),
            figures,
        };
        if told_broken {
            tracing::info!(rule = ?alert.rule, detail, "alert is over");
        } else {
            tracing::warn!(rule = ?alert.rule, detail, "alert");
        }
        if let Some(callback) = &self.callback {
            callback(&alert);
        }
        // Nobody has to listen.
        let _ = self.alerts.send(alert);
    }
}
