//! What is wrong with a configuration, told so that it can be put right without reading the source.

use std::fmt;

/// One fault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The file, or the variable and where it was set.
    pub source: String,
    /// The setting or variable.
    pub key: Option<String>,
    /// The value at fault, secrets hidden.
    pub value: Option<String>,
    /// What is wrong and what would be right.
    pub detail: String,
    /// What was probably meant.
    pub suggestion: Option<String>,
}

impl Fault {
    /// A fault of `source`.
    pub fn new(source: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { source: source.into(), key: None, value: None, detail: detail.into(), suggestion: None }
    }

    /// Names the setting.
    #[must_use]
    pub fn about(mut self, key: impl Into<String>) -> Self {
        self.key = Some(key.into());
        self
    }

    /// Shows the value; the caller has hidden what is secret.
    #[must_use]
    pub fn with_value(mut self, value: impl Into<String>) -> Self {
        self.value = Some(value.into());
        self
    }

    /// Adds what was probably meant.
    #[must_use]
    pub fn suggesting(mut self, suggestion: Option<String>) -> Self {
        self.suggestion = suggestion;
        self
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(key) = &self.key {
            f.write_str(key)?;
            if let Some(value) = &self.value {
                write!(f, " = {value}")?;
            }
            write!(f, " ({}): ", self.source)?;
        } else {
            write!(f, "{}: ", self.source)?;
        }
        f.write_str(&self.detail)?;
        match &self.suggestion {
            Some(suggestion) => write!(f, "; did you mean `{suggestion}`?"),
            None => Ok(()),
        }
    }
}

/// All faults of a configuration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Faults(pub Vec<Fault>);

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the configuration has {} fault(s):", self.0.len())?;
        self.0.iter().try_for_each(|fault| write!(f, "\n  {fault}"))
    }
}

/// The known word nearest to `word`, if one is near enough to be a slip of the fingers.
#[must_use]
pub fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<String> {
    /// Below this two words have too little in common: `port` and `prot` are at 0.75, `host` and `port` at 0.5.
    const ALIKE: f64 = 0.7;
    /// Comparing costs the product of two lengths, and both may come from a client.
    const LONGEST: usize = 64;
    const MOST: usize = 2_000;
    if word.len() > LONGEST {
        return None;
    }
    let wanted = word.to_lowercase();
    known
        .into_iter()
        .take(MOST)
        .filter(|candidate| candidate.len() <= LONGEST)
        .map(|candidate| (strsim::normalized_damerau_levenshtein(&wanted, &candidate.to_lowercase()), candidate))
        .filter(|(likeness, _)| *likeness >= ALIKE)
        .max_by(|(a, _), (b, _)| a.total_cmp(b))
        .map(|(_, candidate)| candidate.to_owned())
}
