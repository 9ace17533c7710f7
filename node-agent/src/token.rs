use std::fmt;
use std::path::PathBuf;

use alcazar_identity::Fingerprint;
use zeroize::Zeroizing;

/// A join token: a secret that the CA takes once, and the fingerprint of the root by which the CA is known before
/// anything else is.
///
/// **Shape**: `alcazar-join-v1.<secret, base64url>.<SHA-256 of the root's DER, 64 hexadecimal digits>`.
pub struct JoinToken {
    text: Zeroizing<String>,
    pin: Fingerprint,
}

impl JoinToken {
    /// Reads a token; white space around it, as files have, means nothing.
    ///
    /// # Errors
    /// When it has another shape. The error never quotes the token.
    pub fn parse(text: &str) -> Result<Self, ParseJoinTokenError> {
        let text = text.trim();
        if text.is_empty() {
            return Err(ParseJoinTokenError::Empty);
        }
        let rest = text.strip_prefix(PREFIX).ok_or(ParseJoinTokenError::Prefix)?;
        let (secret, pin) = rest.split_once('.').ok_or(ParseJoinTokenError::NoPin)?;
        let is_secret = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
        if secret.is_empty() || !secret.chars().all(is_secret) {
            return Err(ParseJoinTokenError::Secret);
        }
        if !pin.chars().all(|c| c.is_ascii_hexdigit()) {
            return Err(ParseJoinTokenError::Pin);
        }
        let pin = pin.parse().map_err(|_| ParseJoinTokenError::Pin)?;
        Ok(Self { text: Zeroizing::new(text.to_owned()), pin })
    }

    /// The token as it was handed out, for the CA.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The fingerprint of the root that the CA must prove itself by.
    pub fn pin(&self) -> Fingerprint {
        self.pin
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JoinToken(pin {})", self.pin)
    }
}

/// Why a text is not a join token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ParseJoinTokenError {
    /// Nothing but white space.
    #[error("the join token is empty")]
    Empty,
    /// Another kind of text altogether.
    #[error("a join token starts with \"{PREFIX}\"")]
    Prefix,
    /// It ends before the pin.
    #[error("the join token has no root fingerprint: it may have been cut off")]
    NoPin,
    /// The secret is empty or has characters of another alphabet.
    #[error("the secret of the join token is not base64url")]
    Secret,
    /// The pin is not a SHA-256.
    #[error("the root fingerprint of the join token is not 64 hexadecimal digits")]
    Pin,
}

/// Where the agent finds its join token, read anew at every use: it may have been replaced.
pub(crate) enum TokenSource {
    /// Given with the configuration.
    Given(Zeroizing<String>),
    /// In a file.
    File(PathBuf),
    /// Nowhere: only a saved SVID can prove this node.
    Absent,
}

impl TokenSource {
    pub(crate) async fn read(&self) -> Result<JoinToken, ReadTokenError> {
        match self {
            Self::Given(text) => Ok(JoinToken::parse(text)?),
            Self::File(path) => match tokio::fs::read_to_string(path).await.map(Zeroizing::new) {
                Ok(text) => {
                    JoinToken::parse(&text).map_err(|source| ReadTokenError::InFile { path: path.clone(), source })
                }
                Err(source) => Err(ReadTokenError::Read { path: path.clone(), source }),
            },
            Self::Absent => Err(ReadTokenError::Absent),
        }
    }
}

/// Why there is no join token to use.
#[derive(Debug, thiserror::Error)]
pub enum ReadTokenError {
    /// None is configured.
    #[error("no join token is configured")]
    Absent,
    /// The file cannot be read.
    #[error("cannot read the join token file {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file holds something else.
    #[error("the join token file {} holds no join token", path.display())]
    InFile {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: ParseJoinTokenError,
    },
    /// The configuration holds something else.
    #[error(transparent)]
    Parse(#[from] ParseJoinTokenError),
}

const PREFIX: &str = "alcazar-join-v1.";

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PIN: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn a_token_carries_its_pin() {
        let text = format!("alcazar-join-v1.c2VjcmV0_-.{PIN}");
        let token = JoinToken::parse(&format!("  {text}\n")).unwrap();
        assert_eq!((token.text(), token.pin()), (text.as_str(), Fingerprint::of(b"")));
        assert!(!format!("{token:?}").contains("c2VjcmV0"));
    }

    #[test]
    fn what_is_wrong_with_a_token_is_said_without_quoting_it() {
        let check = |text: &str, expected| assert_eq!(JoinToken::parse(text).unwrap_err(), expected, "{text:?}");
        check(" \n", ParseJoinTokenError::Empty);
        check("hvs.abc", ParseJoinTokenError::Prefix);
        check("alcazar-join-v1.abc", ParseJoinTokenError::NoPin);
        check(&format!("alcazar-join-v1..{PIN}"), ParseJoinTokenError::Secret);
        check(&format!("alcazar-join-v1.a+b.{PIN}"), ParseJoinTokenError::Secret);
        check("alcazar-join-v1.abc.e3b0", ParseJoinTokenError::Pin);
        check(&format!("alcazar-join-v1.abc.{PIN}00"), ParseJoinTokenError::Pin);
        check(&format!("alcazar-join-v1.abc.{}:{}", &PIN[..2], &PIN[2..]), ParseJoinTokenError::Pin);
        check(&format!("alcazar-join-v1.abc.{PIN}.more"), ParseJoinTokenError::Pin);
    }

    proptest! {
        #[test]
        fn any_text_is_a_token_or_is_refused(text in "\\PC{0,120}") {
            if let Ok(token) = JoinToken::parse(&text) {
                prop_assert_eq!(token.text(), text.trim());
            }
        }
    }

    #[tokio::test]
    async fn a_token_file_is_read_at_every_use() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("token");
        let source = TokenSource::File(path.clone());
        assert!(matches!(source.read().await, Err(ReadTokenError::Read { .. })));
        std::fs::write(&path, "nonsense").unwrap();
        assert!(matches!(source.read().await, Err(ReadTokenError::InFile { .. })));
        std::fs::write(&path, format!("alcazar-join-v1.abc.{PIN}\n")).unwrap();
        assert_eq!(source.read().await.unwrap().pin(), Fingerprint::of(b""));
    }
}
