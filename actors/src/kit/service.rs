//! A long-lived future as an actor, so that its panic is a restart and not a silent hole.
//!
//! Owns the future · nobody talks to it · when the future ends or panics the actor fails and its supervisor makes a new one from
//! the same factory · it must never hold what the next incarnation needs: that stays with whoever made the factory.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use ractor::{Actor, ActorProcessingErr, ActorRef};

use super::tasks::{Panicked, Tasks};

/// Makes the future anew for each start.
pub type Factory = Arc<dyn Fn() -> BoxFuture<'static, ()> + Send + Sync>;

/// A factory of what `make` makes.
pub fn factory<F: Future<Output = ()> + Send + 'static>(make: impl Fn() -> F + Send + Sync + 'static) -> Factory {
    Arc::new(move || Box::pin(make()))
}

/// Runs one future.
pub struct ServiceActor;

/// What a [`ServiceActor`] hears.
#[derive(Debug)]
pub enum ServiceMsg {
    /// The future ended, or panicked. It never should.
    Ended(Result<(), Panicked>),
}

impl Actor for ServiceActor {
    type Msg = ServiceMsg;
    type State = Tasks;
    type Arguments = Factory;

    async fn pre_start(&self, me: ActorRef<ServiceMsg>, make: Factory) -> Result<Tasks, ActorProcessingErr> {
        let mut tasks = Tasks::default();
        tasks.run(&me, make(), ServiceMsg::Ended);
        Ok(tasks)
    }

    async fn handle(
        &self,
        _: ActorRef<ServiceMsg>,
        message: ServiceMsg,
        _: &mut Tasks,
    ) -> Result<(), ActorProcessingErr> {
        let ServiceMsg::Ended(outcome) = message;
        Err(match outcome {
            Ok(()) => "the service ended".into(),
            Err(panicked) => panicked.to_string().into(),
        })
    }
}
