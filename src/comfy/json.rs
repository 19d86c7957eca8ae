//! JSON as Python writes it.

use std::borrow::Cow;

/// The text with Python's `NaN`, `Infinity` and `-Infinity` made `null`. Custom nodes return `NaN` to say "always run me",
/// and the server then writes it into the graphs of `/queue` and `/history`; one such node must not make the whole answer
/// unreadable. Text without them, nearly all there is, is not copied.
pub fn relaxed(text: &str) -> Cow<'_, str> {
    if !text.contains("NaN") && !text.contains("Infinity") {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(['"', 'N', 'I', '-']) {
        let (before, here) = rest.split_at(at);
        out.push_str(before);
        rest = if here.starts_with('"') {
            let (literal, after) = here.split_at(string_end(here));
            out.push_str(literal);
            after
        } else if let Some(after) = ["NaN", "Infinity", "-Infinity"].iter().find_map(|word| here.strip_prefix(word)) {
            out.push_str("null");
            after
        } else {
            out.push_str(&here[..1]);
            &here[1..]
        };
    }
    out.push_str(rest);
    Cow::Owned(out)
}

/// Where the string literal that `text` starts with ends, its closing quote included.
fn string_end(text: &str) -> usize {
    let mut escaped = false;
    for (at, byte) in text.bytes().enumerate().skip(1) {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => return at + 1,
            _ => {}
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn pythons_numbers_become_null_and_strings_stay() {
        let text = r#"{"is_changed": [NaN, -Infinity, Infinity, -1], "NaN": "a \" NaN, \\", "b": "Infinity"}"#;
        let value: Value = serde_json::from_str(&relaxed(text)).unwrap();
        assert_eq!(value, json!({"is_changed": [null, null, null, -1], "NaN": "a \" NaN, \\", "b": "Infinity"}));
        assert!(matches!(relaxed("{\"a\": 1}"), Cow::Borrowed(_)));
    }

    proptest! {
        #[test]
        fn valid_json_is_left_alone(words in prop::collection::vec("[ -~\u{e4}]{0,12}|NaN|-Infinity", 0..6)) {
            let text = serde_json::to_string(&words).unwrap();
            prop_assert_eq!(&*relaxed(&text), text.as_str());
        }

        #[test]
        fn never_panics(text in "\\PC{0,40}(NaN|Infinity)?\\PC{0,40}") {
            let _ = relaxed(&text);
        }
    }
}
