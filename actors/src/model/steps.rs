//! Each thing that can happen, and when it can.

use super::{
    Flaw,
    server::End,
    worker::{Doing, Post},
    world::{Rules, World},
};

/// Something that happens. Workers go by their index, POSTs by their dispatch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    // Time.
    Seconds,
    Hours,
    Expires,
    // The network and the server.
    Arrives(i64),
    Begins,
    Ends(End),
    Records,
    // A worker.
    Claims(usize),
    Adopts(usize),
    TakesOver(usize),
    Acts(usize),
    Sends(usize),
    Answered(usize),
    TimesOut(usize),
    Concludes(usize),
    Asks(usize),
    HearsRunning(usize),
    HearsEnding(usize),
    HearsEnded(usize),
    HearsCancel(usize),
    Writes(usize, usize),
    Stores(usize),
    Settles(usize),
    LearnsLoss(usize),
    Promotes,
    // Accidents.
    Crashes(usize),
    SessionDies(usize),
    Disconnects(usize),
    Freezes,
    HandsOff(usize),
    Recalled(usize),
    GivesUp(usize),
    IsLost(i64),
    AnswerIsLost(usize),
    CannotSend(usize),
    IsRefused(usize),
    Stumbles(usize),
    Fails,
    IsInterrupted,
    Restarts,
    Evicts,
    FilesAreGone(usize),
    SettlesUnheard(usize),
    // What only a stale sweep does.
    SweepLooks,
    SweepWrites,
    // Wishes.
    Cancels,
    AsksAgain,
}

impl Step {
    /// Kinds of steps that are possible when nothing is done wrong.
    pub const KINDS: usize = 45;

    /// Happens sooner or later.
    pub fn is_sure(self) -> bool {
        let is_heard = matches!(self, Self::HearsRunning(_) | Self::HearsEnding(_) | Self::HearsEnded(_));
        !self.is_accident() && !self.is_wish() && !is_heard
    }

    fn is_wish(self) -> bool {
        matches!(self, Self::Cancels | Self::AsksAgain)
    }

    fn is_accident(self) -> bool {
        matches!(
            self,
            Self::Crashes(_)
                | Self::SessionDies(_)
                | Self::Disconnects(_)
                | Self::Freezes
                | Self::HandsOff(_)
                | Self::Recalled(_)
                | Self::GivesUp(_)
                | Self::IsLost(_)
                | Self::AnswerIsLost(_)
                | Self::CannotSend(_)
                | Self::IsRefused(_)
                | Self::Stumbles(_)
                | Self::Fails
                | Self::IsInterrupted
                | Self::Restarts
                | Self::Evicts
                | Self::FilesAreGone(_)
                | Self::SettlesUnheard(_)
        )
    }

    /// A reason to run the task once more.
    fn is_evidence(self) -> bool {
        matches!(
            self,
            Self::GivesUp(_)
                | Self::Fails
                | Self::IsInterrupted
                | Self::Restarts
                | Self::Evicts
                | Self::FilesAreGone(_)
                | Self::AsksAgain
        )
    }
}

/// All that can happen in this world, and what comes of it.
pub fn all(rules: &Rules, world: &World) -> Vec<(Step, World)> {
    let mut steps = vec![Step::Seconds, Step::Hours, Step::Expires, Step::Begins, Step::Records, Step::Promotes];
    steps.extend([End::Success, End::Interrupted].map(Step::Ends));
    steps.extend([Step::Freezes, Step::Fails, Step::IsInterrupted, Step::Restarts, Step::Evicts]);
    steps.extend(world.post.iter().flat_map(|dispatch| [Step::Arrives(*dispatch), Step::IsLost(*dispatch)]));
    for who in 0..2 {
        let worker = world.worker(who);
        steps.extend((0..worker.writes.len()).map(|write| Step::Writes(who, write)));
        let mut may = |own: &[fn(usize) -> Step]| steps.extend(own.iter().map(|step| step(who)));
        may(&[Step::Adopts]);
        if worker.fence().is_none() {
            may(&[Step::Claims, Step::TakesOver]);
        } else {
            may(&[Step::LearnsLoss, Step::Crashes, Step::HandsOff, Step::HearsCancel]);
        }
        if worker.flight.is_some() {
            may(&[Step::Acts, Step::SessionDies, Step::Disconnects, Step::Recalled, Step::GivesUp]);
            may(&[Step::HearsRunning, Step::HearsEnding, Step::HearsEnded]);
        }
        match worker.post {
            None => {}
            Some(Post { sent: false, .. }) => may(&[Step::Sends, Step::CannotSend]),
            Some(_) => may(&[Step::Answered, Step::TimesOut, Step::AnswerIsLost, Step::IsRefused, Step::Stumbles]),
        }
        match worker.doing {
            Doing::Nothing => {}
            Doing::Look { .. } => may(&[Step::Concludes]),
            Doing::Stop { .. } => may(&[Step::Asks]),
        }
        if worker.uploading.is_some() {
            may(&[Step::Stores, Step::FilesAreGone]);
        }
        if worker.settling.is_some() {
            may(&[Step::Settles, Step::SettlesUnheard]);
        }
    }
    steps.extend([Step::Cancels, Step::AsksAgain]);
    if rules.has(Flaw::StaleSweep) {
        steps.extend([Step::SweepLooks, Step::SweepWrites]);
    }
    let left = |step: &Step| (world.accidents > 0 || !step.is_accident()) && (world.wishes > 0 || !step.is_wish());
    let after = |step: Step| {
        let mut after = world.clone();
        after.happens(rules, step)?;
        after.accidents -= u8::from(step.is_accident());
        after.wishes -= u8::from(step.is_wish());
        after.evidence += usize::from(step.is_evidence());
        after.tidy(rules);
        Some((step, after))
    };
    steps.into_iter().filter(left).filter_map(after).collect()
}
