//! Which targets take nothing, and since when. Pure.

use std::{collections::BTreeMap, time::Duration};

use crate::domain::time::Timestamp;

/// While another target stands in, one that is away is tried again this often, by one output.
const PROBE_EVERY: Duration = Duration::from_secs(30);

/// The targets that failed last time.
#[derive(Debug, Default)]
pub struct Outages(BTreeMap<String, Outage>);

#[derive(Debug)]
struct Outage {
    since: Timestamp,
    tried: Timestamp,
}

impl Outages {
    /// For how long a target has been away, for an output that goes there now; nothing when it is this one's turn to try.
    pub fn away(&mut self, target: &str, now: Timestamp) -> Duration {
        let Some(outage) = self.0.get_mut(target) else { return Duration::ZERO };
        if now.since(outage.tried) >= PROBE_EVERY {
            outage.tried = now;
            return Duration::ZERO;
        }
        now.since(outage.since)
    }

    /// It took nothing.
    pub fn failed(&mut self, target: &str, now: Timestamp) {
        let outage = self.0.entry(target.to_owned()).or_insert(Outage { since: now, tried: now });
        outage.tried = now;
    }

    /// It took something.
    pub fn back(&mut self, target: &str) {
        self.0.remove(target);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_output_tries_again_now_and_then_and_the_others_know_how_long() {
        let at = |seconds: i64| Timestamp(seconds * 1_000);
        let mut outages = Outages::default();
        assert_eq!(outages.away("s3", at(0)), Duration::ZERO);
        outages.failed("s3", at(0));
        assert_eq!(outages.away("s3", at(29)), Duration::from_secs(29));
        assert_eq!(outages.away("s3", at(30)), Duration::ZERO, "a probe");
        assert_eq!(outages.away("s3", at(31)), Duration::from_secs(31), "not for everybody");
        assert_eq!(outages.away("r2", at(31)), Duration::ZERO);
        outages.failed("s3", at(32));
        assert_eq!(outages.away("s3", at(61)), Duration::from_secs(61), "the outage began with its first failure");
        outages.back("s3");
        assert_eq!(outages.away("s3", at(62)), Duration::ZERO);
    }
}
