//! A line to the database that breaks at the worst moment: during a COMMIT.

use std::{net::SocketAddr, sync::Arc};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{Mutex, Notify},
    task::JoinHandle,
};

/// How it ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// The server never gets the COMMIT.
    Before,
    /// The server commits, and nobody hears of it.
    After,
    /// The client is gone, and the server gets the COMMIT when it is let go.
    Late,
}

/// The line. It breaks once, at the next COMMIT after it was armed.
pub struct Ambush {
    pub address: SocketAddr,
    shared: Arc<Shared>,
    _listening: JoinHandle<()>,
}

#[derive(Default)]
struct Shared {
    armed: Mutex<Option<Cut>>,
    sprung: Notify,
    let_go: Notify,
}

/// A query without parameters, as the protocol has it: a letter, a length, a text that ends with zero.
const COMMIT: &[u8] = b"Q\0\0\0\x0bCOMMIT\0";

impl Ambush {
    pub async fn lay(server: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared::default());
        let armed = Arc::clone(&shared);
        let listening = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let server = TcpStream::connect(("127.0.0.1", server)).await.unwrap();
                tokio::spawn(carry(client, server, Arc::clone(&armed)));
            }
        });
        Self { address, shared, _listening: listening }
    }

    pub async fn arm(&self, cut: Cut) {
        *self.shared.armed.lock().await = Some(cut);
    }

    /// Waits until the line broke.
    pub async fn sprung(&self) {
        self.shared.sprung.notified().await;
    }

    /// Has the server get what was kept from it.
    pub fn let_go(&self) {
        self.shared.let_go.notify_one();
    }
}

async fn carry(mut client: TcpStream, mut server: TcpStream, shared: Arc<Shared>) {
    let (mut from_client, mut from_server) = (vec![0; 1 << 16], vec![0; 1 << 16]);
    loop {
        tokio::select! {
            read = client.read(&mut from_client) => {
                let Ok(length @ 1..) = read else { return };
                let said = &from_client[..length];
                let cut = if said == COMMIT { shared.armed.lock().await.take() } else { None };
                match cut {
                    None => if server.write_all(said).await.is_err() { return },
                    Some(cut) => {
                        if cut == Cut::After {
                            server.write_all(said).await.unwrap();
                            assert!(server.read(&mut from_server).await.unwrap() > 0);
                        }
                        drop(client);
                        shared.sprung.notify_one();
                        if cut == Cut::Late {
                            shared.let_go.notified().await;
                            server.write_all(COMMIT).await.unwrap();
                            assert!(server.read(&mut from_server).await.unwrap() > 0);
                        }
                        return;
                    }
                }
            }
            read = server.read(&mut from_server) => {
                let Ok(length @ 1..) = read else { return };
                if client.write_all(&from_server[..length]).await.is_err() { return }
            }
        }
    }
}
