//! Where outputs are kept, as clients and configuration name it: targets, prefixes, and what a target for pictures cannot hold.

/// The folder of this machine. Always there: inputs are kept in it whatever outputs go to.
pub const LOCAL: &str = "local";

/// Longest prefix: a key of S3 has at most 1024 bytes, and ours need 200 for themselves.
const MAX_PREFIX: usize = 256;
/// Longest name of a target.
const MAX_NAME: usize = 64;

/// Whether a text can name a target.
#[must_use]
pub fn is_name(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'_');
    (1..=MAX_NAME).contains(&text.len()) && text.bytes().all(plain)
}

/// What keys begin with, as people write it: "renders/2026", with or without slashes around it. Empty = nothing.
///
/// # Errors
/// What is wrong with it, in words.
pub fn prefix(text: &str) -> Result<String, String> {
    let text = text.trim_matches('/');
    // No part begins with a dot: none is hidden, leads upwards, or is the folder of unfinished files.
    let plain = |part: &str| {
        !part.is_empty()
            && !part.starts_with('.')
            && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'))
    };
    if text.len() <= MAX_PREFIX && (text.is_empty() || text.split('/').all(plain)) {
        Ok(text.to_owned())
    } else {
        Err(format!(
            "a prefix is made of parts like \"renders/2026\": ASCII letters, digits, `.`, `_` and `-`, no part beginning with a \
             dot, at most {MAX_PREFIX} bytes together"
        ))
    }
}

/// A key below prefixes; empty ones leave nothing.
#[must_use]
pub fn below(prefixes: &[&str], key: &str) -> String {
    let parts = prefixes.iter().copied().filter(|prefix| !prefix.is_empty()).chain([key]);
    parts.collect::<Vec<_>>().join("/")
}

/// Classes of ComfyUI's own nodes whose every output is something else than a picture. Custom nodes are not judged: what they make
/// shows when they made it.
const NEVER_PICTURES: [&str; 12] = [
    "PreviewAny",
    "PreviewAudio",
    "SaveAudio",
    "SaveAudioMP3",
    "SaveAudioOpus",
    "SaveGLB",
    "SaveLatent",
    "SaveLoRA",
    "SaveSVGNode",
    "SaveText",
    "SaveVideo",
    "SaveWEBM",
];

/// Whether a node of this class makes outputs, and none of them is a picture.
#[must_use]
pub fn makes_no_pictures(class: &str) -> bool {
    NEVER_PICTURES.contains(&class)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_are_read_as_people_write_them() {
        for (text, read) in [("", ""), ("/", ""), ("a", "a"), ("/a/b.c/", "a/b.c"), ("A-1/_x", "A-1/_x")] {
            assert_eq!(prefix(text).as_deref(), Ok(read), "{text}");
        }
        for bad in ["a//b", "..", "a/../b", ".tmp", "a/.b", "a b", "\u{e4}", "a\\b", "a?b", &"a".repeat(257)] {
            assert!(prefix(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn keys_lie_below_what_there_is() {
        assert_eq!(below(&["", ""], "0/x"), "0/x");
        assert_eq!(below(&["a/b", ""], "0/x"), "a/b/0/x");
        assert_eq!(below(&["a", "c"], "0/x"), "a/c/0/x");
    }

    #[test]
    fn names_are_plain() {
        assert!(is_name("local") && is_name("cf_images") && is_name("archive-2"));
        assert!(!is_name("") && !is_name("Archive") && !is_name("a b") && !is_name(&"a".repeat(65)));
    }
}
