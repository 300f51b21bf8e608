//! Stop words: English words that say nothing about the topic of a sentence.

/// The words of the closed word classes of English, by class.
const STOP_WORDS: [&[&str]; 8] = [
    // Articles and demonstratives.
    &["a", "an", "the", "this", "that", "these", "those"],
    // Pronouns.
    &[
        "i",
        "me",
        "my",
        "mine",
        "myself",
        "we",
        "us",
        "our",
        "ours",
        "ourselves",
        "you",
        "your",
        "yours",
        "yourself",
        "yourselves",
        "he",
        "him",
        "his",
        "himself",
        "she",
        "her",
        "hers",
        "herself",
        "it",
        "its",
        "itself",
        "they",
        "them",
        "their",
        "theirs",
        "themselves",
    ],
    // Question words.
    &["who", "whom", "whose", "which", "what", "when", "where", "why", "how"],
    // Auxiliary verbs.
    &[
        "am", "is", "are", "was", "were", "be", "been", "being", "have", "has", "had", "having", "do",
        "does", "did", "doing", "done", "can", "could", "may", "might", "must", "shall", "should", "will",
        "would", "ought",
    ],
    // Conjunctions.
    &[
        "and", "or", "but", "nor", "if", "because", "as", "until", "while", "than", "so", "though",
        "although", "unless", "whether", "either", "neither", "both",
    ],
    // Prepositions and particles.
    &[
        "of", "at", "by", "for", "with", "without", "within", "about", "against", "between", "into",
        "through", "during", "before", "after", "above", "below", "to", "toward", "towards", "from", "up",
        "down", "in", "on", "off", "out", "over", "under", "upon",
    ],
    // Quantifiers, and adverbs that only connect.
    &[
        "not", "no", "any", "all", "each", "every", "some", "such", "only", "own", "same", "too", "very",
        "just", "also", "there", "here", "then", "now", "again", "once", "more", "most", "other", "another",
        "few", "much", "many",
    ],
    // The remains of contractions: "I'm", "don't", "we've".
    &[
        "s", "t", "m", "re", "ve", "ll", "d", "don", "isn", "aren", "wasn", "weren", "haven", "hasn", "hadn",
        "doesn", "didn", "won", "wouldn", "couldn", "shouldn", "mustn", "let",
    ],
];

/// Returns whether a folded word is a stop word.
pub(super) fn is_stop_word(word: &str) -> bool {
    STOP_WORDS.iter().any(|class| class.contains(&word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_closed_classes_are_stop_words_and_others_are_not() {
        assert!(
            "can you do this for me and what about the others"
                .split(' ')
                .filter(|word| !is_stop_word(word))
                .eq(["others"])
        );
        assert!(["translate", "find", "please", "c", "it2", ""].iter().all(|word| !is_stop_word(word)));
    }
}
