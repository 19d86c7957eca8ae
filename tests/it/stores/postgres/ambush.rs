//! A line to the database that breaks at the worst moment: during a COMMIT.

use std::{net::SocketAddr, sync::Arc};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{Mutex, Notify, watch},
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
    /// The client is gone, and the server is busy with the COMMIT.
    Busy,
    /// The server commits, and the line says nothing any more, not even that it is broken.
    Silent,
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
    /// How often all lines went silent so far.
    hushed: watch::Sender<u32>,
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

    /// Has all lines that there are carry nothing any more, and stay open. Later ones are good.
    pub fn hush(&self) {
        self.shared.hushed.send_modify(|times| *times += 1);
    }

    /// Has the server get what was kept from it.
    pub fn let_go(&self) {
        self.shared.let_go.notify_one();
    }
}

async fn carry(mut client: TcpStream, mut server: TcpStream, shared: Arc<Shared>) {
    let (mut from_client, mut from_server) = (vec![0; 1 << 16], vec![0; 1 << 16]);
    let mut hushed = shared.hushed.subscribe();
    loop {
        tokio::select! {
            changed = hushed.changed() => {
                changed.unwrap();
                return std::future::pending().await;
            }
            read = client.read(&mut from_client) => {
                let Ok(length @ 1..) = read else { return };
                let said = &from_client[..length];
                let cut = if said == COMMIT { shared.armed.lock().await.take() } else { None };
                match cut {
                    None => if server.write_all(said).await.is_err() { return },
                    Some(cut) => {
                        if cut == Cut::Busy {
                            server.write_all(said).await.unwrap();
                        }
                        if matches!(cut, Cut::After | Cut::Silent) {
                            server.write_all(said).await.unwrap();
                            assert!(server.read(&mut from_server).await.unwrap() > 0);
                        }
                        if cut == Cut::Silent {
                            shared.sprung.notify_one();
                            return std::future::pending().await;
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
