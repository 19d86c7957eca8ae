//! What this process has sent to its servers, and what they said. Outlives the session that sent it.
//!
//! A session that dies in the middle of a POST would leave a question behind that only time answers: the prompt may still be on its way, so
//! that its task waits for the whole grace before it may run elsewhere. A POST therefore runs beside all actors, and the next session waits for
//! the same answer. And what is *not* here was never sent, if this process chose the prompt at all (`Task::is_intended_by`).

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use futures_util::{
    FutureExt,
    future::{BoxFuture, Shared},
};
use tracing::Instrument;

use crate::{
    domain::{id::TaskId, prompt::Receipt, task::Task, time::Timestamp},
    kit::tasks::Panicked,
    ports::comfy::SubmitError,
};

/// How a POST ended.
#[derive(Debug, Clone)]
pub struct Answer {
    /// When it began.
    pub began: Timestamp,
    /// What the server said.
    pub result: Result<Result<Receipt, SubmitError>, Panicked>,
}

/// Waits for the end of a POST. Dropping it stops nothing.
pub type Awaited = Shared<BoxFuture<'static, Answer>>;

struct Post {
    dispatch: i64,
    answer: Awaited,
}

/// The newest POST of each task that this process holds. Clones share it.
#[derive(Clone, Default)]
pub struct Posts(Arc<Mutex<HashMap<TaskId, Post>>>);

impl Posts {
    /// Sends a prompt: `post` runs to its end, whoever dies meanwhile. It bounds its own time.
    pub fn begin<F>(&self, task: &Task, began: Timestamp, post: F) -> Awaited
    where
        F: Future<Output = Result<Receipt, SubmitError>> + Send + 'static,
    {
        #[expect(
            clippy::disallowed_methods,
            reason = "it is meant to outlive its actor, and a panic is part of the answer"
        )]
        let running = tokio::spawn(post.in_current_span());
        let ended = running.map(move |end| Answer { began, result: end.map_err(|_| Panicked) });
        let answer = ended.boxed().shared();
        self.lock().insert(task.id, Post { dispatch: task.dispatch, answer: answer.clone() });
        answer
    }

    /// The POST of a task's newest prompt, if it was begun.
    #[must_use]
    pub fn of(&self, task: &Task) -> Option<Awaited> {
        self.lock().get(&task.id).filter(|post| post.dispatch == task.dispatch).map(|post| post.answer.clone())
    }

    /// The store says that the task is not held by us any more.
    pub fn forget(&self, id: TaskId) {
        self.lock().remove(&id);
    }

    /// The store says that we hold these, and nothing else.
    pub fn keep_only(&self, held: &HashSet<TaskId>) {
        self.lock().retain(|id, _| held.contains(id));
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<TaskId, Post>> {
        // Each change is one operation: there is nothing that a panic could leave half-done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;
    use crate::domain::{
        id::PromptId,
        task::tests::{claim, new_task},
    };

    fn sent_task() -> Task {
        let mut task = new_task();
        task.apply(None, claim(), Timestamp(0)).unwrap();
        task
    }

    fn receipt() -> Receipt {
        Receipt { prompt: PromptId::new("p"), node_errors: None }
    }

    #[tokio::test]
    async fn a_post_outlives_who_began_it_and_everybody_hears_its_end() {
        let (posts, task) = (Posts::default(), sent_task());
        let (answer, answered) = oneshot::channel();
        drop(posts.begin(&task, Timestamp(7), async move { answered.await.unwrap() }));
        let awaited = posts.of(&task).expect("it was begun");
        answer.send(Ok(receipt())).expect("it still runs");
        for waiting in [awaited.clone(), awaited] {
            let Answer { began, result } = waiting.await;
            assert_eq!((began, result.unwrap()), (Timestamp(7), Ok(receipt())));
        }
    }

    #[tokio::test]
    async fn only_the_newest_prompt_counts_and_only_while_the_task_is_held() {
        let (posts, mut task) = (Posts::default(), sent_task());
        assert!(posts.of(&task).is_none(), "never sent");
        let panicked = posts.begin(&task, Timestamp(0), async { panic!("the adapter is broken") });
        assert_eq!(panicked.await.result, Err(Panicked));
        posts.keep_only(&HashSet::from([task.id]));
        assert!(posts.of(&task).is_some());
        task.dispatch += 1;
        assert!(posts.of(&task).is_none(), "that was another prompt");
        task.dispatch -= 1;
        posts.keep_only(&HashSet::new());
        assert!(posts.of(&task).is_none());
    }
}
