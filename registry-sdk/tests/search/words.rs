//! Words that mean the same although they are written differently.

use registry_sdk::contract::Capability;

use crate::found;

fn described(description: &str) -> Capability {
    Capability::new("work").description(description)
}

/// Asserts that each query finds the one capability among others that have nothing to do with it.
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
fn a_name_is_found_in_any_case_and_comes_first() {
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
fn the_plural_of_a_name_finds_it_first() {
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
fn accents_count_neither_composed_nor_decomposed() {
    let writings = ["résumé", "re\u{301}sume\u{301}", "resume", "RÉSUMÉ"];
    for written in writings {
        assert_finds(&Capability::new(written), &writings);
    }
    assert_finds(&described("Ｆｕｌｌｗｉｄｔｈ ﬁles"), &["fullwidth", "files"]);
    assert_finds(&described("ΟΔΥΣΣΕΥΣ"), &["οδυσσευς", "Οδυσσεύς", "οδυσσευσ"]);
    assert_finds(&described("Straße"), &["strasse", "STRASSE"]);
    assert_finds(&described("İstanbul"), &["istanbul", "ISTANBUL"]);
    // Marks that are letters of their own stay: these two words differ in them alone.
    assert!(found(&[Capability::new("かき")], "がき").is_empty());
}

#[test]
fn symbols_that_belong_to_a_word_decide() {
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
