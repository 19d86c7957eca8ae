//! How fast a backend works off its prompts, and how many are sent ahead of their turn because of that. Pure.
//!
//! One prompt that waits in the server's own queue hides the way from us to it and back, as long as a run takes longer than that way: a
//! claim, its commit, a POST. A server that is faster would stand idle in between, so it gets more of them. What is sent ahead escapes
//! our order, so that is done only while the server proves to be that fast, and taken back when it stops (decision 027).

use std::time::Duration;

use tokio::time::Instant;

/// The way from a free place to a prompt in it, with room to spare: a few times what it takes on a quiet machine.
const WAY: Duration = Duration::from_millis(4);
/// Prompts ahead at most: more would hide nothing more.
const MOST: usize = 4;
/// The part a newer time has in the average.
const WEIGHT: u32 = 4;

/// What is known of one backend.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Pace {
    /// When the prompt ended after which it went on with the next.
    since: Option<Instant>,
    /// From one end to the next, lately.
    usual: Option<Duration>,
}

impl Pace {
    /// A prompt ended. `goes_on`: the server has another.
    pub(super) fn ran(&mut self, goes_on: bool, now: Instant) {
        if let Some(since) = self.since {
            let took = now.duration_since(since);
            self.usual = Some(self.usual.map_or(took, |usual| (usual * (WEIGHT - 1) + took) / WEIGHT));
        }
        self.since = goes_on.then_some(now);
    }

    /// How many prompts may wait there behind the one that runs, when it is `setting` for a server of which nothing is known.
    pub(super) fn ahead(&self, setting: usize, now: Instant) -> usize {
        let lingers = self.since.is_some_and(|since| now.duration_since(since) > WAY);
        let Some(usual) = self.usual.filter(|_| setting > 0 && !lingers) else { return setting };
        let hides_the_way = WAY.as_micros() / usual.as_micros().max(1);
        usize::try_from(hides_the_way).unwrap_or(MOST).min(MOST).max(setting)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is sent ahead after so many ends, that far apart.
    fn ahead(setting: usize, every: Duration, ends: u32) -> usize {
        let (mut pace, start) = (Pace::default(), Instant::now());
        (0..ends).for_each(|end| pace.ran(true, start + every * end));
        pace.ahead(setting, start + every * ends.saturating_sub(1))
    }

    #[test]
    fn only_a_fast_server_gets_more() {
        let ms = Duration::from_millis;
        assert_eq!(ahead(1, ms(1), 0), 1);
        assert_eq!(ahead(1, ms(1), 1), 1, "one end says nothing");
        assert_eq!(ahead(1, ms(1), 2), 4);
        assert_eq!(ahead(1, ms(2), 9), 2);
        assert_eq!(ahead(1, ms(10), 9), 1);
        assert_eq!(ahead(1, Duration::ZERO, 9), MOST);
        assert_eq!(ahead(6, ms(1), 9), 6, "who wants more gets more");
        assert_eq!(ahead(0, ms(1), 9), 0, "strict is strict");
    }

    #[test]
    fn one_slow_run_ends_it() {
        let (mut pace, start) = (Pace::default(), Instant::now());
        let at = |ms| start + Duration::from_millis(ms);
        (0..9).for_each(|end| pace.ran(true, at(end)));
        assert_eq!(pace.ahead(1, at(12)), 4);
        assert_eq!(pace.ahead(1, at(13)), 1, "the one that runs takes longer");
        pace.ran(true, at(108));
        assert_eq!(pace.ahead(1, at(108)), 1);
    }

    #[test]
    fn time_without_a_prompt_is_not_counted() {
        let (mut pace, start) = (Pace::default(), Instant::now());
        let at = |ms| start + Duration::from_millis(ms);
        pace.ran(true, at(0));
        pace.ran(false, at(1));
        pace.ran(true, at(1000));
        assert_eq!(pace.ahead(1, at(1000)), 4);
    }
}
