use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;

use anyhow::{Context, Result, ensure};

use crate::DEADLINE;

/// A TCP connection through a proxy, to a server that says everything back.
#[derive(Debug)]
pub struct Tunnel(TcpStream);

impl Tunnel {
    /// Opens one by CONNECT: `proxy` is `address:port`, `authority` the service and its port.
    ///
    /// # Errors
    /// When the proxy does not let it through.
    pub fn open(proxy: &str, authority: &str) -> Result<Self> {
        let mut stream = TcpStream::connect(proxy).context("cannot reach the proxy")?;
        stream.set_read_timeout(Some(DEADLINE))?;
        write!(stream, "CONNECT {authority} HTTP/1.1\r\nhost: {authority}\r\n\r\n")?;
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).context("no whole answer to CONNECT")?;
            head.extend(byte);
        }
        ensure!(head.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&head));
        Ok(Self(stream))
    }

    /// Says something, and hears it back.
    ///
    /// # Errors
    /// When the connection has ended.
    pub fn echo(&mut self) -> Result<()> {
        self.0.write_all(b"olive")?;
        let mut back = [0; 5];
        self.0.read_exact(&mut back)?;
        ensure!(&back == b"olive", "{back:?} came back");
        Ok(())
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When it does not end.
    pub fn closed(&mut self) -> Result<()> {
        match self.0.read(&mut [0; 1]) {
            Ok(0) => Ok(()),
            Ok(_) => anyhow::bail!("something came that nobody has said"),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => Ok(()),
            Err(error) => Err(error).context("the connection goes on"),
        }
    }
}
