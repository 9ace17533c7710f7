use std::io::Write;
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result};

/// A call by the real curl, with a deadline.
#[derive(Debug, Clone, Default)]
pub struct Curl {
    arguments: Vec<String>,
}

impl Curl {
    /// Adds arguments.
    #[must_use]
    pub fn with(mut self, arguments: &[&str]) -> Self {
        self.arguments.extend(arguments.iter().map(|argument| (*argument).to_owned()));
        self
    }

    /// Through a proxy: `address:port`.
    #[must_use]
    pub fn through(self, proxy: &str) -> Self {
        self.with(&["-x", &format!("http://{proxy}")])
    }

    /// Makes the call.
    ///
    /// # Errors
    /// When curl cannot be started.
    pub fn get(&self, url: &str) -> Result<Answer> {
        let output = Command::new("curl")
            .args(["-sS", "-i", "--max-time", "10", "--noproxy", "", "-w", "\n%{http_code}"])
            .args(&self.arguments)
            .arg(url)
            .stdin(Stdio::null())
            .output()
            .context("cannot start curl")?;
        Ok(Answer::of(&output))
    }
}

/// What curl got.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The HTTP status; 0 when there was no answer.
    pub code: u16,
    /// The head and the body of the answer.
    pub text: String,
    /// curl's own exit status.
    pub exit: Option<i32>,
    /// What curl complained about.
    pub error: String,
}

impl Answer {
    /// What curl has said, whose last line is the HTTP status.
    pub fn of(output: &Output) -> Self {
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let (text, code) = text.rsplit_once('\n').unwrap_or(("", "0"));
        Self {
            code: code.parse().unwrap_or_default(),
            text: text.to_owned(),
            exit: output.status.code(),
            error: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

/// A GET through a proxy (`address:port`).
///
/// # Errors
/// When curl cannot be started.
pub fn curl(proxy: &str, url: &str) -> Result<Answer> {
    Curl::default().through(proxy).get(url)
}

/// What `openssl s_client` says of a server, both outputs together.
///
/// # Errors
/// When it cannot be started.
pub fn openssl_s_client(address: &str, arguments: &[&str]) -> Result<String> {
    let mut child = Command::new("timeout")
        .args(["10", "openssl", "s_client", "-connect", address])
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot start openssl")?;
    if let Some(mut stdin) = child.stdin.take() {
        // A server that refuses may close first.
        drop(stdin.write_all(b"Q\n"));
    }
    let output = child.wait_with_output()?;
    Ok(format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr)))
}
