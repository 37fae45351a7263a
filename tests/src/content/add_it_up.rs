//! The UDP application of the patent's appendices: it answers each number with its negative, and the third with the sum of all three as well.

use std::{collections::HashMap, net::SocketAddr, sync::Arc};

use tokio::{net::UdpSocket, sync::Mutex, task::JoinSet};

/// A running server; dropping it ends it.
#[derive(Debug)]
pub struct AddItUp {
    address: SocketAddr,
    clients: Arc<Mutex<Vec<SocketAddr>>>,
    _task: JoinSet<()>,
}

impl AddItUp {
    /// Serves on `socket`.
    ///
    /// # Errors
    /// If the socket is not bound.
    pub fn start(socket: UdpSocket) -> std::io::Result<Self> {
        let address = socket.local_addr()?;
        let clients: Arc<Mutex<Vec<SocketAddr>>> = Arc::default();
        let mut task = JoinSet::new();
        task.spawn(serve(socket, Arc::clone(&clients)));
        Ok(Self { address, clients, _task: task })
    }

    /// Where it is.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where each number came from.
    pub async fn clients(&self) -> Vec<SocketAddr> {
        self.clients.lock().await.clone()
    }
}

async fn serve(socket: UdpSocket, clients: Arc<Mutex<Vec<SocketAddr>>>) {
    let mut numbers_by_client: HashMap<SocketAddr, Vec<i64>> = HashMap::new();
    let mut datagram = [0; 64];
    while let Ok((len, client)) = socket.recv_from(&mut datagram).await {
        let Some(number) = std::str::from_utf8(&datagram[..len]).ok().and_then(|text| text.trim().parse::<i64>().ok()) else { continue };
        clients.lock().await.push(client);
        let _ = socket.send_to((-number).to_string().as_bytes(), client).await;
        let numbers = numbers_by_client.entry(client).or_default();
        numbers.push(number);
        if numbers.len() == 3 {
            let sum: i64 = std::mem::take(numbers).iter().sum();
            let _ = socket.send_to(sum.to_string().as_bytes(), client).await;
        }
    }
}
