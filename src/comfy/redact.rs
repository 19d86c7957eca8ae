//! Makes a server's words fit for users: no folders of its file system, no tracebacks, no endless text (protocol 12.7).

use serde_json::Value;

/// Longest message kept, in bytes.
const MAX_TEXT: usize = 2000;
/// Most entries kept of one list or object.
const MAX_ENTRIES: usize = 100;
/// Deepest nesting kept. `node_errors` has six levels.
const MAX_DEPTH: usize = 12;

/// What may stand before a path in prose.
const BREAKS: &[char] =
    &[' ', '\t', '\n', '\r', '\'', '"', '`', '(', ')', '[', ']', '{', '}', '<', '>', ',', ';', '=', '|'];

/// A message without paths (`/srv/comfyui/input/a.png` becomes `.../a.png`), cut before a traceback and at 2000 bytes.
#[must_use]
pub fn text(message: &str) -> String {
    let message = message.split("Traceback (most recent call last)").next().unwrap_or_default().trim();
    let message = cut(message, MAX_TEXT);
    let mut out = String::with_capacity(message.len());
    let mut rest = message;
    while !rest.is_empty() {
        // A path in quotes may hold spaces, so it goes on until the closing quote.
        let quote = out.chars().next_back().filter(|last| matches!(last, '\'' | '"' | '`'));
        let end = match quote {
            Some(quote) if is_path(rest) => rest.find(quote),
            _ => rest.find(BREAKS),
        };
        let (word, after) = rest.split_at(end.unwrap_or(rest.len()));
        push_word(&mut out, word);
        let mut chars = after.chars();
        out.extend(chars.next());
        rest = chars.as_str();
    }
    out
}

/// Longest name of a node or a class that is believed, in bytes. Ours are numbers, and nobody writes a longer one.
const MAX_NAME: usize = 256;

/// A node's or a class's name as the server tells it; none when nobody would call one so.
#[must_use]
pub fn name(told: Option<String>) -> Option<String> {
    told.filter(|name| is_name(name))
}

/// Whether somebody would call a node or a class so.
#[must_use]
pub fn is_name(told: &str) -> bool {
    !told.is_empty() && told.len() <= MAX_NAME && !told.chars().any(char::is_control)
}

fn push_word(out: &mut String, word: &str) {
    if is_path(word) {
        let name = word.trim_end_matches(['/', '\\']).rsplit(['/', '\\']).next().unwrap_or_default();
        out.push_str(".../");
        out.push_str(name);
    } else {
        out.push_str(word);
    }
}

/// An absolute path of two parts or more, on Unix or Windows. `/` alone and `50/60` are none.
fn is_path(word: &str) -> bool {
    let bytes = word.as_bytes();
    let drive = matches!(bytes, [letter, b':', b'/' | b'\\', ..] if letter.is_ascii_alphabetic());
    let unix = word.strip_prefix('/').or_else(|| word.strip_prefix("~/"));
    drive || word.starts_with(r"\\") || unix.is_some_and(|rest| rest.contains('/') || word.starts_with('~'))
}

fn cut(text: &str, limit: usize) -> &str {
    &text[..text.floor_char_boundary(limit)]
}

/// A JSON value of the server's, such as `node_errors`: every text as [`text`] makes it, tracebacks left out, long lists
/// and deep nesting cut.
#[must_use]
pub fn value(value: &Value) -> Value {
    cleaned(value, MAX_DEPTH)
}

fn cleaned(value: &Value, depth: usize) -> Value {
    match value {
        Value::String(message) => Value::String(text(message)),
        Value::Array(_) | Value::Object(_) if depth == 0 => Value::Null,
        Value::Array(items) => items.iter().take(MAX_ENTRIES).map(|item| cleaned(item, depth - 1)).collect(),
        Value::Object(fields) => fields
            .iter()
            .filter(|(key, _)| *key != "traceback")
            .take(MAX_ENTRIES)
            .map(|(key, field)| (cut(key, MAX_TEXT).to_owned(), cleaned(field, depth - 1)))
            .collect(),
        Value::Null | Value::Bool(_) | Value::Number(_) => value.clone(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn paths_lose_their_folders() {
        for (raw, clean) in [
            (
                "cannot identify image file '/comfyui/input/corrupt.png'\n",
                "cannot identify image file '.../corrupt.png'",
            ),
            (r#"open "C:\Users\John Smith\a b.png" failed"#, r#"open ".../a b.png" failed"#),
            ("File /srv/x/execution.py, line 1", "File .../execution.py, line 1"),
            ("step 50/60, a / b, and/or", "step 50/60, a / b, and/or"),
            ("see https://example.com/a/b", "see https://example.com/a/b"),
            ("boom\nTraceback (most recent call last):\n  File x", "boom"),
            ("~/models/x.safetensors missing", ".../x.safetensors missing"),
            ("", ""),
        ] {
            assert_eq!(text(raw), clean);
        }
        assert_eq!(text(&"\u{e4}".repeat(5000)).len(), MAX_TEXT);
    }

    #[test]
    fn values_lose_tracebacks_and_excess() {
        let raw = json!({"1": {"errors": [{"extra_info": {"traceback": ["/a/b.py"], "received_value": "/a/b.png"}}]}});
        assert_eq!(value(&raw), json!({"1": {"errors": [{"extra_info": {"received_value": ".../b.png"}}]}}));
        assert_eq!(value(&json!(vec![0; 1000])).as_array().map(Vec::len), Some(MAX_ENTRIES));
    }

    proptest! {
        #[test]
        fn any_text_is_cleaned(raw in "([/\\\\'\" ~:]|[a-zA-Z]|\\PC){0,60}") {
            let _ = text(&raw);
        }
    }
}
