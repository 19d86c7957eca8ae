//! What each step does, and when it can: the glue that the service's actors and adapters are, in the plainest form.

use std::rc::Rc;

use super::{
    Flaw,
    server::{End, Generation, Glimpse},
    steps::Step,
    time::{Leap, NOW},
    worker::{Asking, Doing, Post, Worker},
    world::{Rules, World},
};
use crate::{
    comfy_session::{
        Origin,
        flight::{Act, Stop},
    },
    domain::{
        error::{ErrorCode, TaskError},
        order::Ordering,
        prompt::{Receipt, Sighting},
        task::{Change, Release, Task, TaskState},
        time::Timestamp,
    },
    ports::comfy::SubmitError,
};

impl World {
    /// Lets it happen; `None` when it cannot.
    pub fn happens(&mut self, rules: &Rules, step: Step) -> Option<()> {
        let can = |it: bool| it.then_some(());
        match step {
            Step::Seconds => self.pass(Leap::Seconds),
            Step::Hours => {
                can(self.is_quiet() || rules.has(Flaw::FrozenHolderSends))?;
                self.pass(Leap::Hours);
            }
            Step::Expires | Step::Freezes => {
                can(self.task.lease.is_some() && !self.has_expired())?;
                let is_lived = (0..2).any(|who| self.is_holder(rules, who) && self.is_current(who));
                can(is_lived == (step == Step::Freezes))?;
                self.expire(rules);
            }
            Step::Arrives(dispatch) => self.arrive(dispatch),
            Step::IsLost(dispatch) => self.take_post(dispatch)?,
            Step::Begins => can(self.server.begin())?,
            Step::Ends(end) => can(self.server.end(end))?,
            Step::Fails => can(self.server.end(End::Failed))?,
            Step::Records => can(self.server.record())?,
            Step::IsInterrupted => can(self.server.interrupt(None))?,
            Step::Restarts => can(self.server.restart())?,
            Step::Evicts => can(self.server.evict())?,
            Step::Promotes => self.write(rules, None, Change::Promote).ok()?,
            Step::Cancels => {
                can(!self.task.fulfils(&Change::Cancel))?;
                self.write(rules, None, Change::Cancel).ok()?;
            }
            Step::AsksAgain => self.write(rules, None, Change::Reopen { ordering: Ordering::Aged }).ok()?,
            Step::SweepLooks => {
                can(self.seen.is_none() && self.has_expired())?;
                self.seen = Some(self.task.clone());
            }
            Step::SweepWrites => self.sweep_blindly(rules)?,
            Step::Claims(who) => {
                can(self.task.state == TaskState::Pending && self.worker(who).fence().is_none())?;
                self.take(rules, who, self.claim(rules, who), Origin::Claimed);
            }
            Step::Adopts(who) => {
                can(self.has_expired() && !rules.has(Flaw::StaleSweep))?;
                self.take_abandoned(rules, who, Origin::Expired)?;
            }
            Step::TakesOver(who) => {
                can(self.is_holder(rules, who) && self.worker(who).fence().is_none())?;
                self.take_abandoned(rules, who, Origin::Resumed)?;
            }
            Step::Acts(who) => self.act(rules, who)?,
            Step::Sends(who) => self.send(who)?,
            Step::Answered(who) => self.answer(rules, who)?,
            Step::TimesOut(who) | Step::AnswerIsLost(who) => {
                let dispatch = self.sent(who)?;
                let is_lost = !self.post.contains(&dispatch) && !self.server.knows(dispatch);
                can(is_lost == matches!(step, Step::TimesOut(_)))?;
                if rules.has(Flaw::BlindRepost) {
                    self.worker_mut(who).post = Some(Post { dispatch, sent: false });
                } else {
                    self.submitted(rules, who, Err(SubmitError::Unknown("no answer".to_owned())));
                }
            }
            Step::CannotSend(who) => {
                self.worker(who).unsent()?;
                self.submitted(rules, who, Err(SubmitError::NotSent("no connection".to_owned())));
            }
            Step::IsRefused(who) => {
                self.take_post(self.sent(who)?)?;
                let message = "no".to_owned();
                let refusal = SubmitError::Refused { message, node_id: None, class_type: None, node_errors: None };
                self.submitted(rules, who, Err(refusal));
            }
            Step::Stumbles(who) => {
                let dispatch = self.sent(who)?;
                // It may have taken it before it stumbled.
                can(self.take_post(dispatch).is_some() || self.server.took(dispatch))?;
                self.submitted(rules, who, Err(SubmitError::Failed("500".to_owned())));
            }
            Step::Concludes(who) => self.conclude(rules, who)?,
            Step::Asks(who) => self.ask(rules, who)?,
            Step::HearsRunning(who) | Step::HearsEnding(who) | Step::HearsEnded(who) => self.hear(rules, who, step)?,
            Step::HearsCancel(who) => {
                can(self.task.is_cancelling() && self.worker(who).fence() == Some(self.task.fence))?;
                let worker = self.worker_mut(who);
                if let Some(flight) = &mut worker.flight {
                    flight.request_stop(Stop::Client, NOW);
                } else {
                    can(worker.uploading.is_some())?;
                    self.settle(who, Change::Release(Release::Cancelled));
                }
            }
            Step::Writes(who, write) => {
                let (fence, change) = self.worker_mut(who).writes.remove(write);
                // Refused evidence is no loss: its writer has lost the task, or its end is recorded.
                let _ = self.write(rules, Some(fence), change);
            }
            Step::Stores(who) => {
                can(self.worker(who).uploading.is_some())?;
                self.settle(who, Change::Complete { artifacts: Vec::new() });
            }
            Step::FilesAreGone(who) => {
                can(self.worker(who).uploading.is_some())?;
                let error = TaskError::new(ErrorCode::OutputMissing, "gone");
                self.settle(who, Change::Retry { error, delay: std::time::Duration::ZERO });
            }
            Step::Settles(who) => {
                let ending = self.worker_mut(who).settling.take()?;
                self.record_end(rules, &ending);
            }
            Step::SettlesUnheard(who) => {
                let ending = self.worker(who).settling.clone()?;
                self.record_end(rules, &ending);
            }
            Step::LearnsLoss(who) => {
                let worker = self.worker(who);
                can(worker.settling.is_none() && worker.fence().is_some() && !self.is_current(who))?;
                self.drop_work(who);
            }
            Step::Crashes(who) => {
                can(self.worker(who).fence().is_some())?;
                *self.worker_mut(who) = Worker::default();
            }
            Step::SessionDies(who) => {
                can(self.worker(who).flight.is_some() && self.is_current(who))?;
                // Its POST dies with it, before or after it was sent; so does evidence it was recording.
                *self.worker_mut(who) = Worker::default();
                self.begin(rules, who, Origin::Resumed);
            }
            Step::Disconnects(who) => {
                let flight = self.worker_mut(who).flight.as_mut()?;
                flight.on_reconnected(NOW);
                if flight.is_unsent() {
                    self.settle(who, World::release());
                }
            }
            Step::HandsOff(who) => {
                can(self.is_current(who) && self.worker(who).settling.is_none())?;
                let fence = self.worker(who).fence();
                if rules.has(Flaw::DrainResets) {
                    self.reset(false);
                } else {
                    self.write(rules, fence, Change::HandOff).ok()?;
                }
            }
            Step::Recalled(who) => {
                let flight = self.worker_mut(who).flight.as_mut().filter(|flight| flight.is_prepared())?;
                flight.request_stop(Stop::Recall, NOW);
            }
            Step::GivesUp(who) => match self.worker(who).flight.as_ref()?.give_up()? {
                Act::Settle { change, .. } => self.settle(who, change),
                _ => return None,
            },
        }
        Some(())
    }

