//! Everything that reads what others wrote, as functions of bytes that must hold whatever the bytes are (decision 039).
//!
//! Each body says more than "does not panic": what comes out keeps within its bounds, is safe where it will be used, and does not depend
//! on how the bytes were cut. One list, two runners: `tests/fuzz` feeds it to cargo-fuzz for hours, the test below to proptest in
//! seconds, so that a body cannot rot and a finding becomes a seed that is run for ever.

use crate::{comfy, config, http, media, outbound};

/// A parser of outside data.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// Its name, on the command line too.
    pub name: &'static str,
    /// Reads the bytes; panics when something does not hold.
    pub run: fn(&[u8]),
    /// Bytes that lead somewhere: what the mutations begin with, and every finding so far.
    pub seeds: &'static [&'static [u8]],
}

/// All of them.
pub fn targets() -> impl Iterator<Item = &'static Target> {
    [comfy::fuzz::TARGETS, http::fuzz::TARGETS, media::fuzz::TARGETS, config::fuzz::TARGETS, outbound::fuzz::TARGETS]
        .into_iter()
        .flatten()
}

/// Runs the target of this name.
///
/// # Panics
/// When there is none, or something does not hold.
pub fn run(name: &str, data: &[u8]) {
    let target = targets().find(|target| target.name == name);
    (target.unwrap_or_else(|| panic!("there is no target {name}")).run)(data);
}

/// The bytes as text, as everybody reads them who does not refuse them.
pub(crate) fn text(data: &[u8]) -> std::borrow::Cow<'_, str> {
    String::from_utf8_lossy(data)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::{prelude::*, sample::Index, test_runner::TestRunner};

    use super::*;

    /// What parsers stumble over.
    const TOKENS: &[&[u8]] = &[
        b"{",
        b"}",
        b"[",
        b"]",
        b"\"",
        b":",
        b",",
        b"\\",
        b"null",
        b"NaN",
        b"-Infinity",
        b"1e999",
        b"-1",
        b"0",
        b"18446744073709551616",
        b"\\u0000",
        b"\\ud800",
        b"\0",
        b"\xff",
        b"\xff\xff\xff\xff",
        b"\x00\x00\x00\x01",
        b"../",
        b"..",
        b"/",
        b"\\\\",
        b"C:",
        b"~",
        b"%2e%2e",
        b"%2F",
        b"%25",
        b"%00",
        b"\r\n",
        b"\r\n\r\n",
        b"--x",
        b"=",
        b";",
        b"\xc3\xa9",
        b"\xe2\x80\xae",
        b"[[[[[[[[",
        b"{\"a\":",
        b" ",
        b"bytes=",
        b"*",
    ];

    /// One change of some bytes.
    #[derive(Debug, Clone)]
    enum Edit {
        Put(Index, u8),
        Insert(Index, Index),
        Cut(Index, Index),
        Repeat(Index, Index),
        End(Index),
    }

    fn edit() -> impl Strategy<Value = Edit> {
        prop_oneof![
            1 => (any::<Index>(), any::<u8>()).prop_map(|(at, byte)| Edit::Put(at, byte)),
            3 => (any::<Index>(), any::<Index>()).prop_map(|(at, token)| Edit::Insert(at, token)),
            1 => (any::<Index>(), any::<Index>()).prop_map(|(from, to)| Edit::Cut(from, to)),
            1 => (any::<Index>(), any::<Index>()).prop_map(|(from, to)| Edit::Repeat(from, to)),
            1 => any::<Index>().prop_map(Edit::End),
        ]
    }

    fn apply(data: &mut Vec<u8>, edit: &Edit) {
        let place = |at: &Index| at.index(data.len() + 1);
        let between = |from: &Index, to: &Index| place(from).min(place(to))..place(from).max(place(to));
        match edit {
            Edit::Put(at, byte) => {
                let at = place(at);
                if let Some(there) = data.get_mut(at) {
                    *there = *byte;
                }
            }
            Edit::Insert(at, token) => {
                let at = place(at);
                data.splice(at..at, TOKENS[token.index(TOKENS.len())].iter().copied());
            }
            Edit::Cut(from, to) => drop(data.drain(between(from, to))),
            Edit::Repeat(from, to) => {
                let again = data[between(from, to)].to_vec();
                let at = place(to);
                data.splice(at..at, again);
            }
            Edit::End(at) => data.truncate(place(at)),
        }
    }

    /// Anything at all, or a seed gone wrong in a few places.
    fn input(seeds: &'static [&'static [u8]]) -> impl Strategy<Value = Vec<u8>> {
        let seeded = (any::<Index>(), prop::collection::vec(edit(), 0..6)).prop_map(move |(seed, edits)| {
            let mut data = seeds[seed.index(seeds.len())].to_vec();
            edits.iter().for_each(|edit| apply(&mut data, edit));
            data
        });
        prop_oneof![1 => prop::collection::vec(any::<u8>(), 0..300), 4 => seeded]
    }

    /// `PROPTEST_CASES` sets how many inputs each gets; cargo-fuzz finds more in an hour than this ever will.
    #[test]
    fn nothing_from_outside_breaks_a_parser() {
        let failures: Vec<String> = targets().filter_map(broken).collect();
        assert!(failures.is_empty(), "{}", failures.join("\n"));
    }

    fn broken(target: &Target) -> Option<String> {
        let run = |data: &[u8]| {
            (target.run)(data);
            Ok(())
        };
        let config = ProptestConfig { failure_persistence: None, ..ProptestConfig::default() };
        // The seeds as they are, then what becomes of them.
        let seeds = (0..target.seeds.len()).prop_map(|seed| target.seeds[seed].to_vec());
        let whole = TestRunner::new(config.clone()).run(&seeds, |data| run(&data));
        let found = whole.and_then(|()| TestRunner::new(config).run(&input(target.seeds), |data| run(&data)));
        found.err().map(|failure| format!("{}: {failure}", target.name))
    }

    #[test]
    fn every_target_can_be_fuzzed_by_its_name() {
        let manifest = include_str!("../tests/fuzz/Cargo.toml");
        let names: BTreeSet<&str> = targets().map(|target| target.name).collect();
        assert_eq!(names.len(), targets().count(), "no name is there twice");
        let built = manifest.lines().filter_map(|line| line.strip_prefix("name = \"")?.strip_suffix('"'));
        assert_eq!(built.filter(|name| *name != "comfyd-fuzz").collect::<BTreeSet<_>>(), names);
    }
}
