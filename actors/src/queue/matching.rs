//! Which backend gets the next task, and when a prepared one is better off elsewhere.

use crate::domain::id::BackendId;

/// A backend as the matching sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Which.
    pub backend: BackendId,
    /// It can take prompts now, and may.
    pub online: bool,
    /// Tasks there: the one that runs, those prepared, and those being claimed for it.
    pub occupied: usize,
}

/// The places for the next tasks, best first: every idle backend before anything is prepared ahead of its turn, because what sits
/// in a server's own queue escapes our order.
#[must_use]
pub fn free_places(places: &[Place], prepare_ahead: usize) -> Vec<BackendId> {
    (0..=prepare_ahead)
        .flat_map(|depth| {
            places
                .iter()
                .filter(move |place| place.online && place.occupied <= depth)
                .map(|place| place.backend.clone())
        })
        .collect()
}

/// The backend that should give back a prepared task, because another has nothing to do and nothing else waits: the fullest one.
#[must_use]
pub fn to_recall(places: &[Place]) -> Option<BackendId> {
    places.iter().find(|place| place.online && place.occupied == 0)?;
    let fullest = places.iter().filter(|place| place.occupied >= 2).max_by_key(|place| place.occupied)?;
    Some(fullest.backend.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(name: &str, online: bool, occupied: usize) -> Place {
        Place { backend: BackendId::new(name), online, occupied }
    }

    fn names(places: Vec<BackendId>) -> Vec<String> {
        places.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn idle_backends_come_before_preparing() {
        let places = [place("busy", true, 1), place("idle", true, 0), place("off", false, 0), place("full", true, 2)];
        assert_eq!(names(free_places(&places, 1)), ["idle", "busy", "idle"]);
        assert_eq!(names(free_places(&places, 0)), ["idle"]);
        assert_eq!(names(free_places(&[place("idle", true, 0)], 2)), ["idle", "idle", "idle"]);
    }

    #[test]
    fn only_a_waiting_prompt_is_recalled_and_only_for_an_idle_backend() {
        assert_eq!(to_recall(&[place("a", true, 2), place("b", true, 0)]), Some(BackendId::new("a")));
        assert_eq!(to_recall(&[place("a", true, 1), place("b", true, 0)]), None);
        assert_eq!(to_recall(&[place("a", true, 2), place("b", true, 1)]), None);
        assert_eq!(to_recall(&[place("a", true, 2), place("b", false, 0)]), None);
    }
}
