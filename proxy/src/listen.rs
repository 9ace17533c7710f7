//! Listening sockets: bound before anything else, one of each for every worker.

use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::sync::Arc;

use alcazar_api::sds::Outbound;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;

use crate::config::Forward;
use crate::outbound::{OwnerCheck, OwnerError};
use crate::worker::Part;

/// The sockets of one worker.
#[derive(Debug)]
pub(crate) struct Sockets {
    inbound: StdListener,
    outbound: Option<StdListener>,
    forwards: Vec<(StdListener, String)>,
    /// Whose the application's connections must be; `None`: anybody's.
    owner: Option<Arc<OwnerCheck>>,
}

/// A port that cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address} for {purpose}")]
pub struct ListenError {
    address: SocketAddr,
    purpose: String,
    source: io::Error,
}

/// Where the listeners are: with the ports that the system chose, where 0 was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Addresses {
    /// The mesh port.
    pub inbound: SocketAddr,
    /// The explicit proxy.
    pub outbound: Option<SocketAddr>,
    /// The listeners that lead to one TCP service each, in the configuration's order.
    pub forwards: Vec<SocketAddr>,
}

impl Addresses {
    /// Where applications call others through the proxy, and whose they must be.
    pub(crate) fn applications(&self, user: Option<u32>) -> Outbound {
        Outbound { listeners: self.outbound.iter().chain(&self.forwards).copied().collect(), user }
    }
}

/// Binds all listeners for so many workers.
///
/// # Errors
/// With the first port that cannot be had, and what it was for.
pub(crate) fn bind(
    workers: usize,
    inbound: SocketAddr,
    outbound: Option<SocketAddr>,
    forwards: &[Forward],
) -> Result<(Vec<Sockets>, Addresses), ListenError> {
    let mut inbounds = bind_one(inbound, workers, || "the mesh (inbound)".to_owned())?;
    let mut outbounds = match outbound {
        Some(outbound) => Some(bind_one(outbound, workers, || "the application's proxy (outbound)".to_owned())?),
        None => None,
    };
    let mut forwarding = Vec::new();
    for forward in forwards {
        let listeners = bind_one(forward.listen, workers, || format!("the forward to {}", forward.to))?;
        forwarding.push((listeners, forward.to.clone()));
    }
    let addresses = Addresses {
        inbound: inbounds.address,
        outbound: outbounds.as_ref().map(|listeners| listeners.address),
        forwards: forwarding.iter().map(|(listeners, _)| listeners.address).collect(),
    };
    let mut sockets = Vec::with_capacity(workers);
    while let Some(inbound) = inbounds.listeners.pop() {
        let outbound = outbounds.as_mut().and_then(|listeners| listeners.listeners.pop());
        let of_worker = forwarding.iter_mut().filter_map(|(l, to)| Some((l.listeners.pop()?, to.clone())));
        sockets.push(Sockets { inbound, outbound, forwards: of_worker.collect(), owner: None });
    }
    Ok((sockets, addresses))
}

impl Sockets {
    /// The same, for the connections of one user alone.
    pub(crate) fn of_user(self, uid: u32) -> Result<Self, OwnerError> {
        Ok(Self { owner: Some(Arc::new(OwnerCheck::open(uid)?)), ..self })
    }

    /// Hands each listener to the runtime that this is called on.
    pub(crate) fn listen(self, mut start: impl FnMut(TcpListener, Part)) -> io::Result<()> {
        start(TcpListener::from_std(self.inbound)?, Part::Inbound);
        if let Some(outbound) = self.outbound {
            start(TcpListener::from_std(outbound)?, Part::Outbound(self.owner.clone()));
        }
        for (listener, to) in self.forwards {
            start(TcpListener::from_std(listener)?, Part::Forward(to, self.owner.clone()));
        }
        Ok(())
    }
}

struct Listeners {
    address: SocketAddr,
    listeners: Vec<StdListener>,
}

fn bind_one(address: SocketAddr, workers: usize, purpose: impl Fn() -> String) -> Result<Listeners, ListenError> {
    let bind = || {
        // Alone first: sockets that share a port would also share it with another process, unnoticed.
        let alone = socket(address, false)?;
        let address = local_address(&alone)?;
        if workers == 1 {
            return Ok(Listeners { address, listeners: vec![alone.into()] });
        }
        drop(alone);
        let shared = (0..workers).map(|_| socket(address, true).map(StdListener::from));
        Ok(Listeners { address, listeners: shared.collect::<io::Result<_>>()? })
    };
    bind().map_err(|source| ListenError { address, purpose: purpose(), source })
}

fn socket(address: SocketAddr, shared: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if shared {
        socket.set_reuse_port(true)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket)
}

fn local_address(socket: &Socket) -> io::Result<SocketAddr> {
    socket.local_addr()?.as_socket().ok_or_else(|| io::ErrorKind::AddrNotAvailable.into())
}

const BACKLOG: i32 = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_port_says_which_and_for_what() {
        let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
        for workers in [1, 2] {
            let (sockets, addresses) = bind(workers, any, Some(any), &[]).unwrap();
            assert_eq!(sockets.len(), workers);
            let error = bind(workers, any, addresses.outbound, &[]).unwrap_err();
            let expected = format!("cannot listen on {} for the application's proxy", addresses.outbound.unwrap());
            assert!(error.to_string().starts_with(&expected), "{error}");
        }
    }
}
