//! Several clients behind one address: trusted proxies, and limits on wrong tokens.

use std::num::NonZeroU32;

use futures_util::future::join_all;
use reqwest::StatusCode;
use reqwest::header::{AUTHORIZATION, RETRY_AFTER};

use crate::credentials::File;
use crate::support::{Database, Registry, eventually, on_both_databases};

on_both_databases!(
    clients_behind_a_trusted_proxy_have_limits_of_their_own,
    forwarded_addresses_from_untrusted_proxies_are_ignored,
    wrong_tokens_are_limited_by_address,
    requests_without_a_token_count_towards_the_limit_of_their_address,
);

/// Sends concurrent requests, and returns how many got each of two statuses.
async fn statuses(server: &Registry, count: usize, header: (&str, &str), statuses: [u16; 2]) -> [usize; 2] {
    let http = reqwest::Client::new();
    let url = format!("{}/stats", server.url());
    let answers = join_all((0..count).map(|_| http.get(&url).header(header.0, header.1).send())).await;
    let answers: Vec<_> = answers.into_iter().map(|answer| answer.unwrap().status().as_u16()).collect();
    let counts = statuses.map(|status| answers.iter().filter(|answer| **answer == status).count());
    assert_eq!(counts[0] + counts[1], count, "{answers:?}");
    counts
}

async fn clients_behind_a_trusted_proxy_have_limits_of_their_own(database: Database) {
    let server = database
        .start_with(|config| {
            config.rate_limit = NonZeroU32::new(2);
            config.trusted_proxies = vec!["127.0.0.0/8".parse().unwrap()];
        })
        .await;
    // A busy machine may need several attempts to send more than two requests in a second.
    eventually("a client is limited", async || {
        statuses(&server, 20, ("x-forwarded-for", "192.0.2.1"), [200, 429]).await[1] > 0
    })
    .await;
    for header in [("x-forwarded-for", "192.0.2.2"), ("forwarded", "for=192.0.2.3")] {
        assert_eq!(statuses(&server, 1, header, [200, 429]).await, [1, 0], "{header:?}");
    }
    server.shutdown().await;
}

async fn forwarded_addresses_from_untrusted_proxies_are_ignored(database: Database) {
    let server = database.start_with(|config| config.rate_limit = NonZeroU32::new(2)).await;
    let http = reqwest::Client::new();
    let claim = |number| {
        let request = http.get(format!("{}/stats", server.url()));
        request.header("x-forwarded-for", format!("192.0.2.{number}")).send()
    };
    eventually("a client is limited, whatever address it sends", async || {
        let answers = join_all((1..30).map(claim)).await;
        answers.into_iter().any(|answer| answer.unwrap().status() == StatusCode::TOO_MANY_REQUESTS)
    })
    .await;
    server.shutdown().await;
}

async fn wrong_tokens_are_limited_by_address(database: Database) {
    let (file, tokens) =
        File::new(&["scope = \"read\"", "scope = \"admin\"\nexpires = 2020-01-01T00:00:00Z"]);
    let server = database
        .start_with(|config| {
            config.tokens_file = Some(file.path.clone());
            config.trusted_proxies = vec!["127.0.0.1".parse::<std::net::IpAddr>().unwrap().into()];
        })
        .await;
    let (valid, expired) = (format!("Bearer {}", tokens[0]), format!("Bearer {}", tokens[1]));
    for wrong in [&*expired, "Bearer agreg_guessed"] {
        eventually("wrong tokens are limited", async || {
            statuses(&server, 40, ("authorization", wrong), [401, 429]).await[1] > 0
        })
        .await;
        assert_eq!(statuses(&server, 40, ("authorization", &valid), [200, 429]).await, [40, 0]);
    }
    // Requests without a token do not count as guesses, and other addresses are not limited.
    assert_eq!(statuses(&server, 40, ("x-nothing", ""), [401, 429]).await, [40, 0]);
    let request = |address: &'static str| {
        let request = reqwest::Client::new().get(format!("{}/stats", server.url()));
        request.header("x-forwarded-for", address).header(AUTHORIZATION, &expired).send()
    };
    assert_eq!(request("192.0.2.7").await.unwrap().status(), StatusCode::UNAUTHORIZED);
    let limited = loop {
        let answers = join_all((0..40).map(|_| request("192.0.2.8"))).await.into_iter().map(Result::unwrap);
        if let Some(limited) =
            answers.into_iter().find(|answer| answer.status() == StatusCode::TOO_MANY_REQUESTS)
        {
            break limited;
        }
    };
    assert_eq!(limited.headers()[RETRY_AFTER], "1");
    assert!(limited.text().await.unwrap().contains("unknown or have expired"));
    server.shutdown().await;
}

async fn requests_without_a_token_count_towards_the_limit_of_their_address(database: Database) {
    let (file, tokens) = File::new(&["scope = \"read\""]);
    let server = database
        .start_with(|config| {
            config.tokens_file = Some(file.path.clone());
            config.rate_limit = NonZeroU32::new(2);
        })
        .await;
    eventually("the address is limited", async || {
        statuses(&server, 20, ("authorization", "Basic YTpi"), [401, 429]).await[1] > 0
    })
    .await;
    let valid = format!("Bearer {}", tokens[0]);
    assert_eq!(statuses(&server, 1, ("authorization", &valid), [200, 429]).await, [1, 0]);
    server.shutdown().await;
}
