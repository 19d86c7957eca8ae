//! Which tasks somebody wants to see running, in words short enough to be told to other processes.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::id::TaskId;

/// Tasks told by name. Beyond these it is shorter to say "all": forty letters each, 40 KB in all.
pub const MOST_NAMED: usize = 1000;

/// What somebody wants to see.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interest {
    /// These, and whether with pictures of unfinished work.
    #[serde(default)]
    tasks: BTreeMap<TaskId, bool>,
    /// All of them, and whether with pictures.
    #[serde(default)]
    all: Option<bool>,
}

impl Interest {
    /// Somebody wants to see a task, or all (`None`).
    pub fn add(&mut self, task: Option<TaskId>, previews: bool) {
        if self.all.is_some_and(|known| known || !previews) {
            return;
        }
        let wanted = match task {
            Some(task) => self.tasks.entry(task).or_default(),
            None => self.all.get_or_insert_default(),
        };
        *wanted |= previews;
        if self.tasks.len() > MOST_NAMED {
            let previews = self.tasks.values().any(|previews| *previews);
            self.all = Some(previews);
        }
        if let Some(all) = self.all {
            self.tasks.retain(|_, previews| *previews && !all);
        }
    }

    /// Somebody else wants to see this too.
    pub fn extend(&mut self, other: &Self) {
        if let Some(previews) = other.all {
            self.add(None, previews);
        }
        other.tasks.iter().for_each(|(task, previews)| self.add(Some(*task), *previews));
    }

    /// What is wanted beyond what was wanted already.
    #[must_use]
    pub fn beyond(&self, known: &Self) -> Self {
        let is_new = |task: &TaskId, previews: bool| !known.wants(*task) || (previews && !known.wants_previews(*task));
        let tasks = self.tasks.iter().filter(|(task, previews)| is_new(task, **previews));
        let all = self.all.filter(|previews| known.all.is_none_or(|known| *previews && !known));
        Self { tasks: tasks.map(|(task, previews)| (*task, *previews)).collect(), all }
    }

    /// Whether nothing is wanted.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tasks.is_empty() && self.all.is_none()
    }

    /// Whether this task is wanted.
    #[must_use]
    pub fn wants(&self, task: TaskId) -> bool {
        self.all.is_some() || self.tasks.contains_key(&task)
    }

    /// Whether pictures of this task are.
    #[must_use]
    pub fn wants_previews(&self, task: TaskId) -> bool {
        self.all == Some(true) || self.tasks.get(&task) == Some(&true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wanted_is_what_was_added() {
        let (plain, curious, other) = (TaskId::new(), TaskId::new(), TaskId::new());
        let mut interest = Interest::default();
        assert!(interest.is_empty() && !interest.wants(plain));
        interest.add(Some(plain), false);
        interest.add(Some(curious), true);
        interest.add(Some(curious), false);
        let wants = |interest: &Interest| {
            [plain, curious, other].map(|task| (interest.wants(task), interest.wants_previews(task)))
        };
        assert_eq!(wants(&interest), [(true, false), (true, true), (false, false)]);
        let mut more = Interest::default();
        more.add(None, false);
        interest.extend(&more);
        assert_eq!(wants(&interest), [(true, false), (true, true), (true, false)]);
        more.add(None, true);
        interest.extend(&more);
        assert_eq!((wants(&interest), interest), ([(true, true); 3], more));
    }

    #[test]
    fn what_is_new_is_told_apart() {
        let [a, b, c] = [(); 3].map(|()| TaskId::new());
        let of = |wanted: &[(Option<TaskId>, bool)]| {
            let mut interest = Interest::default();
            wanted.iter().for_each(|(task, previews)| interest.add(*task, *previews));
            interest
        };
        let known = of(&[(Some(a), false), (Some(b), true)]);
        for (now, new) in [
            (known.clone(), of(&[])),
            (of(&[(Some(b), false)]), of(&[])),
            (of(&[(Some(a), true), (Some(b), true), (Some(c), false)]), of(&[(Some(a), true), (Some(c), false)])),
            (of(&[(None, false), (Some(b), true)]), of(&[(None, false)])),
        ] {
            assert_eq!(now.beyond(&known), new, "{now:?}");
        }
        let all = of(&[(None, false)]);
        assert_eq!(known.beyond(&all), of(&[(Some(b), true)]));
        assert_eq!(of(&[(None, true)]).beyond(&all), of(&[(None, true)]));
        assert!(all.beyond(&of(&[(None, true)])).is_empty());
    }

    #[test]
    fn it_stays_short_whatever_is_wanted() {
        let mut interest = Interest::default();
        (0..MOST_NAMED).for_each(|_| interest.add(Some(TaskId::new()), false));
        let last = TaskId::new();
        assert!(!interest.wants(last));
        let longest = serde_json::to_string(&interest).unwrap();
        assert!(longest.len() < 50_000, "{}", longest.len());
        assert_eq!(serde_json::from_str::<Interest>(&longest).unwrap(), interest);
        interest.add(Some(last), true);
        assert!(interest.wants(TaskId::new()) && interest.wants_previews(TaskId::new()), "{interest:?}");
        assert!(serde_json::to_string(&interest).unwrap().len() < 100);
    }
}