    fn arrive(&mut self, dispatch: i64) {
        if self.take_post(dispatch).is_some() {
            self.server.arrive(dispatch);
        }
    }

    fn take_post(&mut self, dispatch: i64) -> Option<()> {
        let place = self.post.iter().position(|sent| *sent == dispatch)?;
        self.post.remove(place);
        Some(())
    }

    fn sent(&self, who: usize) -> Option<i64> {
        self.worker(who).post.filter(|post| post.sent).map(|post| post.dispatch)
    }

    fn take_abandoned(&mut self, rules: &Rules, who: usize, origin: Origin) -> Option<()> {
        if !self.task.state.is_held() || self.worker(who).settling.is_some() {
            return None;
        }
        if rules.has(Flaw::ResetToPending) {
            self.reset(true);
        } else {
            self.take(rules, who, self.adoption(rules, who), origin);
        }
        Some(())
    }

    /// What many queues do with abandoned work.
    fn reset(&mut self, fenced: bool) {
        let task = Rc::make_mut(&mut self.task);
        task.fence.0 += i64::from(fenced);
        (task.state, task.lease, task.prompt) = (TaskState::Pending, None, None);
    }

    /// A sweep that read its rows first and now writes them, without looking whether they are still as they were.
    fn sweep_blindly(&mut self, rules: &Rules) -> Option<()> {
        let mut row = Task::clone(&*self.seen.take()?);
        let before = self.task.clone();
        let who = (0..2).find(|who| self.worker(*who).fence().is_none())?;
        row.apply(None, self.adoption(rules, who), NOW).ok()?;
        row.fence = row.fence.max(before.fence);
        self.task = Rc::new(row);
        self.check_write(&before, false);
        self.begin(rules, who, Origin::Expired);
        Some(())
    }

