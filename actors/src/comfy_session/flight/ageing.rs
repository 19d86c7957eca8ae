//! How the model of the protocol sees a flight: with what matters of it, and with time that passes in leaps.
//!
//! Both functions name every field. Whoever adds one says here what it means for the model: without that this does not compile.

use std::hash::{Hash, Hasher};

use super::{Fate, Flight, LOOK_EVERY, Stop};
use crate::{
    domain::{
        id::PromptId,
        prompt::Finished,
        reconcile::{Doubt, PAIR_GAP},
    },
    model::time::{LONG_AGO, Leap, NOW},
};

impl Flight {
    /// Time passes.
    pub(crate) fn age(&mut self, leap: Leap) {
        let Self {
            // Its times are for people. Those that decide anything are given to it.
            task: _,
            options: _,
            frames: _,
            fate,
            files: _,
            room: _,
            verify: _,
            busy: _,
            stop: _,
            stop_sent_at,
            stop_asked_at,
            stop_heard_at,
            // Tasks of the model have no time limit.
            running_since: _,
            end_heard_at,
            // Leads to what the loss of a backend leads to, and much later.
            unread_since: _,
            // Matters to pictures over the socket only.
            over_at: _,
            next_ask,
            asks: _,
            post_failed: _,
            there_since,
            unrecorded: _,
            // The session looks at it, before it asks the flight.
            stretch: _,
            // Read by who stops what is stuck and by who judges the server: neither is in the model.
            stream: _,
            sign_told: _,
        } = self;
        for moment in [stop_sent_at, stop_heard_at].into_iter().flatten() {
            *moment = leap.over_pause(*moment);
        }
        for moment in [stop_asked_at, end_heard_at].into_iter().flatten() {
            *moment = leap.over_patience(*moment);
        }
        *next_ask = leap.over(*next_ask);
        *there_since = leap.over(*there_since);
        if let Fate::Unclear(Doubt { grace_until, absent_since }) = fate {
            *grace_until = leap.over(*grace_until);
            absent_since.iter_mut().for_each(|since| *since = leap.over(*since));
        }
    }

    /// Forgets what makes no difference: how many cheap questions there are between two conclusive ones (one is enough), which of the short
    /// pauses it makes, since when a question is due, and since when its prompt is known to be there, unless a look began before.
    pub(crate) fn simplify(&mut self, is_looking: bool) {
        if self.next_ask <= NOW {
            self.next_ask = NOW;
        } else if self.next_ask < NOW.after(PAIR_GAP) {
            self.next_ask = NOW.after(PAIR_GAP);
        }
        if self.asks % LOOK_EVERY != LOOK_EVERY - 1 {
            self.asks = LOOK_EVERY - 2;
        }
        if !is_looking {
            self.there_since = LONG_AGO;
        }
    }

    /// Whether it still would send its prompt, or take it back from the server's queue.
    pub(crate) fn is_dangerous(&self, open: bool) -> bool {
        open && self.is_unsent() && self.stop.is_none() || self.stop == Some(Stop::Recall)
    }

    /// Everything that what it does next may depend on. `name` gives a prompt's number.
    pub(crate) fn hash_future(&self, name: impl Fn(&PromptId) -> usize, hasher: &mut impl Hasher) {
        let Self {
            task,
            // The model's tasks want nothing special: no pictures over the socket, no files, no memory.
            options: _,
            frames: _,
            files: _,
            room: _,
            fate,
            verify,
            busy,
            stop,
            stop_sent_at,
            stop_asked_at,
            stop_heard_at,
            running_since,
            end_heard_at,
            unread_since: _,
            over_at: _,
            next_ask,
            asks,
            post_failed,
            there_since,
            unrecorded,
            stretch: _,
            stream: _,
            sign_told: _,
        } = self;
        (task.dispatch, task.prompt.as_ref().map(|prompt| (name(&prompt.id), prompt.accepted))).hash(hasher);
        std::mem::discriminant(fate).hash(hasher);
        match fate {
            Fate::Unclear(Doubt { grace_until, absent_since }) => (grace_until, absent_since).hash(hasher),
            Fate::Accepted { running } => running.hash(hasher),
            Fate::Over(Finished { prompt, outcome, outputs: _ }) => {
                (name(prompt), std::mem::discriminant(outcome)).hash(hasher);
            }
            Fate::Gone { was_accepted, was_running } => (was_accepted, was_running).hash(hasher),
            Fate::Unsent | Fate::Sending | Fate::Stale | Fate::Refused(_) => {}
        }
        (verify, busy, stop.as_ref().map(std::mem::discriminant::<Stop>)).hash(hasher);
        (stop_sent_at, stop_asked_at, stop_heard_at, running_since.is_some(), end_heard_at).hash(hasher);
        (next_ask, there_since, asks % LOOK_EVERY, post_failed.is_some(), unrecorded).hash(hasher);
    }
}
