//! What was found, and how it is told.

use std::io::{self, Write};

/// How something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Health {
    /// As it should be.
    Good,
    /// It works, and may not do what is wanted.
    Odd,
    /// Tasks fail of it.
    Bad,
}

/// One thing that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Finding {
    pub(super) health: Health,
    pub(super) what: String,
    /// What to do about it; may be empty when it needs nothing, or says so itself.
    pub(super) cure: String,
}

/// What was found about one thing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Section {
    subject: String,
    findings: Vec<Finding>,
}

impl Section {
    pub(super) fn new(subject: impl Into<String>) -> Self {
        Self { subject: subject.into(), findings: Vec::new() }
    }

    pub(super) fn good(&mut self, what: impl Into<String>) {
        self.add(Health::Good, what.into(), String::new());
    }

    pub(super) fn odd(&mut self, what: impl Into<String>, cure: impl Into<String>) {
        self.add(Health::Odd, what.into(), cure.into());
    }

    pub(super) fn bad(&mut self, what: impl Into<String>, cure: impl Into<String>) {
        self.add(Health::Bad, what.into(), cure.into());
    }

    fn add(&mut self, health: Health, what: String, cure: String) {
        self.findings.push(Finding { health, what, cure });
    }

    fn count(&self, health: Health) -> usize {
        self.findings.iter().filter(|finding| finding.health == health).count()
    }

    pub(super) fn print(&self, out: &mut impl Write) -> io::Result<()> {
        writeln!(out, "{}", self.subject)?;
        for Finding { health, what, cure } in &self.findings {
            let word = match health {
                Health::Good => "ok",
                Health::Odd => "note",
                Health::Bad => "FAULT",
            };
            writeln!(out, "  {word:<5}  {what}")?;
            if !cure.is_empty() {
                writeln!(out, "         -> {cure}")?;
            }
        }
        writeln!(out)
    }

    #[cfg(test)]
    pub(super) fn worst(&self) -> Option<Health> {
        self.findings.iter().map(|finding| finding.health).max()
    }

    #[cfg(test)]
    pub(super) fn text(&self) -> String {
        let mut text = Vec::new();
        self.print(&mut text).expect("memory takes everything");
        String::from_utf8(text).expect("it was text")
    }
}

/// The last line. False when something is at fault.
pub(super) fn conclude(sections: &[Section], out: &mut impl Write) -> io::Result<bool> {
    let count = |health| sections.iter().map(|section| section.count(health)).sum::<usize>();
    let (bad, odd) = (count(Health::Bad), count(Health::Odd));
    let plural = |count: usize, word: &str| format!("{count} {word}{}", if count == 1 { "" } else { "s" });
    match (bad, odd) {
        (0, 0) => writeln!(out, "Everything is well.")?,
        (0, odd) => writeln!(out, "Nothing is at fault; {} worth a look.", plural(odd, "note"))?,
        (bad, odd) => writeln!(out, "{}, {}.", plural(bad, "fault"), plural(odd, "note"))?,
    }
    Ok(bad == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_says_what_to_do_and_counts() {
        let mut section = Section::new("Clock");
        section.good("ticks");
        section.odd("is 7 s late", "set it");
        assert_eq!(section.text(), "Clock\n  ok     ticks\n  note   is 7 s late\n         -> set it\n\n");
        let conclusion = |sections: &[Section]| {
            let mut out = Vec::new();
            let well = conclude(sections, &mut out).unwrap();
            (well, String::from_utf8(out).unwrap())
        };
        let noted = conclusion(std::slice::from_ref(&section));
        assert_eq!(noted, (true, "Nothing is at fault; 1 note worth a look.\n".to_owned()));
        section.bad("stands still", "");
        assert_eq!(conclusion(&[section.clone(), section]), (false, "2 faults, 2 notes.\n".to_owned()));
        assert_eq!(conclusion(&[]), (true, "Everything is well.\n".to_owned()));
    }
}
