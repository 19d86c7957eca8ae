//! How far a running task is: the newest picture only, never stored.

use std::{collections::HashMap, time::Duration};

use serde::{Deserialize, Serialize};

use super::time::{Timestamp, millis};

/// Nodes whose time is noted for one run: the longest of them, should there be more. Loops make new nodes while they run.
pub const MAX_TIMINGS: usize = 256;
/// A node's id is short. What a server calls one by a longer name is not noted.
const MAX_NODE_ID: usize = 128;

/// What a person wants to see while waiting.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// 0 to 100, by the share of nodes done and the steps of the one running.
    pub percent: u8,
    /// The node that runs now, by its id in the graph.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Steps of that node done.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub step: Option<u32>,
    /// Steps of that node in all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub steps: Option<u32>,
    /// Until it is expected to be done.
    #[serde(skip)]
    pub eta: Option<Duration>,
    /// While it is prepared: bytes of its files that the server has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sent_bytes: Option<u64>,
    /// Bytes of its files that the server gets.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total_bytes: Option<u64>,
}

/// What one node of a run took, by the frames that were heard of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeTiming {
    /// The node, by its id in the graph.
    pub node_id: String,
    /// Its class, when the graph has such a node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class_type: Option<String>,
    /// From its start to the next node's, in milliseconds; of all its turns together.
    pub ms: i64,
    /// It did not run: the server had its result already.
    pub cached: bool,
}

/// Follows one prompt's frames and turns them into [`Progress`], and in the end into a [`NodeTiming`] per node.
#[derive(Debug, Clone, Default)]
pub struct Tracker {
    nodes_total: usize,
    nodes_done: usize,
    current: Option<String>,
    value: f64,
    max: f64,
    since: Timestamp,
    timings: Vec<NodeTiming>,
    places: HashMap<String, usize>,
}

impl Tracker {
    /// For a graph of `nodes_total` nodes.
    #[must_use]
    pub fn new(nodes_total: usize) -> Self {
        Self { nodes_total, ..Self::default() }
    }

    /// Nodes the server took from its cache count as done.
    pub fn cached(&mut self, nodes: Vec<String>) {
        self.nodes_done += nodes.len();
        for node in nodes {
            self.note(node, 0, true);
        }
    }

    /// A node began; the one before it is done.
    pub fn node_started(&mut self, node: &str, now: Timestamp) {
        if self.current.as_deref() == Some(node) {
            return;
        }
        self.ended(now);
        self.current = Some(node.to_owned());
        self.since = now;
        (self.value, self.max) = (0.0, 0.0);
    }

    /// A node told its steps.
    pub fn stepped(&mut self, node: &str, value: f64, max: f64, now: Timestamp) {
        self.node_started(node, now);
        (self.value, self.max) = (value, max);
    }

    /// The node that ran is done, whatever comes next.
    pub fn ended(&mut self, now: Timestamp) {
        if let Some(node) = self.current.take() {
            self.nodes_done += 1;
            self.note(node, millis(now.since(self.since)), false);
        }
    }

    /// What each node took, in the order in which they were first heard of.
    #[must_use]
    pub fn into_timings(mut self, now: Timestamp) -> Vec<NodeTiming> {
        self.ended(now);
        let mut timings = self.timings;
        if timings.len() > MAX_TIMINGS {
            let mut lengths: Vec<i64> = timings.iter().map(|timing| timing.ms).collect();
            lengths.sort_unstable_by(|a, b| b.cmp(a));
            let least = lengths.get(MAX_TIMINGS).copied().unwrap_or_default();
            timings.retain(|timing| timing.ms > least);
        }
        timings
    }

