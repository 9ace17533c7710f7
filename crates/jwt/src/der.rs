//! The little DER that keys and ECDSA signatures need: definite lengths, and nothing that is not minimal.

pub(crate) const INTEGER: u8 = 0x02;
pub(crate) const BIT_STRING: u8 = 0x03;
pub(crate) const SEQUENCE: u8 = 0x30;

/// Takes one element of this tag from the front; its contents and what follows.
pub(crate) fn take(tag: u8, bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (first, rest) = bytes.split_first()?;
    let (length, rest) = rest.split_first()?;
    let (length, rest) = match *length {
        short @ 0..=0x7f => (usize::from(short), rest),
        0x81 => rest.split_first().map(|(length, rest)| (usize::from(*length), rest)).filter(|(l, _)| *l >= 0x80)?,
        0x82 => {
            let (length, rest) = rest.split_first_chunk::<2>()?;
            (usize::from(u16::from_be_bytes(*length)), rest)
        }
        _ => return None,
    };
    if *first != tag || (length < 0x100 && bytes.get(1) == Some(&0x82)) {
        return None;
    }
    rest.split_at_checked(length)
}

/// Takes a positive integer from the front: its bytes without leading zeros, and what follows.
pub(crate) fn take_positive(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (contents, rest) = take(INTEGER, bytes)?;
    let magnitude = match contents {
        [0, next, ..] if *next >= 0x80 => contents.get(1..)?,
        [first, ..] if *first > 0 && *first < 0x80 => contents,
        _ => return None,
    };
    Some((magnitude, rest))
}

/// An element; its contents are at most 65,535 bytes, which the sizes of keys guarantee.
pub(crate) fn element(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    let [.., high, low] = length.to_be_bytes();
    let mut out = Vec::with_capacity(length + 4);
    out.push(tag);
    match length {
        0..=0x7f => out.push(low),
        0x80..=0xff => out.extend([0x81, low]),
        _ => out.extend([0x82, high, low]),
    }
    parts.iter().for_each(|part| out.extend_from_slice(part));
    out
}

/// A positive integer of these bytes, which have no leading zeros.
pub(crate) fn positive(magnitude: &[u8]) -> Vec<u8> {
    let sign: &[u8] = if magnitude.first().is_some_and(|first| *first >= 0x80) { &[0] } else { &[] };
    element(INTEGER, &[sign, magnitude])
}
