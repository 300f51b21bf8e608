//! Agent cards are printed, exported and imported byte for byte.

use registry_sdk::contract::limits;
use registry_sdk::testing::MockRegistry;
use registry_sdk::{Error, ListQuery};
use serde_json::{Value, json};

use super::support::{
    Database, Ended, agent, agents, client, export, file_of, import_well, line, line_with, run, scripted,
    serve,
};

/// Cards with unusual formatting. A signature may cover every byte of a card.
fn cards() -> Vec<String> {
    let long = format!("{{\"text\": \"{}\"}}", "\\\"".repeat(limits::CARD_BYTES / 2 - 7));
    assert!(long.len() <= limits::CARD_BYTES && long.len() > limits::CARD_BYTES - 8, "{}", long.len());
    vec![
        "{}".to_owned(),
        "{\"name\" :\t\"A\",\r\n  \"skills\": [ ]\n}".to_owned(),
        r#"{"z": 1.50, "a": 1e2, "z2": 123456789012345678901234567890, "b": -0.0}"#.to_owned(),
        r#"{"twice": 1, "twice": 2, "text": "\u00e9é\/\\ „审查“ 🦀 \ud83e\udd80"}"#.to_owned(),
        "{\"\u{2028}\": \"\u{7f}\u{85}\u{feff}\"}".to_owned(),
        long,
    ]
}

async fn come_back_byte_for_byte(from: Database, to: Database) {
    let (source, target) = (serve(&from).await, serve(&to).await);
    let (before, after) = (client(&source.url()), client(&target.url()));
    // More than one page, with agents without a card in between.
    let cards = cards();
    let card_of = |number: usize| (!number.is_multiple_of(3)).then(|| &cards[number / 3 % cards.len()]);
    for number in 0..250 {
        let mut agent = agent(&format!("a{number:03}"));
        agent.card = card_of(number).map(|card| card.parse().unwrap());
        before.register(&agent).await.unwrap();
    }
    let exported = export(&source.url());
    for (number, (id, line)) in agents(&exported).into_iter().enumerate() {
        assert_eq!(line.get("card").and_then(Value::as_str), card_of(number).map(|card| &**card), "{id}");
        assert_eq!(line.get("card_digest"), None, "{id}");
    }
    assert_eq!(import_well(&target.url(), &exported.join("\n"), &[]), json!({"imported": 250}));
    for record in after.list_agents(ListQuery::all()).await.unwrap().agents {
        let number: usize = record.agent_id[1..].parse().unwrap();
        match (after.get_card(&record.agent_id).await, card_of(number)) {
            (Ok(card), Some(expected)) => assert_eq!(card.as_str(), expected, "{}", record.agent_id),
            (Err(Error::NotFound { .. }), None) => assert_eq!(record.card_digest, None),
            (card, expected) => panic!("{}: {card:?} {expected:?}", record.agent_id),
        }
    }
    assert_eq!(export(&target.url())[1..], exported[1..]);
    source.shutdown().await;
    target.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn cards_come_back_byte_for_byte_from_sqlite_to_postgres() {
    come_back_byte_for_byte(Database::sqlite(), Database::postgres().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn cards_come_back_byte_for_byte_from_postgres_to_sqlite() {
    come_back_byte_for_byte(Database::postgres().await, Database::sqlite()).await;
}

/// The export reads the list before the cards.
#[test]
fn card_that_changes_after_the_list_is_the_new_one() {
    let url = scripted(|request, _| match request {
        "GET /agents/changed/card" => ("200 OK", r#"{"new":  1}"#.to_owned()),
        "GET /agents/gone/card" => ("404 Not Found", json!({"detail": "no card"}).to_string()),
        list if list.starts_with("GET /agents?") => {
            let records = ["changed", "gone"].map(|id| line_with(id, json!({"card_digest": "old"})));
            ("200 OK", json!([records[0], records[1], line("without")]).to_string())
        }
        // No request is made for an agent without a card.
        _ => ("500 Internal Server Error", String::new()),
    });
    let exported = agents(&export(&url));
    assert_eq!(exported["changed"]["card"], r#"{"new":  1}"#);
    assert_eq!(exported["gone"], line("gone"));
    assert_eq!(exported["without"], line("without"));
}

#[test]
fn export_fails_if_a_card_cannot_be_read() {
    let url = scripted(|request, _| match request {
        list if list.starts_with("GET /agents?") => {
            ("200 OK", json!([line_with("a", json!({"card_digest": "x"}))]).to_string())
        }
        _ => ("400 Bad Request", json!({"detail": "broken"}).to_string()),
    });
    let Ended { code, said, reasons } = run(&url, &["export"]);
    assert!(code != Some(0) && !said.contains("agents_exported") && reasons.contains("broken"), "{reasons}");
}

#[tokio::test(flavor = "multi_thread")]
async fn replace_uses_the_card_in_the_file() {
    let registry = MockRegistry::start().await;
    let client = registry.client();
    for id in ["a", "b", "c"] {
        client.register(&agent(id).card("{\"old\": 1}".parse().unwrap())).await.unwrap();
    }
    let file = file_of(&[
        line_with("a", json!({"card": "{\"new\":  1}"})),
        line("b"),
        line_with("c", json!({"card": null})),
    ]);
    assert_eq!(import_well(&registry.url(), &file, &["--replace"]), json!({"replaced": 3}));
    assert_eq!(client.get_card("a").await.unwrap().as_str(), "{\"new\":  1}");
    for id in ["b", "c"] {
        assert!(matches!(client.get_card(id).await, Err(Error::NotFound { .. })), "{id}");
    }
}

async fn printed_byte_for_byte(database: Database) {
    let server = serve(&database).await;
    let (url, client) = (server.url(), client(&server.url()));
    client.register(&agent("without")).await.unwrap();
    for card in cards() {
        client.register(&agent("a").card(card.parse().unwrap())).await.unwrap();
        for format in [&[][..], &["--json"], &["--table"]] {
            let Ended { code, said, reasons } = run(&url, &[&["card", "a"], format].concat());
            assert_eq!((code, &*reasons), (Some(0), ""));
            assert!(said == card, "{format:?}: {said}");
        }
    }
    for (id, expected) in
        [("without", "agent \"without\" has registered no A2A agent card"), ("nobody", "no agent \"nobody\"")]
    {
        let Ended { code, said, reasons } = run(&url, &["card", id]);
        assert!(code == Some(3) && said.is_empty() && reasons.contains(expected), "{code:?} {reasons}");
    }
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn card_is_printed_byte_for_byte_on_sqlite() {
    printed_byte_for_byte(Database::sqlite()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn card_is_printed_byte_for_byte_on_postgres() {
    printed_byte_for_byte(Database::postgres().await).await;
}
