//! What whoever runs a server lets it do: the labels it goes by, and the workflows it takes.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::lane::Needs;

/// Of one server.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Allowance {
    /// What it is good for.
    pub labels: BTreeSet<String>,
    /// The named workflows it takes, `*` for any text; empty = every task.
    pub workflows: Vec<String>,
}

impl Allowance {
    /// Whether it takes tasks with these needs, whatever it has. One that takes named workflows takes nothing else.
    #[must_use]
    pub fn takes(&self, needs: &Needs) -> bool {
        let workflow = match &needs.workflow {
            _ if self.workflows.is_empty() => true,
            Some(name) => self.workflows.iter().any(|pattern| is_match(pattern, name)),
            None => false,
        };
        workflow && needs.labels.is_subset(&self.labels)
    }
}

/// Whether a name is what a pattern with `*` describes.
fn is_match(pattern: &str, name: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = name.strip_prefix(first) else { return false };
    let mut parts: Vec<&str> = parts.collect();
    // Without a star it is the name itself.
    let Some(last) = parts.pop() else { return rest.is_empty() };
    for part in parts {
        // The first place it is found at leaves the most for those after it.
        let Some(at) = rest.find(part) else { return false };
        rest = rest.get(at + part.len()..).unwrap_or_default();
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_is_any_text() {
        for (pattern, name, fits) in [
            ("portrait", "portrait", true),
            ("portrait", "portrait-2", false),
            ("up*", "upscale", true),
            ("up*", "sup", false),
            ("*", "anything", true),
            ("*-x4", "upscale-x4", true),
            ("a*b*c", "a-b-b-c", true),
            ("a*b*c", "a-c-b", false),
            ("a*a", "a", false),
        ] {
            assert_eq!(is_match(pattern, name), fits, "{pattern} {name}");
        }
    }

    #[test]
    fn who_takes_some_workflows_takes_nothing_else() {
        let needs = |workflow: Option<&str>, labels: &[&str]| Needs {
            workflow: workflow.map(str::to_owned),
            labels: labels.iter().map(|label| (*label).to_owned()).collect(),
            ..Needs::default()
        };
        let all = Allowance { labels: ["a100".to_owned()].into(), workflows: Vec::new() };
        assert!(all.takes(&needs(None, &[])) && all.takes(&needs(Some("x"), &["a100"])));
        assert!(!all.takes(&needs(None, &["a100", "video"])));
        let some = Allowance { workflows: vec!["up*".to_owned()], ..Allowance::default() };
        assert!(some.takes(&needs(Some("upscale"), &[])));
        assert!(!some.takes(&needs(Some("portrait"), &[])) && !some.takes(&needs(None, &[])));
    }
}
