//! Reading JSON that agents wrote.

use serde_json::Value;

const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// Removes a byte order mark, which some servers write before a document.
pub(super) fn without_byte_order_mark(document: &[u8]) -> &[u8] {
    document.strip_prefix(BYTE_ORDER_MARK).unwrap_or(document)
}

/// Parses a document. Half of a character, which JavaScript writes as `"\ud83d"` after it cut a text there, becomes U+FFFD.
pub(super) fn parse(document: &[u8]) -> serde_json::Result<Value> {
    let document = without_byte_order_mark(document);
    serde_json::from_slice(document).or_else(|_| {
        let mut document = document.to_vec();
        replace_unpaired_surrogates(&mut document);
        serde_json::from_slice(&document)
    })
}

/// Replaces the escapes of surrogates that are not part of a pair by that of U+FFFD, which is as long.
fn replace_unpaired_surrogates(json: &mut [u8]) {
    let mut at = 0;
    while at < json.len() {
        at += match (code_unit(json, at), code_unit(json, at + 6)) {
            (Some(0xd800..=0xdbff), Some(0xdc00..=0xdfff)) => 12,
            (Some(0xd800..=0xdfff), _) => {
                json[at + 2..at + 6].copy_from_slice(b"fffd");
                6
            }
            // The second of two backslashes begins no escape.
            _ if json[at] == b'\\' => 2,
            _ => 1,
        }
    }
}

/// Returns the code unit whose escape is at an index, if there is one.
fn code_unit(json: &[u8], at: usize) -> Option<u16> {
    let digits = json.get(at..at + 6)?.strip_prefix(b"\\u")?;
    u16::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn unpaired_surrogates_are_replaced() {
        for (json, expected) in [
            (r#""cut \ud83d""#, "cut \u{fffd}"),
            (r#""\uD83D""#, "\u{fffd}"),
            (r#""\udc00 \uDFFF\uD800\ud800""#, "\u{fffd} \u{fffd}\u{fffd}\u{fffd}"),
            (r#""\ud83d\u0041""#, "\u{fffd}A"),
            (r#""\ud83d\n""#, "\u{fffd}\n"),
            // The second half of the first text is paired with nothing, the rest is a pair.
            (r#""\ud83d\ud83e\udd80""#, "\u{fffd}\u{1f980}"),
            // Backslashes that are characters of the text.
            (r#""\\ud83d \ud83d""#, "\\ud83d \u{fffd}"),
            (r#""\\\ud83d""#, "\\\u{fffd}"),
        ] {
            assert_eq!(parse(json.as_bytes()).unwrap(), expected, "{json}");
        }
        let object = parse(br#"{"\ud83d": ["\udc00"]}"#).unwrap();
        assert_eq!(object, serde_json::json!({"\u{fffd}": ["\u{fffd}"]}));
    }

    #[test]
    fn other_documents_are_parsed_as_they_are() {
        for (json, expected) in [
            (r#""\ud83e\uDD80 \\ud83d \u00e9""#, "\u{1f980} \\ud83d é"),
            ("\u{feff}\"after a byte order mark\"", "after a byte order mark"),
            ("\u{feff}\"both \\ud83d\"", "both \u{fffd}"),
        ] {
            assert_eq!(parse(json.as_bytes()).unwrap(), expected, "{json}");
        }
        for json in [
            "",
            "{",
            r#""\"#,
            r#""\u"#,
            r#""\ud83"#,
            r#""\ud83d"#,
            r#""\ud83d\"#,
            r#""\ud83d\u"#,
            "\"\\ud83d\"x",
        ] {
            assert!(parse(json.as_bytes()).is_err(), "{json}");
        }
    }
}
