//! Signing a list.

use std::{sync::Arc, time::SystemTime};

use alcazar_api::{
    ca::v1,
    revocations::{encode_list, to_be_signed},
};
use alcazar_identity::{CertificateDer, RevocationList};

use crate::signer::{SignError, Signer};

/// Has a list signed where a thread may wait for the key.
pub(super) async fn sign(
    list: &RevocationList,
    changed_at: SystemTime,
    signer: Arc<dyn Signer>,
    chain: &[CertificateDer<'static>],
) -> Result<v1::SignedRevocationList, SignError> {
    let list = encode_list(list, changed_at);
    let message = to_be_signed(&list);
    let signed = tokio::task::spawn_blocking(move || signer.sign(&message)).await;
    let signature = signed.map_err(|ending| SignError(Box::new(ending)))??;
    Ok(v1::SignedRevocationList { list, signature, chain: chain.iter().map(|der| der.to_vec()).collect() })
}
