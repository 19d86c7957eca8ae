//! How much a JSON text would become, told before it is parsed.

/// About how many values a JSON text holds: each but the first follows a comma, a colon or an opening bracket.
#[must_use]
pub fn count_values(text: &[u8]) -> usize {
    let (mut values, mut in_text, mut escaped) = (0, false, false);
    for byte in text {
        match (in_text, byte) {
            (true, _) if escaped => escaped = false,
            (true, b'\\') => escaped = true,
            (true, b'"') => in_text = false,
            (false, b'"') => in_text = true,
            (false, b',' | b':' | b'[' | b'{') => values += 1,
            _ => {}
        }
    }
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_counted_outside_of_texts() {
        assert_eq!(count_values(br#"{"a,[\",{": [1, 2, {"b": "c:"}]}"#), 7);
    }
}
