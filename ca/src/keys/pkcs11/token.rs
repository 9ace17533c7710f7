//! A token and its sessions: opened when needed, opened anew when they fail.

use std::{
    path::Path,
    sync::{Arc, Mutex, PoisonError, RwLock},
};

use cryptoki::{
    context::{CInitializeArgs, CInitializeFlags, Function, Pkcs11},
    error::{Error, RvError},
    session::{Session, UserType},
    slot::Slot,
    types::AuthPin,
};
use thiserror::Error;

use super::Pkcs11Config;
use crate::keys::{KeyError, read_passphrase};

/// A token of a module.
pub(super) struct Token {
    config: Pkcs11Config,
    open: Mutex<Option<Arc<Open>>>,
    /// Read by whoever has a session out: the module is let go of when nobody has, since numbers of sessions are given again.
    out: RwLock<()>,
    /// A PIN that the token has refused: to try it again and again would lock the token.
    refused: Mutex<Option<ring::digest::Digest>>,
}

/// A token that is there.
struct Open {
    module: Pkcs11,
    slot: Slot,
    /// Sessions that nobody uses at the moment.
    idle: Mutex<Vec<Session>>,
}

/// Why the token did not do it.
#[derive(Debug, Error)]
pub(super) enum Fault {
    #[error("the module cannot be loaded; check keys.pkcs11.module")]
    Module(#[source] Error),
    #[error("there is no token of this label; put it in, or check keys.pkcs11.tokenLabel; there are: {0}")]
    NoToken(String),
    #[error(
        "it refuses the PIN in {0}; correct the file: it is not tried again as it is, so that the token is not locked"
    )]
    Pin(String),
    #[error(
        "one try is left until it locks its PIN, and that one is not made here: check the PIN in {0}, and log in once by another program \
         (pkcs11-tool --login), which sets the count back"
    )]
    LastTry(String),
    #[error(transparent)]
    PinFile(Box<KeyError>),
    #[error("there is no key {name:?} in it any more; restore the token from its backup")]
    NoKey { name: String },
    #[error("it gave {0}")]
    Answer(&'static str),
    #[error("it says")]
    Token(#[from] Error),
}

impl Token {
    pub(super) fn new(config: Pkcs11Config) -> Self {
        Self { config, open: Mutex::new(None), out: RwLock::new(()), refused: Mutex::new(None) }
    }

    pub(super) fn label(&self) -> &str {
        &self.config.token_label
    }

    pub(super) fn module(&self) -> &Path {
        self.config.module()
    }

    /// Does something in a session; when that fails for the token's sake, once more on a token that is opened anew.
    pub(super) fn with<T>(&self, act: impl Fn(&Session) -> Result<T, Fault>) -> Result<T, Fault> {
        match self.with_once(&act) {
            Err(fault) if fault.is_of_the_token() || fault.is_of_the_session() => self.with_once(act),
            outcome => outcome,
        }
    }

    /// The same, and never twice: for what must not be done twice.
    pub(super) fn with_once<T>(&self, act: impl Fn(&Session) -> Result<T, Fault>) -> Result<T, Fault> {
        let out = self.out.read().unwrap_or_else(PoisonError::into_inner);
        let open = self.opened()?;
        // A session that failed is not used again.
        let outcome = self.session(&open).and_then(|session| {
            let outcome = act(&session)?;
            open.idle.lock().unwrap_or_else(PoisonError::into_inner).push(session);
            Ok(outcome)
        });
        drop(out);
        match &outcome {
            Err(fault) if fault.is_of_the_token() => self.close(&open),
            Err(fault) if fault.is_of_the_session() => {
                open.idle.lock().unwrap_or_else(PoisonError::into_inner).clear();
            }
            _ => {}
        }
        outcome
    }

    fn session(&self, open: &Open) -> Result<Session, Fault> {
        let idle = open.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        match idle {
            Some(session) => Ok(session),
            None => {
                let session = open.module.open_rw_session(open.slot)?;
                self.log_in(open, &session)?;
                Ok(session)
            }
        }
    }

    fn opened(&self) -> Result<Arc<Open>, Fault> {
        let mut held = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(open) = held.as_ref() {
            return Ok(Arc::clone(open));
        }
        let module = Pkcs11::new(&self.config.module).map_err(Fault::Module)?;
        match module.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)) {
            // Somebody else in this process uses the same module.
            Ok(()) | Err(Error::Pkcs11(RvError::CryptokiAlreadyInitialized, _)) => {}
            Err(error) => return Err(error.into()),
        }
        let slot = self.slot(&module)?;
        let open = Arc::new(Open { module, slot, idle: Mutex::default() });
        *held = Some(Arc::clone(&open));
        Ok(open)
    }

    fn slot(&self, module: &Pkcs11) -> Result<Slot, Fault> {
        let mut others = Vec::new();
        for slot in module.get_slots_with_token()? {
            // Labels are padded with blanks.
            let Ok(info) = module.get_token_info(slot) else { continue };
            if info.label().trim_end() == self.config.token_label {
                return Ok(slot);
            }
            others.push(format!("{:?}", info.label().trim_end()));
        }
        // Looked at afresh the next time, for a token that has come in the meantime.
        finalize(module.clone());
        Err(Fault::NoToken(others.join(", ")))
    }

    fn log_in(&self, open: &Open, session: &Session) -> Result<(), Fault> {
        let pin = read_passphrase(&self.config.pin_file).map_err(|error| Fault::PinFile(Box::new(error)))?;
        let digest = ring::digest::digest(&ring::digest::SHA256, &pin);
        let file = || self.config.pin_file.display().to_string();
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        if refused.as_ref().is_some_and(|refused| refused.as_ref() == digest.as_ref()) {
            return Err(Fault::Pin(file()));
        }
        // Whoever starts this program again and again, with a PIN that is wrong, is not to lock the token.
        if open.module.get_token_info(open.slot)?.user_pin_final_try() {
            return Err(Fault::LastTry(file()));
        }
        let text = String::from_utf8_lossy(&pin).into_owned();
        match session.login(UserType::User, Some(&AuthPin::new(text.into()))) {
            // A login is of the process, and each session has it.
            Ok(()) | Err(Error::Pkcs11(RvError::UserAlreadyLoggedIn, _)) => {
                *refused = None;
                Ok(())
            }
            Err(Error::Pkcs11(RvError::PinIncorrect | RvError::PinInvalid | RvError::PinLenRange, Function::Login)) => {
                *refused = Some(digest);
                Err(Fault::Pin(file()))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Lets go of everything once nobody has a session out, so that the next call begins anew; unless somebody has begun already.
    fn close(&self, failed: &Arc<Open>) {
        let _alone = self.out.write().unwrap_or_else(PoisonError::into_inner);
        let mut held = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if held.as_ref().is_some_and(|open| Arc::ptr_eq(open, failed)) {
            *held = None;
            failed.idle.lock().unwrap_or_else(PoisonError::into_inner).clear();
            finalize(failed.module.clone());
        }
    }
}

fn finalize(module: Pkcs11) {
    if let Err(error) = module.finalize() {
        tracing::debug!(%error, "a PKCS#11 module was not closed");
    }
}

impl Fault {
    /// Whether a token that is opened anew may do it.
    fn is_of_the_token(&self) -> bool {
        let Self::Token(Error::Pkcs11(told, _)) = self else { return matches!(self, Self::NoToken(_)) };
        matches!(
            told,
            RvError::DeviceError
                | RvError::FunctionFailed
                | RvError::DeviceMemory
                | RvError::DeviceRemoved
                | RvError::TokenNotPresent
                | RvError::TokenNotRecognized
                | RvError::SlotIdInvalid
                | RvError::SessionClosed
                | RvError::SessionHandleInvalid
                | RvError::UserNotLoggedIn
                | RvError::CryptokiNotInitialized
                | RvError::GeneralError
        )
    }

    /// Whether another session may do it: this one may have been opened before the key was there.
    fn is_of_the_session(&self) -> bool {
        matches!(self, Self::NoKey { .. })
    }
}
