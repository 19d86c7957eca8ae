//! The names of one task's prompts: ours, and those of a server that gives its own.

use super::server::Generation;
use crate::domain::id::{PromptId, TaskId};

/// More dispatches than any search reaches.
const MOST: i64 = 16;

/// Prompt ids by dispatch, drawn once.
#[derive(Debug)]
pub struct Names {
    ours: Vec<PromptId>,
    theirs: Option<Vec<PromptId>>,
}

impl Names {
    pub fn of(task: TaskId, generation: Generation) -> Self {
        let theirs = || (0..MOST).map(|dispatch| PromptId::new(format!("theirs-{dispatch}"))).collect();
        Self {
            ours: (0..MOST).map(|dispatch| PromptId::of(task, dispatch)).collect(),
            theirs: (generation == Generation::OwnIds).then(theirs),
        }
    }

    /// What the server calls it.
    pub fn there(&self, dispatch: i64) -> PromptId {
        self.theirs.as_ref().unwrap_or(&self.ours)[usize::try_from(dispatch).unwrap()].clone()
    }

    /// The dispatch a server knows under this name.
    pub fn dispatch(&self, name: &PromptId) -> Option<i64> {
        let names = self.theirs.as_ref().unwrap_or(&self.ours);
        (0..MOST).zip(names).find(|(_, known)| *known == name).map(|(dispatch, _)| dispatch)
    }

    /// A number for a name, one of ours or one of theirs.
    pub fn number(&self, name: &PromptId) -> usize {
        let all = self.ours.iter().chain(self.theirs.iter().flatten());
        all.take_while(|known| *known != name).count()
    }
}
