use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

/// Reads every `CERTIFICATE` block of a PEM text.
pub(crate) fn certificates_from_pem(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>().map_err(|error| error.to_string())
}

/// Writes certificates as `CERTIFICATE` blocks.
pub(crate) fn certificates_to_pem<'a>(certificates: impl IntoIterator<Item = &'a CertificateDer<'static>>) -> String {
    certificates.into_iter().map(|der| pem_block("CERTIFICATE", der)).collect()
}

/// One PEM block, lines of 64 characters.
///
/// **Source**: RFC 7468 §2.
pub fn pem_block(label: &str, der: &[u8]) -> String {
    // Sized beforehand: a key's text must not leave copies of itself behind in a growing buffer.
    let mut out = String::with_capacity(der.len() * 3 / 2 + 2 * label.len() + 64);
    out.push_str(&format!("-----BEGIN {label}-----\n"));
    for line in der.chunks(48) {
        STANDARD.encode_string(line, &mut out);
        out.push('\n');
    }
    out.push_str(&format!("-----END {label}-----\n"));
    out
}
