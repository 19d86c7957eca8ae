//! Whose turn it is to be sent: one at a time and in the order of the queue, and what needs a whole server for itself gets it.

use super::Flight;
use crate::domain::id::TaskId;

/// The flight that may be sent now, if any.
///
/// One at a time: the server runs prompts as they arrive, and two that are on their way together may arrive in either order. A task that ran
/// out of memory waits until nothing of ours is on the server, and nothing follows it there until it is over.
pub(super) fn next<'a>(flights: impl Iterator<Item = &'a Flight> + Clone) -> Option<TaskId> {
    // Memory was freed for it, or its POST is under way: nobody comes in between.
    if let Some(going) = flights.clone().find(|flight| flight.is_going()) {
        return Some(going.task.id).filter(|_| going.is_ready());
    }
    let first = flights.clone().filter(|flight| flight.is_ready()).min_by_key(|flight| flight.place())?;
    let mut on_server = flights.filter(|flight| flight.is_on_server());
    let must_wait = if first.runs_alone() { on_server.next().is_some() } else { on_server.any(Flight::runs_alone) };
    (!must_wait).then_some(first.task.id)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{
        comfy_session::flight::Origin,
        domain::{
            options::TaskOptions,
            task::{
                Task,
                tests::{claim, new_task},
            },
            time::Timestamp,
        },
        system::SessionSettings,
    };

    const NOW: Timestamp = Timestamp(9_000);

    fn flight(sort_key: i64, ooms: i32, origin: Origin) -> Flight {
        let mut task = Task { sort_key, ooms, ..new_task() };
        task.apply(None, claim(), NOW).unwrap();
        Flight::new(task, Arc::<TaskOptions>::default(), origin, NOW, &SessionSettings::default())
    }

    fn waiting(sort_key: i64, ooms: i32) -> Flight {
        flight(sort_key, ooms, Origin::Claimed)
    }

    fn there(sort_key: i64, ooms: i32) -> Flight {
        flight(sort_key, ooms, Origin::Resumed)
    }

    /// Whose turn it is, by its key.
    fn turn(flights: &[Flight]) -> Option<i64> {
        let id = next(flights.iter())?;
        flights.iter().find(|flight| flight.task.id == id).map(|flight| flight.task.sort_key)
    }

    #[test]
    fn the_first_in_the_order_is_sent_behind_others() {
        assert_eq!(turn(&[]), None);
        assert_eq!(turn(&[waiting(2, 0), waiting(1, 0), there(0, 0)]), Some(1));
    }

    #[test]
    fn one_is_sent_at_a_time() {
        let mut sending = waiting(5, 0);
        assert!(sending.next(NOW, true, &SessionSettings::default()).is_some());
        assert_eq!(turn(&[sending, waiting(1, 0)]), None);
    }

    #[test]
    fn who_needs_the_server_alone_waits_for_it_and_is_waited_for() {
        assert_eq!(turn(&[waiting(1, 1), there(0, 0)]), None, "something runs there");
        assert_eq!(turn(&[waiting(1, 1), waiting(2, 0)]), Some(1));
        assert_eq!(turn(&[waiting(1, 0), waiting(2, 1), there(0, 0)]), Some(1), "it waits its turn like everybody");
        assert_eq!(turn(&[there(0, 1), waiting(1, 0)]), None, "nothing follows it");
    }

    #[test]
    fn nobody_comes_between_the_room_and_who_it_was_made_for() {
        let mut big = waiting(5, 1);
        assert!(big.next(NOW, true, &SessionSettings::default()).is_some());
        assert_eq!(turn(&[big.clone(), waiting(1, 0)]), None, "memory is being freed");
        big.on_room_made();
        assert_eq!(turn(&[big.clone(), waiting(1, 0)]), Some(5));
        assert!(big.next(NOW, true, &SessionSettings::default()).is_some());
        assert_eq!(turn(&[big, waiting(1, 0)]), None, "it is being sent");
    }
}
