use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};

use anyhow::Result;

/// A small HTTP/1.1 server that answers every request with its name, the request line and the header fields it got.
///
/// Its threads end with the test.
#[derive(Debug)]
pub struct HttpOrigin {
    address: SocketAddr,
}

impl HttpOrigin {
    /// Starts it on a free port of loopback.
    ///
    /// # Errors
    /// When there is none.
    pub fn start(name: &'static str) -> Result<Self> {
        let address = serve(move |stream| answer_requests(name, stream))?;
        Ok(Self { address })
    }

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.address.port()
    }
}

/// A server that sends back what it gets, as some database might.
#[derive(Debug)]
pub struct EchoServer {
    address: SocketAddr,
}

impl EchoServer {
    /// Starts it on a free port of loopback.
    ///
    /// # Errors
    /// When there is none.
    pub fn start() -> Result<Self> {
        let address = serve(|stream| {
            let mut reader = stream.try_clone()?;
            io::copy(&mut reader, &mut &stream).map(drop)
        })?;
        Ok(Self { address })
    }

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.address.port()
    }
}

fn serve(handle: impl Fn(TcpStream) -> io::Result<()> + Clone + Send + 'static) -> Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address = listener.local_addr()?;
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let handle = handle.clone();
            // A client that goes away is no concern of the server.
            std::thread::spawn(move || drop(handle(stream)));
        }
    });
    Ok(address)
}

fn answer_requests(name: &str, stream: TcpStream) -> io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut writer = stream;
    loop {
        let mut head = Vec::new();
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line)? == 0 {
                return Ok(());
            }
            let line = line.trim_end().to_owned();
            if line.is_empty() {
                break;
            }
            head.push(line);
        }
        let length = head.iter().find_map(|line| {
            let (field, value) = line.split_once(':')?;
            field.eq_ignore_ascii_case("content-length").then(|| value.trim().parse().ok()).flatten()
        });
        io::copy(&mut reader.by_ref().take(length.unwrap_or(0)), &mut io::sink())?;
        let body = format!("{name}\n{}\n", head.join("\n"));
        write!(writer, "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len())?;
    }
}
