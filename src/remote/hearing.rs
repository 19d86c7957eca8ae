//! What an API passes on to consumers that wait for it: the newest things that happened, numbered.
//!
//! A consumer says how far it has heard, so that what happens between two of its requests is not missed. Whatever is too old is forgotten
//! without a word: consumers look for themselves each second.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
};

use comfyd_actors::{
    domain::task::TaskState,
    ports::{
        store::{Changed, Hints},
        wire::{Kind, Notice, Wire},
    },
};
use tokio::{
    sync::{broadcast::error::RecvError, watch},
    time::timeout,
};
use uuid::Uuid;

use super::protocol::{Cursor, HEARING, Heard, Posted};

/// What is kept for those who are between two requests: a second of a busy queue.
const KEPT: usize = 1024;
/// Most of it in one answer.
const AT_ONCE: usize = 256;
/// What is longer is not passed on but looked for.
const LONGEST_BODY: usize = 64 << 10;

#[derive(Debug)]
enum Word {
    Changed(Changed),
    Notice(Arc<Notice>),
}

/// What is passed on by one API from one start to the next.
#[derive(Debug)]
pub struct Hearing {
    source: Uuid,
    words: Mutex<VecDeque<(u64, Word)>>,
    newest: watch::Sender<u64>,
}

impl Default for Hearing {
    fn default() -> Self {
        Self { source: Uuid::new_v4(), words: Mutex::default(), newest: watch::Sender::new(0) }
    }
}

impl Hearing {
    /// Listens for ever.
    pub async fn listen(self: Arc<Self>, hints: Arc<dyn Hints>, wire: Arc<dyn Wire>) {
        let (mut changes, mut heard) = (hints.changes(), wire.heard());
        loop {
            let word = tokio::select! {
                changed = changes.recv() => match changed {
                    Ok(changed) if concerns_consumers(&changed) => Word::Changed(changed),
                    Ok(_) | Err(RecvError::Lagged(_)) => continue,
                    Err(RecvError::Closed) => return,
                },
                notice = heard.recv() => match notice {
                    Ok(notice) if is_passed_on(&notice) => Word::Notice(notice),
                    Ok(_) | Err(RecvError::Lagged(_)) => continue,
                    Err(RecvError::Closed) => return,
                },
            };
            self.add(word);
        }
    }

    fn add(&self, word: Word) {
        // Nothing here panics half-way.
        let mut words = self.words.lock().unwrap_or_else(PoisonError::into_inner);
        let number = *self.newest.borrow() + 1;
        if words.len() >= KEPT {
            words.pop_front();
        }
        words.push_back((number, word));
        drop(words);
        self.newest.send_replace(number);
    }

    /// What happened after that, once something did or [`HEARING`] has passed.
    pub async fn after(&self, cursor: Option<Cursor>) -> Heard {
        let mut newest = self.newest.subscribe();
        let Some(after) = cursor.filter(|cursor| cursor.source == self.source) else {
            let number = *newest.borrow();
            return Heard { cursor: self.cursor(number), changes: Vec::new(), notices: Vec::new() };
        };
        // Nothing by then is an answer too.
        let _ = timeout(HEARING, newest.wait_for(|number| *number > after.number)).await;
        let words = self.words.lock().unwrap_or_else(PoisonError::into_inner);
        let mut heard = Heard { cursor: after, changes: Vec::new(), notices: Vec::new() };
        for (number, word) in words.iter().filter(|(number, _)| *number > after.number).take(AT_ONCE) {
            heard.cursor.number = *number;
            match word {
                Word::Changed(changed) => heard.changes.push(*changed),
                Word::Notice(notice) => heard.notices.push(Posted::of(notice)),
            }
        }
        heard
    }

    fn cursor(&self, number: u64) -> Cursor {
        Cursor { source: self.source, number }
    }
}

fn concerns_consumers(changed: &Changed) -> bool {
    changed.state == TaskState::Pending || changed.cancelling && changed.state.is_held() || changed.frees_room()
}

fn is_passed_on(notice: &Notice) -> bool {
    matches!(notice.kind, Kind::Consumer | Kind::Watched | Kind::Pause) && notice.body.len() <= LONGEST_BODY
}

#[cfg(test)]
mod tests {
    use super::*;
    use comfyd_actors::domain::{id::TaskId, order::Priority};

    fn changed() -> Changed {
        Changed {
            id: TaskId::new(),
            was: None,
            state: TaskState::Pending,
            priority: Priority::default(),
            cancelling: false,
            hooked: false,
            of_tenant: false,
            here: true,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_missed_between_two_questions() {
        let hearing = Hearing::default();
        hearing.add(Word::Changed(changed()));
        let begin = hearing.after(None).await;
        assert!(begin.changes.is_empty(), "that was before");
        let word = changed();
        hearing.add(Word::Changed(word));
        let heard = hearing.after(Some(begin.cursor)).await;
        assert_eq!(heard.changes, [word]);
        let (later, ()) = tokio::join!(hearing.after(Some(heard.cursor)), async {
            hearing.add(Word::Changed(changed()));
        });
        assert_eq!(later.changes.len(), 1);
        assert!(hearing.after(Some(later.cursor)).await.changes.is_empty(), "its time is over");
        let of_another = Cursor { source: Uuid::new_v4(), number: 0 };
        assert_eq!(hearing.after(Some(of_another)).await.cursor, later.cursor, "it begins anew");
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_old_is_forgotten() {
        let hearing = Hearing::default();
        let begin = hearing.after(None).await.cursor;
        (0..2 * KEPT).for_each(|_| hearing.add(Word::Changed(changed())));
        let (mut cursor, mut told) = (begin, 0);
        while cursor.number < 2 * KEPT as u64 {
            let heard = hearing.after(Some(cursor)).await;
            assert!(heard.changes.len() <= AT_ONCE);
            told += heard.changes.len();
            cursor = heard.cursor;
        }
        assert_eq!(told, KEPT);
    }
}
