//! Which files a server has from us, and under which names. A memory, not the truth: whatever is wrong in it shows when the server
//! refuses a graph over it.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::domain::input::InputId;

/// Files remembered per server; the one not used for longest goes first. A few hundred bytes each.
const MOST: usize = 4_096;

/// The memory of one connection. A server that was away may come back without its files, so it starts empty with each.
#[derive(Debug, Default)]
pub(super) struct Uploaded {
    names: HashMap<InputId, (String, u64)>,
    uses: u64,
}

impl Uploaded {
    /// The names of those of `files` that are known.
    pub(super) fn known(&mut self, files: &BTreeSet<InputId>) -> BTreeMap<InputId, String> {
        self.uses += 1;
        let mut known = BTreeMap::new();
        for file in files {
            if let Some((name, used)) = self.names.get_mut(file) {
                *used = self.uses;
                known.insert(file.clone(), name.clone());
            }
        }
        known
    }

    /// The server has these.
    pub(super) fn remember(&mut self, names: BTreeMap<InputId, String>) {
        self.uses += 1;
        let uses = self.uses;
        self.names.extend(names.into_iter().map(|(file, name)| (file, (name, uses))));
        while self.names.len() > MOST {
            let oldest = self.names.iter().min_by_key(|(_, (_, used))| *used).map(|(file, _)| file.clone());
            oldest.and_then(|file| self.names.remove(&file));
        }
    }

    /// The server may have lost its files.
    pub(super) fn clear(&mut self) {
        self.names.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: usize) -> InputId {
        InputId::parse(&format!("{number:064x}")).unwrap()
    }

    #[test]
    fn what_was_not_used_for_longest_is_forgotten_first() {
        let mut uploaded = Uploaded::default();
        for number in 0..MOST {
            uploaded.remember(BTreeMap::from([(id(number), number.to_string())]));
        }
        assert_eq!(uploaded.known(&BTreeSet::from([id(0), id(MOST)])), BTreeMap::from([(id(0), "0".to_owned())]));
        uploaded.remember(BTreeMap::from([(id(MOST), "new".to_owned())]));
        assert_eq!(uploaded.names.len(), MOST);
        assert_eq!(uploaded.known(&BTreeSet::from([id(0), id(1), id(MOST)])).len(), 2);
        uploaded.clear();
        assert!(uploaded.known(&BTreeSet::from([id(0)])).is_empty());
    }
}
