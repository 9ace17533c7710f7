//! As much of reading DER as a request needs: one element after another, strictly (X.690 §8, §10).

use super::CsrError;

/// An element.
#[derive(Clone, Copy, Debug)]
pub(super) struct Element<'a> {
    pub(super) tag: u8,
    pub(super) content: &'a [u8],
    /// With tag and length.
    pub(super) whole: &'a [u8],
}

/// What is left to read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(super) fn rest(&self) -> &'a [u8] {
        self.0
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The next element, which must have this tag.
    pub(super) fn expect(&mut self, tag: u8) -> Result<Element<'a>, CsrError> {
        self.element().filter(|element| element.tag == tag).ok_or(CsrError::Malformed)
    }

    /// The next element where it has this tag.
    pub(super) fn optional(&mut self, tag: u8) -> Result<Option<Element<'a>>, CsrError> {
        if self.0.first() == Some(&tag) { self.expect(tag).map(Some) } else { Ok(None) }
    }

    /// The content of the next element, which must have this tag.
    pub(super) fn enter(&mut self, tag: u8) -> Result<Self, CsrError> {
        self.expect(tag).map(|element| Self(element.content))
    }

    /// Nothing may be left.
    pub(super) fn end(&self) -> Result<(), CsrError> {
        if self.is_empty() { Ok(()) } else { Err(CsrError::Malformed) }
    }

    fn element(&mut self) -> Option<Element<'a>> {
        let all = self.0;
        let (&tag, rest) = all.split_first()?;
        // Tags above 30 have more bytes; nothing in a request has one.
        if tag & 0x1f == 0x1f {
            return None;
        }
        let (&first, mut rest) = rest.split_first()?;
        let mut length = usize::from(first);
        if first & 0x80 != 0 {
            let count = usize::from(first & 0x7f);
            let bytes = rest.get(..count).filter(|_| (1..=3).contains(&count))?;
            length = bytes.iter().fold(0, |length, byte| length << 8 | usize::from(*byte));
            // As short as it can be.
            if length < 0x80 || bytes.first() == Some(&0) {
                return None;
            }
            rest = rest.get(count..)?;
        }
        let content = rest.get(..length)?;
        self.0 = rest.get(length..)?;
        Some(Element { tag, content, whole: all.get(..all.len() - self.0.len())? })
    }
}

impl<'a> Element<'a> {
    /// The bytes of a BIT STRING that has whole bytes.
    pub(super) fn bits(self) -> Result<&'a [u8], CsrError> {
        match self.content.split_first() {
            Some((0, bytes)) => Ok(bytes),
            _ => Err(CsrError::Malformed),
        }
    }
}

/// The text form of an object identifier's content: `1.2.840`.
pub(super) fn dotted(content: &[u8]) -> String {
    let mut text = String::new();
    let mut arc = 0u64;
    for byte in content {
        arc = arc.wrapping_shl(7) | u64::from(byte & 0x7f);
        if byte & 0x80 != 0 {
            continue;
        }
        if text.is_empty() {
            let first = (arc / 40).min(2);
            text = format!("{first}.{}", arc - first * 40);
        } else {
            text.push_str(&format!(".{arc}"));
        }
        arc = 0;
    }
    text
}

pub(super) const BOOLEAN: u8 = 0x01;
pub(super) const INTEGER: u8 = 0x02;
pub(super) const BIT_STRING: u8 = 0x03;
pub(super) const OCTET_STRING: u8 = 0x04;
pub(super) const OBJECT_IDENTIFIER: u8 = 0x06;
pub(super) const SEQUENCE: u8 = 0x30;
pub(super) const SET: u8 = 0x31;
pub(super) const CONTEXT_0: u8 = 0xa0;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_read_strictly() {
        let read = |bytes: &[u8]| Reader::new(bytes).expect(OCTET_STRING).map(|element| element.content.len());
        assert_eq!(read(&[4, 1, 9]), Ok(1));
        assert_eq!(read(&[4, 0]), Ok(0));
        let mut long = vec![4, 0x81, 0x80];
        long.resize(3 + 0x80, 0);
        assert_eq!(read(&long), Ok(0x80));
        for bad in [
            &[][..],
            &[4],
            &[4, 2, 1],
            // Indefinite, too long, longer than needed.
            &[4, 0x80, 0, 0],
            &[4, 0x81, 1, 0],
            &[4, 0x82, 0, 1, 0],
            &[4, 0x84, 0, 0, 0, 1, 0],
            // Another tag, and one of many bytes.
            &[5, 0],
            &[0x1f, 4, 0],
        ] {
            assert_eq!(read(bad), Err(CsrError::Malformed), "{bad:?}");
        }
    }

    #[test]
    fn object_identifiers_are_shown_as_people_write_them() {
        assert_eq!(dotted(&[0x2a, 0x86, 0x48, 0xce, 0x3d, 2, 1]), "1.2.840.10045.2.1");
        assert_eq!(dotted(&[0x2b, 0x81, 0x04, 0x00, 0x23]), "1.3.132.0.35");
    }
}
