//! Different spellings of the same word.

use registry_sdk::contract::Capability;
use registry_sdk::internal::Query;

use crate::{found, hits, scored};

fn described(description: &str) -> Capability {
    Capability::new("work").description(description)
}

/// Asserts that each query finds this one capability among unrelated ones.
fn assert_finds(capability: &Capability, queries: &[&str]) {
    let capabilities = [Capability::new("unrelated"), capability.clone(), described("cooks and bakes")];
    for query in queries {
        assert_eq!(found(&capabilities, query), [&capability.name], "{query} for {capability:?}");
    }
}

#[test]
fn words_with_inner_capitals_are_found_in_any_case() {
    for (description, word) in [
        ("Reviews JavaScript", "javascript"),
        ("Summarizes PDFs", "pdf"),
        ("Calls REST APIs", "api"),
        ("OAuth login", "oauth"),
        ("PostgreSQL tuning", "postgresql"),
        ("OpenAI proxy", "openai"),
    ] {
        assert_finds(&described(description), &[word, &word.to_uppercase()]);
    }
    assert_finds(&described("Reviews JavaScript"), &["JavaScript", "Javascript", "script", "java"]);
}

#[test]
fn name_is_found_in_any_case_and_comes_first() {
    let capabilities = [Capability::new("vuln_scan8e07_old"), Capability::new("vuln_scan8e07")];
    for query in ["vuln_scan8e07", "VULN_SCAN8E07", "Vuln_Scan8E07", "vuln scan8e07"] {
        assert_eq!(found(&capabilities, query), ["vuln_scan8e07", "vuln_scan8e07_old"], "{query}");
    }
}

#[test]
fn other_forms_of_a_word_are_found() {
    assert_finds(&Capability::new("security_scanning"), &["security scanner", "scans", "scanned"]);
    assert_finds(&described("translation"), &["translate", "translates", "translating"]);
    assert_finds(&described("deployment"), &["deploys", "deploy", "deployed"]);
}

#[test]
fn plural_of_a_name_finds_it_first() {
    let capabilities =
        [described("reviews of code"), Capability::new("code_reviewer_list"), Capability::new("code_review")];
    assert_eq!(found(&capabilities, "code reviews").len(), 3);
    assert_eq!(found(&capabilities[1..], "code review"), ["code_review", "code_reviewer_list"]);
    assert_finds(&Capability::new("code_review"), &["code reviews", "codereview", "code-review"]);
}

#[test]
fn scripts_without_spaces_are_found_inside() {
    assert_finds(&Capability::new("代码审查"), &["审查", "代码", "码审查", "查", "代码审查"]);
    assert_finds(&Capability::new("コードレビュー"), &["レビュー", "コード"]);
    assert_finds(&Capability::new("코드리뷰를"), &["리뷰", "코드"]);
    assert_finds(&Capability::new("ตรวจสอบโค้ด"), &["โค้ด", "ตรวจ"]);
    assert!(found(&[Capability::new("代码审查")], "码代").is_empty(), "the order of characters counts");
}

#[test]
fn accents_are_ignored_composed_and_decomposed() {
    let writings = ["résumé", "re\u{301}sume\u{301}", "resume", "RÉSUMÉ"];
    for written in writings {
        assert_finds(&Capability::new(written), &writings);
    }
    assert_finds(&described("Ｆｕｌｌｗｉｄｔｈ ﬁles"), &["fullwidth", "files"]);
    assert_finds(&described("ΟΔΥΣΣΕΥΣ"), &["οδυσσευς", "Οδυσσεύς", "οδυσσευσ"]);
    assert_finds(&described("Straße"), &["strasse", "STRASSE"]);
    assert_finds(&described("İstanbul"), &["istanbul", "ISTANBUL"]);
    // Marks that are separate letters are kept: these two words differ only in them.
    assert!(found(&[Capability::new("かき")], "がき").is_empty());
}

#[test]
fn symbols_that_belong_to_a_word_count() {
    let capabilities =
        [Capability::new("css cooking"), Capability::new("C++ builds"), Capability::new("C# builds")];
    assert_eq!(found(&capabilities, "c++")[0], "C++ builds");
    assert_eq!(found(&capabilities, "C#")[0], "C# builds");
    assert_eq!(found(&capabilities, "c").len(), 3);
    let capabilities = [Capability::new("net fishing"), Capability::new(".NET services")];
    assert_eq!(found(&capabilities, ".net")[0], ".NET services");
}

#[test]
fn words_with_dots_are_found_without_them() {
    assert_finds(
        &described("Node.js services"),
        &["nodejs", "node.js", "NodeJS", "node", "node js", "node-js"],
    );
    assert_finds(&described("nodejs services"), &["node.js", "NODE.JS"]);
}

#[test]
fn sentence_finds_the_same_in_any_case() {
    let names = ["typescript", "script_runner", "type", "typescript_lint"];
    let capabilities = names.map(Capability::new);
    let expected = scored(&capabilities, "Convert this to typescript");
    assert_eq!(
        expected.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(),
        ["typescript", "typescript_lint"]
    );
    for query in ["Convert this to TYPESCRIPT", "Convert this to TypeScript"] {
        assert_eq!(scored(&capabilities, query), expected, "{query}");
    }
    // A word that no agent has as a whole is searched for by its parts.
    assert_eq!(scored(&capabilities, "a ScriptType")[0].0, "type");
}

#[test]
fn words_next_to_other_scripts_are_found_in_any_case() {
    for text in [
        "使用JavaScript编写",
        "JavaScript编写",
        "使用JavaScript",
        "使用javascript编写",
        "使用 JavaScript 编写",
    ] {
        let capabilities = [Capability::new("unrelated"), Capability::new("work").tag(text)];
        assert_finds(&described(text), &["javascript", "JavaScript", "JAVASCRIPT"]);
        assert_eq!(scored(&capabilities, "javascript").len(), 1, "{text}");
    }
    assert_finds(&described("使用Node.js"), &["nodejs", "node.js", "使用", "使用Node.js", "使用nodejs"]);
    assert_finds(&described("iphone手机App"), &["手机", "手机app", "iphone手机"]);
}

#[test]
fn words_with_inner_capitals_and_symbols_are_found_without_them() {
    for text in ["JavaScript+ tools", "javascript+ tools", "JavaScript# tools"] {
        assert_finds(&described(text), &["javascript", "JavaScript"]);
        assert_eq!(scored(&[described(text)], "javascript").len(), 1, "{text}");
    }
}

#[test]
fn abbreviations_and_their_plurals_find_each_other() {
    for (one, many) in [("PDF", "PDFs"), ("LLM", "LLMs"), ("GPU", "GPUs"), ("VM", "VMs"), ("API", "APIs")] {
        let lower = one.to_lowercase();
        assert_finds(&Capability::new(format!("{lower}_tables")), &[many]);
        assert_finds(&described(&format!("Reads {many}")), &[one, &lower, many, &many.to_lowercase()]);
        for [text, query] in [[&lower, many], [many, &lower], [many, many]] {
            let capabilities = [described(text), described("unrelated")];
            assert_eq!(scored(&capabilities, &format!("Who reads {query}?")).len(), 1, "{query} in {text}");
        }
    }
    assert_finds(&described("pdf"), &["pdfs"]);
}

#[test]
fn repeated_word_counts_once() {
    let capabilities = [Capability::new("code_review_tool"), described("code to review"), described("code")];
    let once = Query::all("code review");
    for repeated in ["code review code".to_owned(), "code review ".repeat(2_000)] {
        assert_eq!(hits(&capabilities, &Query::all(&repeated)), hits(&capabilities, &once));
    }
}
