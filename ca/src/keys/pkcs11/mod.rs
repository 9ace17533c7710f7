//! Keys in a PKCS#11 token: made there, used there, never given away.
//!
//! The module is other people's code behind a C interface, and a token may be pulled out: each call gets a session from the pool,
//! and one that fails for the token's sake is tried once more on a token that is opened anew. What then still fails is an error,
//! and the next call begins again: nothing has to be restarted when the token is back.

mod der;
mod token;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use cryptoki::{
    mechanism::Mechanism,
    object::{Attribute, AttributeType, ObjectClass, ObjectHandle},
    session::Session,
};
use ring::digest;
use serde::Deserialize;

use self::token::{Fault, Token};
use super::{KeyAlgorithm, KeyError, KeyLabel, KeyStore};
use crate::signer::{SignError, Signer};

/// A token, in `ca.yaml`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Pkcs11Config {
    /// The module: a shared library of the token's maker, such as `/usr/lib/softhsm/libsofthsm2.so`.
    pub module: PathBuf,
    /// The token's label.
    pub token_label: String,
    /// A file with the PIN of the token's user, such as a systemd credential.
    pub pin_file: PathBuf,
}

/// Keys in a token. Their labels there begin with a prefix, so that several CAs can share one.
pub struct Pkcs11Keys {
    token: Arc<Token>,
    prefix: String,
}

impl Pkcs11Keys {
    /// The keys of a token whose labels begin with `prefix` and a slash. Nothing is opened yet.
    pub fn new(config: Pkcs11Config, prefix: impl Into<String>) -> Self {
        Self { token: Arc::new(Token::new(config)), prefix: prefix.into() }
    }

    fn name(&self, label: &KeyLabel) -> String {
        format!("{}/{label}", self.prefix)
    }

    fn failed(&self, doing: &'static str) -> impl Fn(Fault) -> KeyError {
        let (token, module) = (self.token.label().to_owned(), self.token.module().to_owned());
        move |source| KeyError::Token { doing, token: token.clone(), module: module.clone(), source: Box::new(source) }
    }

    fn place(&self, label: &KeyLabel) -> String {
        format!("{:?} in the PKCS#11 token {}", self.name(label), self.token.label())
    }

    fn signer(&self, label: &KeyLabel, found: Found) -> Arc<dyn Signer> {
        let Found { algorithm, point } = found;
        Arc::new(TokenSigner { token: Arc::clone(&self.token), name: self.name(label), algorithm, point })
    }
}

impl KeyStore for Pkcs11Keys {
    fn generate_with(&self, label: &KeyLabel, algorithm: KeyAlgorithm) -> Result<Arc<dyn Signer>, KeyError> {
        let name = self.name(label);
        let there = self.token.with(|session| Ok(find(session, ObjectClass::PRIVATE_KEY, &name)?.is_some()));
        if there.map_err(self.failed("look for a key"))? {
            return Err(KeyError::Exists { label: label.clone(), place: self.place(label) });
        }
        let found = self.token.with_once(|session| {
            let id = digest::digest(&digest::SHA256, name.as_bytes());
            let id: Vec<u8> = id.as_ref().iter().take(20).copied().collect();
            let common = [Attribute::Token(true), Attribute::Label(name.clone().into()), Attribute::Id(id)];
            let public =
                [Attribute::Private(false), Attribute::Verify(true), Attribute::EcParams(der::curve(algorithm).into())];
            let private = [
                Attribute::Private(true),
                Attribute::Sensitive(true),
                Attribute::Extractable(false),
                Attribute::Sign(true),
            ];
            let (public, private) = ([&common[..], &public[..]].concat(), [&common[..], &private[..]].concat());
            let (public, _) = session.generate_key_pair(&Mechanism::EccKeyPairGen, &public, &private)?;
            read_public(session, public)
        });
        found.map(|found| self.signer(label, found)).map_err(self.failed("make a key"))
    }

    fn open(&self, label: &KeyLabel) -> Result<Arc<dyn Signer>, KeyError> {
        let name = self.name(label);
        let found = self.token.with(|session| {
            let private = find(session, ObjectClass::PRIVATE_KEY, &name)?;
            match (private, find(session, ObjectClass::PUBLIC_KEY, &name)?) {
                (Some(_), Some(public)) => read_public(session, public).map(Some),
                _ => Ok(None),
            }
        });
        match found.map_err(self.failed("look for a key"))? {
            Some(found) => Ok(self.signer(label, found)),
            None => Err(KeyError::Missing { label: label.clone(), place: self.place(label) }),
        }
    }

