//! What a node signs to prove that it holds a key, here and now.
//!
//! **Shape**: the purpose, a zero byte, the trust domain, a zero byte, the cluster, a zero byte, the nonce, the SHA-256 of the
//! certificate request in DER. The nonce is from `NodeAttestation.Challenge`, over the same connection.

use alcazar_identity::Fingerprint;

/// What a machine signs: that it asks this CA for a certificate for this request's key.
pub fn machine_proof(trust_domain: &str, cluster: &str, nonce: &[u8], csr: &[u8]) -> Vec<u8> {
    proof(b"alcazar-machine-attestation-v1", trust_domain, cluster, nonce, csr)
}

/// What a node signs by the key of a certificate that has ended: that it asks this CA for the next one, for this request's key.
pub fn lineage_proof(trust_domain: &str, cluster: &str, nonce: &[u8], csr: &[u8]) -> Vec<u8> {
    proof(b"alcazar-lineage-attestation-v1", trust_domain, cluster, nonce, csr)
}

fn proof(purpose: &[u8], trust_domain: &str, cluster: &str, nonce: &[u8], csr: &[u8]) -> Vec<u8> {
    let request = Fingerprint::of(csr);
    let parts: [&[u8]; 8] =
        [purpose, b"\0", trust_domain.as_bytes(), b"\0", cluster.as_bytes(), b"\0", nonce, request.as_bytes()];
    parts.concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_signed_for_one_purpose_place_or_request_is_signed_for_no_other() {
        let signed = machine_proof("td", "east", b"nonce", b"csr");
        let digest = Fingerprint::of(b"csr");
        let expected = [b"alcazar-machine-attestation-v1\0td\0east\0nonce".as_slice(), digest.as_bytes()].concat();
        assert_eq!(signed, expected);
        let others = [
            lineage_proof("td", "east", b"nonce", b"csr"),
            machine_proof("td.east", "", b"nonce", b"csr"),
            machine_proof("td", "west", b"nonce", b"csr"),
            machine_proof("td", "east", b"other", b"csr"),
            machine_proof("td", "east", b"nonce", b"another"),
        ];
        assert!(others.iter().all(|other| *other != signed));
    }
}