    /// The session looks at its flight and does what that names, as `advance` and `perform` do.
    fn act(&mut self, rules: &Rules, who: usize) -> Option<()> {
        let worker = self.worker_mut(who);
        let flight = worker.flight.as_mut()?;
        let evidence = flight.take_evidence();
        let act = flight.next(NOW, worker.open, &rules.settings);
        if evidence.is_none() && act.is_none() {
            return None;
        }
        let (fence, dispatch) = (flight.task.fence, flight.task.dispatch);
        worker.writes.extend(evidence.map(|prompt| (fence, Change::Accept { prompt })));
        match act {
            None => {}
            Some(Act::Submit) => worker.post = Some(Post { dispatch, sent: false }),
            Some(Act::Look(wanted)) => {
                let first = self.first_read(rules, wanted.dispatch);
                self.worker_mut(who).doing = Doing::Look { began: NOW, first };
            }
            Some(Act::ReadHistory(prompt)) => {
                let dispatch = rules.names.dispatch(&prompt);
                let found = dispatch.and_then(|dispatch| self.server.in_history(dispatch, &rules.names));
                self.worker_mut(who).flight.as_mut()?.on_history(Ok(found), NOW);
            }
            Some(Act::Stop(prompt)) => {
                let next = if rules.generation == Generation::Jobs { Asking::Cancel } else { Asking::Delete };
                worker.doing = Doing::Stop { prompt, next };
            }
            Some(Act::Withdraw(prompt)) => worker.doing = Doing::Stop { prompt, next: Asking::Withdraw },
            Some(Act::Plan(artifacts)) => {
                let task = flight.task.clone();
                self.settle(who, World::release());
                let worker = self.worker_mut(who);
                (worker.settling, worker.uploading) = (None, Some(task));
                worker.writes.push((fence, Change::Plan { artifacts }));
            }
            Some(Act::Settle { change, .. }) => self.settle(who, change),
            // It has no files and never ran out of memory.
            Some(Act::Prepare | Act::MakeRoom) => return None,
        }
        Some(())
    }

    /// A look at the queue; at everything, on servers that can do so; at the history, when the protocol has it wrong.
    fn first_read(&self, rules: &Rules, dispatch: i64) -> Glimpse {
        let queue = || self.server.in_queue(dispatch, &rules.names);
        let history = || self.server.in_history(dispatch, &rules.names).map(Sighting::Ended);
        match rules.generation {
            _ if rules.has(Flaw::HistoryFirst) => history(),
            Generation::Jobs => Some(queue().or_else(history).unwrap_or(Sighting::Absent)),
            Generation::Lists | Generation::OwnIds => queue(),
        }
    }

