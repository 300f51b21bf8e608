//! Compatibility: a search still finds what it found before words had other forms.

use proptest::prelude::*;
use registry_sdk::contract::Capability;
use registry_sdk::internal::{Query, SearchIndex};

/// Returns the terms of a text: lower case, split at every character that is neither letter nor digit, and at camelCase humps.
fn terms(text: &str) -> Vec<String> {
    let mut terms = vec![String::new()];
    let letters: Vec<char> = text.chars().collect();
    for (index, letter) in letters.iter().enumerate() {
        let before =
            index.checked_sub(1).map(|before| letters[before]).filter(|before| before.is_alphanumeric());
        let next_is_lower = letters.get(index + 1).is_some_and(|next| next.is_lowercase());
        let begins_hump =
            letter.is_uppercase() && before.is_some_and(|before| !before.is_uppercase() || next_is_lower);
        if begins_hump || !letter.is_alphanumeric() {
            terms.push(String::new());
        }
        if letter.is_alphanumeric() {
            terms.last_mut().unwrap().extend(letter.to_lowercase().filter(|letter| letter.is_alphanumeric()));
        }
    }
    terms.retain(|term| !term.is_empty());
    terms
}

/// Returns whether every term of the query begins a term of the capability.
fn matches(query: &[String], capability: &Capability) -> bool {
    let texts = [&capability.name, &capability.description].into_iter().chain(&capability.tags);
    let known: Vec<_> = texts.flat_map(|text| terms(text)).collect();
    query.iter().all(|wanted| known.iter().any(|term| term.starts_with(wanted.as_str())))
}

/// Pieces of which many texts with a common beginning consist.
fn text() -> impl Strategy<Value = String> {
    const PIECES: [&str; 40] = [
        "code",
        "Code",
        "CODE",
        "coder",
        "coding",
        "c",
        "C",
        "s",
        "S",
        "ing",
        "review",
        "Review",
        "API",
        "APIs",
        "Java",
        "Script",
        "node",
        "js",
        "x1",
        "2",
        "Ü",
        "über",
        "é",
        "ß",
        "İ",
        "ς",
        "Σ",
        "審",
        "査",
        "审查",
        "コ",
        "ード",
        "코드",
        "드",
        "ไทย",
        "ำ",
        "ﬁ",
        "Ａ",
        "①",
        "हि",
    ];
    const GAPS: [&str; 10] = ["", "", "", " ", " ", "_", ".", "-", "++ ", "#, "];
    let piece = (prop::sample::select(&PIECES[..]), prop::sample::select(&GAPS[..]));
    prop::collection::vec(piece, 1..5)
        .prop_map(|pieces| pieces.iter().flat_map(|(piece, gap)| [*piece, *gap]).collect())
}

prop_compose! {
    fn capability()(name in text(), description in text(), tags in prop::collection::vec(text(), 0..3)) -> Capability {
        tags.into_iter().fold(Capability::new(name).description(description), Capability::tag)
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn every_match_of_beginnings_is_a_match(
        agents in prop::collection::vec(prop::collection::vec(capability(), 0..3), 1..6),
        query in text(),
    ) {
        let mut index = SearchIndex::default();
        let slots: Vec<_> = agents.iter().map(|capabilities| index.insert(capabilities)).collect();
        let found = index.search(&Query::all(&query), |_, _| true);
        let wanted = terms(&query);
        prop_assert_eq!(Query::all(&query).is_empty(), wanted.is_empty());
        for (slot, capabilities) in slots.iter().zip(&agents) {
            let was_found = !wanted.is_empty() && capabilities.iter().any(|capability| matches(&wanted, capability));
            let is_found = found.iter().any(|hit| hit.slot == *slot);
            prop_assert!(is_found || !was_found, "{:?} by {:?}", capabilities, query);
        }
    }

    /// An index from which agents were removed finds the same as one that never had them, with the same scores.
    #[test]
    fn removed_agents_leave_no_trace(
        agents in prop::collection::vec((any::<bool>(), prop::collection::vec(capability(), 0..4)), 1..12),
        query in text(),
    ) {
        let (mut changed, mut plain) = (SearchIndex::default(), SearchIndex::default());
        let (mut kept, mut gone) = (Vec::new(), Vec::new());
        for (is_kept, capabilities) in &agents {
            let slot = changed.insert(capabilities);
            if *is_kept {
                kept.push((slot, plain.insert(capabilities)));
            } else {
                gone.push(slot);
            }
            if gone.len() == 2 {
                gone.drain(..).for_each(|slot| changed.remove(slot));
            }
        }
        gone.drain(..).for_each(|slot| changed.remove(slot));
        prop_assert_eq!(changed.counts(), plain.counts());
        for query in [Query::all(&query), Query::best(&query)].into_iter().flat_map(|query| [query.clone(), query.description_only(false)]) {
            let found = |index: &SearchIndex, slot| index.search(&query, |_, _| true).into_iter().find(|hit| hit.slot == slot);
            for (slot, plain_slot) in &kept {
                let expected = found(&plain, *plain_slot).map(|hit| (hit.position, hit.score.to_bits()));
                let hit = found(&changed, *slot).map(|hit| (hit.position, hit.score.to_bits()));
                prop_assert_eq!(hit, expected);
            }
            prop_assert!(changed.search(&query, |_, _| true).iter().all(|hit| kept.iter().any(|(slot, _)| *slot == hit.slot)));
        }
    }
}
