//! One ComfyUI server as the protocol sees it: a queue, one prompt at a time, a history, all of it gone with a restart.
//!
//! It does not mind being sent an id twice (it runs twice), tells of an end before the history is written, and may finish what it was asked
//! to interrupt (PROTOCOL.md 6, 12).

use std::hash::{Hash, Hasher};

use super::names::Names;
use crate::domain::{
    artifact::Source,
    error::{ErrorCode, TaskError},
    id::PromptId,
    prompt::{Finished, NodeOutput, Outcome, Sighting},
};

/// What a server of some age can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Generation {
    /// `/api/jobs`: a look is one read, a cancellation is one step.
    Jobs,
    /// `/queue` and `/history`; takes our id.
    Lists,
    /// As [`Self::Lists`], goes by ids of its own, and interrupts whatever runs.
    OwnIds,
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum End {
    /// With outputs.
    Success,
    /// A node raised an error that may be a passing one.
    Failed,
    /// Somebody interrupted it.
    Interrupted,
}

/// Where a prompt is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Place {
    /// Waits.
    Queued,
    /// Runs; an interruption is noticed at the next node, if there is one.
    Running { interrupted: bool },
    /// Has run and said so; its history is not written, and the queue shows it running.
    Ending(End),
    /// In the history.
    Over(End),
}

/// One server.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Server {
    prompts: Vec<(i64, Place)>,
    /// POSTs that arrived, by dispatch; a restart does not undo them.
    arrived: Vec<i64>,
    began: Vec<i64>,
    ended: Vec<i64>,
    succeeded: Vec<i64>,
}

/// What part of a look answered: `None` when it answered nothing.
pub type Glimpse = Option<Sighting>;

impl Server {
    /// Runs begun so far.
    pub fn executions(&self) -> usize {
        self.began.len()
    }

    /// Whether a POST of this dispatch arrived, and twice.
    pub fn took(&self, dispatch: i64) -> bool {
        self.arrived.contains(&dispatch)
    }

    pub fn took_twice(&self) -> bool {
        self.arrived.windows(2).any(|pair| pair[0] == pair[1])
    }

    pub fn ran(&self, dispatch: i64) -> bool {
        self.began.contains(&dispatch)
    }

    pub fn has_ended(&self, dispatch: i64) -> bool {
        self.ended.contains(&dispatch)
    }

    pub fn succeeded(&self, dispatch: i64) -> bool {
        self.succeeded.contains(&dispatch)
    }

    pub fn knows(&self, dispatch: i64) -> bool {
        self.prompts.iter().any(|(known, _)| *known == dispatch)
    }

    fn running(&mut self) -> Option<(i64, &mut Place)> {
        let runs = |place: &Place| matches!(place, Place::Running { .. } | Place::Ending(_));
        self.prompts.iter_mut().find(|(_, place)| runs(place)).map(|(dispatch, place)| (*dispatch, place))
    }

    // What happens there. Each says whether it could.

    pub fn arrive(&mut self, dispatch: i64) {
        self.prompts.push((dispatch, Place::Queued));
        self.arrived.push(dispatch);
        self.arrived.sort_unstable();
    }

    pub fn begin(&mut self) -> bool {
        if self.running().is_some() {
            return false;
        }
        let Some((dispatch, place)) = self.prompts.iter_mut().find(|(_, place)| *place == Place::Queued) else {
            return false;
        };
        *place = Place::Running { interrupted: false };
        self.began.push(*dispatch);
        self.began.sort_unstable();
        true
    }

    pub fn end(&mut self, end: End) -> bool {
        let Some((dispatch, place)) = self.running() else { return false };
        let possible = match place {
            Place::Running { interrupted } => end != End::Interrupted || *interrupted,
            _ => false,
        };
        if !possible {
            return false;
        }
        *place = Place::Ending(end);
        note(&mut self.ended, dispatch);
        if end == End::Success {
            note(&mut self.succeeded, dispatch);
        }
        true
    }

    pub fn record(&mut self) -> bool {
        let Some((dispatch, place)) = self.running() else { return false };
        let Place::Ending(end) = *place else { return false };
        // The history goes by the id: what was there under it is overwritten.
        self.prompts.retain(|(known, place)| *known != dispatch || matches!(place, Place::Queued));
        self.prompts.push((dispatch, Place::Over(end)));
        true
    }

    pub fn restart(&mut self) -> bool {
        let had = !self.prompts.is_empty();
        self.prompts.clear();
        had
    }

    pub fn evict(&mut self) -> bool {
        let before = self.prompts.len();
        self.prompts.retain(|(_, place)| !matches!(place, Place::Over(_)));
        self.prompts.len() < before
    }

    /// Takes a waiting prompt out of the queue.
    pub fn delete(&mut self, dispatch: Option<i64>) {
        self.prompts.retain(|(known, place)| Some(*known) != dispatch || *place != Place::Queued);
    }

    /// Interrupts what runs, if it is this one, or whatever it is.
    pub fn interrupt(&mut self, only: Option<i64>) -> bool {
        match self.running() {
            Some((dispatch, Place::Running { interrupted })) if only.is_none_or(|only| only == dispatch) => {
                !std::mem::replace(interrupted, true)
            }
            _ => false,
        }
    }

    // What it answers.

    pub fn runs(&self, dispatch: i64) -> bool {
        let runs = |place: &Place| matches!(place, Place::Running { .. } | Place::Ending(_));
        self.prompts.iter().any(|(known, place)| *known == dispatch && runs(place))
    }

    /// What its queue says.
    pub fn in_queue(&self, dispatch: i64, names: &Names) -> Glimpse {
        let waits = |place: &Place| *place == Place::Queued;
        let is_there = self.prompts.iter().any(|(known, place)| *known == dispatch && waits(place));
        let running = self.runs(dispatch);
        (is_there || running).then(|| Sighting::Alive { prompt: names.there(dispatch), running })
    }

    /// What its history says.
    pub fn in_history(&self, dispatch: i64, names: &Names) -> Option<Finished> {
        let end = self.prompts.iter().find_map(|(known, place)| match place {
            Place::Over(end) if *known == dispatch => Some(*end),
            _ => None,
        })?;
        Some(finished(names.there(dispatch), end))
    }
}

fn note(list: &mut Vec<i64>, dispatch: i64) {
    if !list.contains(&dispatch) {
        list.push(dispatch);
        list.sort_unstable();
    }
}

fn finished(prompt: PromptId, end: End) -> Finished {
    let outcome = match end {
        End::Success => Outcome::Success,
        End::Failed => Outcome::Failed(TaskError::new(ErrorCode::NodeFailed, "a node failed")),
        End::Interrupted => Outcome::Interrupted,
    };
    let source = Source::Text { filename: "a.txt".to_owned(), text: "a".to_owned() };
    Finished { prompt, outcome, outputs: vec![NodeOutput { node_id: "9".to_owned(), source }] }
}

/// A glimpse in a state's key.
pub fn hash_glimpse(glimpse: &Glimpse, names: &Names, hasher: &mut impl Hasher) {
    match glimpse {
        None => 0_u8.hash(hasher),
        Some(Sighting::Absent) => 1_u8.hash(hasher),
        Some(Sighting::Alive { prompt, running }) => (2_u8, names.number(prompt), running).hash(hasher),
        Some(Sighting::Ended(finished)) => {
            (3_u8, names.number(&finished.prompt), std::mem::discriminant(&finished.outcome)).hash(hasher);
        }
    }
}