    fn is_shared(&self) -> bool {
        true
    }

    fn remove(&self, label: &KeyLabel) -> Result<(), KeyError> {
        let name = self.name(label);
        let removed = self.token.with(|session| {
            for class in [ObjectClass::PRIVATE_KEY, ObjectClass::PUBLIC_KEY] {
                while let Some(object) = find(session, class, &name)? {
                    session.destroy_object(object)?;
                }
            }
            Ok(())
        });
        removed.map_err(self.failed("destroy a key"))
    }

    fn labels(&self) -> Result<Vec<KeyLabel>, KeyError> {
        let prefix = format!("{}/", self.prefix);
        let found = self.token.with(|session| {
            let mut labels = Vec::new();
            let ours = [Attribute::Class(ObjectClass::PRIVATE_KEY), Attribute::Token(true)];
            for object in session.find_objects(&ours)? {
                for attribute in session.get_attributes(object, &[AttributeType::Label])? {
                    let Attribute::Label(text) = attribute else { continue };
                    let text = String::from_utf8_lossy(&text).into_owned();
                    labels.extend(text.strip_prefix(&prefix).and_then(|label| label.parse::<KeyLabel>().ok()));
                }
            }
            labels.sort();
            Ok(labels)
        });
        found.map_err(self.failed("list its keys"))
    }
}

/// What a token says of a public key.
struct Found {
    algorithm: KeyAlgorithm,
    point: Vec<u8>,
}

/// A key in the token. The digest is made here, so that a token that knows plain ECDSA alone will do.
struct TokenSigner {
    token: Arc<Token>,
    name: String,
    algorithm: KeyAlgorithm,
    point: Vec<u8>,
}

impl Signer for TokenSigner {
    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        self.algorithm.signature()
    }

    fn public_key(&self) -> &[u8] {
        &self.point
    }

    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, SignError> {
        let algorithm = match self.algorithm {
            KeyAlgorithm::P256 => &digest::SHA256,
            KeyAlgorithm::P384 => &digest::SHA384,
        };
        let digest = digest::digest(algorithm, message);
        let signed = self.token.with(|session| {
            let key = find(session, ObjectClass::PRIVATE_KEY, &self.name)?;
            let key = key.ok_or_else(|| Fault::NoKey { name: self.name.clone() })?;
            Ok(session.sign(&Mechanism::Ecdsa, key, digest.as_ref())?)
        });
        let failed = |source| KeyError::Token {
            doing: "sign",
            token: self.token.label().to_owned(),
            module: self.token.module().to_owned(),
            source: Box::new(source),
        };
        let raw = signed.map_err(|fault| SignError(Box::new(failed(fault))))?;
        der::signature(&raw).ok_or_else(|| SignError(Box::new(failed(Fault::Answer("a signature of an odd length")))))
    }

    fn is_remote(&self) -> bool {
        true
    }
}

fn find(session: &Session, class: ObjectClass, name: &str) -> Result<Option<ObjectHandle>, Fault> {
    let wanted = [Attribute::Class(class), Attribute::Token(true), Attribute::Label(name.into())];
    Ok(session.find_objects(&wanted)?.into_iter().next())
}

fn read_public(session: &Session, object: ObjectHandle) -> Result<Found, Fault> {
    let (mut curve, mut point) = (None, None);
    for attribute in session.get_attributes(object, &[AttributeType::EcParams, AttributeType::EcPoint])? {
        match attribute {
            Attribute::EcParams(found) => curve = Some(found),
            Attribute::EcPoint(found) => point = Some(found),
            _ => {}
        }
    }
    let algorithm =
        curve.as_deref().and_then(der::algorithm).ok_or(Fault::Answer("a key of another kind than P-256 and P-384"))?;
    let point =
        point.as_deref().and_then(|point| der::point(point, algorithm)).ok_or(Fault::Answer("a point that is none"))?;
    Ok(Found { algorithm, point })
}

impl Pkcs11Config {
    /// The path of the module.
    pub fn module(&self) -> &Path {
        &self.module
    }
}
