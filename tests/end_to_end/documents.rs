//! The documentation: its JSON is valid, its first example is accepted, and its links have targets.

use std::fs;
use std::path::{Path, PathBuf};

use reqwest::StatusCode;
use serde_json::Value;

use crate::support::{Database, on_both_databases};

on_both_databases!(documented_registration_is_accepted);

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Returns the documents and their texts.
fn documents() -> Vec<(PathBuf, String)> {
    let in_folder =
        |folder: &str| fs::read_dir(root().join(folder)).unwrap().map(|entry| entry.unwrap().path());
    let folders = ["", "docs", "registry-sdk", "tests", "benches"];
    let files =
        folders.into_iter().flat_map(in_folder).filter(|path| path.extension().is_some_and(|it| it == "md"));
    files.map(|path| (path.clone(), fs::read_to_string(path).unwrap())).collect()
}

/// Returns the code blocks in a language.
fn blocks<'a>(text: &'a str, language: &str) -> Vec<&'a str> {
    let begin = format!("```{language}\n");
    text.split(&begin).skip(1).map(|rest| rest.split("\n```").next().unwrap()).collect()
}

async fn documented_registration_is_accepted(database: Database) {
    let contract = fs::read_to_string(root().join("docs/contract.md")).unwrap();
    let registration = blocks(&contract, "json")[0].to_owned();
    let server = database.start().await;
    let request = reqwest::Client::new().post(format!("{}/register", server.url()));
    let response =
        request.header("content-type", "application/json").body(registration).send().await.unwrap();
    assert_eq!(response.status(), StatusCode::OK, "{}", response.text().await.unwrap());
    server.shutdown().await;
}

#[test]
fn documented_json_is_valid() {
    let mut count = 0;
    for (path, text) in documents() {
        for block in blocks(&text, "json") {
            let read = serde_json::from_str::<Value>(block);
            assert!(read.is_ok(), "{}: {read:?}\n{block}", path.display());
            count += 1;
        }
    }
    assert!(count >= 3, "{count} blocks: are they looked for where they are?");
}

#[test]
fn documented_links_have_targets() {
    let documents = documents();
    let mut count = 0;
    for (path, text) in &documents {
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if link.contains("://") {
                continue;
            }
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = if file.is_empty() { path.clone() } else { path.parent().unwrap().join(file) };
            assert!(target.exists(), "{}: no file for {link}", path.display());
            if !anchor.is_empty() {
                let text = fs::read_to_string(&target).unwrap();
                let has_it = text.lines().any(|line| line.starts_with('#') && anchor_of(line) == anchor);
                assert!(has_it, "{}: no heading for {link}", path.display());
            }
            count += 1;
        }
    }
    assert!(count >= 50, "{count} links: are they looked for where they are?");
}

/// Returns the anchor that GitHub generates for a heading.
fn anchor_of(heading: &str) -> String {
    let kept = |letter: char| letter.is_alphanumeric() || matches!(letter, ' ' | '-' | '_');
    heading
        .trim_start_matches('#')
        .trim()
        .to_lowercase()
        .replace(|letter| !kept(letter), "")
        .replace(' ', "-")
}
