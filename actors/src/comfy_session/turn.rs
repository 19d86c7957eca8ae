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
