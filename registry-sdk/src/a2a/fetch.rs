//! Fetching the card of another agent.

use std::time::Duration;

use reqwest::Response;
use reqwest::header::{ACCEPT, CONTENT_TYPE, LOCATION};
use tokio::time::{Instant, timeout_at};
use url::Url;

use super::error::CardError;
use super::mapping::registration_of;
use super::read::{CARD_PATH, read_card};
use crate::client::RegistryClient;
use crate::contract::{AgentCard, CARD_MEDIA_TYPE, Registration, limits};
use crate::error::with_causes;
use crate::http::{Unread, read_bounded};

/// Path of a card before version 0.3.
const OLD_CARD_PATH: &str = "/.well-known/agent.json";

/// Time limit for fetching a card, for all requests together.
const TIME_LIMIT: Duration = Duration::from_secs(10);

/// A card and its URL.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct FetchedCard {
    /// The card, byte for byte.
    pub card: AgentCard,
    /// Its URL, after redirects.
    pub url: Url,
}

impl FetchedCard {
    /// Returns the registration that the card describes, as [`registration_of`] does. If the card's URL is below the agent's `base_url`, its path
    /// becomes the `health_path`, so that a registry that probes its agents considers the agent healthy as long as it serves the card.
    ///
    /// The agent sends no heartbeats, so unless it is registered again, it goes offline after the registry's own timeout (60 s by
    /// default), or after twice the [`heartbeat_interval`](Registration::heartbeat_interval) if that is longer. A card declares no
    /// interval, so set one, up to a day.
    ///
    /// # Errors
    /// As [`registration_of`].
    pub fn registration(&self) -> Result<Registration, CardError> {
        let registration = registration_of(&self.card)?;
        Ok(match health_path(&registration.base_url, &self.url) {
            Some(path) => registration.health_path(path),
            None => registration,
        })
    }
}

/// Returns the path of a card below the base URL of its agent.
fn health_path(base_url: &str, card: &Url) -> Option<String> {
    let base = Url::parse(base_url).ok().filter(|base| base.origin() == card.origin())?;
    let path = card.path().strip_prefix(base.path().trim_end_matches('/'))?;
    let is_possible = path.starts_with('/') && !path.starts_with("//") && path.len() <= limits::HEALTH_PATH;
    (is_possible && card.query().is_none()).then(|| path.to_owned())
}

/// Fetches the card of an agent.
///
/// A URL without a path is that of the agent: the card is fetched from [`CARD_PATH`], or from the path
/// that was used before version 0.3. A URL with a path is that of the card.
///
/// The time limit is 10 s. A card that is longer than 64 KiB is an error. Redirects are only followed within the same scheme, host and
/// port. The proxy and the certificates of the client are used, but neither its token nor a custom HTTP client.
///
/// # Cancel safety
/// Dropping the future cancels the request.
///
/// # Errors
/// [`CardError::NotFetched`], also if the response is not a JSON object.
pub async fn fetch_card(client: &RegistryClient, url: &str) -> Result<FetchedCard, CardError> {
    let mut url = card_url(url)?;
    let is_of_agent = url.path() == "/" && url.query().is_none();
    if is_of_agent {
        url.set_path(CARD_PATH);
    }
    let deadline = Instant::now() + TIME_LIMIT;
    let response = get(client, &url, deadline).await?;
    if is_of_agent && response.status().as_u16() == 404 {
        let mut old = url.clone();
        old.set_path(OLD_CARD_PATH);
        let older = get(client, &old, deadline).await?;
        if older.status().is_success() {
            return read(older, deadline).await;
        }
    }
    read(response, deadline).await
}

fn card_url(text: &str) -> Result<Url, CardError> {
    let error = |detail: &str| not_fetched(text, detail.to_owned());
    let url = Url::parse(text.trim()).ok().filter(|url| matches!(url.scheme(), "http" | "https"));
    let mut url =
        url.ok_or_else(|| error("an http or https URL is needed, such as https://agent.example"))?;
    if !url.username().is_empty() || url.password().is_some() {
        // The message omits the URL because it contains a password.
        let host = url.host_str().unwrap_or_default();
        let detail = "the URL must not have a user name or a password; fetch the card by other means, and read it from a file";
        return Err(not_fetched(host, detail.to_owned()));
    }
    if url.scheme() == "https" && !cfg!(feature = "tls") {
        return Err(error("https needs the feature `tls` of registry-sdk"));
    }
    url.set_fragment(None);
    Ok(url)
}

async fn get(client: &RegistryClient, url: &Url, deadline: Instant) -> Result<Response, CardError> {
    let failed = |detail| not_fetched(url.as_str(), detail);
    let http = client.http().for_documents().for_url(url).map_err(|error| failed(with_causes(&error)))?;
    let request = http
        .get(url.clone())
        .header(ACCEPT, format!("{CARD_MEDIA_TYPE}, application/json;q=0.9"))
        // Without this header, agents assume a client of version 0.3.
        .header("A2A-Version", "1.0");
    match timeout_at(deadline, request.send()).await {
        Ok(response) => response.map_err(|error| failed(with_causes(&error.without_url()))),
        Err(_) => Err(failed(format!("no response within {TIME_LIMIT:?}"))),
    }
}

async fn read(response: Response, deadline: Instant) -> Result<FetchedCard, CardError> {
    let url = response.url().clone();
    let failed = |detail| Err(not_fetched(url.as_str(), detail));
    if !response.status().is_success() {
        return failed(refusal(&response));
    }
    let is_html =
        response.headers().get(CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"text/html"));
    let body = match read_bounded(response, limits::CARD_BYTES, deadline, None).await {
        Ok(body) => body,
        Err(Unread::TooLong(_)) if is_html => return failed("the response is an HTML page".to_owned()),
        Err(Unread::TooLong(_)) => {
            return failed(format!("a card has up to {} bytes, the response is longer", limits::CARD_BYTES));
        }
        Err(Unread::Late(_) | Unread::Stalled(_)) => {
            return failed(format!("the response did not end within {TIME_LIMIT:?}"));
        }
        Err(Unread::Broken(_, error)) => {
            return failed(format!("the response broke off ({})", with_causes(&error)));
        }
    };
    match read_card(&body) {
        Ok(card) => Ok(FetchedCard { card, url }),
        Err(_) if is_html => failed("the response is an HTML page".to_owned()),
        Err(CardError::Invalid(why)) => failed(why),
        Err(error) => Err(error),
    }
}

/// Describes a response without a card.
fn refusal(response: &Response) -> String {
    let status = response.status();
    let location = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
    let Some(target) =
        location.filter(|_| status.is_redirection()).and_then(|to| response.url().join(to).ok())
    else {
        return format!("the response is {status}");
    };
    if target.origin() == response.url().origin() {
        return format!("the response is {status}, one redirect too many");
    }
    format!(
        "the response is {status}, a redirect to {}, which is another origin: use its URL if you trust it",
        target.origin().ascii_serialization()
    )
}

fn not_fetched(url: &str, detail: String) -> CardError {
    CardError::NotFetched { url: url.to_owned(), detail }
}
