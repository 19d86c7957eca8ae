//! HttpActor: the HTTP server as an actor.
//!
//! - **Owns** the server's future and its stop signal. The socket is bound outside, so a restart never loses the port.
//! - **Talks** to nobody: handlers hold the [`Bridge`](crate::bridge::Bridge).
//! - **When it dies** open connections are reset, and its successor serves on the same socket.
//! - **Must never** stop serving before the requests in flight are answered, when asked to drain.

use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort};
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::info;

use crate::{
    kit::tasks::{Panicked, Tasks},
    system::System,
};

/// What the HTTP actor hears.
#[derive(Debug)]
pub enum HttpMsg {
    /// The server ended.
    Ended(Result<std::io::Result<()>, Panicked>),
    /// Take no more connections, finish the requests in flight; answered when done.
    Drain { reply: RpcReplyPort<()> },
}

/// The HTTP server's owner.
pub struct HttpActor;

/// Its state.
pub struct State {
    stop: CancellationToken,
    draining: Vec<RpcReplyPort<()>>,
    _server: Tasks,
    /// Connections outlive the server's future: whoever serves them learns of its end by the stop signal.
    _stop_all: DropGuard,
}

impl Actor for HttpActor {
    type Msg = HttpMsg;
    type State = State;
    type Arguments = System;

    async fn pre_start(&self, me: ActorRef<HttpMsg>, system: System) -> Result<State, ActorProcessingErr> {
        let stop = CancellationToken::new();
        let mut server = Tasks::default();
        let (edge, token) = (system.edge.clone(), stop.clone());
        server.run(&me, async move { edge.serve(token).await }, HttpMsg::Ended);
        let _stop_all = stop.clone().drop_guard();
        Ok(State { stop, draining: Vec::new(), _server: server, _stop_all })
    }

    async fn handle(
        &self,
        _: ActorRef<HttpMsg>,
        message: HttpMsg,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            HttpMsg::Drain { reply } => {
                state.draining.push(reply);
                state.stop.cancel();
                Ok(())
            }
            HttpMsg::Ended(outcome) => state.on_ended(outcome),
        }
    }
}

impl State {
    fn on_ended(&mut self, outcome: Result<std::io::Result<()>, Panicked>) -> Result<(), ActorProcessingErr> {
        if self.draining.is_empty() {
            return Err(match outcome {
                Ok(Ok(())) => "the HTTP server ended".into(),
                Ok(Err(error)) => error.into(),
                Err(panicked) => panicked.to_string().into(),
            });
        }
        info!("the HTTP server has stopped");
        for reply in self.draining.drain(..) {
            _ = reply.send(());
        }
        Ok(())
    }
}
