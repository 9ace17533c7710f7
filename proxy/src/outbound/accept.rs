//! Where the application connects: the explicit proxy, and listeners that each lead to one TCP service.

use std::sync::Arc;

use alcazar_service::process::chain;
use tokio::net::TcpListener;

use super::Outbound;
use super::connect::open;
use crate::authority::Authority;
use crate::io::Io;
use crate::life::Life;
use crate::plane::Plane;
use crate::relay::relay;
use crate::serve::serve_http;
use crate::worker::next_connection;

/// Serves the explicit proxy until the shutdown.
pub(crate) async fn accept(listener: TcpListener, plane: Arc<Plane>) {
    let service = Arc::new(Outbound::new(plane.clone()));
    while let Some((stream, _)) = next_connection(&listener, &plane.shutdown).await {
        let (service, serving) = (service.clone(), plane.serving.clone());
        let life = Life::until(plane.shutdown.clone());
        plane.serving.spawn(async move { serve_http(stream, service, life, &serving).await });
    }
}

/// Joins each connection to the service `to` (`host:port`) until the shutdown.
pub(crate) async fn forward_tcp(listener: TcpListener, to: String, plane: Arc<Plane>) {
    while let Some((mut stream, _)) = next_connection(&listener, &plane.shutdown).await {
        let (here, to) = (plane.clone(), to.clone());
        plane.serving.spawn(async move {
            let opened = match Authority::parse(&to) {
                Ok(authority) => open(&here, &authority).await,
                Err(error) => return tracing::error!(to, %error, "a forward leads nowhere"),
            };
            match opened {
                Ok(opened) => {
                    let mut far = opened.stream;
                    match relay(&mut stream, &mut far).await {
                        Ok(relayed) => tracing::debug!(to, ?relayed, "a connection ended"),
                        Err(error) => tracing::debug!(to, %error, "a connection broke"),
                    }
                    drop(opened.in_flight);
                }
                Err(error) => {
                    tracing::warn!(to, error = %chain(&error), "a connection could not be forwarded");
                    stream.abort();
                }
            }
        });
    }
}