    fn conclude(&mut self, rules: &Rules, who: usize) -> Option<()> {
        let Doing::Look { began, first } = std::mem::take(&mut self.worker_mut(who).doing) else { return None };
        let dispatch = self.worker(who).flight.as_ref()?.task.dispatch;
        let second = || {
            if rules.has(Flaw::HistoryFirst) {
                self.server.in_queue(dispatch, &rules.names)
            } else {
                self.server.in_history(dispatch, &rules.names).map(Sighting::Ended)
            }
        };
        let sighting = first.or_else(second).unwrap_or(Sighting::Absent);
        let late = rules.has(Flaw::GraceAfterReads) || rules.has(Flaw::GraceAfterOneLook);
        let began = if late { NOW } else { began };
        let flight = self.worker_mut(who).flight.as_mut()?;
        flight.on_looked(Ok(sighting.clone()), began, NOW);
        if (rules.has(Flaw::OneLook) || rules.has(Flaw::GraceAfterOneLook)) && sighting == Sighting::Absent {
            // Long enough after the first to be a second one.
            let later = Timestamp(began.0 + 2_000);
            flight.on_looked(Ok(sighting), later, NOW);
        }
        Some(())
    }

    fn send(&mut self, who: usize) -> Option<()> {
        let dispatch = self.worker(who).unsent()?;
        self.worker_mut(who).post = Some(Post { dispatch, sent: true });
        self.post.push(dispatch);
        self.post.sort_unstable();
        Some(())
    }

    fn answer(&mut self, rules: &Rules, who: usize) -> Option<()> {
        let dispatch = self.sent(who).filter(|dispatch| self.server.took(*dispatch))?;
        let receipt = Receipt { prompt: rules.names.there(dispatch), node_errors: None };
        self.submitted(rules, who, Ok(receipt));
        Some(())
    }

    fn submitted(&mut self, rules: &Rules, who: usize, result: Result<Receipt, SubmitError>) {
        let worker = self.worker_mut(who);
        worker.post = None;
        if let Some(flight) = &mut worker.flight {
            flight.on_submitted(result, NOW, &rules.settings);
        }
    }

    /// One step in asking the server to stop a prompt.
    fn ask(&mut self, rules: &Rules, who: usize) -> Option<()> {
        let Doing::Stop { prompt, next } = self.worker(who).doing.clone() else { return None };
        let dispatch = rules.names.dispatch(&prompt);
        let after = match next {
            Asking::Cancel => {
                self.server.delete(dispatch);
                if dispatch.is_some() {
                    self.server.interrupt(dispatch);
                }
                Asking::Answer
            }
            Asking::Withdraw | Asking::Delete => {
                self.server.delete(dispatch);
                if next == Asking::Withdraw { Asking::Answer } else { Asking::See }
            }
            Asking::See if dispatch.is_some_and(|dispatch| self.server.runs(dispatch)) => Asking::Interrupt,
            Asking::See => Asking::Answer,
            Asking::Interrupt => {
                self.server.interrupt(dispatch.filter(|_| rules.generation != Generation::OwnIds));
                Asking::Answer
            }
            Asking::Answer => {
                let worker = self.worker_mut(who);
                worker.doing = Doing::Nothing;
                let flight = worker.flight.as_mut()?;
                flight.on_stop_asked(true, NOW);
                if rules.has(Flaw::RecallUnseen) {
                    self.settle(who, World::release());
                }
                return Some(());
            }
        };
        self.worker_mut(who).doing = Doing::Stop { prompt, next: after };
        Some(())
    }

    /// A frame about its prompt, perhaps an old one.
    fn hear(&mut self, rules: &Rules, who: usize, word: Step) -> Option<()> {
        let dispatch = rules.names.dispatch(&self.worker(who).flight.as_ref()?.prompt())?;
        let was_said = match word {
            Step::HearsRunning(_) => self.server.ran(dispatch),
            Step::HearsEnding(_) => self.server.has_ended(dispatch),
            _ => self.server.has_ended(dispatch) && !self.server.runs(dispatch),
        };
        was_said.then_some(())?;
        let flight = self.worker_mut(who).flight.as_mut()?;
        match word {
            Step::HearsRunning(_) => flight.on_running(NOW),
            _ => flight.on_end_heard(matches!(word, Step::HearsEnded(_)), NOW),
        }
        Some(())
    }
}
