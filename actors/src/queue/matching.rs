//! Which backend gets the next task, and when a prepared one is better off elsewhere.

use crate::domain::{id::BackendId, lane::Lanes};

/// A backend as the matching sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Which.
    pub backend: BackendId,
    /// It can take prompts now, and may.
    pub online: bool,
    /// Tasks there: the one that runs, those prepared, and those being claimed for it.
    pub occupied: usize,
    /// What it can serve.
    pub lanes: Lanes,
    /// The lanes of the tasks there.
    pub tasks: Vec<i64>,
    /// How many may wait there behind the one that runs.
    pub ahead: usize,
}

/// The places for the next tasks, best first: every idle backend before anything is prepared ahead of its turn, because what sits
/// in a server's own queue escapes our order.
#[must_use]
pub fn free_places(places: &[Place]) -> Vec<BackendId> {
    let deepest = places.iter().map(|place| place.ahead).max().unwrap_or(0);
    (0..=deepest)
        .flat_map(|depth| {
            places
                .iter()
                .filter(move |place| place.online && place.occupied <= depth && depth <= place.ahead)
                .map(|place| place.backend.clone())
        })
        .collect()
}

/// The backend that should give back a prepared task, because another has nothing to do and nothing else waits: the fullest one that
/// has a task the other can run. With it, what the other can run.
#[must_use]
pub fn to_recall(places: &[Place]) -> Option<(BackendId, Lanes)> {
    places.iter().filter(|place| place.online && place.occupied == 0).find_map(|idle| {
        let has_one = |place: &&Place| place.occupied >= 2 && place.tasks.iter().any(|lane| idle.lanes.contains(*lane));
        let fullest = places.iter().filter(has_one).max_by_key(|place| place.occupied)?;
        Some((fullest.backend.clone(), idle.lanes.clone()))
    })
}

/// The backends that have more tasks waiting than they should, once for each: they turned out slower than they were.
#[must_use]
pub fn surplus(places: &[Place]) -> Vec<BackendId> {
    let too_many = |place: &Place| place.occupied.saturating_sub(1 + place.ahead);
    places.iter().flat_map(|place| std::iter::repeat_n(place.backend.clone(), too_many(place))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(name: &str, online: bool, occupied: usize) -> Place {
        let (backend, lanes, tasks) = (BackendId::new(name), Lanes::only([0]), vec![0; occupied]);
        Place { backend, online, occupied, lanes, tasks, ahead: 1 }
    }

    fn names(places: Vec<BackendId>) -> Vec<String> {
        places.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn idle_backends_come_before_preparing() {
        let places = [place("busy", true, 1), place("idle", true, 0), place("off", false, 0), place("full", true, 2)];
        assert_eq!(names(free_places(&places)), ["idle", "busy", "idle"]);
        let strict = places.map(|place| Place { ahead: 0, ..place });
        assert_eq!(names(free_places(&strict)), ["idle"]);
        let fast = Place { ahead: 2, ..place("fast", true, 0) };
        assert_eq!(names(free_places(&[fast, place("busy", true, 1)])), ["fast", "fast", "busy", "fast"]);
    }

    #[test]
    fn what_a_slow_backend_was_sent_too_early_is_surplus() {
        assert_eq!(names(surplus(&[place("a", true, 4), place("b", true, 2)])), ["a", "a"]);
    }

    #[test]
    fn only_a_waiting_prompt_is_recalled_and_only_for_an_idle_backend() {
        let recalled = |places: &[Place]| to_recall(places).map(|(backend, _)| backend.to_string());
        assert_eq!(recalled(&[place("a", true, 2), place("b", true, 0)]), Some("a".to_owned()));
        assert_eq!(recalled(&[place("a", true, 1), place("b", true, 0)]), None);
        assert_eq!(recalled(&[place("a", true, 2), place("b", true, 1)]), None);
        assert_eq!(recalled(&[place("a", true, 2), place("b", false, 0)]), None);
    }

    #[test]
    fn what_the_idle_backend_cannot_run_stays_where_it_is() {
        let special = Place { tasks: vec![7, 7], lanes: Lanes::only([0, 7]), ..place("a", true, 2) };
        assert_eq!(to_recall(&[special.clone(), place("b", true, 0)]), None);
        let mixed = Place { tasks: vec![7, 0], ..special };
        let recalled = to_recall(&[mixed, place("b", true, 0)]);
        assert_eq!(recalled, Some((BackendId::new("a"), Lanes::only([0]))));
    }
}
