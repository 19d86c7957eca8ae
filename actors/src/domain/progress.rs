//! How far a running task is: the newest picture only, never stored.

use serde::Serialize;

/// What a person wants to see while waiting.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
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
}

/// Follows one prompt's frames and turns them into [`Progress`].
#[derive(Debug, Clone, Default)]
pub struct Tracker {
    nodes_total: usize,
    nodes_done: usize,
    current: Option<String>,
    value: f64,
    max: f64,
}

impl Tracker {
    /// For a graph of `nodes_total` nodes.
    #[must_use]
    pub fn new(nodes_total: usize) -> Self {
        Self { nodes_total, ..Self::default() }
    }

    /// Nodes the server took from its cache count as done.
    pub fn cached(&mut self, nodes: usize) {
        self.nodes_done += nodes;
    }

    /// A node began; the one before it is done.
    pub fn node_started(&mut self, node: &str) {
        if self.current.as_deref() == Some(node) {
            return;
        }
        if self.current.replace(node.to_owned()).is_some() {
            self.nodes_done += 1;
        }
        (self.value, self.max) = (0.0, 0.0);
    }

    /// A node told its steps.
    pub fn stepped(&mut self, node: &str, value: f64, max: f64) {
        self.node_started(node);
        (self.value, self.max) = (value, max);
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

    #[test]
    fn grows_over_nodes_and_steps() {
        let mut tracker = Tracker::new(4);
        tracker.cached(1);
        tracker.node_started("3");
        assert_eq!(tracker.progress().percent, 25);
        tracker.stepped("3", 10.0, 20.0);
        assert_eq!(
            tracker.progress(),
            Progress { percent: 37, node: Some("3".into()), step: Some(10), steps: Some(20) }
        );
        tracker.node_started("4");
        assert_eq!(tracker.progress().percent, 50);
        assert_eq!(tracker.progress().steps, None);
    }

    #[test]
    fn nonsense_from_outside_is_harmless() {
        let mut tracker = Tracker::new(0);
        tracker.stepped("1", f64::NAN, f64::INFINITY);
        tracker.cached(99);
        assert!(tracker.progress().percent <= 99);
        tracker.stepped("1", -5.0, 3.0);
        assert_eq!(tracker.progress().step, None);
    }
}