    fn note(&mut self, node_id: String, ms: i64, cached: bool) {
        /// Nodes kept in mind: more than any graph has that fits into a request's limits is a server gone wild.
        const MOST: usize = 16 * MAX_TIMINGS;
        if let Some(timing) = self.places.get(&node_id).and_then(|place| self.timings.get_mut(*place)) {
            timing.ms += ms;
            timing.cached &= cached;
        } else if self.timings.len() < MOST && node_id.len() <= MAX_NODE_ID {
            self.places.insert(node_id.clone(), self.timings.len());
            self.timings.push(NodeTiming { node_id, class_type: None, ms, cached });
        }
    }

    /// The newest picture. Never 100: that is said by the task's end alone.
    #[must_use]
    pub fn progress(&self) -> Progress {
        let within = if self.max > 0.0 { (self.value / self.max).clamp(0.0, 1.0) } else { 0.0 };
        #[expect(clippy::cast_precision_loss, reason = "node counts are far below 2^53")]
        let share = (self.nodes_done as f64 + within) / self.nodes_total.max(1) as f64;
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to 0..=99 just before")]
        let percent = (share * 100.0).clamp(0.0, 99.0) as u8;
        Progress {
            percent,
            node: self.current.clone(),
            step: count(self.value, self.max),
            steps: count(self.max, self.max),
            ..Progress::default()
        }
    }
}

/// A step count as the server sends it: int or float; none when the node reports no steps or nonsense.
fn count(value: f64, max: f64) -> Option<u32> {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "range checked in the same expression")]
    (max > 0.0 && (0.0..=f64::from(u32::MAX)).contains(&value)).then_some(value as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp(0);

    fn at(ms: i64) -> Timestamp {
        Timestamp(ms)
    }

    #[test]
    fn grows_over_nodes_and_steps() {
        let mut tracker = Tracker::new(4);
        tracker.cached(vec!["1".to_owned()]);
        tracker.node_started("3", NOW);
        assert_eq!(tracker.progress().percent, 25);
        tracker.stepped("3", 10.0, 20.0, NOW);
        assert_eq!(
            tracker.progress(),
            Progress { percent: 37, node: Some("3".into()), step: Some(10), steps: Some(20), ..Progress::default() }
        );
        tracker.node_started("4", NOW);
        assert_eq!(tracker.progress().percent, 50);
        assert_eq!(tracker.progress().steps, None);
    }

    #[test]
    fn nonsense_from_outside_is_harmless() {
        let mut tracker = Tracker::new(0);
        tracker.stepped("1", f64::NAN, f64::INFINITY, NOW);
        tracker.cached(vec!["x".repeat(1 << 20); 99]);
        assert!(tracker.progress().percent <= 99);
        tracker.stepped("1", -5.0, 3.0, NOW);
        assert_eq!(tracker.progress().step, None);
        assert_eq!(tracker.into_timings(at(-9)).len(), 1, "a clock that goes back, a name that is none");
    }

    #[test]
    fn each_node_is_given_its_time() {
        let mut tracker = Tracker::new(4);
        tracker.cached(vec!["1".to_owned()]);
        tracker.node_started("3", at(100));
        tracker.stepped("3", 1.0, 2.0, at(150));
        tracker.node_started("4", at(400));
        // A node that a loop comes back to.
        tracker.node_started("3", at(410));
        tracker.ended(at(420));
        tracker.ended(at(999));
        let timings = tracker.into_timings(at(9_999));
        let told: Vec<_> = timings.iter().map(|node| (node.node_id.as_str(), node.ms, node.cached)).collect();
        assert_eq!(told, [("1", 0, true), ("3", 310, false), ("4", 10, false)]);
    }

    #[test]
    fn the_longest_are_kept_of_too_many() {
        let mut tracker = Tracker::new(1);
        let mut now = 0;
        for node in 0..=1_000 {
            tracker.node_started(&format!("n{node}"), at(now));
            now += node;
        }
        let timings = tracker.into_timings(at(now));
        assert!((MAX_TIMINGS - 1..=MAX_TIMINGS).contains(&timings.len()), "{}", timings.len());
        assert_eq!(timings.last().map(|node| node.ms), Some(1_000));
    }
}
