//! Folding: different spellings of the same word become equal.

use unicode_normalization::UnicodeNormalization;
use unicode_normalization::char::is_combining_mark;

/// Returns whether a character continues a word: a letter, a digit, or a mark on one of them.
pub(super) fn is_in_word(character: char) -> bool {
    character.is_alphanumeric() || (!character.is_ascii() && is_combining_mark(character))
}

/// Folds a word: replaces compatible characters (`ﬁ`, `Ａ`) and upper case, and removes accents.
///
/// Converting to upper case first turns `ß` into two letters and `ς` into `σ`, as in Unicode's full case folding.
pub(super) fn fold(word: &str) -> String {
    if word.is_ascii() {
        return word.to_ascii_lowercase();
    }
    let letters = word.nfkd().filter(|letter| !is_accent(*letter));
    let lower =
        letters.flat_map(char::to_lowercase).flat_map(char::to_uppercase).flat_map(char::to_lowercase);
    // Case conversion can add an accent: İ becomes an i and a dot.
    let plain = lower.filter(|letter| !is_accent(*letter)).flat_map(without_stroke);
    plain.filter(|letter| is_in_word(*letter)).nfc().collect()
}

/// Returns whether a mark is an accent that Latin, Greek and Cyrillic texts often omit. In other scripts, marks distinguish
/// words: vowels in Hindi and Thai, か from が.
fn is_accent(mark: char) -> bool {
    matches!(mark, '\u{300}'..='\u{36f}' | '\u{1ab0}'..='\u{1aff}' | '\u{1dc0}'..='\u{1dff}' | '\u{20d0}'..='\u{20ff}' | '\u{fe20}'..='\u{fe2f}')
}

/// Replaces the Latin letters that Unicode does not decompose.
fn without_stroke(letter: char) -> impl Iterator<Item = char> {
    let plain: [Option<char>; 2] = match letter {
        'æ' => [Some('a'), Some('e')],
        'œ' => [Some('o'), Some('e')],
        'þ' => [Some('t'), Some('h')],
        'ø' => [Some('o'), None],
        'ł' => [Some('l'), None],
        'đ' | 'ð' => [Some('d'), None],
        'ħ' => [Some('h'), None],
        other => [Some(other), None],
    };
    plain.into_iter().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spellings_of_a_word_become_equal() {
        for (writings, folded) in [
            (&["API", "ＡＰＩ", "api"][..], "api"),
            (&["Résumé", "RE\u{301}SUME\u{301}", "resume"], "resume"),
            (&["ﬁles", "FILES"], "files"),
            (&["Straße", "STRASSE", "STRAẞE"], "strasse"),
            (&["ΣΟΦΟΣ", "σοφός", "σοφοσ"], "σοφοσ"),
            (&["İstanbul", "ISTANBUL", "ıstanbul"], "istanbul"),
            (&["København", "KOBENHAVN"], "kobenhavn"),
            (&["Łódź", "lodz"], "lodz"),
            (&["Ёлка", "елка"], "елка"),
            (&["ｶﾞｲﾄﾞ", "ガイド"], "ガイド"),
            (&["\u{1112}\u{1161}\u{11ab}", "한"], "한"),
        ] {
            for writing in writings {
                assert_eq!(fold(writing), folded, "{writing}");
            }
        }
    }

    #[test]
    fn marks_that_distinguish_words_are_kept() {
        for (one, other) in [("かき", "がき"), ("कि", "की"), ("ค้า", "ค่า")] {
            assert_ne!(fold(one), fold(other));
        }
    }
}
