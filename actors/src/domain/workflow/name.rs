//! What named workflows are called: `text-to-image` is the newest, `text-to-image@3` is exactly that version.

use std::fmt;

/// Longer names say no more.
pub const MAX_NAME: usize = 64;

/// Checks a name: it is part of a path, of a file's name and of `name@version`.
///
/// # Errors
/// What a name must be.
pub fn check_name(name: &str) -> Result<(), String> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    let good =
        (1..=MAX_NAME).contains(&name.len()) && name.as_bytes()[0].is_ascii_alphanumeric() && name.bytes().all(plain);
    if good {
        return Ok(());
    }
    Err(format!("a name has 1 to {MAX_NAME} letters, digits, `-`, `_` and `.`, and begins with a letter or a digit"))
}

/// A workflow as a client names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    /// Its name.
    pub name: String,
    /// Exactly this version; `None` = the newest.
    pub version: Option<u32>,
}

impl Reference {
    /// Reads `name` or `name@version`. What is neither is a name that nothing has.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let versioned = text.rsplit_once('@').and_then(|(name, version)| Some((name, version.parse().ok()?)));
        match versioned {
            Some((name, version)) => Self { name: name.to_owned(), version: Some(version) },
            None => Self { name: text.to_owned(), version: None },
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.version {
            Some(version) => write!(f, "{}@{version}", self.name),
            None => f.write_str(&self.name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_fit_for_paths() {
        for good in ["a", "text-to-image", "SDXL_1.0", "9", &"x".repeat(64)] {
            assert_eq!(check_name(good), Ok(()), "{good}");
        }
        for bad in ["", ".", "..", "-a", "a/b", "a@1", "a b", "é", "a\n", &"x".repeat(65)] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_reference_may_name_a_version() {
        for (text, name, version) in [
            ("a", "a", None),
            ("a@3", "a", Some(3)),
            ("a@b@3", "a@b", Some(3)),
            ("a@", "a@", None),
            ("a@x", "a@x", None),
            ("a@-1", "a@-1", None),
            ("a@99999999999", "a@99999999999", None),
        ] {
            let reference = Reference::parse(text);
            assert_eq!((reference.name.as_str(), reference.version), (name, version), "{text}");
            assert_eq!(reference.to_string(), text);
        }
    }
}
